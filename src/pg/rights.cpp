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
CommandId loading_command;
CommandId looked_at = FirstCommandId;

}  // namespace

void note_loading() {
    loaded_amid_statement = IsTransactionState();
    if (!loaded_amid_statement) return;
    loading_statement = GetCurrentStatementStartTimestamp();
    looked_at = loading_command = GetCurrentCommandId(false);
}

void refuse_materializing() {
    if (GetCurrentStatementStartTimestamp() != loading_statement) {
        loaded_amid_statement = false;
        return;
    }
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
