// The rows of the key tables (tenant, data_key, wrapped_key): the only file that reads and writes
// them, as table.hpp says. PostgreSQL frames; results lie in the current memory context.
#pragma once

#include <cstdint>
#include <initializer_list>

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
    char *group_key;      // "" where it is in no group
    char *search_tenant;  // whose search key is used; "" is its own
};

struct KeyRow {
    std::uint64_t key_id;
    char *tenant;
    crypto::Purpose purpose;
    int version;
    KeyState state;
    crypto::Digest commitment;
    TimestampTz created_at;  // 0: now
    bool own;                // written by the transaction under way
};

// Of a tenant's data keys; far more than anybody makes.
inline constexpr int kMaxVersion = 1000000;
// What a token has room for.
inline constexpr int kMaxSearchVersion = 63;
// Whether a key for that purpose can have that version.
inline bool is_version(crypto::Purpose purpose, std::int64_t version) {
    const int most = purpose == crypto::Purpose::data     ? kMaxVersion
                     : purpose == crypto::Purpose::search ? kMaxSearchVersion
                                                          : 1;
    return version >= 1 && version <= most;
}

// May be used: whether it encrypts or only decrypts.
inline bool is_live(const KeyRow &row) {
    return row.state == KeyState::active || row.state == KeyState::decrypt_only;
}

// A key at one place: wrapped by a server's master key or, where `server` is "", by a group key.
struct WrappedKeyRow {
    std::uint64_t key_id;
    char *server;
    char *group_key;
    ByteView wrapped;
    char *master_key;
    char *master_key_version;
    ByteView attestation;
    bool own_master_key;     // the tenant's, rather than the one that the server's options name
    TimestampTz created_at;  // at that place
    TimestampTz wrapped_at;  // these bytes
};

struct KeyIds {
    std::uint64_t *ids;
    int count;
    void add(std::uint64_t id, int &room);
};

// [A-Za-z0-9._:@/+=-]{1,128}
bool is_tenant_name(const char *name);
inline constexpr std::size_t kMaxTenantName = 128;

bool find_tenant(const char *name, TenantRow &row);
// Whose new keys are wrapped there; of TenantRow *.
List *find_tenants_at(const char *server);
bool find_key(std::uint64_t key_id, KeyRow &row);
// The newest key of the tenant for that purpose that `usable` accepts.
bool find_newest_key(const char *tenant, crypto::Purpose purpose, bool (*usable)(const KeyRow &row),
                     KeyRow &row);
// The tenant's keys for that purpose which are active or may still decrypt; of KeyRow *.
List *find_keys(const char *tenant, crypto::Purpose purpose);
// All of the tenant's data and search keys, whatever their state; of KeyRow *.
List *find_all_keys(const char *tenant);
// The name of another tenant that uses this one's search key; null where there is none.
char *find_search_user(const char *tenant);
// In the order in which the places were added; of WrappedKeyRow *.
List *find_wrapped_keys(std::uint64_t key_id);
// At that server; null where it is not wrapped there.
WrappedKeyRow *find_wrapped_key(std::uint64_t key_id, const char *server);
KeyIds find_keys_wrapped_by(const char *server);
KeyIds find_live_keys();
bool any_wrapped_key(const char *server);  // null: at all

// Each of these raises where the row is there already, and makes the commit synchronous.
void insert_tenant(const TenantRow &row);
void insert_key(const KeyRow &row);
void insert_wrapped_key(const WrappedKeyRow &row);
void set_key_state(std::uint64_t key_id, KeyState state);
void set_tenant_state(const char *name, TenantState state);
// Where the tenant's new keys are wrapped.
void set_tenant_place(const char *name, const char *server, const char *master_key,
                      const char *group_key);
// What there is at the same place gives way to this.
void replace_wrapped_key(const WrappedKeyRow &row);
void delete_wrapped_keys(std::uint64_t key_id);  // all copies of it
void delete_wrapped_key(std::uint64_t key_id, const char *server, const char *group_key);
// How many wrapped keys name the server by its new name now.
int rename_server_rows(const char *from, const char *to);

// Until the end of the transaction, nobody else changes the keys of the tenant (or group). Whoever
// needs both locks takes this one first, and those of many in the order below.
void lock_tenant(const char *name);
// The same of several, in that order; "" is none.
void lock_tenants(std::initializer_list<const char *> names);
// The same of the tenant's row alone: what disables a tenant waits for no KMS.
void lock_tenant_row(const char *name);
int compare_tenant_locks(const char *a, const char *b);
// Whose newest data key was made before then; of char *.
List *find_tenants_older_than(TimestampTz made_before);

}  // namespace envcrypt::pg
