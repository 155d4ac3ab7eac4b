// See rights.hpp.
#include "pg/rights.hpp"

namespace envcrypt::pg {

void raise_maintenance() {
    ereport(ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("keys cannot be used within a security-restricted operation"),
             errdetail("ANALYZE, materialized views and index builds would store plaintext, or run "
                       "as another role."),
             errhint("Do not use decrypting or encrypting expressions in indexes, statistics or "
                     "materialized views.")));
    pg_unreachable();
}

bool loaded_amid_statement = false;

namespace {

TimestampTz loading_statement;
bool is_materializing = false;
CommandId loading_command;
CommandId looked_at = FirstCommandId;

}  // namespace

bool explains_materialized_view(Node *statement) {
    if (!IsA(statement, ExplainStmt)) return false;
    auto *query = reinterpret_cast<Query *>(reinterpret_cast<ExplainStmt *>(statement)->query);
    return IsA(query, Query) && query->commandType == CMD_UTILITY &&
           IsA(query->utilityStmt, CreateTableAsStmt) &&
           reinterpret_cast<CreateTableAsStmt *>(query->utilityStmt)->objtype == OBJECT_MATVIEW;
}

void note_loading() {
    // a worker's leader has had the hooks
    loaded_amid_statement = IsTransactionState() && !IsParallelWorker();
    if (!loaded_amid_statement) return;
    loading_statement = GetCurrentStatementStartTimestamp();
    looked_at = loading_command = GetCurrentCommandId(false);
    // the view may be there already, where it is a function that loads the library
    is_materializing = false;
    if (ActivePortal == nullptr) return;
    ListCell *cell;
    foreach (cell, ActivePortal->stmts) {
        const auto *statement = static_cast<PlannedStmt *>(lfirst(cell));
        if (statement->utilityStmt != nullptr && explains_materialized_view(statement->utilityStmt))
            is_materializing = true;
    }
}

void refuse_materializing() {
    if (GetCurrentStatementStartTimestamp() != loading_statement) {
        loaded_amid_statement = false;
        return;
    }
    if (is_materializing) raise_maintenance();
    // nothing was made since it was looked last
    const CommandId command = GetCurrentCommandId(false);
    if (command == looked_at || !TransactionIdIsValid(GetCurrentTransactionIdIfAny())) return;
    looked_at = command;
    Relation classes = table_open(RelationRelationId, AccessShareLock);
    ScanKeyData key;
    ScanKeyInit(&key, Anum_pg_class_relkind, BTEqualStrategyNumber, F_CHAREQ,
                CharGetDatum(RELKIND_MATVIEW));
    SysScanDesc scan = systable_beginscan(classes, InvalidOid, false, nullptr, 1, &key);
    bool found = false;
    for (HeapTuple tuple = systable_getnext(scan); HeapTupleIsValid(tuple) && !found;
         tuple = systable_getnext(scan))
        found = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) &&
                HeapTupleHeaderGetCmin(tuple->t_data) >= loading_command;
    systable_endscan(scan);
    table_close(classes, AccessShareLock);
    if (found) raise_maintenance();
}

Oid encrypted_type() {
    return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("encrypted"),
                           ObjectIdGetDatum(get_namespace_oid("envcrypt", false)));
}

Oid encrypted_type_if_any() {
    const Oid schema = get_namespace_oid("envcrypt", true);
    return OidIsValid(schema) ? encrypted_type() : InvalidOid;
}

Oid right_function(Right right) {
    const Oid type = encrypted_type();
    const Oid encrypt[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
    const Oid decrypt[] = {type, TEXTOID, TEXTOID, TEXTOID};
    const Oid search[] = {TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID};
    const auto look_up = [](const char *name, const Oid *types, int count) {
        char schema_name[] = "envcrypt";
        return LookupFuncName(list_make2(makeString(schema_name), makeString(pstrdup(name))), count,
                              types, false);
    };
    switch (right) {
        case Right::encrypt:
            return look_up("encrypt", encrypt, lengthof(encrypt));
        case Right::decrypt:
            return look_up("decrypt", decrypt, lengthof(decrypt));
        case Right::search:
            break;
    }
    return look_up("search", search, lengthof(search));
}

}  // namespace envcrypt::pg
