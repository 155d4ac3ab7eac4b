// Triggers: those that tell every backend of changes to the key tables which envcrypt's own
// functions did not make (DML, restore, logical apply), and those that keep keys from being lost
// with the extension or with a server.
#include "pg/backend.hpp"
#include "pg/keys.hpp"

namespace envcrypt::pg {

namespace {

EventTriggerData *event_data(FunctionCallInfo fcinfo) {
    if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
        ereport(ERROR, (errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
                        errmsg("this function is called by event triggers only")));
    return reinterpret_cast<EventTriggerData *>(fcinfo->context);
}

bool keys_exist() {
    if (!OidIsValid(get_extension_oid("envcrypt", true))) return false;
    const Oid schema = get_namespace_oid("envcrypt", true);
    const Oid table = OidIsValid(schema) ? get_relname_relid("wrapped_key", schema) : InvalidOid;
    // where it cannot be looked up, nothing may be lost
    if (!OidIsValid(table)) return true;
    // waits for those who are about to commit a key, and for no reader
    LockRelationOid(table, ShareLock);
    return any_wrapped_key(nullptr);
}

[[noreturn]] void refuse_loss(const char *what) {
    ereport(
        ERROR,
        (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST), errmsg("cannot %s while keys exist", what),
         errdetail("Without the rows of envcrypt.wrapped_key no encrypted value can ever be "
                   "decrypted again."),
         errhint("Drop the encrypted columns, then DELETE FROM envcrypt.wrapped_key, if "
                 "that is what you mean.")));
    pg_unreachable();
}

bool names_envcrypt(List *names) {
    ListCell *cell;
    foreach (cell, names)
        if (strcmp(strVal(lfirst(cell)), "envcrypt") == 0) return true;
    return false;
}

Oid extension_owner() {
    const Oid extension = get_extension_oid("envcrypt", true);
    if (!OidIsValid(extension)) return InvalidOid;
    Relation relation = table_open(ExtensionRelationId, AccessShareLock);
    ScanKeyData key;
    ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
                ObjectIdGetDatum(extension));
    SysScanDesc scan = systable_beginscan(relation, ExtensionOidIndexId, true, nullptr, 1, &key);
    HeapTuple tuple = systable_getnext(scan);
    const Oid owner = HeapTupleIsValid(tuple)
                          ? reinterpret_cast<Form_pg_extension>(GETSTRUCT(tuple))->extowner
                          : InvalidOid;
    systable_endscan(scan);
    table_close(relation, AccessShareLock);
    return owner;
}

Oid schema_owner() {
    HeapTuple tuple = SearchSysCache1(NAMESPACENAME, CStringGetDatum("envcrypt"));
    if (!HeapTupleIsValid(tuple)) return InvalidOid;
    const Oid owner = reinterpret_cast<Form_pg_namespace>(GETSTRUCT(tuple))->nspowner;
    ReleaseSysCache(tuple);
    return owner;
}

// Event triggers run before PostgreSQL checks who issued the command. What waits for others or
// locks them out is left to those who may carry it out; PostgreSQL refuses everybody else.

// PostgreSQL itself locks a server before it checks who drops or renames it, and whoever makes keys
// would queue behind. So this raises its error before.
void require_server_owner(const char *name) {
    const Oid server = get_foreign_server_oid(name, true);
    if (OidIsValid(server) && !owns_server(server, GetUserId()))
        aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, name);
}

bool owns_envcrypt_extension() {
    const Oid extension = get_extension_oid("envcrypt", true);
    return OidIsValid(extension) && owns_extension(extension, GetUserId());
}

