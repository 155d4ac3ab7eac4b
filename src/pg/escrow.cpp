// export_keys(), import_keys(): a tenant's keys, still wrapped, out of one database and into
// another, where each is unwrapped and checked before it is used.
#include "crypto/encoding.hpp"
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/journal.hpp"
#include "pg/json.hpp"
#include "pg/making.hpp"
#include "pg/opening.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

namespace {

constexpr const char *kExport = "export_keys";
constexpr int kVersion = 1;
// More than any tenant has; each is two calls to a KMS.
constexpr int kMostKeys = 10000;
constexpr int kMostPlaces = 64;

void add_base64(StringInfo json, const char *name, ByteView bytes) {
    ErrorReport report;
    char *text = nullptr;
    const Size room = (bytes.size() + 2) / 3 * 4 + 1;
    text = static_cast<char *>(palloc(room));
    if (!guarded(report, [&] {
            const std::string encoded = crypto::to_base64(bytes);
            memcpy(text, encoded.c_str(), std::min(encoded.size() + 1, room));
        }))
        raise(report);
    add_text(json, name, text);
}

void add_exported_key(StringInfo json, const KeyRow &key) {
    add_key_members(json, key);
    add_text(json, "state", key.state == KeyState::active ? "active" : "decrypt_only");
    appendStringInfoString(json, ", ");
    add_time(json, "created_at", key.created_at);
    appendStringInfoString(json, ", \"wrapped_by\": [");
    const char *separator = "";
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key.key_id)) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        appendStringInfo(json, "%s{", separator);
        add_text(json, "server", row->server);
        appendStringInfoString(json, ", ");
        add_text(json, "group_key", row->group_key);
        appendStringInfoString(json, ", ");
        add_base64(json, "wrapped", row->wrapped);
        appendStringInfoString(json, ", ");
        add_text(json, "master_key", row->master_key);
        appendStringInfoString(json, ", ");
        add_text(json, "master_key_version", row->master_key_version);
        appendStringInfoString(json, ", ");
        add_base64(json, "attestation", row->attestation);
        appendStringInfo(json, ", \"own_master_key\": %s}", row->own_master_key ? "true" : "false");
        separator = ", ";
    }
    appendStringInfoString(json, "]}");
}

// --- import

[[noreturn]] void raise_no_export(const char *what) {
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("this is no export of keys"),
                    errdetail("It has no valid %s.", what),
                    errhint("Give it as export_keys() returned it.")));
    pg_unreachable();
}

char *required_text(JsonbContainer *object, const char *name, const char *what) {
    char *text = text_member(object, name);
    if (text == nullptr) raise_no_export(what);
    return text;
}

ByteView required_bytes(JsonbContainer *object, const char *name, const char *what) {
    const char *text = required_text(object, name, what);
    auto *bytes = static_cast<std::uint8_t *>(palloc(strlen(text) + 1));
    std::size_t size = 0;
    bool valid = false;
    ErrorReport report;
    if (!guarded(report, [&] {
            const auto decoded = crypto::from_base64_secret(text);
            valid = decoded.has_value() && decoded->size() <= kMaxWrapped;
            if (!valid) return;
            size = decoded->size();
            std::copy(decoded->expose().begin(), decoded->expose().end(), bytes);
        }))
        raise(report);
    if (!valid) raise_no_export(what);
    return {bytes, size};
}

struct ImportedKey {
    KeyRow key;
    List *wrapped;  // of WrappedKeyRow *
};

WrappedKeyRow *read_wrapping(JsonbContainer *object, std::uint64_t key_id) {
    auto *row = static_cast<WrappedKeyRow *>(palloc0(sizeof(WrappedKeyRow)));
    row->key_id = key_id;
    row->server = required_text(object, "server", "server");
    row->group_key = required_text(object, "group_key", "group_key");
    row->wrapped = required_bytes(object, "wrapped", "wrapped key");
    row->master_key = required_text(object, "master_key", "master_key");
    row->master_key_version = required_text(object, "master_key_version", "master_key_version");
    row->attestation = required_bytes(object, "attestation", "attestation");
    if (!boolean_member(object, "own_master_key", row->own_master_key))
        raise_no_export("own_master_key");
    const bool in_group = row->group_key[0] != '\0';
    if (in_group == (row->server[0] != '\0') || row->wrapped.empty() ||
        (in_group && !is_tenant_name(row->group_key)))
        raise_no_export("place of a wrapped key");
    return row;
}

