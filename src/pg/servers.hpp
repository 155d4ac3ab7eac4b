// From foreign servers and user mappings to what a KMS operation needs. PostgreSQL frames.
#pragma once

#include "keyring/operation.hpp"
#include "kms/dialect.hpp"
#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

// A server under the mapping of one role, found usable by it. Allocated in the current memory
// context.
struct Place {
    Oid server;
    char *server_name;
    List *server_options;  // of DefElem
    const kms::Dialect *dialect;
    List *identity_options;  // of DefElem; NIL where the session brought an identity
    std::uint32_t brought;   // that identity's serial; 0 is none
    keyring::IdentityId identity;
};

enum class PlaceFault { none, no_server, other_wrapper, no_usage, no_mapping };

// Looks a server up and checks that `role` may use it: USAGE, and a user mapping of its own or
// PUBLIC's. `is_store`: for a secret that another server's mapping refers to.
PlaceFault find_place(const char *server, Oid role, Place &place, bool is_store = false);
// Raises what a fault means, with its remedy.
[[noreturn]] void raise_place_fault(PlaceFault fault, const char *server, Oid role);

// Makes `backend().operation` for a key whose context is C(purpose, key id, tenant). `master_key`,
// where not null or empty, stands for the server's own option. Raises where an option is missing.
void prepare_operation(const Place &place, const char *master_key, crypto::Purpose purpose,
                       std::uint64_t key_id, const char *tenant);

// The same for a key that is bound to nothing, in the article's format.
void prepare_unbound_operation(const Place &place);
// What a KMS makes of a key of 32 bytes is shorter than this.
inline constexpr std::size_t kMaxWrapped = 8192;
// The same for many keys at once, whose contexts the caller adds: one more of `backend().batch`.
// Null where it cannot be, as the report says.
keyring::Operation *prepare_in_batch(const Place &place, const char *master_key,
                                     ErrorReport &report);

}  // namespace envcrypt::pg