void check_drop(DropStmt *drop) {
    if (drop->removeType == OBJECT_FOREIGN_SERVER) {
        ListCell *cell;
        foreach (cell, drop->objects) require_server_owner(strVal(lfirst(cell)));
    }
    if (drop->removeType != OBJECT_EXTENSION && drop->removeType != OBJECT_SCHEMA) return;
    if (!names_envcrypt(drop->objects)) return;
    const Oid schema = get_namespace_oid("envcrypt", true);
    const bool may_drop = drop->removeType == OBJECT_EXTENSION
                              ? owns_envcrypt_extension()
                              : OidIsValid(schema) && owns_schema(schema, GetUserId());
    if (!may_drop || !keys_exist()) return;
    refuse_loss(drop->removeType == OBJECT_EXTENSION ? "drop extension envcrypt"
                                                     : "drop schema envcrypt");
}

[[noreturn]] void refuse_server(const char *what, const char *server) {
    ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
                    errmsg("cannot %s server \"%s\": keys are wrapped by it", what, server),
                    errdetail("The rows of envcrypt.wrapped_key name it; their keys could not be "
                              "unwrapped any more."),
                    strcmp(what, "rename") == 0
                        ? errhint("SELECT envcrypt.rename_server('%s', 'NEW NAME');", server)
                        : errhint("Keep the server as long as it wraps keys, or move them: CALL "
                                  "envcrypt.rewrap_keys('%s', 'OTHER SERVER');",
                                  server)));
    pg_unreachable();
}

[[noreturn]] void refuse_rename() {
    ereport(ERROR,
            (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
             errmsg("the schema and the tables of extension envcrypt stay as they were made"),
             errdetail("The keys are found by them.")));
    pg_unreachable();
}

// Whether a command names a table of the extension's.
bool is_key_table(RangeVar *name) {
    if (name == nullptr) return false;
    const Oid table = RangeVarGetRelid(name, NoLock, true);
    return OidIsValid(table) && get_rel_namespace(table) == get_namespace_oid("envcrypt", true);
}

// What would make rows of the key tables unreadable. Triggers may be switched: pg_restore does.
void check_alter_table(AlterTableStmt *alter) {
    if (!is_key_table(alter->relation)) return;
    ListCell *cell;
    foreach (cell, alter->cmds) {
        const AlterTableType change = static_cast<AlterTableCmd *>(lfirst(cell))->subtype;
        if (change == AT_AddColumn || change == AT_DropColumn || change == AT_AlterColumnType ||
            change == AT_DropConstraint || change == AT_AddConstraint || change == AT_SetUnLogged)
            refuse_rename();
    }
}

// Their rows are written without a query: what would have to be computed for an index, a trigger or
// a constraint would not be.
void check_index(IndexStmt *index) {
    if (!is_key_table(index->relation)) return;
    bool computed = index->whereClause != nullptr || index->isconstraint || index->unique;
    ListCell *cell;
    foreach (cell, index->indexParams)
        computed = computed || static_cast<IndexElem *>(lfirst(cell))->expr != nullptr;
    if (computed)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("envcrypt's tables have indexes on columns alone"),
                        errdetail("Not on expressions, not partial, not unique: envcrypt writes "
                                  "their rows without a query."),
                        errhint("Index a copy of the table, or a materialized view of it.")));
}

void check_trigger(CreateTrigStmt *trigger) {
    if (is_key_table(trigger->relation))
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("envcrypt's tables have no triggers but their own"),
                        errdetail("envcrypt writes their rows without a query, and no other would "
                                  "fire.")));
}

void check_rename(RenameStmt *rename) {
    if (rename->renameType == OBJECT_SCHEMA && strcmp(rename->subname, "envcrypt") == 0)
        refuse_rename();
    if ((rename->renameType == OBJECT_TABLE || rename->renameType == OBJECT_COLUMN ||
         rename->renameType == OBJECT_INDEX || rename->renameType == OBJECT_TABCONSTRAINT) &&
        is_key_table(rename->relation))
        refuse_rename();
    if (rename->renameType == OBJECT_FOREIGN_SERVER) {
        require_server_owner(strVal(rename->object));
        const Oid server = get_foreign_server_oid(strVal(rename->object), true);
        if (OidIsValid(server))
            LockDatabaseObject(ForeignServerRelationId, server, 0, AccessExclusiveLock);
        if (any_wrapped_key(strVal(rename->object)))
            refuse_server("rename", strVal(rename->object));
    }
}

