// See table.hpp.
#include "pg/table.hpp"

namespace envcrypt::pg {

namespace {

// Key changes are never lost by a crash after their COMMIT was confirmed, and are seen by
// everybody.
void changed(const Table &table, Relation relation) {
    if (table.watched != nullptr) {
        CacheInvalidateRelcache(relation);
        backend().keys_changed = true;
    }
    ForceSyncCommit();
}

}  // namespace

void raise_corrupt_row(const char *table, const char *what) {
    ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                    errmsg("a row of envcrypt.%s holds an invalid %s", table, what),
                    errhint("The key tables are written by envcrypt's own functions only; restore "
                            "the row from a backup.")));
    pg_unreachable();
}

Datum text_datum(const char *text) {
    return CStringGetTextDatum(text);
}

Datum bytea_datum(ByteView bytes) {
    auto *copy = static_cast<bytea *>(palloc(VARHDRSZ + bytes.size()));
    SET_VARSIZE(copy, VARHDRSZ + bytes.size());
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::uint8_t *>(VARDATA(copy)));
    return PointerGetDatum(copy);
}

Oid own_relation(const char *name) {
    const Oid schema = get_namespace_oid("envcrypt", true);
    const Oid relation = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
    if (!OidIsValid(relation))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
                        errmsg("relation envcrypt.%s does not exist", name),
                        errhint("CREATE EXTENSION envcrypt;")));
    return relation;
}

Relation open_table(const Table &table, LOCKMODE mode) {
    const Oid oid = own_relation(table.name);
    if (table.watched != nullptr) watched_tables.*table.watched = oid;
    Relation relation = table_open(oid, mode);
    if (RelationGetNumberOfAttributes(relation) != table.columns)
        ereport(ERROR,
                (errcode(ERRCODE_DATA_CORRUPTED),
                 errmsg("table envcrypt.%s does not have the columns it was made with", table.name),
                 errhint("Take back what was added to it or dropped from it.")));
    return relation;
}

void key_equals(ScanKeyData *key, AttrNumber column, const char *text) {
    ScanKeyInit(key, column, BTEqualStrategyNumber, F_TEXTEQ, text_datum(text));
}

void key_equals(ScanKeyData *key, AttrNumber column, std::uint64_t number) {
    ScanKeyInit(key, column, BTEqualStrategyNumber, F_INT8EQ,
                Int64GetDatum(static_cast<int64>(number)));
}

void insert_row(const Table &table, Datum *values) {
    bool nulls[kMaxColumns] = {};
    Relation relation = open_table(table, RowExclusiveLock);
    HeapTuple tuple = heap_form_tuple(RelationGetDescr(relation), values, nulls);
    CatalogTupleInsert(relation, tuple);
    changed(table, relation);
    table_close(relation, NoLock);
    CommandCounterIncrement();
}

namespace {

template <class Change>
int change_each(const Table &table, const char *index, ScanKeyData *keys, int key_count,
                Change change) {
    int count = 0;
    Relation relation = open_table(table, RowExclusiveLock);
    scan(table, index, keys, key_count, [&](HeapTuple tuple, const Datum *) {
        change(relation, tuple);
        ++count;
        return true;
    });
    changed(table, relation);
    table_close(relation, NoLock);
    CommandCounterIncrement();
    return count;
}

}  // namespace

int update_rows(const Table &table, const char *index, ScanKeyData *keys, int key_count,
                const Datum *values, const bool *replaced) {
    return change_each(table, index, keys, key_count, [&](Relation relation, HeapTuple tuple) {
        const bool nulls[kMaxColumns] = {};
        HeapTuple changed_tuple =
            heap_modify_tuple(tuple, RelationGetDescr(relation), const_cast<Datum *>(values),
                              const_cast<bool *>(nulls), const_cast<bool *>(replaced));
        CatalogTupleUpdate(relation, &tuple->t_self, changed_tuple);
    });
}

int delete_rows(const Table &table, const char *index, ScanKeyData *keys, int key_count) {
    return change_each(table, index, keys, key_count, [](Relation relation, HeapTuple tuple) {
        CatalogTupleDelete(relation, &tuple->t_self);
    });
}

}  // namespace envcrypt::pg
