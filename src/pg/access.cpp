// grant_access() and revoke_access(): rights as PostgreSQL's own privileges. Which function needs
// which right is said in one table here.
#include "pg/guard.hpp"
#include "pg/pg.hpp"
#include "pg/rights.hpp"

namespace envcrypt::pg {

namespace {

struct RightFunction {
    const char *right;
    const char *symbol;  // of the C function, which all of its overloads share
};
constexpr const char *kRights[] = {"encrypt", "decrypt", "search", "manage"};
constexpr const char *kAnyRight = "any";  // what every role with a right may call
constexpr RightFunction kFunctions[] = {
    {"encrypt", "envcrypt_encrypt"},
    {"encrypt", "envcrypt_cast_from"},
    {"encrypt", "envcrypt_encrypt_envelope_text"},
    {"encrypt", "envcrypt_encrypt_envelope_bytea"},
    {"decrypt", "envcrypt_decrypt"},
    {"decrypt", "envcrypt_decrypt_as"},
    {"decrypt", "envcrypt_decrypt_in_row"},
    {"decrypt", "envcrypt_try_decrypt"},
    {"decrypt", "envcrypt_try_decrypt_as"},
    {"decrypt", "envcrypt_cast_to"},
    {"decrypt", "envcrypt_decrypt_envelope"},
    {"search", "envcrypt_search"},
    {"search", "envcrypt_search_column"},
    {"search", "envcrypt_matches"},
    {"manage", "envcrypt_check_server"},
    {"manage", "envcrypt_create_tenant"},
    {"manage", "envcrypt_cached_keys"},
    {"manage", "envcrypt_rotate_key"},
    {"manage", "envcrypt_rotate_keys"},
    {"manage", "envcrypt_destroy_tenant"},
    {"manage", "envcrypt_apply_receipt"},
    {"manage", "envcrypt_disable_tenant"},
    {"manage", "envcrypt_enable_tenant"},
    {"manage", "envcrypt_rewrap_keys"},
    {"manage", "envcrypt_add_wrapping"},
    {"manage", "envcrypt_drop_wrapping"},
    {"manage", "envcrypt_create_group_key"},
    {"manage", "envcrypt_move_tenant"},
    {"manage", "envcrypt_export_keys"},
    {"manage", "envcrypt_import_keys"},
    {"manage", "envcrypt_rename_server"},
    {kAnyRight, "envcrypt_inspect"},
    {kAnyRight, "envcrypt_count_values"},
    {kAnyRight, "envcrypt_load_keys"},
    {kAnyRight, "envcrypt_set_credential"},
    {kAnyRight, "envcrypt_clear_credential"},
};

void execute(const char *command) {
    if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
        elog(ERROR, "envcrypt: could not execute a grant");
}

bool is_right(const char *name) {
    for (const char *right : kRights)
        if (strcmp(right, name) == 0) return true;
    return false;
}

// The functions of schema envcrypt whose C function has the right, or where `other` all that have
// another one but kAnyRight; as a text[] of C symbols.
Datum symbols_of(const char *right, bool other) {
    Datum symbols[lengthof(kFunctions)];
    int count = 0;
    for (const RightFunction &needed : kFunctions)
        if (other ? strcmp(needed.right, kAnyRight) != 0 : strcmp(needed.right, right) == 0)
            symbols[count++] = CStringGetTextDatum(needed.symbol);
    return PointerGetDatum(construct_array(symbols, count, TEXTOID, -1, false, TYPALIGN_INT));
}

// GRANTs or REVOKEs EXECUTE on all that the right is made of.
void change_functions(const char *right, const char *change, const char *direction,
                      const char *role_name) {
    Oid types[] = {TEXTARRAYOID};
    Datum values[] = {symbols_of(right, false)};
    const int done = SPI_execute_with_args(
        "SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I(%s)', 'envcrypt', p.proname, "
        "pg_catalog.pg_get_function_identity_arguments(p.oid)), ', ') "
        "FROM pg_catalog.pg_proc p "
        "WHERE p.pronamespace OPERATOR(pg_catalog.=) 'envcrypt'::pg_catalog.regnamespace AND "
        "p.prosrc OPERATOR(pg_catalog.=) ANY ($1) AND p.prolang OPERATOR(pg_catalog.=) "
        "(SELECT l.oid FROM pg_catalog.pg_language l WHERE l.lanname OPERATOR(pg_catalog.=) 'c')",
        lengthof(types), types, values, nullptr, false, 1);
    if (done != SPI_OK_SELECT || SPI_processed != 1) elog(ERROR, "envcrypt: no such right");
    const char *functions = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
    if (functions == nullptr) elog(ERROR, "envcrypt: no functions of a right");
    execute(psprintf("%s EXECUTE ON ROUTINE %s %s %s", change, functions, direction, role_name));
}

// Whether the role itself (not through membership) holds a privilege on any function that needs a
// right.
bool holds_any_right(Oid role) {
    Oid types[] = {OIDOID, TEXTARRAYOID};
    Datum values[] = {ObjectIdGetDatum(role), symbols_of("", true)};
    const int done = SPI_execute_with_args(
        "SELECT 1 FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a "
        "WHERE p.pronamespace OPERATOR(pg_catalog.=) 'envcrypt'::pg_catalog.regnamespace AND "
        "a.grantee OPERATOR(pg_catalog.=) $1 AND p.prosrc OPERATOR(pg_catalog.=) ANY ($2)",
        lengthof(types), types, values, nullptr, false, 1);
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
            ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                            errmsg("unknown right \"%s\"",
                                   null_rights[i] ? "NULL" : TextDatumGetCString(rights[i])),
                            errhint("The rights are encrypt, decrypt, search and manage.")));
    if (count == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("no right was named"),
                        errhint("The rights are encrypt, decrypt, search and manage.")));

    SPI_connect();
    const char *change = grant ? "GRANT" : "REVOKE";
    const char *direction = grant ? "TO" : "FROM";
    for (int i = 0; i < count; ++i) {
        const char *right = TextDatumGetCString(rights[i]);
        change_functions(right, change, direction, role_name);
        if (strcmp(right, "manage") == 0)
            execute(psprintf(
                "%s SELECT ON envcrypt.cache, envcrypt.columns, envcrypt.tenants, "
                "envcrypt.keys, envcrypt.wrappings, envcrypt.journal, envcrypt.progress %s %s",
                change, direction, role_name));
    }
    if (grant || !holds_any_right(role)) {
        execute(psprintf("%s USAGE ON SCHEMA envcrypt %s %s", change, direction, role_name));
        change_functions(kAnyRight, change, direction, role_name);
    }
    SPI_finish();
    PG_RETURN_VOID();
}

