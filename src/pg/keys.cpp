// See keys.hpp.
#include "pg/keys.hpp"

#include "pg/backend.hpp"

namespace envcrypt::pg {

namespace {

namespace tenant_column {
enum {
    name = 1,
    state,
    server,
    master_key,
    group_key,
    search_tenant,
    created_at,
    count = created_at
};
}
namespace key_column {
enum {
    key_id = 1,
    tenant,
    purpose,
    version,
    state,
    suite,
    commitment,
    created_at,
    count = created_at
};
}
namespace wrapped_column {
enum {
    key_id = 1,
    server,
    group_key,
    wrapped,
    master_key,
    master_key_version,
    attestation,
    created_at,
    count = created_at
};
}

namespace journal_column {
enum { at = 1, role, session_role, act, tenant, details, count = details };
}

constexpr int16 kSuite = 1;  // AES-256-GCM and the derivations of format 1

constexpr const char *kTenantStates[] = {"active", "disabled", "destroyed"};
constexpr const char *kKeyStates[] = {"pending", "active", "decrypt_only", "destroyed"};
constexpr crypto::Purpose kPurposes[] = {crypto::Purpose::data, crypto::Purpose::search,
                                         crypto::Purpose::group};

[[noreturn]] void corrupt_row(const char *table, const char *what) {
    ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                    errmsg("a row of envcrypt.%s holds an invalid %s", table, what),
                    errhint("The key tables are written by envcrypt's own functions only; restore "
                            "the row from a backup.")));
    pg_unreachable();
}

template <std::size_t Count>
int index_of(const char *const (&names)[Count], const char *name, const char *table) {
    for (std::size_t i = 0; i < Count; ++i)
        if (strcmp(names[i], name) == 0) return static_cast<int>(i);
    corrupt_row(table, "state");
}

crypto::Purpose purpose_of(const char *name) {
    for (const crypto::Purpose purpose : kPurposes)
        if (strcmp(crypto::purpose_name(purpose), name) == 0) return purpose;
    corrupt_row("data_key", "purpose");
}

Datum text_datum(const char *text) {
    return CStringGetTextDatum(text);
}

Datum bytea_datum(ByteView bytes) {
    auto *copy = static_cast<bytea *>(palloc(VARHDRSZ + bytes.size()));
    SET_VARSIZE(copy, VARHDRSZ + bytes.size());
    memcpy(VARDATA(copy), bytes.data(), bytes.size());
    return PointerGetDatum(copy);
}

Oid relation_oid(const char *name) {
    const Oid schema = get_namespace_oid("envcrypt", true);
    const Oid relation = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
    if (!OidIsValid(relation))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
                        errmsg("relation envcrypt.%s does not exist", name),
                        errhint("CREATE EXTENSION envcrypt;")));
    return relation;
}

struct Table {
    const char *name;
    int columns;
    Oid KeyTables::*watched;
};
constexpr Table kTenant{"tenant", tenant_column::count, &KeyTables::tenant};
constexpr Table kDataKey{"data_key", key_column::count, &KeyTables::data_key};
constexpr Table kJournal{"journal", journal_column::count, nullptr};
constexpr Table kWrappedKey{"wrapped_key", wrapped_column::count, &KeyTables::wrapped_key};

Relation open_table(const Table &table, LOCKMODE mode) {
    const Oid oid = relation_oid(table.name);
    if (table.watched != nullptr) watched_tables.*table.watched = oid;
    Relation relation = table_open(oid, mode);
    if (RelationGetNumberOfAttributes(relation) != table.columns)
        ereport(ERROR,
                (errcode(ERRCODE_DATA_CORRUPTED),
                 errmsg("table envcrypt.%s does not have the columns it was made with", table.name),
                 errhint("Take back what was added to it or dropped from it.")));
    return relation;
}

// Calls visit(values, nulls) for each visible row that the keys find, until it answers false.
template <class Visit>
void scan(const Table &table, const char *index, ScanKeyData *keys, int key_count, Visit visit) {
    Relation relation = open_table(table, AccessShareLock);
    SysScanDesc found =
        systable_beginscan(relation, index != nullptr ? relation_oid(index) : InvalidOid,
                           index != nullptr, nullptr, key_count, keys);
    for (HeapTuple tuple = systable_getnext(found); HeapTupleIsValid(tuple);
         tuple = systable_getnext(found)) {
        Datum values[16];
        bool nulls[16];
        heap_deform_tuple(tuple, RelationGetDescr(relation), values, nulls);
        for (int i = 0; i < table.columns; ++i)
            if (nulls[i]) corrupt_row(table.name, "NULL");
        if (!visit(tuple, values, nulls)) break;
    }
    systable_endscan(found);
    table_close(relation, AccessShareLock);
}

