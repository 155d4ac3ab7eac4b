// destroy_tenant() and apply_receipt(): crypto-shredding, and its repetition where a database was
// restored from before it. The receipt is a JSON object; doc/operations.md tells its members.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/making.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

namespace {

constexpr const char *kReceipt = "destroy_tenant";

void add_text(StringInfo json, const char *name, const char *text) {
    appendStringInfo(json, "\"%s\": ", name);
    escape_json(json, text);
}

char *commitment_text(const KeyRow &key) {
    StringInfoData text;
    initStringInfo(&text);
    for (const std::uint8_t byte : key.commitment) appendStringInfo(&text, "%02x", byte);
    return text.data;
}

void add_key(StringInfo json, const KeyRow &key) {
    appendStringInfo(json, "{\"key_id\": \"%016llx\", \"purpose\": \"%s\", \"version\": %d, ",
                     static_cast<unsigned long long>(key.key_id), crypto::purpose_name(key.purpose),
                     key.version);
    add_text(json, "commitment", commitment_text(key));
    appendStringInfoString(json, ", \"wrapped_by\": [");
    const char *separator = "";
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key.key_id)) {
        const auto *wrapped = static_cast<WrappedKeyRow *>(lfirst(cell));
        appendStringInfo(json, "%s{", separator);
        add_text(json, "server", wrapped->server);
        appendStringInfoString(json, ", ");
        add_text(json, "master_key", wrapped->master_key);
        appendStringInfoString(json, ", ");
        add_text(json, "master_key_version", wrapped->master_key_version);
        appendStringInfoChar(json, '}');
        separator = ", ";
    }
    appendStringInfoString(json, "]}");
}

// Destroys what there is of the tenant, and tells it: returns the receipt.
char *destroy(const char *name, List *keys, const char *act) {
    if (char *user = find_search_user(name))
        ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
                        errmsg("the search key of tenant \"%s\" is used by others", name),
                        errdetail("Tenant \"%s\" is one of them: nothing that it wrote would be "
                                  "found any more.",
                                  user),
                        errhint("Destroy them before.")));
    StringInfoData receipt;
    initStringInfo(&receipt);
    appendStringInfoString(&receipt, "{\"envcrypt\": 1, ");
    add_text(&receipt, "act", kReceipt);
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "tenant", name);
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "role", GetUserNameFromId(GetUserId(), false));
    appendStringInfoString(&receipt, ", ");
    add_text(&receipt, "session_role", GetUserNameFromId(GetSessionUserId(), false));
    char at[MAXDATELEN + 1];
    JsonEncodeDateTime(at, TimestampTzGetDatum(GetCurrentTimestamp()), TIMESTAMPTZOID, nullptr);
    const XLogRecPtr wal = GetXLogInsertRecPtr();
    appendStringInfo(&receipt, ", \"at\": \"%s\", \"wal\": \"%X/%X\", \"keys\": [", at,
                     static_cast<unsigned>(wal >> 32), static_cast<unsigned>(wal));
    const char *separator = "";
    ListCell *cell;
    foreach (cell, keys) {
        appendStringInfoString(&receipt, separator);
        add_key(&receipt, *static_cast<KeyRow *>(lfirst(cell)));
        separator = ", ";
    }
    appendStringInfoString(&receipt, "], ");
    add_text(&receipt, "still_decrypt",
             "backups, archived WAL and standbys from before, until they expire or the master keys "
             "are destroyed");
    appendStringInfoChar(&receipt, '}');

    Backend &state = backend();
    foreach (cell, keys) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        delete_wrapped_keys(key->key_id);
        set_key_state(key->key_id, KeyState::destroyed);
        state.cache.drop_key(key->key_id);
    }
    set_tenant_state(name, TenantState::destroyed);
    insert_journal(act, name, receipt.data);
    ErrorReport report;
    if (!guarded(report, [&] {
            state.commit_lines.push_back(
                {std::string(act) + " " + receipt.data, GetCurrentTransactionNestLevel()});
        }))
        raise(report);
    return receipt.data;
}

// The member of an object, which must be a string; null where it is not.
char *member(Jsonb *object, const char *name) {
    JsonbValue value;
    JsonbValue *found = JB_ROOT_IS_OBJECT(object)
                            ? getKeyJsonValueFromContainer(&object->root, name,
                                                           static_cast<int>(strlen(name)), &value)
                            : nullptr;
    return found != nullptr && found->type == jbvString
               ? pnstrdup(found->val.string.val, static_cast<std::size_t>(found->val.string.len))
               : nullptr;
}

[[noreturn]] void raise_no_receipt() {
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                    errmsg("this is no receipt of destroy_tenant()"),
                    errhint("Give it as destroy_tenant() returned it, or as it is in the journal's "
                            "details.")));
    pg_unreachable();
}

// Whether the receipt names this key, by its id and commitment.
bool names_key(const char *receipt, const KeyRow &key) {
    return strstr(receipt, psprintf("\"%016llx\"", static_cast<unsigned long long>(key.key_id))) !=
               nullptr &&
           strstr(receipt, psprintf("\"%s\"", commitment_text(key))) != nullptr;
}

}  // namespace

// destroy_tenant(name, confirm): the receipt.
ENVCRYPT_FUNCTION(envcrypt_destroy_tenant) {
    require_writable("destroy_tenant()");
    char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
    if (strcmp(name, text_to_cstring(PG_GETARG_TEXT_PP(1))) != 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("confirm does not repeat the name of the tenant"),
                        errhint("What is destroyed never comes back: destroy_tenant('NAME', "
                                "confirm => 'NAME').")));
    lock_tenant(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    if (tenant.state == TenantState::destroyed)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("tenant \"%s\" is destroyed already", name),
                        errhint("Its receipt is in envcrypt.journal.")));
    const char *receipt = destroy(name, find_all_keys(name), "destroy_tenant");
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(receipt));
}

// apply_receipt(receipt): whether there was something to destroy.
ENVCRYPT_FUNCTION(envcrypt_apply_receipt) {
    require_writable("apply_receipt()");
    Jsonb *receipt = PG_GETARG_JSONB_P(0);
    const char *act = member(receipt, "act");
    const char *name = member(receipt, "tenant");
    if (act == nullptr || strcmp(act, kReceipt) != 0 || name == nullptr || !is_tenant_name(name))
        raise_no_receipt();
    lock_tenant(name);
    TenantRow tenant;
    if (!find_tenant(name, tenant) || tenant.state == TenantState::destroyed) PG_RETURN_BOOL(false);
    const char *text = JsonbToCString(nullptr, &receipt->root, static_cast<int>(VARSIZE(receipt)));
    List *keys = find_all_keys(name);
    ListCell *cell;
    foreach (cell, keys)
        if (!names_key(text, *static_cast<KeyRow *>(lfirst(cell))))
            ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                            errmsg("tenant \"%s\" has a key that the receipt does not name", name),
                            errdetail("It is another tenant of that name, or was restored from "
                                      "elsewhere."),
                            errhint("If it is to be destroyed all the same: destroy_tenant().")));
    (void)destroy(name, keys, "apply_receipt");
    PG_RETURN_BOOL(true);
}

}  // namespace envcrypt::pg
