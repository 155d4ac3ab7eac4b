// What a column declares, encrypted(TYPE [, SEARCH] [, LABEL]), as words and as the number that
// PostgreSQL keeps for it; and the canonical bytes that a search token is made of. Knows no
// catalog.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "value/value.hpp"

namespace envcrypt::value {

struct Declaration {
    Type type = Type::text;
    SearchMode search = SearchMode::none;
    Label label = 0;
    bool operator==(const Declaration &) const = default;
};

// type (5 bits) | search mode (2) | label (24). Never negative.
std::int32_t to_typmod(const Declaration &declaration);
// Nothing where no declaration has that number.
std::optional<Declaration> from_typmod(std::int32_t typmod);

// Reads the words of a declaration, the type first, then what there is of search and label. Types
// go by their SQL names as well (integer, bigint, ...). misconfigured, saying which word is wrong
// and what may stand there.
Result<Declaration> read_declaration(std::span<const std::string_view> words);
// "text, searchable, ssn": what `quote` returns stands for a label or type that SQL would not read
// as a name.
std::string declaration_text(const Declaration &declaration,
                             std::string (*quote)(std::string_view word));

// The words of a search mode: searchable, searchable_nocase, searchable_digits; "" for none.
const char *search_word(SearchMode mode);
std::optional<SearchMode> find_search_word(std::string_view word);

// What a token is made of: the plaintext, but text is folded (A-Z to a-z) for nocase, stripped to
// the digits 0-9 for digits, and a numeric has neither display scale nor trailing zeros, so that
// values that SQL calls equal give the same bytes. Lies in `plaintext` or in `buffer`, which is
// ordinary memory and the caller's to wipe. Nothing where a numeric is malformed.
std::optional<ByteView> canonical(Type type, SearchMode mode, ByteView plaintext, Bytes &buffer);

}  // namespace envcrypt::value
