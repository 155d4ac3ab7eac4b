// create_tenant() and check_server(): what is done with a KMS before anything depends on it; and
// what there is to see and do about this session's cache.
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/making.hpp"
#include "pg/resolve.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

namespace {

constexpr const char *kCheckTenant = "check_server";

Datum interval_of(double milliseconds) {
    return DirectFunctionCall7(make_interval, Int32GetDatum(0), Int32GetDatum(0), Int32GetDatum(0),
                               Int32GetDatum(0), Int32GetDatum(0), Int32GetDatum(0),
                               Float8GetDatum(milliseconds / 1000));
}

}  // namespace

// create_tenant(name, server, master_key, group_key, search_tenant)
ENVCRYPT_ACT(envcrypt_create_tenant, "create_tenant") {
    TenantRow tenant{
        text_argument(fcinfo, 0, "name"),      TenantState::active,
        text_argument(fcinfo, 1, "server"),    text_argument(fcinfo, 2, "master_key"),
        text_argument(fcinfo, 3, "group_key"), text_argument(fcinfo, 4, "search_tenant")};
    require_writable("create_tenant()");
    require_tenant_name(tenant.name);
    lock_tenants({tenant.name, tenant.search_tenant});
    TenantRow present;
    if (find_tenant(tenant.name, present))
        ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
                        errmsg("tenant \"%s\" exists already", tenant.name),
                        errdetail("A name is never used again, not even of a destroyed tenant.")));
    if (tenant.group_key[0] != '\0' && tenant.master_key[0] != '\0')
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("a tenant in a group has no master key of its own"),
                        errhint("Leave master_key or group_key out.")));
    List *places = places_of_new_keys(tenant);
    // where it goes should it leave the group
    if (tenant.group_key[0] != '\0') (void)lock_place(tenant.server);
    if (tenant.search_tenant[0] != '\0') require_search_tenant(tenant);
    insert_tenant(tenant);
    KeyRow keys[2] = {};
    const int count = tenant.search_tenant[0] == '\0' ? 2 : 1;
    for (int i = 0; i < count; ++i) {
        keys[i].key_id = random_key_id();
        keys[i].tenant = tenant.name;
        keys[i].purpose = i == 0 ? crypto::Purpose::data : crypto::Purpose::search;
        keys[i].version = 1;
        keys[i].state = KeyState::pending;
    }
    Journal journal("create_tenant", tenant.name);
    make_keys(places, keys, count, true, journal);
    if (tenant.search_tenant[0] != '\0') journal.add("search_tenant", tenant.search_tenant);
    journal.write();
    PG_RETURN_VOID();
}

// check_server(server): one row, ok or the error.
ENVCRYPT_FUNCTION(envcrypt_check_server) {
    char *server = text_to_cstring(PG_GETARG_TEXT_PP(0));
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("check_server() must be called where a record is accepted")));
    const Place place = place_of(server);
    Backend &state = backend();
    ErrorReport report;
    const kms::Clock start = now();
    prepare_operation(place, nullptr, crypto::Purpose::data, random_key_id(), kCheckTenant);
    if (!guarded(report, [&] {
            // a credential that is kept must not hide that a new one cannot be had
            state.credentials.forget(place.identity);
            state.operation->work = keyring::check_server(*state.operation);
        }))
        raise(report);

    Datum values[8] = {};
    bool nulls[8];
    memset(nulls, true, sizeof(nulls));
    const bool ok = run_operation(report);
    const auto set_text = [&](int column, const char *text) {
        if (text[0] == '\0') return;
        values[column] = CStringGetTextDatum(text);
        nulls[column] = false;
    };
    values[0] = BoolGetDatum(ok);
    values[1] = Float8GetDatum(static_cast<double>((now() - start).count()));
    nulls[0] = nulls[1] = false;
    if (ok) {
        set_text(2, kms_text(state.operation->identity_text));
        set_text(3, kms_text(state.operation->made.master_key));
        set_text(4, kms_text(state.operation->made.master_key_version));
        if (!guarded(report, [&] { state.operation.reset(); })) raise(report);
    } else {
        set_text(5, unpack_sql_state(sqlstate_of(report.code)));
        set_text(6, psprintf("%s%s%s", report.message, report.detail[0] != '\0' ? ": " : "",
                             report.detail));
        set_text(7, report.hint);
    }
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

// current_tenant(): the setting, where tenant_scope lets it serve.
ENVCRYPT_FUNCTION(envcrypt_current_tenant) {
    require_tenant_scope();
    if (setting_tenant[0] == '\0') raise_no_tenant();
    PG_RETURN_TEXT_P(cstring_to_text(setting_tenant));
}

// forget_keys(): how many keys were open.
ENVCRYPT_FUNCTION(envcrypt_forget_keys) {
    std::size_t forgotten = 0;
    if (Backend *state = backend_if_any()) {
        ErrorReport report;
        if (!guarded(report, [&] { forgotten = forget_keys(*state); })) raise(report);
    }
    PG_RETURN_INT32(static_cast<int32>(forgotten));
}

// The rows of the view `cache`.
ENVCRYPT_FUNCTION(envcrypt_cached_keys) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    Backend &state = backend();
    follow_epoch();
    ErrorReport report;
    const kms::Clock time = now();
    struct Line {
        std::uint64_t key_id;
        const char *tenant;
        const char *server;
        double age;
        double left;
        double end;
        bool bridged;
    };
    const std::size_t count = state.cache.size();
    auto *lines = static_cast<Line *>(palloc(sizeof(Line) * (count + 1)));
    if (!guarded(report, [&] {
            Line *line = lines;
            state.cache.for_each([&](const keyring::OpenKey &key) {
                *line++ = {
                    key.ref.key_id,
                    key.tenant.c_str(),
                    key.server.c_str(),
                    static_cast<double>((time - key.life.opened).count()),
                    static_cast<double>(std::max(key.life.expires - time, kms::Clock{}).count()),
                    static_cast<double>((key.life.ends - time).count()),
                    key.bridged};
            });
        }))
        raise(report);
    for (std::size_t i = 0; i < count; ++i) {
        const Line &line = lines[i];
        Datum values[7];
        bool nulls[7] = {};
        values[0] =
            CStringGetTextDatum(psprintf("%016llx", static_cast<unsigned long long>(line.key_id)));
        values[1] = CStringGetTextDatum(line.tenant);
        values[2] = CStringGetTextDatum(line.server);
        values[3] = interval_of(line.age);
        values[4] = interval_of(line.left);
        values[5] = BoolGetDatum(line.bridged);
        values[6] = interval_of(line.end);
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    return (Datum)0;
}

}  // namespace envcrypt::pg
