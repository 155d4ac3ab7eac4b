# envcrypt
#
#   make, make install      the extension, for any PG_CONFIG=...
#   make demo               installs what is missing and shows the main job    [KMS=vault|aws|gcp|azure|local]
#   make test               installs what is missing and runs every test       [ONLY=SUITE[:TEST]]
#   make bench              measures against plaintext and pgcrypto            [ONLY=decrypt|search|aead|load|rewrap]
#   make clean
#
# ONLY is one of check, unit, vectors, fuzz, regress, valgrind, isolation, tap, demo; a test is named as its file is: regress:type.

MODULE_big = envcrypt
EXTENSION = envcrypt
DATA = $(wildcard sql/*.sql)
OBJS = $(patsubst %.cpp,%.o,$(sort $(wildcard src/*/*.cpp)))

ifneq ($(filter demo test bench,$(MAKECMDGOALS)),)

# These install what is missing, PGXS included, before they build.
demo test bench:
	@test/$(if $(filter test,$@),run,$(if $(filter bench,$@),bench/run,$@))
.PHONY: demo test bench

else

PG_CONFIG ?= pg_config
SHLIB_LINK = -Wl,--version-script=src/pg/exports.map -lsodium -lcurl -lssl -lcrypto -lstdc++
# JIT inlining of these functions would gain nothing
override with_llvm = no
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

WARNINGS = -Wall -Wextra $(if $(CI)$(WERROR),-Werror)
# Own rules: PostgreSQL's headers as system headers, since C++20 with -Wextra does not pass them, and headers tracked.
override CXXFLAGS = -std=c++20 -O2 -g -fPIC -fvisibility=hidden -fvisibility-inlines-hidden $(WARNINGS) $(CXXFLAGS_ADD)
# what was built for one PostgreSQL is built again for another
BUILT_FOR = build/built-for
$(shell mkdir -p build; echo $(includedir_server) | cmp -s - $(BUILT_FOR) || echo $(includedir_server) >$(BUILT_FOR))
$(OBJS): $(BUILT_FOR)
%.o: %.cpp
	$(CXX) $(CXXFLAGS) -MMD -MP -Isrc -isystem $(includedir_server) -c $< -o $@
-include $(OBJS:.o=.d)
override COMPILER = $(CXX) $(CXXFLAGS)

clean: clean-dependencies
clean-dependencies:
	rm -f $(OBJS:.o=.d)
	rm -rf build
.PHONY: clean-dependencies

endif
