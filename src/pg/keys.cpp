// See keys.hpp.
#include "pg/keys.hpp"

#include "pg/table.hpp"

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
    own_master_key,
    created_at,
    wrapped_at,
    count = wrapped_at
};
}

constexpr int16 kSuite = 1;  // AES-256-GCM and the derivations of format 1

constexpr const char *kTenantStates[] = {"active", "disabled", "destroyed"};
constexpr const char *kKeyStates[] = {"pending", "active", "decrypt_only", "destroyed"};
constexpr crypto::Purpose kPurposes[] = {crypto::Purpose::data, crypto::Purpose::search,
                                         crypto::Purpose::group};

template <std::size_t Count>
int index_of(const char *const (&names)[Count], const char *name, const char *table) {
    for (std::size_t i = 0; i < Count; ++i)
        if (strcmp(names[i], name) == 0) return static_cast<int>(i);
    raise_corrupt_row(table, "state");
}

crypto::Purpose purpose_of(const char *name) {
    for (const crypto::Purpose purpose : kPurposes)
        if (strcmp(crypto::purpose_name(purpose), name) == 0) return purpose;
    raise_corrupt_row("data_key", "purpose");
}

constexpr Table kTenant{"tenant", tenant_column::count, &KeyTables::tenant};
constexpr Table kDataKey{"data_key", key_column::count, &KeyTables::data_key};
constexpr Table kWrappedKey{"wrapped_key", wrapped_column::count, &KeyTables::wrapped_key};

void read_key(HeapTuple tuple, const Datum *values, KeyRow &row) {
    row.own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
    row.key_id = static_cast<std::uint64_t>(DatumGetInt64(values[key_column::key_id - 1]));
    row.tenant = TextDatumGetCString(values[key_column::tenant - 1]);
    row.purpose = purpose_of(TextDatumGetCString(values[key_column::purpose - 1]));
    row.version = DatumGetInt32(values[key_column::version - 1]);
    if (!is_version(row.purpose, row.version)) raise_corrupt_row("data_key", "version");
    row.created_at = DatumGetTimestampTz(values[key_column::created_at - 1]);
    row.state = static_cast<KeyState>(
        index_of(kKeyStates, TextDatumGetCString(values[key_column::state - 1]), "data_key"));
    if (DatumGetInt16(values[key_column::suite - 1]) != kSuite)
        raise_corrupt_row("data_key", "suite");
    const bytea *commitment = DatumGetByteaPP(values[key_column::commitment - 1]);
    if (VARSIZE_ANY_EXHDR(commitment) != row.commitment.size())
        raise_corrupt_row("data_key", "commitment");
    memcpy(row.commitment.data(), VARDATA_ANY(commitment), row.commitment.size());
}

}  // namespace

bool is_tenant_name(const char *name) {
    const std::size_t length = strlen(name);
    return length >= 1 && length <= kMaxTenantName &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@/+=-") ==
               length;
}

namespace {

void read_tenant(const Datum *values, TenantRow &row) {
    row.name = TextDatumGetCString(values[tenant_column::name - 1]);
    row.state = static_cast<TenantState>(
        index_of(kTenantStates, TextDatumGetCString(values[tenant_column::state - 1]), "tenant"));
    row.server = TextDatumGetCString(values[tenant_column::server - 1]);
    row.master_key = TextDatumGetCString(values[tenant_column::master_key - 1]);
    row.group_key = TextDatumGetCString(values[tenant_column::group_key - 1]);
    row.search_tenant = TextDatumGetCString(values[tenant_column::search_tenant - 1]);
}

}  // namespace

bool find_tenant(const char *name, TenantRow &row) {
    bool found = false;
    ScanKeyData key;
    key_equals(&key, tenant_column::name, name);
    scan(kTenant, "tenant_pkey", &key, 1, [&](HeapTuple, const Datum *values) {
        read_tenant(values, row);
        found = true;
        return false;
    });
    return found;
}

List *find_tenants_at(const char *server) {
    List *rows = NIL;
    ScanKeyData key;
    key_equals(&key, tenant_column::server, server);
    scan(kTenant, nullptr, &key, 1, [&](HeapTuple, const Datum *values) {
        auto *row = static_cast<TenantRow *>(palloc(sizeof(TenantRow)));
        read_tenant(values, *row);
        rows = lappend(rows, row);
        return true;
    });
    return rows;
}

