// count_values(): under which keys the values of a column are encrypted; and written_here() and
// reads_table(), which the triggers of view_ddl() ask.
#include "pg/keys.hpp"
#include "pg/rights.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

// count_values(table, column): tenant, key version and how many values bear that key. Reads as the
// caller, and needs no key.
ENVCRYPT_FUNCTION(envcrypt_count_values) {
    require_right(fcinfo->flinfo->fn_oid);
    const Oid table = PG_GETARG_OID(0);
    const char *column = NameStr(*PG_GETARG_NAME(1));
    const char *name = get_rel_name(table);
    if (name == nullptr)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE), errmsg("there is no such table")));
    const AttrNumber attribute = get_attnum(table, column);
    if (attribute == InvalidAttrNumber)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
                        errmsg("table %s has no column \"%s\"", name, column)));
    if (getBaseType(get_atttype(table, attribute)) != encrypted_type())
        ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
                        errmsg("column \"%s\" of table %s is not encrypted", column, name)));
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    SPI_connect();
    const char *quoted = quote_identifier(column);
    // a damaged value may be too short to hold a key id
    const int done = SPI_execute(
        psprintf("SELECT CASE WHEN pg_catalog.octet_length(v.id) OPERATOR(pg_catalog.=) 8 "
                 "THEN v.id END, pg_catalog.count(*) "
                 "FROM (SELECT pg_catalog.substr(envcrypt.encrypted_send(t.%s), 3, 8) AS id "
                 "FROM %s t WHERE t.%s IS NOT NULL) v GROUP BY 1",
                 quoted,
                 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)), name),
                 quoted),
        true, 0);
    if (done != SPI_OK_SELECT) elog(ERROR, "envcrypt: could not count the values");
    for (std::uint64_t i = 0; i < SPI_processed; ++i) {
        Datum values[4] = {};
        bool nulls[4] = {};
        bool is_null;
        HeapTuple row = SPI_tuptable->vals[i];
        const Datum id = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &nulls[2]);
        const std::uint64_t key_id =
            nulls[2] ? 0 : load_be64(varlena_bytes(DatumGetByteaPP(id)).data());
        KeyRow key;
        const bool known = !nulls[2] && find_key(key_id, key);
        nulls[0] = nulls[1] = !known;
        if (known) {
            values[0] = CStringGetTextDatum(key.tenant);
            values[1] = Int32GetDatum(key.version);
        }
        if (!nulls[2])
            values[2] =
                CStringGetTextDatum(psprintf("%016llx", static_cast<unsigned long long>(key_id)));
        values[3] = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &is_null);
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    SPI_finish();
    return (Datum)0;
}

// written_here(xid)
ENVCRYPT_FUNCTION(envcrypt_written_here) {
    PG_RETURN_BOOL(TransactionIdIsCurrentTransactionId(PG_GETARG_TRANSACTIONID(0)));
}

// reads_table(view, schema, table): for each row that a trigger writes, so it asks the caches only.
ENVCRYPT_FUNCTION(envcrypt_reads_table) {
    const Oid table = get_relname_relid(NameStr(*PG_GETARG_NAME(2)),
                                        get_namespace_oid(NameStr(*PG_GETARG_NAME(1)), true));
    const Relation view = table_open(PG_GETARG_OID(0), AccessShareLock);
    bool reads = false;
    if (OidIsValid(table) && table != PG_GETARG_OID(0) && view->rd_rel->relkind == RELKIND_VIEW) {
        ListCell *cell;
        foreach (cell, get_view_query(view)->rtable) {
            const RangeTblEntry *entry = lfirst_node(RangeTblEntry, cell);
            reads = reads || (entry->rtekind == RTE_RELATION && entry->relid == table);
        }
    }
    table_close(view, AccessShareLock);
    PG_RETURN_BOOL(reads);
}

}  // namespace envcrypt::pg
