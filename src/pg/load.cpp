// load_keys(): many tenants' keys opened at once, with as many calls to the KMSs under way as
// envcrypt.kms_concurrency allows.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/resolve.hpp"
#include "pg/rights.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

namespace {

// Adds the key to what is to be opened. True unless it is open already.
bool add_key(const KeyRow &key) {
    Backend &state = backend();
    Place place;
    const WrappedKeyRow *row = find_usable_place(key, place);
    const keyring::KeyRef ref{place.identity, key.key_id};
    ErrorReport report;
    bool is_open = false;
    keyring::Operation *operation = nullptr;
    if (!guarded(report, [&] {
            is_open = state.cache.find(ref) != nullptr;
            const auto found =
                state.batch_filling.find(std::pair(place.identity, std::string(row->master_key)));
            if (found != state.batch_filling.end() &&
                found->second->keys.size() < place.dialect->max_batch())
                operation = found->second;
        }))
        raise(report);
    if (is_open) return false;
    const bool begins = operation == nullptr;
    if (begins) operation = &prepare_in_batch(place, row->master_key);
    if (!guarded(report, [&] {
            if (begins)
                state.batch_filling.insert_or_assign(
                    std::pair(place.identity, std::string(row->master_key)), operation);
            keyring::KeyToOpen &wanted = operation->keys.emplace_back();
            wanted.key_id = key.key_id;
            wanted.tenant = key.tenant;
            wanted.context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
            wanted.wrapped.assign(row->wrapped.begin(), row->wrapped.end());
            wanted.attestation.assign(row->attestation.begin(), row->attestation.end());
            wanted.commitment = key.commitment;
        }))
        raise(report);
    return true;
}

// Takes what has been opened into the cache. A C++ frame.
void keep_opened(Backend &state, bool was_denied) {
    std::optional<keyring::IdentityId> denied;
    for (const Run &run : state.runs)
        if (was_denied && run.finished && !run.succeeded) denied = run.operation->identity;
    for (Run &run : state.runs) {
        if (!run.finished) continue;
        // whoever was denied meanwhile keeps nothing
        if (denied && run.operation->identity == *denied) continue;
        for (keyring::KeyToOpen &key : run.operation->keys) {
            if (key.key.empty()) continue;
            const keyring::KeyRef ref{run.operation->identity, key.key_id};
            state.cache.put(ref, std::move(key.tenant), run.operation->server.name,
                            std::move(key.key), now(), std::chrono::seconds(setting_cache_ttl),
                            static_cast<std::size_t>(setting_cache_size));
        }
    }
    state.runs.clear();
    state.batch.clear();
    state.batch_filling.clear();
}

}  // namespace

// load_keys(tenants text[])
ENVCRYPT_FUNCTION(envcrypt_load_keys) {
    refuse_maintenance();
    require_right(fcinfo->flinfo);
    Datum *tenants;
    bool *nulls;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT, &tenants, &nulls,
                      &count);
    Backend &state = backend();
    follow_epoch();
    ErrorReport report;
    if (!guarded(report, [&] {
            state.runs.clear();
            state.batch.clear();
            state.batch_filling.clear();
        }))
        raise(report);

    auto **names = static_cast<const char **>(palloc(sizeof(char *) * (count + 1)));
    for (int i = 0; i < count; ++i) {
        if (nulls[i])
            ereport(ERROR,
                    (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("a tenant must not be NULL")));
        names[i] = TextDatumGetCString(tenants[i]);
    }
    qsort(names, count, sizeof(char *), pg_qsort_strcmp);

    int keys = 0;
    int to_open = 0;
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        const char *tenant = names[i];
        if (i > 0 && strcmp(tenant, names[i - 1]) == 0) continue;
        TenantRow row;
        if (!find_tenant(tenant, row))
            ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                            errmsg("tenant \"%s\" does not exist", tenant),
                            errhint("SELECT envcrypt.create_tenant('%s', 'SERVER');", tenant)));
        require_active_tenant(tenant);
        ListCell *cell;
        foreach (cell, find_data_keys(tenant)) {
            ++keys;
            if (add_key(*static_cast<KeyRow *>(lfirst(cell)))) ++to_open;
        }
    }
    if (to_open > 0) {
        if (!guarded(report, [&] {
                for (const auto &operation : state.batch) {
                    operation->work = keyring::open_keys(*operation);
                    state.runs.push_back({operation.get()});
                }
            }))
            raise(report);
        const bool ok = run_operations(report);
        ErrorReport kept;
        if (!guarded(kept, [&] {
                if (!ok) state.engine->abort();
                keep_opened(state, !ok && report.code == ErrorCode::denied);
            }))
            raise(kept);
        if (!ok) raise(report);
        check_locked_memory();
        if (keys > setting_cache_size)
            ereport(WARNING, (errmsg("%d keys were opened, and only %d of them are kept", keys,
                                     setting_cache_size),
                              errhint("Raise envcrypt.cache_size.")));
    }
    PG_RETURN_INT32(keys);
}

}  // namespace envcrypt::pg