void key_equals(ScanKeyData *key, AttrNumber column, const char *text) {
    ScanKeyInit(key, column, BTEqualStrategyNumber, F_TEXTEQ, text_datum(text));
}

void key_equals(ScanKeyData *key, AttrNumber column, std::uint64_t key_id) {
    ScanKeyInit(key, column, BTEqualStrategyNumber, F_INT8EQ,
                Int64GetDatum(static_cast<int64>(key_id)));
}

void read_key(HeapTuple tuple, const Datum *values, KeyRow &row) {
    row.own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
    row.key_id = static_cast<std::uint64_t>(DatumGetInt64(values[key_column::key_id - 1]));
    row.tenant = TextDatumGetCString(values[key_column::tenant - 1]);
    row.purpose = purpose_of(TextDatumGetCString(values[key_column::purpose - 1]));
    row.version = DatumGetInt32(values[key_column::version - 1]);
    row.state = static_cast<KeyState>(
        index_of(kKeyStates, TextDatumGetCString(values[key_column::state - 1]), "data_key"));
    if (DatumGetInt16(values[key_column::suite - 1]) != kSuite) corrupt_row("data_key", "suite");
    const bytea *commitment = DatumGetByteaPP(values[key_column::commitment - 1]);
    if (VARSIZE_ANY_EXHDR(commitment) != row.commitment.size())
        corrupt_row("data_key", "commitment");
    memcpy(row.commitment.data(), VARDATA_ANY(commitment), row.commitment.size());
}

// Key changes are never lost by a crash after their COMMIT was confirmed, and are seen by
// everybody.
void changed(Relation relation) {
    CacheInvalidateRelcache(relation);
    ForceSyncCommit();
}

void insert_row(const Table &table, Datum *values) {
    bool nulls[16] = {};
    Relation relation = open_table(table, RowExclusiveLock);
    HeapTuple tuple = heap_form_tuple(RelationGetDescr(relation), values, nulls);
    CatalogTupleInsert(relation, tuple);
    changed(relation);
    table_close(relation, NoLock);
    CommandCounterIncrement();
}

}  // namespace

bool is_tenant_name(const char *name) {
    const std::size_t length = strlen(name);
    return length >= 1 && length <= kMaxTenantName &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@/+=-") ==
               length;
}

bool find_tenant(const char *name, TenantRow &row) {
    bool found = false;
    ScanKeyData key;
    key_equals(&key, tenant_column::name, name);
    scan(kTenant, "tenant_pkey", &key, 1, [&](HeapTuple, const Datum *values, const bool *) {
        row.name = pstrdup(name);
        row.state = static_cast<TenantState>(index_of(
            kTenantStates, TextDatumGetCString(values[tenant_column::state - 1]), "tenant"));
        row.server = TextDatumGetCString(values[tenant_column::server - 1]);
        row.master_key = TextDatumGetCString(values[tenant_column::master_key - 1]);
        row.search_tenant = TextDatumGetCString(values[tenant_column::search_tenant - 1]);
        found = true;
        return false;
    });
    return found;
}

bool find_key(std::uint64_t key_id, KeyRow &row) {
    bool found = false;
    ScanKeyData key;
    key_equals(&key, key_column::key_id, key_id);
    scan(kDataKey, "data_key_pkey", &key, 1,
         [&](HeapTuple tuple, const Datum *values, const bool *) {
             read_key(tuple, values, row);
             found = true;
             return false;
         });
    return found;
}

bool find_newest_key(const char *tenant, crypto::Purpose purpose, bool (*usable)(const KeyRow &row),
                     KeyRow &row) {
    bool found = false;
    ScanKeyData keys[2];
    key_equals(&keys[0], key_column::tenant, tenant);
    key_equals(&keys[1], key_column::purpose, crypto::purpose_name(purpose));
    scan(kDataKey, "data_key_tenant_purpose_version_key", keys, 2,
         [&](HeapTuple tuple, const Datum *values, const bool *) {
             KeyRow other;
             read_key(tuple, values, other);
             if ((!found || other.version > row.version) && usable(other)) {
                 row = other;
                 found = true;
             }
             return true;
         });
    return found;
}