void check_drop_owned(DropOwnedStmt *drop) {
    const Oid extension = extension_owner();
    const Oid schema = schema_owner();
    ListCell *cell;
    bool owner_named = false;
    foreach (cell, drop->roles) {
        const Oid role = get_rolespec_oid(static_cast<RoleSpec *>(lfirst(cell)), true);
        if (!OidIsValid(role) || !has_privs_of_role(GetUserId(), role)) return;
        owner_named = owner_named || role == extension || role == schema;
    }
    if (owner_named && keys_exist()) refuse_loss("drop what the owner of extension envcrypt owns");
}

}  // namespace

// AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, and AFTER TRUNCATE: other backends see the change
// at its commit.
ENVCRYPT_FUNCTION(envcrypt_keys_changed) {
    if (!CALLED_AS_TRIGGER(fcinfo))
        ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                        errmsg("this function is called by triggers only")));
    auto *trigger = reinterpret_cast<TriggerData *>(fcinfo->context);
    CacheInvalidateRelcache(trigger->tg_relation);
    backend().keys_changed = true;
    return PointerGetDatum(nullptr);
}

// ddl_command_start: DROP EXTENSION, DROP SCHEMA, DROP SERVER, DROP OWNED, ALTER EXTENSION ...
// DROP, renames of the schema, the tables, ALTER SERVER ... RENAME; what would be computed from
// rows of the tables.
ENVCRYPT_FUNCTION(envcrypt_guard_command) {
    Node *statement = event_data(fcinfo)->parsetree;
    if (IsA(statement, DropStmt)) {
        check_drop(reinterpret_cast<DropStmt *>(statement));
    } else if (IsA(statement, DropOwnedStmt)) {
        check_drop_owned(reinterpret_cast<DropOwnedStmt *>(statement));
    } else if (IsA(statement, RenameStmt)) {
        check_rename(reinterpret_cast<RenameStmt *>(statement));
    } else if (IsA(statement, AlterTableStmt)) {
        check_alter_table(reinterpret_cast<AlterTableStmt *>(statement));
    } else if (IsA(statement, IndexStmt)) {
        check_index(reinterpret_cast<IndexStmt *>(statement));
    } else if (IsA(statement, CreateTrigStmt)) {
        check_trigger(reinterpret_cast<CreateTrigStmt *>(statement));
    } else if (IsA(statement, AlterObjectSchemaStmt)) {
        if (is_key_table(reinterpret_cast<AlterObjectSchemaStmt *>(statement)->relation))
            refuse_rename();
    } else if (IsA(statement, AlterExtensionContentsStmt)) {
        auto *alter = reinterpret_cast<AlterExtensionContentsStmt *>(statement);
        if (strcmp(alter->extname, "envcrypt") == 0 && alter->action < 0 &&
            owns_envcrypt_extension() && keys_exist())
            refuse_loss("take objects out of extension envcrypt");
    }
    return PointerGetDatum(nullptr);
}

// sql_drop: whichever way a server was dropped.
ENVCRYPT_FUNCTION(envcrypt_guard_servers) {
    (void)event_data(fcinfo);
    if (!OidIsValid(get_extension_oid("envcrypt", true))) return PointerGetDatum(nullptr);
    SPI_connect();
    if (SPI_execute("SELECT object_name::pg_catalog.text FROM "
                    "pg_catalog.pg_event_trigger_dropped_objects() "
                    "WHERE object_type OPERATOR(pg_catalog.=) 'server'",
                    true, 0) != SPI_OK_SELECT)
        elog(ERROR, "envcrypt: could not read what is dropped");
    for (std::uint64_t i = 0; i < SPI_processed; ++i) {
        char *server = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
        if (server != nullptr && any_wrapped_key(server)) refuse_server("drop", server);
    }
    SPI_finish();
    return PointerGetDatum(nullptr);
}

}  // namespace envcrypt::pg
