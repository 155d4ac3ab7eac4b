// Text between the server's encoding and UTF-8, without a word of it in errors.
#pragma once

#include "pg/pg.hpp"

namespace envcrypt::pg {

// Raises where a character has no equivalent, naming `what` and repeating nothing. The result ends
// with a zero byte.
text *convert(ByteView bytes, int from, int to, const char *what);
// Text as it is stored and authenticated: UTF-8, whatever the server encoding.
ByteView to_utf8(ByteView text, const char *what);
// Raises where the bytes are not UTF-8: what was decrypted and is not was never written by
// encrypt().
void require_utf8(ByteView bytes);
// Whether UTF-8 is what the server keeps text in.
bool server_keeps_utf8();
// Text that was stored as UTF-8, in the server encoding.
text *from_utf8(ByteView bytes);

}  // namespace envcrypt::pg
