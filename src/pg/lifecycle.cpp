// What happens to keys after they were made: rotate_key(), rotate_keys(), disable_tenant(),
// enable_tenant(). Each act is one transaction, and a line in the journal.
#include "pg/backend.hpp"
#include "pg/journal.hpp"
#include "pg/making.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

namespace {

// A new version of the tenant's data key; the older ones decrypt only. Returns its version.
int rotate(const char *name) {
    lock_tenant(name);
    const TenantRow tenant = require_tenant(name, false);
    const Place place = lock_place(tenant.server);
    KeyRow newest;
    if (!find_newest_key(
            name, crypto::Purpose::data, [](const KeyRow &) { return true; }, newest))
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("tenant \"%s\" has no key", name),
                        errhint("Restore the rows of envcrypt.data_key from a backup.")));
    KeyRow key{};
    key.key_id = random_key_id();
    key.tenant = tenant.name;
    key.purpose = crypto::Purpose::data;
    key.version = newest.version + 1;
    key.state = KeyState::pending;
    List *older = find_keys(name, crypto::Purpose::data);
    Journal journal("rotate_key", name);
    make_keys(tenant, place, &key, 1, false, journal);
    Backend &state = backend();
    ErrorReport report;
    ListCell *cell;
    foreach (cell, older) {
        const auto *row = static_cast<KeyRow *>(lfirst(cell));
        if (row->state != KeyState::active) continue;
        if (!guarded(report, [&] {
                state.uncommitted.push_back(
                    {row->key_id, GetCurrentTransactionNestLevel(), false, true});
            }))
            raise(report);
        set_key_state(row->key_id, KeyState::decrypt_only);
    }
    journal.add("version", key.version);
    journal.write();
    return key.version;
}

void change_state(FunctionCallInfo fcinfo, const char *act, TenantState from, TenantState to) {
    require_writable(psprintf("%s()", act));
    char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
    lock_tenant(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    if (tenant.state == to) return;
    if (tenant.state != from)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("tenant \"%s\" is destroyed", name),
                        errhint("Its keys are gone; a destroyed tenant never comes back.")));
    set_tenant_state(name, to);
    Journal(act, name).write();
}

}  // namespace

// rotate_key(tenant): the new version.
ENVCRYPT_FUNCTION(envcrypt_rotate_key) {
    require_writable("rotate_key()");
    PG_RETURN_INT32(rotate(text_to_cstring(PG_GETARG_TEXT_PP(0))));
}

// CALL rotate_keys(older_than): each tenant in a transaction of its own.
ENVCRYPT_FUNCTION(envcrypt_rotate_keys) {
    require_writable("rotate_keys()");
    if (PG_ARGISNULL(0))
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("older_than must not be NULL")));
    const auto *context = reinterpret_cast<const CallContext *>(fcinfo->context);
    if (context == nullptr || !IsA(context, CallContext) || context->atomic)
        ereport(ERROR, (errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
                        errmsg("rotate_keys() commits as it goes, and cannot run within a "
                               "transaction block"),
                        errhint("CALL it by itself.")));
    const TimestampTz made_before = DatumGetTimestampTz(DirectFunctionCall2(
        timestamptz_mi_interval, TimestampTzGetDatum(GetCurrentTimestamp()), PG_GETARG_DATUM(0)));
    SPI_connect_ext(SPI_OPT_NONATOMIC);
    List *names = find_tenants_older_than(made_before);
    ListCell *cell;
    foreach (cell, names) {
        const auto *name = static_cast<char *>(lfirst(cell));
        TenantRow tenant;
        PushActiveSnapshot(GetTransactionSnapshot());
        if (find_tenant(name, tenant) && tenant.state == TenantState::active) (void)rotate(name);
        PopActiveSnapshot();
        SPI_commit();
    }
    SPI_finish();
    PG_RETURN_VOID();
}

ENVCRYPT_FUNCTION(envcrypt_disable_tenant) {
    change_state(fcinfo, "disable_tenant", TenantState::active, TenantState::disabled);
    PG_RETURN_VOID();
}
ENVCRYPT_FUNCTION(envcrypt_enable_tenant) {
    change_state(fcinfo, "enable_tenant", TenantState::disabled, TenantState::active);
    PG_RETURN_VOID();
}

}  // namespace envcrypt::pg
