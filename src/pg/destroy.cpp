// destroy_tenant() and apply_receipt(): crypto-shredding, and its repetition where a database was
// restored from before it. The receipt is a JSON object; doc/operations.md tells its members.
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/journal.hpp"
#include "pg/json.hpp"
#include "pg/keys.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

namespace {

constexpr const char *kReceipt = "destroy_tenant";
constexpr int kReceiptVersion = 1;
// A receipt that is longer stands in the journal only.
constexpr int kLongestLine = 1024 * 1024;

void add_key(StringInfo json, const KeyRow &key) {
    add_key_members(json, key);
    appendStringInfoString(json, "\"wrapped_by\": [");
    const char *separator = "";
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key.key_id)) {
        const auto *wrapped = static_cast<WrappedKeyRow *>(lfirst(cell));
        appendStringInfo(json, "%s{", separator);
        if (wrapped->group_key[0] != '\0') {
            add_text(json, "group_key", wrapped->group_key);
        } else {
            add_text(json, "server", wrapped->server);
            appendStringInfoString(json, ", ");
            add_text(json, "master_key", wrapped->master_key);
            appendStringInfoString(json, ", ");
            add_text(json, "master_key_version", wrapped->master_key_version);
        }
        appendStringInfoChar(json, '}');
        separator = ", ";
    }
    appendStringInfoString(json, "]}");
}

char *make_receipt(const TenantRow &tenant, List *keys) {
    StringInfoData receipt;
    initStringInfo(&receipt);
    appendStringInfo(&receipt, "{\"envcrypt\": %d, ", kReceiptVersion);
    add_text(&receipt, "act", kReceipt);
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "tenant", tenant.name);
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "role", GetUserNameFromId(GetUserId(), false));
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "session_role", GetUserNameFromId(GetAuthenticatedUserId(), false));
    appendStringInfoString(&receipt, ", ");
    add_time(&receipt, "at", GetCurrentTimestamp());
    const XLogRecPtr wal = GetXLogInsertRecPtr();
    appendStringInfo(&receipt, ", \"wal\": \"%X/%X\", \"keys\": [",
                     static_cast<unsigned>(wal >> 32), static_cast<unsigned>(wal));
    const char *separator = "";
    ListCell *cell;
    foreach (cell, keys) {
        CHECK_FOR_INTERRUPTS();
        appendStringInfoString(&receipt, separator);
        add_key(&receipt, *static_cast<KeyRow *>(lfirst(cell)));
        separator = ", ";
    }
    appendStringInfoString(&receipt, "], ");
    if (tenant.search_tenant[0] != '\0') {
        add_text(&receipt, "searchable_with_the_key_of", tenant.search_tenant);
        appendStringInfoString(&receipt, ", ");
    }
    add_text(
        &receipt, "still_decrypt",
        tenant.group_key[0] != '\0'
            ? "backups, archived WAL, standbys and exports of keys from before, until they expire "
              "or the group key or its master keys are destroyed"
            : "backups, archived WAL, standbys and exports of keys from before, until they expire "
              "or the master keys are destroyed");
    appendStringInfoChar(&receipt, '}');
    return receipt.data;
}

// Destroys these keys of a tenant that is locked, and tells it: returns the receipt.
char *destroy(const TenantRow &tenant, List *keys, const char *act) {
    if (char *user = find_search_user(tenant.name))
        ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
                        errmsg("the search key of tenant \"%s\" is used by others", tenant.name),
                        errdetail("Tenant \"%s\" is one of them: nothing that it wrote would be "
                                  "found any more.",
                                  user),
                        errhint("Destroy those tenants first.")));
    char *receipt = make_receipt(tenant, keys);
    Backend &state = backend();
    ListCell *cell;
    foreach (cell, keys) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        note_key(key->key_id);
        delete_wrapped_keys(key->key_id);
        set_key_state(key->key_id, KeyState::destroyed);
        state.cache.drop_key(key->key_id);
    }
    set_tenant_state(tenant.name, TenantState::destroyed);
    insert_journal(act, tenant.name, receipt);
    const char *line =
        strlen(receipt) <= kLongestLine
            ? receipt
            : psprintf("{\"tenant\": \"%s\", \"receipt\": \"in envcrypt.journal\"}", tenant.name);
    ErrorReport report;
    if (!guarded(report, [&] {
            state.commit_lines.push_back(
                {std::string(act) + " " + line, GetCurrentTransactionNestLevel()});
        }))
        raise(report);
    return receipt;
}

bool any_wrapped(List *keys) {
    ListCell *cell;
    foreach (cell, keys)
        if (find_wrapped_keys(static_cast<KeyRow *>(lfirst(cell))->key_id) != NIL) return true;
    return false;
}

