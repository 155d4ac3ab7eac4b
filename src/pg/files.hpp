// Reads the small files that options name. C++ frames: nothing of PostgreSQL is called.
#pragma once

#include "kms/task.hpp"

namespace envcrypt::pg {

// As FileRequest says. denied: missing, unreadable, or open to others where it must not be;
// misconfigured: not a regular file, empty, too long. The message names the path, never what is in
// the file.
Result<SecretBytes> read_file(const kms::FileRequest &file);

}  // namespace envcrypt::pg
