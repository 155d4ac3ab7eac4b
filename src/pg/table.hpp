// Reading and writing rows of the extension's own tables: what others committed meanwhile is seen,
// whatever the transaction's isolation, by any role, in parallel workers and on standbys.
// PostgreSQL frames. Which rows, and what they mean, is keys.cpp's, journal.cpp's and
// progress.cpp's business.
#pragma once

#include <cstdint>

#include "pg/backend.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

struct Table {
    const char *name;
    int columns;              // at most kMaxColumns
    Oid KeyTables::*watched;  // where changes concern the caches
};
inline constexpr int kMaxColumns = 16;

[[noreturn]] void raise_corrupt_row(const char *table, const char *what);

Datum text_datum(const char *text);
Datum bytea_datum(ByteView bytes);
Oid own_relation(const char *name);
Relation open_table(const Table &table, LOCKMODE mode);

void key_equals(ScanKeyData *key, AttrNumber column, const char *text);
void key_equals(ScanKeyData *key, AttrNumber column, std::uint64_t number);

// Calls visit(tuple, values, nulls) for each visible row that the keys find, by the index where one
// is named, until it answers false.
template <class Visit>
void scan(const Table &table, const char *index, ScanKeyData *keys, int key_count, Visit visit) {
    Relation relation = open_table(table, AccessShareLock);
    SysScanDesc found =
        systable_beginscan(relation, index != nullptr ? own_relation(index) : InvalidOid,
                           index != nullptr, nullptr, key_count, keys);
    for (HeapTuple tuple = systable_getnext(found); HeapTupleIsValid(tuple);
         tuple = systable_getnext(found)) {
        Datum values[kMaxColumns];
        bool nulls[kMaxColumns];
        heap_deform_tuple(tuple, RelationGetDescr(relation), values, nulls);
        for (int i = 0; i < table.columns; ++i)
            if (nulls[i]) raise_corrupt_row(table.name, "NULL");
        if (!visit(tuple, values)) break;
    }
    systable_endscan(found);
    table_close(relation, AccessShareLock);
}

// Each makes the commit synchronous and, of a watched table, tells every backend.
void insert_row(const Table &table, Datum *values);
// Sets the columns that `replaced` names of every row that the keys find. How many there were.
int update_rows(const Table &table, const char *index, ScanKeyData *keys, int key_count,
                const Datum *values, const bool *replaced);
int delete_rows(const Table &table, const char *index, ScanKeyData *keys, int key_count);

}  // namespace envcrypt::pg