// `group`: the only one that may wrap it; "" none.
ImportedKey *read_key(JsonbContainer *object, char *tenant, const char *group) {
    auto *imported = static_cast<ImportedKey *>(palloc0(sizeof(ImportedKey)));
    KeyRow &key = imported->key;
    std::int64_t version = 0;
    if (!read_key_id(required_text(object, "key_id", "key_id"), key.key_id))
        raise_no_export("key_id");
    if (!read_commitment(required_text(object, "commitment", "commitment"), key.commitment))
        raise_no_export("commitment");
    if (!integer_member(object, "version", version)) raise_no_export("version");
    const char *purpose = required_text(object, "purpose", "purpose");
    const char *state = required_text(object, "state", "state");
    key.tenant = tenant;
    bool found = false;
    for (const crypto::Purpose known :
         {crypto::Purpose::data, crypto::Purpose::search, crypto::Purpose::group})
        if (strcmp(purpose, crypto::purpose_name(known)) == 0) {
            key.purpose = known;
            found = true;
        }
    if (!found) raise_no_export("purpose");
    if (!is_version(key.purpose, version)) raise_no_export("version");
    key.version = static_cast<int>(version);
    if (strcmp(state, "active") == 0)
        key.state = KeyState::active;
    else if (strcmp(state, "decrypt_only") == 0)
        key.state = KeyState::decrypt_only;
    else
        raise_no_export("state");
    const char *created = required_text(object, "created_at", "created_at");
    key.created_at = DatumGetTimestampTz(DirectFunctionCall3(
        timestamptz_in, CStringGetDatum(created), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
    if (TIMESTAMP_NOT_FINITE(key.created_at)) raise_no_export("created_at");
    JsonbContainer *wrapped = array_member(object, "wrapped_by");
    const int count = wrapped == nullptr ? 0 : array_length(wrapped);
    if (count == 0 || count > kMostPlaces) raise_no_export("wrapped_by");
    for (int i = 0; i < count; ++i) {
        JsonbContainer *one = object_at(wrapped, i);
        if (one == nullptr) raise_no_export("wrapped_by");
        WrappedKeyRow *row = read_wrapping(one, key.key_id);
        if (strcmp(row->group_key, group) != 0) raise_no_export("place of a wrapped key");
        imported->wrapped = lappend(imported->wrapped, row);
    }
    return imported;
}

// Writes the key, pending, where it is not there, and its wrappings at places where it has none.
// False where nothing was missing. Raises where another key is in its place.
bool write_key(ImportedKey *imported) {
    KeyRow &key = imported->key;
    KeyRow present;
    bool changed = false;
    if (find_key(key.key_id, present)) {
        if (strcmp(present.tenant, key.tenant) != 0 || present.purpose != key.purpose ||
            present.version != key.version || present.commitment != key.commitment)
            ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                            errmsg("key %016llx is here already, and is another",
                                   static_cast<unsigned long long>(key.key_id)),
                            errdetail("Tenant, purpose, version or commitment differ.")));
        if (!is_live(present))
            ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                            errmsg("key %016llx of tenant \"%s\" is destroyed here",
                                   static_cast<unsigned long long>(key.key_id), key.tenant),
                            errhint("What is destroyed never comes back.")));
    } else {
        ListCell *other;
        foreach (other, find_all_keys(key.tenant)) {
            const auto *known = static_cast<KeyRow *>(lfirst(other));
            if (known->purpose == key.purpose && known->version == key.version)
                ereport(ERROR,
                        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                         errmsg("tenant \"%s\" has another %s key of version %d here", key.tenant,
                                crypto::purpose_name(key.purpose), key.version),
                         errdetail("It was rotated in both databases since they parted."),
                         errhint("Decrypt its values where they are, and encrypt them here.")));
        }
        const KeyState state = key.state;
        key.state = KeyState::pending;
        insert_key(key);
        key.state = state;
        note_uncommitted(key, false);
        changed = true;
    }
    // where it opens already, that is how it is to be: a place may have been dropped on purpose
    List *there = find_wrapped_keys(key.key_id);
    if (there != NIL) return changed;
    ListCell *cell;
    foreach (cell, imported->wrapped)
        insert_wrapped_key(*static_cast<WrappedKeyRow *>(lfirst(cell)));
    return true;
}

