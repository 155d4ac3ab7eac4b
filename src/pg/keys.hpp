// The key tables (tenant, data_key, wrapped_key) and the journal: the only file that reads and
// writes their rows. Reads see what others committed meanwhile, whatever the transaction's
// isolation, and work for any role, in parallel workers and on standbys. PostgreSQL frames; results
// lie in the current memory context.
#pragma once

#include <cstdint>

#include "crypto/keys.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

enum class TenantState { active, disabled, destroyed };
enum class KeyState { pending, active, decrypt_only, destroyed };

struct TenantRow {
    char *name;
    TenantState state;
    char *server;
    char *master_key;     // "" where the tenant has none of its own
    char *search_tenant;  // whose search key is used; "" is its own
};

struct KeyRow {
    std::uint64_t key_id;
    char *tenant;
    crypto::Purpose purpose;
    int version;
    KeyState state;
    crypto::Digest commitment;
    bool own;  // written by the transaction under way
};

struct WrappedKeyRow {
    std::uint64_t key_id;
    char *server;
    ByteView wrapped;
    char *master_key;
    char *master_key_version;
    ByteView attestation;
};

// [A-Za-z0-9._:@/+=-]{1,128}
bool is_tenant_name(const char *name);
inline constexpr std::size_t kMaxTenantName = 128;

bool find_tenant(const char *name, TenantRow &row);
bool find_key(std::uint64_t key_id, KeyRow &row);
// The newest key of the tenant for that purpose that `usable` accepts.
bool find_newest_key(const char *tenant, crypto::Purpose purpose, bool (*usable)(const KeyRow &row),
                     KeyRow &row);
// The tenant's keys for that purpose which are active or may still decrypt; of KeyRow *.
List *find_keys(const char *tenant, crypto::Purpose purpose);
// All of the tenant's keys, whatever their purpose and state; of KeyRow *.
List *find_all_keys(const char *tenant);
// The name of another tenant that uses this one's search key; null where there is none.
char *find_search_user(const char *tenant);
// In the order of their making; of WrappedKeyRow *.
List *find_wrapped_keys(std::uint64_t key_id);
bool any_wrapped_key(const char *server);  // null: at all

// Each of these raises where the row is there already, and makes the commit synchronous.
void insert_tenant(const TenantRow &row);
void insert_key(const KeyRow &row);
void insert_wrapped_key(const WrappedKeyRow &row);
void set_key_state(std::uint64_t key_id, KeyState state);
void set_tenant_state(const char *name, TenantState state);
void delete_wrapped_keys(std::uint64_t key_id);  // all copies of it

// Until the end of the transaction, nobody else changes the tenant's keys.
void lock_tenant(const char *name);
// Whose newest data key was made before then; of char *.
List *find_tenants_older_than(TimestampTz made_before);
// What was done: `details` is a JSON object.
void insert_journal(const char *act, const char *tenant, const char *details);

}  // namespace envcrypt::pg
