// JSON objects as functions take and return them: members read strictly, by type, and written.
// PostgreSQL frames.
#pragma once

#include <cstdint>

#include "pg/keys.hpp"

namespace envcrypt::pg {

// Null where the whole is no object.
JsonbContainer *root_object(Jsonb *json);
// Each null where there is no such member, or it is of another type.
char *text_member(JsonbContainer *object, const char *name);
JsonbContainer *array_member(JsonbContainer *object, const char *name);
JsonbContainer *object_member(JsonbContainer *object, const char *name);
// False likewise; a number must be an integer.
bool integer_member(JsonbContainer *object, const char *name, std::int64_t &value);
bool boolean_member(JsonbContainer *object, const char *name, bool &value);
int array_length(JsonbContainer *array);
// Null where the element is no object.
JsonbContainer *object_at(JsonbContainer *array, int at);

// 16 and 64 lower-case hex digits; false where the text is not.
bool read_key_id(const char *text, std::uint64_t &key_id);
bool read_commitment(const char *text, crypto::Digest &commitment);

// The members of a key by which it is known: the object is begun, and goes on.
void add_key_members(StringInfo json, const KeyRow &key);
// "name": "text"
void add_text(StringInfo json, const char *name, const char *text);
void add_time(StringInfo json, const char *name, TimestampTz time);

}  // namespace envcrypt::pg
