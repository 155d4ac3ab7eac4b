// From a key id or a tenant to an open key that the current role may use: by what was found out
// before in this epoch, by the cache, or by the KMS (and then it waits). PostgreSQL frames.
#pragma once

#include <cstdint>

#include "keyring/cache.hpp"
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/pg.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

// The key that a value names. Raises: no such key, tenant or key out of use, no right, what the KMS
// says.
keyring::OpenKey &resolve_for_opening(std::uint64_t key_id);
// The newest committed key of the tenant. `tenant_from_setting`: for the words of the error where
// there is none.
keyring::OpenKey &resolve_for_sealing(const char *tenant, bool tenant_from_setting);

// The newest committed search key of the tenant, or of the tenant whose search key it uses; the
// tenant's data key is opened with it.
keyring::OpenKey &resolve_search_key(const char *tenant, bool tenant_from_setting, int *version);
// All of them that values may bear tokens of; of KeyRow *.
List *find_search_keys(const char *tenant, bool tenant_from_setting);

// The same where they were opened in this epoch and still are; keys.count is 0 otherwise.
ResolvedSearch find_open_search_keys(const char *tenant);
void keep_search_keys(const char *tenant, const ResolvedSearch &keys, std::uint64_t seen);

// Opens a key as the current role's identity at the first place that the role may use.
keyring::OpenKey &open_key(const KeyRow &key);

// Many at once: begin, say which are wanted, and open those that are not open. Raises where one
// cannot be; others may be open then.
void begin_wanting();
void want_key(const KeyRow &key);
void open_wanted();

// The first wrapping of the key at a place that the current role may use. Raises where there is
// none.
WrappedKeyRow *find_usable_place(const KeyRow &key, Place &place);
// Raises unless it is there and active, or the name is none; in words that fit where it came from.
TenantRow require_tenant(const char *tenant, bool from_setting);
[[noreturn]] void raise_no_tenant();
[[noreturn]] void raise_unknown_tenant(const char *tenant);
// Raises unless it is there and active.
void require_active_tenant(const char *name);
// Says once, or raises under require_mlock, that keys lie in memory that could not be locked.
void check_locked_memory();

}  // namespace envcrypt::pg
