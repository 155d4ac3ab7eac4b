// grant_access() and revoke_access(): rights as PostgreSQL's own privileges. Which function needs
// which right is said in one table here.
#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

namespace {

struct RightFunction {
    const char *right;
    const char *function;  // as GRANT names it, within schema envcrypt
};
constexpr const char *kRights[] = {"encrypt", "decrypt", "search", "manage"};
constexpr RightFunction kFunctions[] = {
    {"encrypt", "encrypt(pg_catalog.text, pg_catalog.text, pg_catalog.text)"},
    {"encrypt", "encrypt(pg_catalog.bytea, pg_catalog.text, pg_catalog.text)"},
    {"encrypt", "encrypted(pg_catalog.text, pg_catalog.int4, pg_catalog.bool)"},
    {"encrypt", "encrypted(pg_catalog.varchar, pg_catalog.int4, pg_catalog.bool)"},
    {"encrypt", "encrypted(pg_catalog.bpchar, pg_catalog.int4, pg_catalog.bool)"},
    {"encrypt", "encrypted(pg_catalog.bytea, pg_catalog.int4, pg_catalog.bool)"},
    {"encrypt", "encrypt_envelope(pg_catalog.text, pg_catalog.text)"},
    {"encrypt", "encrypt_envelope(pg_catalog.text, pg_catalog.bytea)"},
    {"decrypt",
     "decrypt_envelope(pg_catalog.text, pg_catalog.bytea, pg_catalog.bytea, pg_catalog.bytea)"},
    {"decrypt", "decrypt(envcrypt.encrypted, pg_catalog.text)"},
    {"decrypt", "bytea(envcrypt.encrypted)"},
    {"manage", "check_server(pg_catalog.text)"},
    {"manage", "create_tenant(pg_catalog.text, pg_catalog.text, pg_catalog.text)"},
    {"manage", "cached_keys()"},
};
// What every role with a right may call.
constexpr const char *kAnyRight[] = {
    "inspect(envcrypt.encrypted)", "load_keys(pg_catalog.text[])",
    "set_credential(pg_catalog.text, pg_catalog.jsonb, pg_catalog.bool)",
    "clear_credential(pg_catalog.text)"};

void execute(const char *command) {
    if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
        elog(ERROR, "envcrypt: could not execute a grant");
}

bool is_right(const char *name) {
    for (const char *right : kRights)
        if (strcmp(right, name) == 0) return true;
    return false;
}

// Whether the role itself (not through membership) holds a privilege on any function that needs a
// right.
bool holds_any_right(Oid role) {
    Oid types[] = {OIDOID};
    Datum values[] = {ObjectIdGetDatum(role)};
    const int done = SPI_execute_with_args(
        "SELECT 1 FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a "
        "WHERE p.pronamespace OPERATOR(pg_catalog.=) 'envcrypt'::pg_catalog.regnamespace AND "
        "a.grantee "
        "OPERATOR(pg_catalog.=) $1 "
        "AND NOT p.proname OPERATOR(pg_catalog.=) ANY "
        "('{inspect,load_keys,set_credential,clear_credential}')",
        1, types, values, nullptr, false, 1);
    if (done != SPI_OK_SELECT) elog(ERROR, "envcrypt: could not read the rights");
    return SPI_processed > 0;
}

Datum change_access(FunctionCallInfo fcinfo, bool grant) {
    if (!superuser())
        ereport(ERROR,
                (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                 errmsg("only a superuser may %s access to keys", grant ? "grant" : "revoke")));
    const Oid role = PG_GETARG_OID(0);
    const char *role_name = quote_identifier(GetUserNameFromId(role, false));
    Datum *rights;
    bool *null_rights;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &rights,
                      &null_rights, &count);
    for (int i = 0; i < count; ++i)
        if (null_rights[i] || !is_right(TextDatumGetCString(rights[i])))
            ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown right"),
                            errhint("The rights are encrypt, decrypt, search and manage.")));
    if (count == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("no right was named"),
                        errhint("The rights are encrypt, decrypt, search and manage.")));

    SPI_connect();
    const char *change = grant ? "GRANT" : "REVOKE";
    const char *direction = grant ? "TO" : "FROM";
    for (int i = 0; i < count; ++i) {
        const char *right = TextDatumGetCString(rights[i]);
        for (const RightFunction &needed : kFunctions)
            if (strcmp(needed.right, right) == 0)
                execute(psprintf("%s EXECUTE ON FUNCTION envcrypt.%s %s %s", change,
                                 needed.function, direction, role_name));
        if (strcmp(right, "manage") == 0)
            execute(psprintf("%s SELECT ON envcrypt.cache %s %s", change, direction, role_name));
    }
    if (grant || !holds_any_right(role)) {
        execute(psprintf("%s USAGE ON SCHEMA envcrypt %s %s", change, direction, role_name));
        for (const char *function : kAnyRight)
            execute(psprintf("%s EXECUTE ON FUNCTION envcrypt.%s %s %s", change, function,
                             direction, role_name));
    }
    SPI_finish();
    PG_RETURN_VOID();
}

}  // namespace

ENVCRYPT_FUNCTION(envcrypt_grant_access) {
    return change_access(fcinfo, true);
}
ENVCRYPT_FUNCTION(envcrypt_revoke_access) {
    return change_access(fcinfo, false);
}

}  // namespace envcrypt::pg
