// See json.hpp.
#include "pg/json.hpp"

namespace envcrypt::pg {

namespace {

JsonbValue *member(JsonbContainer *object, const char *name, JsonbValue &value) {
    return getKeyJsonValueFromContainer(object, name, static_cast<int>(strlen(name)), &value);
}

JsonbContainer *container_member(JsonbContainer *object, const char *name, std::uint32_t kind) {
    JsonbValue value;
    const JsonbValue *found = member(object, name, value);
    if (found == nullptr || found->type != jbvBinary ||
        (found->val.binary.data->header & kind) == 0)
        return nullptr;
    return found->val.binary.data;
}

bool read_hex(const char *text, std::uint8_t *bytes, std::size_t count) {
    if (strlen(text) != 2 * count || strspn(text, "0123456789abcdef") != 2 * count) return false;
    for (std::size_t i = 0; i < count; ++i) {
        const char digits[] = {text[2 * i], text[2 * i + 1], '\0'};
        bytes[i] = static_cast<std::uint8_t>(strtoul(digits, nullptr, 16));
    }
    return true;
}

}  // namespace

JsonbContainer *root_object(Jsonb *json) {
    return JB_ROOT_IS_OBJECT(json) ? &json->root : nullptr;
}

char *text_member(JsonbContainer *object, const char *name) {
    JsonbValue value;
    const JsonbValue *found = member(object, name, value);
    return found != nullptr && found->type == jbvString
               ? pnstrdup(found->val.string.val, static_cast<Size>(found->val.string.len))
               : nullptr;
}

JsonbContainer *array_member(JsonbContainer *object, const char *name) {
    return container_member(object, name, JB_FARRAY);
}

JsonbContainer *object_member(JsonbContainer *object, const char *name) {
    return container_member(object, name, JB_FOBJECT);
}

bool integer_member(JsonbContainer *object, const char *name, std::int64_t &value) {
    JsonbValue found_value;
    const JsonbValue *found = member(object, name, found_value);
    if (found == nullptr || found->type != jbvNumeric) return false;
    const char *text =
        DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(found->val.numeric)));
    char *end;
    errno = 0;
    value = strtoll(text, &end, 10);
    return errno == 0 && *end == '\0';
}

bool boolean_member(JsonbContainer *object, const char *name, bool &value) {
    JsonbValue found_value;
    const JsonbValue *found = member(object, name, found_value);
    if (found == nullptr || found->type != jbvBool) return false;
    value = found->val.boolean;
    return true;
}

int array_length(JsonbContainer *array) {
    return static_cast<int>(JsonContainerSize(array));
}

JsonbContainer *object_at(JsonbContainer *array, int at) {
    const JsonbValue *found = getIthJsonbValueFromContainer(array, static_cast<uint32>(at));
    return found != nullptr && found->type == jbvBinary &&
                   JsonContainerIsObject(found->val.binary.data)
               ? found->val.binary.data
               : nullptr;
}

bool read_key_id(const char *text, std::uint64_t &key_id) {
    std::uint8_t bytes[8];
    if (!read_hex(text, bytes, sizeof(bytes))) return false;
    key_id = load_be64(bytes);
    return true;
}

bool read_commitment(const char *text, crypto::Digest &commitment) {
    return read_hex(text, commitment.data(), commitment.size());
}

void add_key_members(StringInfo json, const KeyRow &key) {
    appendStringInfo(json, "{\"key_id\": \"%016llx\", \"purpose\": \"%s\", \"version\": %d, ",
                     static_cast<unsigned long long>(key.key_id), crypto::purpose_name(key.purpose),
                     key.version);
    StringInfoData commitment;
    initStringInfo(&commitment);
    for (const std::uint8_t byte : key.commitment) appendStringInfo(&commitment, "%02x", byte);
    add_text(json, "commitment", commitment.data);
    appendStringInfoString(json, ", ");
}

void add_text(StringInfo json, const char *name, const char *text) {
    appendStringInfo(json, "\"%s\": ", name);
    escape_json(json, text);
}

void add_time(StringInfo json, const char *name, TimestampTz time) {
    char text[MAXDATELEN + 1];
    JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPTZOID, nullptr);
    add_text(json, name, text);
}

}  // namespace envcrypt::pg
