// See journal.hpp.
#include "pg/journal.hpp"

#include "pg/table.hpp"

namespace envcrypt::pg {

namespace {

namespace column {
enum { at = 1, role, session_role, act, tenant, details, count = details };
}
constexpr Table kJournal{"journal", column::count, nullptr};

}  // namespace

void insert_journal(const char *act, const char *tenant, const char *details) {
    Datum values[column::count];
    values[column::at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    values[column::role - 1] = text_datum(GetUserNameFromId(GetUserId(), false));
    values[column::session_role - 1] =
        text_datum(GetUserNameFromId(GetAuthenticatedUserId(), false));
    values[column::act - 1] = text_datum(act);
    values[column::tenant - 1] = text_datum(tenant);
    values[column::details - 1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(details));
    insert_row(kJournal, values);
}

Journal::Journal(const char *act, const char *tenant) : act_(act), tenant_(tenant) {
    initStringInfo(&details_);
    initStringInfo(&keys_);
}

void Journal::name(const char *name) {
    appendStringInfoString(&details_, details_.len == 0 ? "{" : ", ");
    escape_json(&details_, name);
    appendStringInfoString(&details_, ": ");
}

void Journal::add(const char *its_name, const char *text) {
    name(its_name);
    escape_json(&details_, text);
}

void Journal::add(const char *its_name, int number) {
    name(its_name);
    appendStringInfo(&details_, "%d", number);
}

void Journal::add_wrapping(const Wrapping &wrapping) {
    const KeyRow &key = *wrapping.key;
    appendStringInfo(&keys_, "%s{\"key_id\": \"%016llx\", \"purpose\": \"%s\"",
                     keys_.len == 0 ? "[" : ", ", static_cast<unsigned long long>(key.key_id),
                     crypto::purpose_name(key.purpose));
    const struct {
        const char *its_name;
        const char *said;
    } parts[] = {{"server", wrapping.row.server},
                 {"group_key", wrapping.row.group_key},
                 {"master_key", wrapping.row.master_key},
                 {"master_key_version", wrapping.row.master_key_version},
                 {"request_id", wrapping.request_id}};
    for (const auto &part : parts) {
        if (part.said == nullptr || part.said[0] == '\0') continue;
        appendStringInfo(&keys_, ", \"%s\": ", part.its_name);
        escape_json(&keys_, part.said);
    }
    appendStringInfoChar(&keys_, '}');
}

void Journal::write() {
    if (keys_.len > 0) {
        name("keys");
        appendStringInfo(&details_, "%s]", keys_.data);
    }
    appendStringInfoString(&details_, details_.len == 0 ? "{}" : "}");
    insert_journal(act_, tenant_, details_.data);
}

}  // namespace envcrypt::pg