// The right of kRights that the C function stands for; null where any will do.
const char *right_of(Oid function) {
    const HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    if (!HeapTupleIsValid(tuple)) return nullptr;
    bool is_null;
    const Datum symbol = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &is_null);
    const char *named = is_null ? "" : TextDatumGetCString(symbol);
    ReleaseSysCache(tuple);
    for (const RightFunction &needed : kFunctions)
        if (strcmp(needed.symbol, named) == 0 && is_right(needed.right)) return needed.right;
    return nullptr;
}

}  // namespace

void raise_no_right(Oid function) {
    const char *role = GetUserNameFromId(GetUserId(), false);
    const char *right = right_of(function);
    ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                    errmsg("permission denied for function %s", get_func_name(function)),
                    right == nullptr
                        ? errhint("Role \"%s\" needs any right of envcrypt.grant_access().", role)
                        : errhint("A superuser can give role \"%s\" the right: SELECT "
                                  "envcrypt.grant_access(%s, '{%s}');",
                                  role, quote_literal_cstr(quote_identifier(role)), right)));
    pg_unreachable();
}

ENVCRYPT_FUNCTION(envcrypt_grant_access) {
    return change_access(fcinfo, true);
}
ENVCRYPT_FUNCTION(envcrypt_revoke_access) {
    return change_access(fcinfo, false);
}

}  // namespace envcrypt::pg
