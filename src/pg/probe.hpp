// The type `probe`: a search token that is looked for, and never stored beside a ciphertext; and
// the order that indexes keep values in. Pure functions of bytes: no key, no error, whatever the
// bytes.
#pragma once

#include "value/value.hpp"

#include "pg/pg.hpp"

namespace envcrypt::pg {

// Mode and version in one byte, as a value has them, then the token.
inline constexpr std::size_t kProbeSize = 1 + crypto::kTokenSize;

Datum make_probe(const value::Token &token);

// Reads the text form into kProbeSize + 3 bytes; false where it is none.
bool read_probe(std::string_view text, std::uint8_t *probe);

}  // namespace envcrypt::pg
