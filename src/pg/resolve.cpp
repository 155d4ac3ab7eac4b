// See resolve.hpp.
#include "pg/resolve.hpp"

#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/opening.hpp"

namespace envcrypt::pg {

namespace {

TenantState state_of_tenant(const char *name) {
    TenantRow tenant;
    if (!find_tenant(name, tenant))
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("tenant \"%s\" of a key does not exist", name),
                        errhint("Restore the rows of envcrypt.tenant from a backup.")));
    if (tenant.state != TenantState::active) {
        // what is out of use is not kept for later
        ErrorReport report;
        Backend &state = backend();
        if (!guarded(report, [&] { state.cache.drop_tenant(name); })) raise(report);
    }
    return tenant.state;
}

}  // namespace

void require_active_tenant(const char *name) {
    const TenantState state = state_of_tenant(name);
    if (state != TenantState::active)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("tenant \"%s\" is %s", name,
                               state == TenantState::disabled ? "disabled" : "destroyed"),
                        state == TenantState::disabled
                            ? errhint("Who may manage keys can enable it: SELECT "
                                      "envcrypt.enable_tenant('%s');",
                                      name)
                            : errhint("Its keys are gone; a destroyed tenant never comes back.")));
}

namespace {

using keyring::OpenKey;

// Forgets what was found out in an older epoch. A C++ frame.
void follow(Backend &state) {
    if (state.resolved_epoch == epoch) return;
    state.for_opening.clear();
    state.for_sealing.clear();
    state.for_searching.clear();
    state.unavailable.clear();
    state.resolved_epoch = epoch;
}

template <class Map, class Ref>
OpenKey *find_resolved(Map &map, const Ref &ref) {
    const auto found = map.find(ref);
    if (found == map.end() || found->second.key->serial != found->second.serial) return nullptr;
    return found->second.key;
}

// A key of this very transaction may be used where nothing but the whole transaction can take it
// back, and its tenant with it; and one that it superseded still may, since the newer one is not
// committed.
bool may_seal_with(const KeyRow &row) {
    bool superseded = false;
    const UncommittedKey *made = nullptr;
    for (const UncommittedKey &key : backend().uncommitted) {
        if (key.key_id != row.key_id) continue;
        if (key.superseded)
            superseded = true;
        else
            made = &key;
    }
    if (row.state != KeyState::active && !(row.state == KeyState::decrypt_only && superseded))
        return false;
    if (made != nullptr) return made->first_of_tenant && made->nest_level == 1;
    // one that this transaction wrote by other means; or a parallel worker, which does not know how
    // its leader made it
    return !row.own || superseded;
}

bool is_uncommitted(const char *tenant, crypto::Purpose purpose) {
    KeyRow row;
    return find_newest_key(
               tenant, purpose, [](const KeyRow &key) { return key.state == KeyState::active; },
               row) &&
           !may_seal_with(row);
}

// The key of that id, where it and its tenant may be used; without a tenant where they may not, and
// `soft`.
KeyRow usable_key(std::uint64_t key_id, bool soft) {
    KeyRow key;
    if (!find_key(key_id, key))
        ereport(ERROR,
                (errcode(ERRCODE_UNDEFINED_OBJECT),
                 errmsg("key %016llx does not exist", static_cast<unsigned long long>(key_id)),
                 errdetail("No row of envcrypt.data_key has the key id that the value names."),
                 errhint("The value comes from another database, or the key tables were not "
                         "restored with it.")));
    if (key.purpose != crypto::Purpose::data)
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION),
                 errmsg("key %016llx is not a data key", static_cast<unsigned long long>(key_id))));
    if (soft && (!is_live(key) || state_of_tenant(key.tenant) != TenantState::active)) return {};
    if (key.state == KeyState::destroyed) raise_destroyed(key);
    if (!is_live(key))
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("key %016llx of tenant \"%s\" is not active yet",
                               static_cast<unsigned long long>(key_id), key.tenant)));
    require_active_tenant(key.tenant);
    return key;
}