// Unwraps every wrapping of the key as it was written, and proves of each master key once that it
// binds keys to their tenant.
void verify_key(const ImportedKey &imported, List *&proved) {
    const KeyRow &key = imported.key;
    Backend &state = backend();
    ErrorReport report;
    List *rows = find_wrapped_keys(key.key_id);
    ListCell *cell;
    foreach (cell, rows) {
        auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (row->group_key[0] != '\0') {
            if (!guarded(report, [&] { state.cache.drop_key(key.key_id); })) raise(report);
            (void)open_key(key);
            continue;
        }
        const char *by = psprintf("%s %s", row->server, row->master_key);
        bool is_proved = false;
        ListCell *known;
        foreach (known, proved)
            is_proved = is_proved || strcmp(static_cast<char *>(lfirst(known)), by) == 0;
        if (!is_proved) {
            (void)prove_server(*at_server(row->server, row->master_key, row->own_master_key));
            proved = lappend(proved, const_cast<char *>(by));
        }
        verify_wrapped_keys(place_of(row->server), list_make1(const_cast<KeyRow *>(&key)),
                            list_make1(row));
    }
}

// Of the tenant's keys for that purpose, the newest alone encrypts.
void settle_states(const char *tenant, crypto::Purpose purpose) {
    KeyRow newest;
    if (!find_newest_key(
            tenant, purpose, [](const KeyRow &key) { return key.state != KeyState::destroyed; },
            newest))
        return;
    ListCell *cell;
    foreach (cell, find_all_keys(tenant)) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        if (key->purpose != purpose || key->state == KeyState::destroyed) continue;
        if (key->key_id == newest.key_id) {
            if (key->state != KeyState::active) set_key_state(key->key_id, KeyState::active);
        } else if (key->state == KeyState::active) {
            supersede_key(key->key_id);
        } else if (key->state == KeyState::pending) {
            set_key_state(key->key_id, KeyState::decrypt_only);
        }
    }
}

}  // namespace

