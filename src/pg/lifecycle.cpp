// What happens to a tenant and its keys after they were made: rotate_key(), rotate_keys(),
// disable_tenant(), enable_tenant(). Each act is one transaction, and a line in the journal.
#include "pg/act.hpp"
#include "pg/journal.hpp"
#include "pg/making.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

namespace {

KeyRow newest_data_key(const char *tenant) {
    KeyRow newest;
    if (!find_newest_key(
            tenant, crypto::Purpose::data, [](const KeyRow &) { return true; }, newest))
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("tenant \"%s\" has no key", tenant),
                        errhint("Restore the rows of envcrypt.data_key from a backup.")));
    return newest;
}

// Warns where the new version is wrapped at a place that wraps no copy of the one before: whoever
// writes to envcrypt.tenant decides where new keys are wrapped.
void warn_of_new_places(const KeyRow &key, const KeyRow &before) {
    List *rows_before = find_wrapped_keys(before.key_id);
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key.key_id)) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        bool is_known = false;
        ListCell *other;
        foreach (other, rows_before) {
            const auto *known = static_cast<WrappedKeyRow *>(lfirst(other));
            is_known = is_known || (strcmp(row->server, known->server) == 0 &&
                                    strcmp(row->group_key, known->group_key) == 0 &&
                                    strcmp(row->master_key, known->master_key) == 0);
        }
        if (is_known) continue;
        ereport(
            WARNING,
            (errmsg("key version %d of tenant \"%s\" is wrapped where version %d is not",
                    key.version, key.tenant, before.version),
             row->group_key[0] != '\0' ? errdetail("Group key \"%s\" wraps it.", row->group_key)
                                       : errdetail("Master key \"%s\" of server \"%s\" wraps it.",
                                                   row->master_key, row->server),
             errhint("If nobody moved the tenant or changed the server's master key, look for who "
                     "wrote to envcrypt.tenant.")));
    }
}

// A new version of the data key of a tenant that is locked; the older ones decrypt only. Returns
// its version.
int rotate(const TenantRow &tenant) {
    const char *name = tenant.name;
    List *places = places_of_new_keys(tenant);
    KeyRow key{};
    key.key_id = random_key_id();
    key.tenant = tenant.name;
    key.purpose = crypto::Purpose::data;
    const KeyRow newest = newest_data_key(name);
    if (newest.version >= kMaxVersion)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("tenant \"%s\" has had as many keys as it can", name)));
    key.version = newest.version + 1;
    key.state = KeyState::pending;
    List *older = find_keys(name, crypto::Purpose::data);
    Journal journal("rotate_key", name);
    make_keys(places, &key, 1, false, journal);
    ListCell *cell;
    foreach (cell, older)
        if (static_cast<KeyRow *>(lfirst(cell))->state == KeyState::active)
            supersede_key(static_cast<KeyRow *>(lfirst(cell))->key_id);
    journal.add("version", key.version);
    journal.write();
    warn_of_new_places(key, newest);
    return key.version;
}

struct Overdue {
    const char *name;
    TimestampTz made_before;
    bool rotated;
};

// Where it is still overdue: another session may have been here.
void rotate_overdue(void *argument) {
    auto *overdue = static_cast<Overdue *>(argument);
    lock_tenant(overdue->name);
    TenantRow tenant;
    if (!find_tenant(overdue->name, tenant) || tenant.state != TenantState::active) return;
    if (newest_data_key(overdue->name).created_at >= overdue->made_before) return;
    (void)rotate(tenant);
    overdue->rotated = true;
}

Datum change_state(FunctionCallInfo fcinfo, const char *act, TenantState from, TenantState to) {
    require_writable(psprintf("%s()", act));
    const char *name = tenant_argument(fcinfo, 0);
    lock_tenant_row(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    if (tenant.state == to) PG_RETURN_VOID();
    if (tenant.state != from) require_active_tenant(name);
    set_tenant_state(name, to);
    Journal(act, name).write();
    PG_RETURN_VOID();
}

}  // namespace

// rotate_key(tenant): the new version.
ENVCRYPT_ACT(envcrypt_rotate_key, "rotate_key") {
    require_writable("rotate_key()");
    const char *name = tenant_argument(fcinfo, 0);
    lock_tenant(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    require_active_tenant(name);
    PG_RETURN_INT32(rotate(tenant));
}

// CALL rotate_keys(older_than): each tenant in a transaction of its own. One that cannot be rotated
// keeps no other from it.
ENVCRYPT_ACT(envcrypt_rotate_keys, "rotate_keys") {
    require_writable("rotate_keys()");
    if (PG_ARGISNULL(0))
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("older_than must not be NULL"),
                 errhint("CALL envcrypt.rotate_keys('1 year');")));
    require_nonatomic(fcinfo, "rotate_keys()");
    const TimestampTz start = GetCurrentTimestamp();
    const TimestampTz made_before = DatumGetTimestampTz(DirectFunctionCall2(
        timestamptz_mi_interval, TimestampTzGetDatum(start), PG_GETARG_DATUM(0)));
    if (made_before > start)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("older_than must not be negative")));
    SPI_connect_ext(SPI_OPT_NONATOMIC);
    List *names = find_tenants_older_than(made_before);
    const MemoryContext all = CurrentMemoryContext;
    const MemoryContext one =
        AllocSetContextCreate(all, "envcrypt rotation", ALLOCSET_DEFAULT_SIZES);
    int failed = 0;
    int rotated = 0;
    ListCell *cell;
    foreach (cell, names) {
        Overdue overdue{static_cast<char *>(lfirst(cell)), made_before, false};
        PushActiveSnapshot(GetTransactionSnapshot());
        MemoryContextSwitchTo(one);
        if (const ErrorData *error = try_part(rotate_overdue, &overdue)) {
            ++failed;
            warn_failure("rotate_key", overdue.name,
                         psprintf("tenant \"%s\" was not rotated", overdue.name), error);
        }
        if (overdue.rotated) ++rotated;
        MemoryContextSwitchTo(all);
        MemoryContextReset(one);
        PopActiveSnapshot();
        SPI_commit();
    }
    ereport(NOTICE, (errmsg("rotate_keys: %d tenants rotated, %d left", rotated, failed)));
    if (failed > 0)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("%d of %d tenants were not rotated", failed, list_length(names)),
                        errdetail("The others were, and stay so."),
                        errhint("The warnings say why. CALL it again for those.")));
    SPI_finish();
    PG_RETURN_VOID();
}

ENVCRYPT_ACT(envcrypt_disable_tenant, "disable_tenant") {
    return change_state(fcinfo, "disable_tenant", TenantState::active, TenantState::disabled);
}
ENVCRYPT_ACT(envcrypt_enable_tenant, "enable_tenant") {
    return change_state(fcinfo, "enable_tenant", TenantState::disabled, TenantState::active);
}

}  // namespace envcrypt::pg
