// See journal.hpp.
#include "pg/journal.hpp"

#include "pg/making.hpp"

namespace envcrypt::pg {

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

void Journal::add_key(const KeyRow &key, const char *server, const kms::Answer &made) {
    appendStringInfo(&keys_, "%s{\"key_id\": \"%016llx\", \"purpose\": \"%s\", \"server\": ",
                     keys_.len == 0 ? "[" : ", ", static_cast<unsigned long long>(key.key_id),
                     crypto::purpose_name(key.purpose));
    escape_json(&keys_, server);
    const struct {
        const char *its_name;
        const std::string &said;
    } parts[] = {{"master_key", made.master_key},
                 {"master_key_version", made.master_key_version},
                 {"request_id", made.request_id}};
    for (const auto &part : parts) {
        if (part.said.empty()) continue;
        appendStringInfo(&keys_, ", \"%s\": ", part.its_name);
        escape_json(&keys_, kms_text(part.said));
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