// export_keys(tenant): all that its values need to be decrypted, still wrapped.
ENVCRYPT_ACT(envcrypt_export_keys, "export_keys") {
    require_writable("export_keys()");
    const char *name = tenant_argument(fcinfo, 0);
    // nobody rotates or moves it while it is read
    lock_tenant(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    if (tenant.state == TenantState::destroyed) require_active_tenant(name);
    StringInfoData json;
    initStringInfo(&json);
    appendStringInfo(&json, "{\"envcrypt\": %d, \"act\": \"%s\", ", kVersion, kExport);
    const struct {
        const char *its_name;
        const char *text;
    } parts[] = {{"tenant", name},
                 {"state", tenant.state == TenantState::active ? "active" : "disabled"},
                 {"server", tenant.server},
                 {"master_key", tenant.master_key},
                 {"group_key", tenant.group_key},
                 {"search_tenant", tenant.search_tenant}};
    for (const auto &part : parts) {
        add_text(&json, part.its_name, part.text);
        appendStringInfoString(&json, ", ");
    }
    appendStringInfoString(&json, "\"keys\": [");
    const char *separator = "";
    ListCell *cell;
    foreach (cell, find_all_keys(name)) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        if (!is_live(*key)) continue;
        appendStringInfoString(&json, separator);
        add_exported_key(&json, *key);
        separator = ", ";
    }
    appendStringInfoString(&json, "], \"group\": [");
    if (tenant.group_key[0] != '\0') add_exported_key(&json, *in_group(tenant.group_key)->group);
    appendStringInfoString(&json, "]}");
    Journal(kExport, name).write();
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

// import_keys(export): how many keys were not here, or not at all their places.
ENVCRYPT_ACT(envcrypt_import_keys, "import_keys") {
    require_writable("import_keys()");
    JsonbContainer *object = root_object(PG_GETARG_JSONB_P(0));
    std::int64_t version = 0;
    const char *act = object == nullptr ? nullptr : text_member(object, "act");
    if (act == nullptr || strcmp(act, kExport) != 0 ||
        !integer_member(object, "envcrypt", version) || version != kVersion)
        raise_no_export("act or version");
    TenantRow tenant{};
    tenant.name = required_text(object, "tenant", "tenant");
    tenant.server = required_text(object, "server", "server");
    tenant.master_key = required_text(object, "master_key", "master_key");
    tenant.group_key = required_text(object, "group_key", "group_key");
    tenant.search_tenant = required_text(object, "search_tenant", "search_tenant");
    const char *state = required_text(object, "state", "state");
    JsonbContainer *keys = array_member(object, "keys");
    JsonbContainer *group = array_member(object, "group");
    const int count = keys == nullptr ? 0 : array_length(keys);
    if (!is_tenant_name(tenant.name)) raise_no_export("tenant");
    if (tenant.group_key[0] != '\0' &&
        (!is_tenant_name(tenant.group_key) || tenant.master_key[0] != '\0'))
        raise_no_export("group_key");
    if (tenant.search_tenant[0] != '\0' && !is_tenant_name(tenant.search_tenant))
        raise_no_export("search_tenant");
    if (strcmp(state, "active") != 0 && strcmp(state, "disabled") != 0) raise_no_export("state");
    if (count == 0 || count > kMostKeys) raise_no_export("keys");
    if (group == nullptr || array_length(group) != (tenant.group_key[0] == '\0' ? 0 : 1))
        raise_no_export("group");
    List *imported = NIL;
    bool has_data_key = false;
    if (array_length(group) == 1) {
        JsonbContainer *one = object_at(group, 0);
        if (one == nullptr) raise_no_export("group");
        ImportedKey *key = read_key(one, tenant.group_key, "");
        if (key->key.purpose != crypto::Purpose::group) raise_no_export("group");
        imported = lappend(imported, key);
    }
    for (int i = 0; i < count; ++i) {
        JsonbContainer *one = object_at(keys, i);
        if (one == nullptr) raise_no_export("keys");
        ImportedKey *key = read_key(one, tenant.name, tenant.group_key);
        if (key->key.purpose == crypto::Purpose::group) raise_no_export("purpose");
        has_data_key = has_data_key || key->key.purpose == crypto::Purpose::data;
        imported = lappend(imported, key);
    }
    if (!has_data_key) raise_no_export("data key");

    lock_tenants({tenant.name, tenant.group_key, tenant.search_tenant});
    KeyRow group_here;
    if (tenant.group_key[0] != '\0' &&
        find_newest_key(
            tenant.group_key, crypto::Purpose::group, [](const KeyRow &) { return true; },
            group_here) &&
        group_here.key_id != static_cast<ImportedKey *>(linitial(imported))->key.key_id)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("another group key \"%s\" is here already", tenant.group_key),
                        errhint("Move the tenant out of its group before it is exported.")));
    TenantRow present;
    const bool is_there = find_tenant(tenant.name, present);
    if (is_there && present.state == TenantState::destroyed) require_active_tenant(tenant.name);
    if (is_there && (strcmp(present.search_tenant, tenant.search_tenant) != 0 ||
                     strcmp(present.group_key, tenant.group_key) != 0))
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("tenant \"%s\" is here already, and otherwise", tenant.name),
                        errdetail("Its group, or whose search key it uses, differs.")));
    TenantRow searched;
    if (tenant.search_tenant[0] != '\0') {
        if (!find_tenant(tenant.search_tenant, searched))
            ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                            errmsg("tenant \"%s\" is not here, whose search key tenant \"%s\" uses",
                                   tenant.search_tenant, tenant.name),
                            errhint("Import it before.")));
        require_search_tenant(tenant);
    }
    if (!is_there) {
        (void)lock_place(tenant.server);
        tenant.state = strcmp(state, "active") == 0 ? TenantState::active : TenantState::disabled;
        insert_tenant(tenant);
    }
    int changed = 0;
    List *proved = NIL;
    Journal journal("import_keys", tenant.name);
    ListCell *cell;
    foreach (cell, imported) {
        auto *key = static_cast<ImportedKey *>(lfirst(cell));
        note_key(key->key.key_id);
        if (!write_key(key)) continue;
        ++changed;
        verify_key(*key, proved);
        if (key->key.purpose == crypto::Purpose::group)
            set_key_state(key->key.key_id, KeyState::active);
        Wrapping wrapping{&key->key, nullptr, *static_cast<WrappedKeyRow *>(linitial(key->wrapped)),
                          nullptr};
        journal.add_wrapping(wrapping);
    }
    settle_states(tenant.name, crypto::Purpose::data);
    settle_states(tenant.name, crypto::Purpose::search);
    if (changed > 0 || !is_there) journal.write();
    PG_RETURN_INT32(changed);
}

}  // namespace envcrypt::pg
