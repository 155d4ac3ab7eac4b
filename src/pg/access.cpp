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
    {"manage", "envcrypt_right_of"},
    {kAnyRight, "envcrypt_inspect"},
    {kAnyRight, "envcrypt_count_values"},
    {kAnyRight, "envcrypt_load_keys"},
    {kAnyRight, "envcrypt_set_credential"},
    {kAnyRight, "envcrypt_clear_credential"},
};
// What whoever may manage keys may read.
constexpr const char *kManageRelations[] = {"cache",     "columns", "tenants",  "keys",
                                            "wrappings", "journal", "progress", "grants"};

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

// GRANTs EXECUTE on all that the right is made of.
void grant_functions(const char *right, const char *role_name) {
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
    execute(psprintf("GRANT EXECUTE ON ROUTINE %s TO %s", functions, role_name));
}

// REVOKEs every privilege on what goes with one of the rights, or where `all` on every object of
// the extension, however it came: by default privileges, say. Raises if one remains: REVOKE leaves
// what another than the owner granted.
void revoke_privileges(ArrayType *rights, bool all, const char *role_name) {
    Oid types[] = {TEXTOID, TEXTARRAYOID, BOOLOID};
    Datum values[] = {CStringGetTextDatum(role_name), PointerGetDatum(rights), BoolGetDatum(all)};
    const auto read_grants = [&] {
        if (SPI_execute_with_args(
                "SELECT g.object, g.privilege, g.grantor FROM envcrypt.grants g "
                "WHERE g.grantee OPERATOR(pg_catalog.=) $1 AND ($3 OR g.\"right\" "
                "OPERATOR(pg_catalog.=) ANY ($2)) ORDER BY g.object, g.privilege",
                lengthof(types), types, values, nullptr, false, 0) != SPI_OK_SELECT)
            elog(ERROR, "envcrypt: could not read the grants");
    };
    read_grants();
    SPITupleTable *granted = SPI_tuptable;
    const std::uint64_t count = SPI_processed;
    for (std::uint64_t i = 0; i < count; ++i)
        execute(psprintf("REVOKE ALL ON %s FROM %s CASCADE",
                         SPI_getvalue(granted->vals[i], granted->tupdesc, 1), role_name));
    read_grants();
    if (SPI_processed == 0) return;
    const auto field = [](int number) {
        return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number);
    };
    ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
                    errmsg("could not revoke all privileges of role %s", role_name),
                    errdetail("Role %s granted it %s on %s.", field(3), field(2), field(1)),
                    errhint("Revoke the privileges of role %s first.", field(3))));
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
    if (grant) {
        for (int i = 0; i < count; ++i) {
            const char *right = TextDatumGetCString(rights[i]);
            grant_functions(right, role_name);
            if (strcmp(right, "manage") != 0) continue;
            for (const char *relation : kManageRelations)
                execute(psprintf("GRANT SELECT ON envcrypt.%s TO %s", relation, role_name));
        }
        execute(psprintf("GRANT USAGE ON SCHEMA envcrypt TO %s", role_name));
        grant_functions(kAnyRight, role_name);
    } else {
        revoke_privileges(PG_GETARG_ARRAYTYPE_P(1), false, role_name);
        if (!holds_any_right(role)) revoke_privileges(PG_GETARG_ARRAYTYPE_P(1), true, role_name);
    }
    SPI_finish();
    PG_RETURN_VOID();
}

// The right that the C function stands for; null where none does.
const char *right_of(Oid function) {
    const HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    if (!HeapTupleIsValid(tuple)) return nullptr;
    bool is_null;
    const Datum symbol = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &is_null);
    const char *named = is_null ? "" : TextDatumGetCString(symbol);
    ReleaseSysCache(tuple);
    for (const RightFunction &needed : kFunctions)
        if (strcmp(needed.symbol, named) == 0) return needed.right;
    return nullptr;
}

const char *right_of_relation(Oid relation) {
    const char *name = get_rel_name(relation);
    if (name == nullptr || get_rel_namespace(relation) != get_namespace_oid("envcrypt", true))
        return nullptr;
    for (const char *readable : kManageRelations)
        if (strcmp(readable, name) == 0) return "manage";
    return nullptr;
}

}  // namespace

void raise_no_right(Oid function) {
    const char *role = GetUserNameFromId(GetUserId(), false);
    const char *right = right_of(function);
    ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                    errmsg("permission denied for function %s", get_func_name(function)),
                    right == nullptr || strcmp(right, kAnyRight) == 0
                        ? errhint("Role \"%s\" needs any right of envcrypt.grant_access().", role)
                        : errhint("A superuser can give role \"%s\" the right: SELECT "
                                  "envcrypt.grant_access(%s, '{%s}');",
                                  role, quote_literal_cstr(quote_identifier(role)), right)));
    pg_unreachable();
}

// right_of(classid, objid): by which right grant_access() gives the object.
ENVCRYPT_FUNCTION(envcrypt_right_of) {
    const Oid object = PG_GETARG_OID(1);
    const char *right = nullptr;
    switch (PG_GETARG_OID(0)) {
        case ProcedureRelationId:
            right = right_of(object);
            break;
        case RelationRelationId:
            right = right_of_relation(object);
            break;
        case NamespaceRelationId:
            right = object == get_namespace_oid("envcrypt", true) ? kAnyRight : nullptr;
            break;
        default:
            break;
    }
    if (right == nullptr) PG_RETURN_NULL();
    return CStringGetTextDatum(right);
}
ENVCRYPT_FUNCTION(envcrypt_grant_access) {
    return change_access(fcinfo, true);
}
ENVCRYPT_FUNCTION(envcrypt_revoke_access) {
    return change_access(fcinfo, false);
}

}  // namespace envcrypt::pg