bool find_key(std::uint64_t key_id, KeyRow &row) {
    bool found = false;
    ScanKeyData key;
    key_equals(&key, key_column::key_id, key_id);
    scan(kDataKey, "data_key_pkey", &key, 1, [&](HeapTuple tuple, const Datum *values) {
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
         [&](HeapTuple tuple, const Datum *values) {
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
         [&](HeapTuple tuple, const Datum *values) {
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
        if (!is_live(*static_cast<KeyRow *>(lfirst(cell))))
            rows = foreach_delete_current(rows, cell);
    }
    return rows;
}

List *find_all_keys(const char *tenant) {
    ScanKeyData key;
    key_equals(&key, key_column::tenant, tenant);
    List *rows = collect_keys(&key, 1);
    ListCell *cell;
    foreach (cell, rows)
        if (static_cast<KeyRow *>(lfirst(cell))->purpose == crypto::Purpose::group)
            rows = foreach_delete_current(rows, cell);
    return rows;
}

char *find_search_user(const char *tenant) {
    char *found = nullptr;
    ScanKeyData key;
    key_equals(&key, tenant_column::search_tenant, tenant);
    scan(kTenant, "tenant_search_tenant_idx", &key, 1, [&](HeapTuple, const Datum *values) {
        const char *state = TextDatumGetCString(values[tenant_column::state - 1]);
        if (index_of(kTenantStates, state, "tenant") == static_cast<int>(TenantState::destroyed))
            return true;
        found = TextDatumGetCString(values[tenant_column::name - 1]);
        return false;
    });
    return found;
}

namespace {

ByteView copied_bytes(Datum datum) {
    const bytea *copy = DatumGetByteaPCopy(datum);
    return {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(copy)), VARSIZE_ANY_EXHDR(copy)};
}

WrappedKeyRow *read_wrapped_key(const Datum *values) {
    auto *row = static_cast<WrappedKeyRow *>(palloc(sizeof(WrappedKeyRow)));
    row->key_id = static_cast<std::uint64_t>(DatumGetInt64(values[wrapped_column::key_id - 1]));
    row->server = TextDatumGetCString(values[wrapped_column::server - 1]);
    row->group_key = TextDatumGetCString(values[wrapped_column::group_key - 1]);
    // a server or a group key, not both
    if ((row->server[0] == '\0') == (row->group_key[0] == '\0'))
        raise_corrupt_row("wrapped_key", "place");
    row->wrapped = copied_bytes(values[wrapped_column::wrapped - 1]);
    row->master_key = TextDatumGetCString(values[wrapped_column::master_key - 1]);
    row->master_key_version = TextDatumGetCString(values[wrapped_column::master_key_version - 1]);
    row->attestation = copied_bytes(values[wrapped_column::attestation - 1]);
    row->own_master_key = DatumGetBool(values[wrapped_column::own_master_key - 1]);
    row->created_at = DatumGetTimestampTz(values[wrapped_column::created_at - 1]);
    row->wrapped_at = DatumGetTimestampTz(values[wrapped_column::wrapped_at - 1]);
    return row;
}

int by_creation(const ListCell *a, const ListCell *b) {
    const auto *first = static_cast<WrappedKeyRow *>(lfirst(a));
    const auto *second = static_cast<WrappedKeyRow *>(lfirst(b));
    if (first->created_at != second->created_at)
        return first->created_at < second->created_at ? -1 : 1;
    return strcmp(first->server, second->server);
}

}  // namespace

List *find_wrapped_keys(std::uint64_t key_id) {
    List *rows = NIL;
    ScanKeyData key;
    key_equals(&key, wrapped_column::key_id, key_id);
    scan(kWrappedKey, "wrapped_key_pkey", &key, 1, [&](HeapTuple, const Datum *values) {
        rows = lappend(rows, read_wrapped_key(values));
        return true;
    });
    list_sort(rows, by_creation);
    return rows;
}

WrappedKeyRow *find_wrapped_key(std::uint64_t key_id, const char *server) {
    WrappedKeyRow *row = nullptr;
    ScanKeyData keys[2];
    key_equals(&keys[0], wrapped_column::key_id, key_id);
    key_equals(&keys[1], wrapped_column::server, server);
    scan(kWrappedKey, "wrapped_key_pkey", keys, 2, [&](HeapTuple, const Datum *values) {
        row = read_wrapped_key(values);
        return false;
    });
    return row;
}

KeyIds find_keys_wrapped_by(const char *server) {
    KeyIds ids{nullptr, 0};
    int room = 0;
    ScanKeyData key;
    key_equals(&key, wrapped_column::server, server);
    scan(kWrappedKey, nullptr, &key, 1, [&](HeapTuple, const Datum *values) {
        ids.add(static_cast<std::uint64_t>(DatumGetInt64(values[wrapped_column::key_id - 1])),
                room);
        return true;
    });
    return ids;
}

KeyIds find_live_keys() {
    KeyIds ids{nullptr, 0};
    int room = 0;
    scan(kDataKey, nullptr, nullptr, 0, [&](HeapTuple tuple, const Datum *values) {
        KeyRow row;
        read_key(tuple, values, row);
        if (is_live(row)) ids.add(row.key_id, room);
        return true;
    });
    return ids;
}

void KeyIds::add(std::uint64_t id, int &room) {
    if (count == room) {
        room = room == 0 ? 64 : 2 * room;
        const Size size = sizeof(std::uint64_t) * static_cast<Size>(room);
        ids = static_cast<std::uint64_t *>(ids == nullptr
                                               ? MemoryContextAllocHuge(CurrentMemoryContext, size)
                                               : repalloc_huge(ids, size));
    }
    ids[count++] = id;
}

bool any_wrapped_key(const char *server) {
    bool found = false;
    ScanKeyData key;
    if (server != nullptr) key_equals(&key, wrapped_column::server, server);
    scan(kWrappedKey, nullptr, &key, server != nullptr ? 1 : 0, [&](HeapTuple, const Datum *) {
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
    values[tenant_column::group_key - 1] = text_datum(row.group_key);
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
    values[key_column::created_at - 1] =
        TimestampTzGetDatum(row.created_at != 0 ? row.created_at : GetCurrentTimestamp());
    insert_row(kDataKey, values);
}

void insert_wrapped_key(const WrappedKeyRow &row) {
    Datum values[wrapped_column::count];
    values[wrapped_column::key_id - 1] = Int64GetDatum(static_cast<int64>(row.key_id));
    values[wrapped_column::server - 1] = text_datum(row.server);
    values[wrapped_column::group_key - 1] = text_datum(row.group_key);
    values[wrapped_column::wrapped - 1] = bytea_datum(row.wrapped);
    values[wrapped_column::master_key - 1] = text_datum(row.master_key);
    values[wrapped_column::master_key_version - 1] = text_datum(row.master_key_version);
    values[wrapped_column::attestation - 1] = bytea_datum(row.attestation);
    values[wrapped_column::own_master_key - 1] = BoolGetDatum(row.own_master_key);
    values[wrapped_column::created_at - 1] = values[wrapped_column::wrapped_at - 1] =
        TimestampTzGetDatum(GetCurrentTimestamp());
    insert_row(kWrappedKey, values);
}

namespace {

struct Change {
    int column;
    Datum value;
};

void change_rows(const Table &table, const char *index, ScanKeyData *keys, int key_count,
                 std::initializer_list<Change> changes) {
    Datum values[kMaxColumns] = {};
    bool replaced[kMaxColumns] = {};
    for (const Change &change : changes) {
        values[change.column - 1] = change.value;
        replaced[change.column - 1] = true;
    }
    if (update_rows(table, index, keys, key_count, values, replaced) == 0)
        elog(ERROR, "envcrypt: a row of envcrypt.%s to be changed is not there", table.name);
}

}  // namespace

void set_key_state(std::uint64_t key_id, KeyState state) {
    ScanKeyData key;
    key_equals(&key, key_column::key_id, key_id);
    change_rows(kDataKey, "data_key_pkey", &key, 1,
                {{key_column::state, text_datum(kKeyStates[static_cast<int>(state)])}});
}

void set_tenant_state(const char *name, TenantState state) {
    ScanKeyData key;
    key_equals(&key, tenant_column::name, name);
    change_rows(kTenant, "tenant_pkey", &key, 1,
                {{tenant_column::state, text_datum(kTenantStates[static_cast<int>(state)])}});
}

void set_tenant_place(const char *name, const char *server, const char *master_key,
                      const char *group_key) {
    ScanKeyData key;
    key_equals(&key, tenant_column::name, name);
    change_rows(kTenant, "tenant_pkey", &key, 1,
                {{tenant_column::server, text_datum(server)},
                 {tenant_column::master_key, text_datum(master_key)},
                 {tenant_column::group_key, text_datum(group_key)}});
}

void replace_wrapped_key(const WrappedKeyRow &row) {
    ScanKeyData keys[3];
    key_equals(&keys[0], wrapped_column::key_id, row.key_id);
    key_equals(&keys[1], wrapped_column::server, row.server);
    key_equals(&keys[2], wrapped_column::group_key, row.group_key);
    change_rows(kWrappedKey, "wrapped_key_pkey", keys, 3,
                {{wrapped_column::wrapped, bytea_datum(row.wrapped)},
                 {wrapped_column::master_key, text_datum(row.master_key)},
                 {wrapped_column::master_key_version, text_datum(row.master_key_version)},
                 {wrapped_column::attestation, bytea_datum(row.attestation)},
                 {wrapped_column::own_master_key, BoolGetDatum(row.own_master_key)},
                 {wrapped_column::wrapped_at, TimestampTzGetDatum(GetCurrentTimestamp())}});
}

void delete_wrapped_keys(std::uint64_t key_id) {
    ScanKeyData key;
    key_equals(&key, wrapped_column::key_id, key_id);
    (void)delete_rows(kWrappedKey, "wrapped_key_pkey", &key, 1);
}

void delete_wrapped_key(std::uint64_t key_id, const char *server, const char *group_key) {
    ScanKeyData keys[3];
    key_equals(&keys[0], wrapped_column::key_id, key_id);
    key_equals(&keys[1], wrapped_column::server, server);
    key_equals(&keys[2], wrapped_column::group_key, group_key);
    (void)delete_rows(kWrappedKey, "wrapped_key_pkey", keys, 3);
}

int rename_server_rows(const char *from, const char *to) {
    // all of them, whoever else is about to change one
    for (const Table *table : {&kTenant, &kWrappedKey})
        LockRelationOid(own_relation(table->name), ShareRowExclusiveLock);
    ScanKeyData key;
    Datum values[kMaxColumns] = {};
    bool replaced[kMaxColumns] = {};
    key_equals(&key, tenant_column::server, from);
    values[tenant_column::server - 1] = text_datum(to);
    replaced[tenant_column::server - 1] = true;
    (void)update_rows(kTenant, nullptr, &key, 1, values, replaced);
    Datum wrapped_values[kMaxColumns] = {};
    bool wrapped_replaced[kMaxColumns] = {};
    key_equals(&key, wrapped_column::server, from);
    wrapped_values[wrapped_column::server - 1] = text_datum(to);
    wrapped_replaced[wrapped_column::server - 1] = true;
    return update_rows(kWrappedKey, nullptr, &key, 1, wrapped_values, wrapped_replaced);
}

namespace {

// Few enough for the lock table, however many tenants one transaction changes.
constexpr std::uint32_t kTenantLocks = 1024;

std::uint32_t lock_of(const char *name) {
    return hash_bytes(reinterpret_cast<const unsigned char *>(name),
                      static_cast<int>(strlen(name))) %
           kTenantLocks;
}

void lock_for(const char *name, uint16 what) {
    LockDatabaseObject(own_relation(kTenant.name), lock_of(name), what, ExclusiveLock);
}

}  // namespace

void lock_tenant(const char *name) {
    lock_for(name, 0);
}

void lock_tenants(std::initializer_list<const char *> names) {
    List *sorted = NIL;
    for (const char *name : names)
        if (name[0] != '\0') sorted = lappend(sorted, const_cast<char *>(name));
    list_sort(sorted, [](const ListCell *a, const ListCell *b) {
        return compare_tenant_locks(static_cast<char *>(lfirst(a)), static_cast<char *>(lfirst(b)));
    });
    ListCell *cell;
    foreach (cell, sorted) lock_tenant(static_cast<char *>(lfirst(cell)));
}

void lock_tenant_row(const char *name) {
    lock_for(name, 1);
}

int compare_tenant_locks(const char *a, const char *b) {
    const std::uint32_t first = lock_of(a);
    const std::uint32_t second = lock_of(b);
    if (first != second) return first < second ? -1 : 1;
    return strcmp(a, b);
}

List *find_tenants_older_than(TimestampTz made_before) {
    List *names = NIL;
    scan(kDataKey, nullptr, nullptr, 0, [&](HeapTuple tuple, const Datum *values) {
        KeyRow row;
        read_key(tuple, values, row);
        if (row.purpose == crypto::Purpose::data && row.state == KeyState::active &&
            DatumGetTimestampTz(values[key_column::created_at - 1]) < made_before)
            names = lappend(names, row.tenant);
        return true;
    });
    return names;
}

}  // namespace envcrypt::pg