// Whether nothing has changed since. What changes again and again has been looked at often enough.
bool is_settled(std::uint64_t seen, int attempt) {
    constexpr int attempts = 5;
    AcceptInvalidationMessages();
    return epoch == seen || attempt == attempts;
}

// The newest key that may seal what outlives this transaction.
KeyRow newest_key(const char *tenant, crypto::Purpose purpose) {
    KeyRow key;
    if (!find_newest_key(tenant, purpose, may_seal_with, key)) {
        if (is_uncommitted(tenant, purpose))
            ereport(
                ERROR,
                (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                 errmsg("the key of tenant \"%s\" is not committed yet", tenant),
                 errdetail("It was made or imported in this transaction, or in a subtransaction "
                           "that is still open: what it encrypts could outlive it."),
                 errhint("Commit, or release the savepoint, or leave the block with the exception "
                         "handler, before encrypting.")));
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("tenant \"%s\" has no active %s", tenant,
                               purpose == crypto::Purpose::search ? "search key" : "key")));
    }
    return key;
}

}  // namespace

OpenKey *resolve_for_opening(std::uint64_t key_id, bool soft) {
    Backend &state = backend();
    const Oid role = GetUserId();
    const std::pair<Oid, std::uint64_t> ref{role, key_id};
    ErrorReport report;
    OpenKey *open = nullptr;
    if (!guarded(report, [&] {
            follow(state);
            open = find_resolved(state.for_opening, ref);
        }))
        raise(report);
    if (open != nullptr) return open;
    // a report over many rows asks once for each key
    constexpr kms::Clock pause{5000};
    if (soft) {
        const auto refused = state.unavailable.find(ref);
        if (refused != state.unavailable.end() && now() < refused->second) return nullptr;
    }

    for (int attempt = 1;; ++attempt) {
        const std::uint64_t seen = epoch;
        const KeyRow key = usable_key(key_id, soft);
        open = key.tenant == nullptr ? nullptr : open_key(key, soft);
        if (open == nullptr) {
            if (!guarded(report, [&] { state.unavailable.insert_or_assign(ref, now() + pause); }))
                raise(report);
            return nullptr;
        }
        // what was changed while the KMS was waited for counts
        if (is_settled(seen, attempt)) break;
    }
    if (!guarded(report, [&] {
            if (state.resolved_epoch == epoch)
                state.for_opening.insert_or_assign(ref, Backend::Resolved{open, open->serial});
        }))
        raise(report);
    return open;
}

void raise_no_tenant() {
    ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("no tenant is set"),
                    errhint("SELECT set_config('envcrypt.tenant', 'NAME', true); or name it: "
                            "envcrypt.encrypt(value, tenant => 'NAME').")));
    pg_unreachable();
}

void raise_unknown_tenant(const char *tenant) {
    ereport(ERROR,
            (errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("tenant \"%s\" does not exist", tenant),
             errhint("Who may manage keys makes it: SELECT envcrypt.create_tenant('%s', 'SERVER'); "
                     "envcrypt.tenants lists those that do exist.",
                     tenant)));
    pg_unreachable();
}

void require_tenant_name(const char *name) {
    if (!is_tenant_name(name))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_NAME), errmsg("invalid tenant name"),
                 errdetail("A tenant's name has 1 to 128 of the letters A-Z a-z 0-9 . _ : @ "
                           "/ + = -."),
                 errhint("The name appears in the KMS's log: let it hold no personal data.")));
}

char *tenant_argument(FunctionCallInfo fcinfo, int argument) {
    char *name = text_argument(fcinfo, argument, "tenant");
    require_tenant_name(name);
    return name;
}