namespace {

List *collect_keys(ScanKeyData *keys, int count) {
    List *rows = NIL;
    scan(kDataKey, "data_key_tenant_purpose_version_key", keys, count,
         [&](HeapTuple tuple, const Datum *values, const bool *) {
             auto *row = static_cast<KeyRow *>(palloc(sizeof(KeyRow)));
             read_key(tuple, values, *row);
             rows = lappend(rows, row);
             return true;
         });
    return rows;
}

}  // namespace

List *find_keys(const char *tenant, crypto::Purpose purpose) {
    ScanKeyData keys[2];
    key_equals(&keys[0], key_column::tenant, tenant);
    key_equals(&keys[1], key_column::purpose, crypto::purpose_name(purpose));
    List *rows = collect_keys(keys, 2);
    ListCell *cell;
    foreach (cell, rows) {
        const KeyState state = static_cast<KeyRow *>(lfirst(cell))->state;
        if (state != KeyState::active && state != KeyState::decrypt_only)
            rows = foreach_delete_current(rows, cell);
    }
    return rows;
}

List *find_all_keys(const char *tenant) {
    ScanKeyData key;
    key_equals(&key, key_column::tenant, tenant);
    return collect_keys(&key, 1);
}

char *find_search_user(const char *tenant) {
    char *found = nullptr;
    ScanKeyData key;
    key_equals(&key, tenant_column::search_tenant, tenant);
    scan(kTenant, nullptr, &key, 1, [&](HeapTuple, const Datum *values, const bool *) {
        const char *state = TextDatumGetCString(values[tenant_column::state - 1]);
        if (index_of(kTenantStates, state, "tenant") == static_cast<int>(TenantState::destroyed))
            return true;
        found = TextDatumGetCString(values[tenant_column::name - 1]);
        return false;
    });
    return found;
}

List *find_wrapped_keys(std::uint64_t key_id) {
    List *rows = NIL;
    ScanKeyData key;
    key_equals(&key, wrapped_column::key_id, key_id);
    scan(kWrappedKey, "wrapped_key_pkey", &key, 1,
         [&](HeapTuple, const Datum *values, const bool *) {
             auto *row = static_cast<WrappedKeyRow *>(palloc(sizeof(WrappedKeyRow)));
             const bytea *wrapped = DatumGetByteaPCopy(values[wrapped_column::wrapped - 1]);
             row->key_id = key_id;
             row->server = TextDatumGetCString(values[wrapped_column::server - 1]);
             row->wrapped = {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(wrapped)),
                             VARSIZE_ANY_EXHDR(wrapped)};
             row->master_key = TextDatumGetCString(values[wrapped_column::master_key - 1]);
             row->master_key_version =
                 TextDatumGetCString(values[wrapped_column::master_key_version - 1]);
             const bytea *attestation = DatumGetByteaPCopy(values[wrapped_column::attestation - 1]);
             row->attestation = {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(attestation)),
                                 VARSIZE_ANY_EXHDR(attestation)};
             rows = lappend(rows, row);
             return true;
         });
    return rows;
}

bool any_wrapped_key(const char *server) {
    bool found = false;
    ScanKeyData key;
    if (server != nullptr) key_equals(&key, wrapped_column::server, server);
    scan(kWrappedKey, nullptr, &key, server != nullptr ? 1 : 0,
         [&](HeapTuple, const Datum *, const bool *) {
             found = true;
             return false;
         });
    return found;
}

