// How keys come to be: made by the KMS or by the kernel, persisted, read back, unwrapped and
// checked, and only then active. PostgreSQL frames.
#pragma once

#include <string>

#include "pg/journal.hpp"
#include "pg/keys.hpp"
#include "pg/servers.hpp"
#include "pg/wrapping.hpp"

namespace envcrypt::pg {

std::uint64_t random_key_id();

// What a KMS said, which is UTF-8, in the server's encoding.
char *kms_text(const std::string &said);

// The server as the current role may use it; raises where it may not.
Place place_of(const char *server);

// The same, and nobody drops or renames it before this transaction ends.
Place lock_place(const char *server);

// Of a key that this transaction makes or takes over: nothing that it encrypts may outlive it,
// unless it is the first of its tenant.
void note_uncommitted(const KeyRow &key, bool first_of_tenant);
// Has the key decrypt only, but for this transaction, until it is committed.
void supersede_key(std::uint64_t key_id);

// Makes these keys, all at once, and wraps them at all the places (of Destination *); `keys` name
// id, tenant, purpose, version. What the first key of a tenant encrypts in this transaction is lost
// with the tenant only, so it may be used before it is committed. Raises what the KMSs say: the
// caller's transaction then takes all back.
void make_keys(List *places, KeyRow *keys, int count, bool first_of_tenant, Journal &journal);

}  // namespace envcrypt::pg