TenantRow require_tenant(const char *tenant, bool from_setting) {
    if (tenant[0] == '\0') raise_no_tenant();
    require_tenant_name(tenant);
    TenantRow row;
    if (!find_tenant(tenant, row)) {
        if (from_setting)
            ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                            errmsg("tenant \"%s\" does not exist", tenant),
                            errdetail("It is the setting envcrypt.tenant that names it."),
                            errhint("SELECT set_config('envcrypt.tenant', 'NAME', true); or, once: "
                                    "SELECT envcrypt.create_tenant('%s', 'SERVER');",
                                    tenant)));
        raise_unknown_tenant(tenant);
    }
    require_active_tenant(tenant);
    return row;
}

void require_search_tenant(const TenantRow &tenant) {
    const TenantRow searched = require_tenant(tenant.search_tenant, false);
    if (searched.search_tenant[0] != '\0')
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("tenant \"%s\" has no search key of its own", searched.name),
                        errhint("Name the tenant whose search key it uses: \"%s\".",
                                searched.search_tenant)));
}

OpenKey &resolve_for_sealing(const char *tenant, bool tenant_from_setting) {
    Backend &state = backend();
    const Oid role = GetUserId();
    ErrorReport report;
    OpenKey *open = nullptr;
    if (!guarded(report, [&] {
            follow(state);
            open = find_resolved(state.for_sealing, std::pair<Oid, std::string>{role, tenant});
        }))
        raise(report);
    if (open != nullptr) return *open;

    for (int attempt = 1;; ++attempt) {
        const std::uint64_t seen = epoch;
        require_tenant(tenant, tenant_from_setting);
        open = open_key(newest_key(tenant, crypto::Purpose::data));
        if (is_settled(seen, attempt)) break;
    }
    if (!guarded(report, [&] {
            if (state.resolved_epoch == epoch)
                state.for_sealing.insert_or_assign(std::pair<Oid, std::string>{role, tenant},
                                                   Backend::Resolved{open, open->serial});
        }))
        raise(report);
    return *open;
}

OpenKey &resolve_search_key(const char *tenant, bool tenant_from_setting, int *version) {
    for (int attempt = 1;; ++attempt) {
        const std::uint64_t seen = epoch;
        const TenantRow row = require_tenant(tenant, tenant_from_setting);
        const char *searched = row.search_tenant[0] == '\0' ? tenant : row.search_tenant;
        if (row.search_tenant[0] != '\0') require_active_tenant(searched);
        KeyRow key = newest_key(searched, crypto::Purpose::search);
        // one round trip for what is going to be needed next
        KeyRow data = newest_key(tenant, crypto::Purpose::data);
        (void)open_keys(list_make2(&key, &data));
        OpenKey *open = open_key(key);
        *version = key.version;
        if (is_settled(seen, attempt)) return *open;
    }
}

ResolvedSearch find_open_search_keys(const char *tenant) {
    Backend &state = backend();
    ResolvedSearch keys;
    ErrorReport report;
    if (!guarded(report, [&] {
            follow(state);
            const auto found =
                state.for_searching.find(std::pair<Oid, std::string>{GetUserId(), tenant});
            if (found != state.for_searching.end() && found->second.is_open()) keys = found->second;
        }))
        raise(report);
    return keys;
}

void keep_search_keys(const char *tenant, const ResolvedSearch &keys, std::uint64_t seen) {
    Backend &state = backend();
    ErrorReport report;
    if (!guarded(report, [&] {
            if (state.resolved_epoch == seen && epoch == seen)
                state.for_searching.insert_or_assign(
                    std::pair<Oid, std::string>{GetUserId(), tenant}, keys);
        }))
        raise(report);
}

List *find_search_keys(const char *tenant, bool tenant_from_setting) {
    const TenantRow row = require_tenant(tenant, tenant_from_setting);
    const char *searched = row.search_tenant[0] == '\0' ? tenant : row.search_tenant;
    if (row.search_tenant[0] != '\0') require_active_tenant(searched);
    List *keys = find_keys(searched, crypto::Purpose::search);
    if (keys == NIL)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("tenant \"%s\" has no search key", searched)));
    return keys;
}

}  // namespace envcrypt::pg