void insert_tenant(const TenantRow &row) {
    Datum values[tenant_column::count];
    values[tenant_column::name - 1] = text_datum(row.name);
    values[tenant_column::state - 1] = text_datum(kTenantStates[static_cast<int>(row.state)]);
    values[tenant_column::server - 1] = text_datum(row.server);
    values[tenant_column::master_key - 1] = text_datum(row.master_key);
    values[tenant_column::group_key - 1] = text_datum("");
    values[tenant_column::search_tenant - 1] = text_datum(row.search_tenant);
    values[tenant_column::created_at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    insert_row(kTenant, values);
}

void insert_key(const KeyRow &row) {
    Datum values[key_column::count];
    values[key_column::key_id - 1] = Int64GetDatum(static_cast<int64>(row.key_id));
    values[key_column::tenant - 1] = text_datum(row.tenant);
    values[key_column::purpose - 1] = text_datum(crypto::purpose_name(row.purpose));
    values[key_column::version - 1] = Int32GetDatum(row.version);
    values[key_column::state - 1] = text_datum(kKeyStates[static_cast<int>(row.state)]);
    values[key_column::suite - 1] = Int16GetDatum(kSuite);
    values[key_column::commitment - 1] = bytea_datum(row.commitment);
    values[key_column::created_at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    insert_row(kDataKey, values);
}

void insert_wrapped_key(const WrappedKeyRow &row) {
    Datum values[wrapped_column::count];
    values[wrapped_column::key_id - 1] = Int64GetDatum(static_cast<int64>(row.key_id));
    values[wrapped_column::server - 1] = text_datum(row.server);
    values[wrapped_column::group_key - 1] = text_datum("");
    values[wrapped_column::wrapped - 1] = bytea_datum(row.wrapped);
    values[wrapped_column::master_key - 1] = text_datum(row.master_key);
    values[wrapped_column::master_key_version - 1] = text_datum(row.master_key_version);
    values[wrapped_column::attestation - 1] = bytea_datum(row.attestation);
    values[wrapped_column::created_at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    insert_row(kWrappedKey, values);
}

namespace {

// Sets one column of the one row that the key finds.
void set_column(const Table &table, const char *index, ScanKeyData *key, int column, Datum value) {
    Relation relation = open_table(table, RowExclusiveLock);
    scan(table, index, key, 1, [&](HeapTuple tuple, const Datum *, const bool *) {
        Datum values[16] = {};
        bool nulls[16] = {};
        bool replaced[16] = {};
        values[column - 1] = value;
        replaced[column - 1] = true;
        HeapTuple changed_tuple =
            heap_modify_tuple(tuple, RelationGetDescr(relation), values, nulls, replaced);
        CatalogTupleUpdate(relation, &tuple->t_self, changed_tuple);
        return false;
    });
    changed(relation);
    table_close(relation, NoLock);
    CommandCounterIncrement();
}

}  // namespace

void set_key_state(std::uint64_t key_id, KeyState state) {
    ScanKeyData key;
    key_equals(&key, key_column::key_id, key_id);
    set_column(kDataKey, "data_key_pkey", &key, key_column::state,
               text_datum(kKeyStates[static_cast<int>(state)]));
}

void set_tenant_state(const char *name, TenantState state) {
    ScanKeyData key;
    key_equals(&key, tenant_column::name, name);
    set_column(kTenant, "tenant_pkey", &key, tenant_column::state,
               text_datum(kTenantStates[static_cast<int>(state)]));
}

void delete_wrapped_keys(std::uint64_t key_id) {
    ScanKeyData key;
    key_equals(&key, wrapped_column::key_id, key_id);
    Relation relation = open_table(kWrappedKey, RowExclusiveLock);
    scan(kWrappedKey, "wrapped_key_pkey", &key, 1,
         [&](HeapTuple tuple, const Datum *, const bool *) {
             CatalogTupleDelete(relation, &tuple->t_self);
             return true;
         });
    changed(relation);
    table_close(relation, NoLock);
    CommandCounterIncrement();
}

void lock_tenant(const char *name) {
    const auto hash =
        hash_bytes(reinterpret_cast<const unsigned char *>(name), static_cast<int>(strlen(name)));
    LockDatabaseObject(relation_oid(kTenant.name), hash, 0, ExclusiveLock);
}

List *find_tenants_older_than(TimestampTz made_before) {
    List *names = NIL;
    scan(kDataKey, nullptr, nullptr, 0, [&](HeapTuple tuple, const Datum *values, const bool *) {
        KeyRow row;
        read_key(tuple, values, row);
        if (row.purpose == crypto::Purpose::data && row.state == KeyState::active &&
            DatumGetTimestampTz(values[key_column::created_at - 1]) < made_before)
            names = lappend(names, row.tenant);
        return true;
    });
    return names;
}

void insert_journal(const char *act, const char *tenant, const char *details) {
    Datum values[journal_column::count];
    values[journal_column::at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    values[journal_column::role - 1] = text_datum(GetUserNameFromId(GetUserId(), false));
    values[journal_column::session_role - 1] =
        text_datum(GetUserNameFromId(GetSessionUserId(), false));
    values[journal_column::act - 1] = text_datum(act);
    values[journal_column::tenant - 1] = text_datum(tenant);
    values[journal_column::details - 1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(details));
    insert_row(kJournal, values);
}

}  // namespace envcrypt::pg
