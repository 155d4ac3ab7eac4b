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
// says. `soft`: null where it is only not available (out of use, denied, unreachable, throttled,
// misconfigured).
keyring::OpenKey *resolve_for_opening(std::uint64_t key_id, bool soft = false);
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

// Raises unless it is there and active, or the name is none; in words that fit where it came from.
TenantRow require_tenant(const char *tenant, bool from_setting);
[[noreturn]] void raise_no_tenant();
[[noreturn]] void raise_unknown_tenant(const char *tenant);
// Raises unless it may be a tenant's.
void require_tenant_name(const char *name);
// An argument that names a tenant which is to be there.
char *tenant_argument(FunctionCallInfo fcinfo, int argument);
// Raises unless the tenant whose search key it is to use is active and has one of its own.
void require_search_tenant(const TenantRow &tenant);
// Raises unless it is there and active.
void require_active_tenant(const char *name);
}  // namespace envcrypt::pg
