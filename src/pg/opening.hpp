// From the rows of keys to open keys: as the current role's identity, at the first of a key's
// places that answers, by group keys, and through an outage from what is still in memory. Whether a
// key may be used at all is resolve.cpp's business. PostgreSQL frames; they may wait.
#pragma once

#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

// Opens those of the keys (of KeyRow *) that are not open, all at once. Raises where one cannot be;
// others may be open then. `soft`: where it is only not available now (denied, unreachable,
// throttled, misconfigured), false instead.
bool open_keys(List *keys, bool soft = false);
// The same for one key; null only where `soft`.
keyring::OpenKey *open_key(const KeyRow &key, bool soft = false);
// The key where it is open for the current role, else null.
keyring::OpenKey *find_open_key(const KeyRow &key);

// Unwraps what these rows (of WrappedKeyRow *) hold of these keys (of KeyRow *, one for each),
// there and nowhere else, and checks each against its commitment, whether it is open or not. Raises
// where one fails.
void verify_wrapped_keys(const Place &place, List *keys, List *rows);

[[noreturn]] void raise_destroyed(const KeyRow &key);
// The group key that wraps it is not the one that the tenant's row names.
[[noreturn]] void raise_foreign_group(const KeyRow &key, const WrappedKeyRow &row);
// Servers or mappings were altered again and again while keys were being opened.
[[noreturn]] void raise_altered();

}  // namespace envcrypt::pg