[[noreturn]] void raise_no_receipt() {
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                    errmsg("this is no receipt of destroy_tenant()"),
                    errhint("Give it as destroy_tenant() returned it, or as it is in the journal's "
                            "details.")));
    pg_unreachable();
}

[[noreturn]] void raise_incomplete(const char *tenant) {
    ereport(ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("the rows of tenant \"%s\" are not all there", tenant),
             errdetail("What is restored after this would not be destroyed."),
             errhint("Finish the restore of envcrypt's tables, and apply the receipt then.")));
    pg_unreachable();
}

// A key that a receipt names.
struct NamedKey {
    std::uint64_t key_id;
    crypto::Digest commitment;
};

NamedKey *read_keys(JsonbContainer *receipt, int &count) {
    JsonbContainer *keys = array_member(receipt, "keys");
    count = keys == nullptr ? 0 : array_length(keys);
    if (count == 0) raise_no_receipt();
    auto *named = static_cast<NamedKey *>(palloc(sizeof(NamedKey) * static_cast<Size>(count)));
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        JsonbContainer *key = object_at(keys, i);
        const char *id = key == nullptr ? nullptr : text_member(key, "key_id");
        const char *commitment = key == nullptr ? nullptr : text_member(key, "commitment");
        if (id == nullptr || commitment == nullptr || !read_key_id(id, named[i].key_id) ||
            !read_commitment(commitment, named[i].commitment))
            raise_no_receipt();
    }
    return named;
}

}  // namespace

// destroy_tenant(name, confirm): the receipt.
ENVCRYPT_ACT(envcrypt_destroy_tenant, "destroy_tenant") {
    require_writable("destroy_tenant()");
    const char *name = tenant_argument(fcinfo, 0);
    if (strcmp(name, text_to_cstring(PG_GETARG_TEXT_PP(1))) != 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("confirm does not repeat the name of the tenant"),
                        errhint("What is destroyed never comes back: destroy_tenant('NAME', "
                                "confirm => 'NAME').")));
    lock_tenant(name);
    lock_tenant_row(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    List *keys = find_all_keys(name);
    // one whose wrapped keys came back, by a restore of some rows, is destroyed again
    if (tenant.state == TenantState::destroyed && !any_wrapped(keys))
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("tenant \"%s\" is destroyed already", name),
                        errhint("Its receipt is in envcrypt.journal.")));
    const char *receipt = destroy(tenant, keys, "destroy_tenant");
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(receipt));
}

// apply_receipt(receipt): whether there was something to destroy.
ENVCRYPT_ACT(envcrypt_apply_receipt, "apply_receipt") {
    require_writable("apply_receipt()");
    JsonbContainer *receipt = root_object(PG_GETARG_JSONB_P(0));
    if (receipt == nullptr) raise_no_receipt();
    const char *act = text_member(receipt, "act");
    const char *name = text_member(receipt, "tenant");
    std::int64_t version = 0;
    if (!integer_member(receipt, "envcrypt", version) || version != kReceiptVersion ||
        act == nullptr || strcmp(act, kReceipt) != 0 || name == nullptr || !is_tenant_name(name))
        raise_no_receipt();
    int count;
    const NamedKey *named = read_keys(receipt, count);
    lock_tenant(name);
    lock_tenant_row(name);
    TenantRow tenant;
    const bool is_there = find_tenant(name, tenant);
    int known = 0;
    bool wrapped = false;
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        if (find_wrapped_keys(named[i].key_id) != NIL) wrapped = true;
        KeyRow key;
        if (!find_key(named[i].key_id, key)) continue;
        if (strcmp(key.tenant, name) != 0 || key.commitment != named[i].commitment)
            ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                            errmsg("key %016llx is not the one that the receipt names",
                                   static_cast<unsigned long long>(key.key_id)),
                            errdetail("It is another tenant's, or has another commitment."),
                            errhint("If tenant \"%s\" is to be destroyed all the same: "
                                    "destroy_tenant().",
                                    name)));
        ++known;
    }
    List *keys = find_all_keys(name);
    if (!is_there && known == 0 && !wrapped && keys == NIL) PG_RETURN_BOOL(false);
    if (!is_there || keys == NIL) raise_incomplete(name);
    if (known == 0)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("tenant \"%s\" has none of the keys that the receipt names", name),
                        errdetail("It is another tenant of that name."),
                        errhint("If it is to be destroyed all the same: destroy_tenant().")));
    // versions that were made since the restore are the tenant's, too
    if (tenant.state == TenantState::destroyed && !any_wrapped(keys)) PG_RETURN_BOOL(false);
    if (!any_wrapped(keys)) raise_incomplete(name);
    (void)destroy(tenant, keys, "apply_receipt");
    PG_RETURN_BOOL(true);
}

}  // namespace envcrypt::pg
