// See wrapping.hpp.
#include "pg/wrapping.hpp"

#include "pg/backend.hpp"
#include "pg/making.hpp"
#include "pg/opening.hpp"

namespace envcrypt::pg {

namespace {

ByteView copy_bytes(const Bytes &bytes) {
    auto *copy = static_cast<std::uint8_t *>(palloc(bytes.size() + 1));
    std::copy(bytes.begin(), bytes.end(), copy);
    return {copy, bytes.size()};
}

char empty[] = "";

}  // namespace

Wrapping *new_wrapping(const KeyRow *key, const WrappedKeyRow *before) {
    auto *wrapping = static_cast<Wrapping *>(palloc0(sizeof(Wrapping)));
    wrapping->key = key;
    wrapping->before = before;
    return wrapping;
}

void fill_wrapping(const Destination &destination, Wrapping &wrapping, const kms::Answer &made) {
    wrapping.row.key_id = wrapping.key->key_id;
    wrapping.row.server = destination.server;
    wrapping.row.group_key = destination.group != nullptr ? destination.group->tenant : empty;
    wrapping.row.wrapped = copy_bytes(made.wrapped);
    wrapping.row.attestation = copy_bytes(made.attestation);
    wrapping.row.master_key = kms_text(made.master_key);
    wrapping.row.master_key_version = kms_text(made.master_key_version);
    wrapping.row.own_master_key = destination.own_master_key;
    wrapping.request_id = kms_text(made.request_id);
}

namespace {

// The keys of the wrappings, of KeyRow *.
List *keys_of(List *wrappings) {
    List *keys = NIL;
    ListCell *cell;
    foreach (cell, wrappings)
        keys = lappend(keys, const_cast<KeyRow *>(static_cast<Wrapping *>(lfirst(cell))->key));
    return keys;
}

// The key's part in an operation; `open` where it is to be wrapped. A C++ frame.
void add_key(keyring::Operation &operation, const Wrapping &wrapping,
             const keyring::OpenKey *open) {
    const KeyRow &key = *wrapping.key;
    keyring::KeyToOpen &to_wrap = operation.keys.emplace_back();
    to_wrap.key_id = key.key_id;
    to_wrap.context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
    to_wrap.commitment = key.commitment;
    if (open != nullptr) {
        to_wrap.key = open->key.copy();
        return;
    }
    to_wrap.wrapped.assign(wrapping.before->wrapped.begin(), wrapping.before->wrapped.end());
    to_wrap.attestation.assign(wrapping.before->attestation.begin(),
                               wrapping.before->attestation.end());
    to_wrap.master_key = wrapping.before->master_key;
}

using Work = kms::Task<Status> (*)(keyring::Operation &operation);

// Puts the keys into as many operations as it takes, runs them, and takes what they made.
bool run_at_kms(const Destination &destination, List *wrappings, Work work, bool opened,
                ErrorReport &report) {
    Backend &state = backend();
    const std::size_t size = destination.place.dialect->max_batch();
    ListCell *cell;
    begin_batch();
    foreach (cell, wrappings) {
        const auto *wrapping = static_cast<Wrapping *>(lfirst(cell));
        keyring::OpenKey *open = opened ? find_open_key(*wrapping->key) : nullptr;
        if (opened && open == nullptr) raise_altered();
        keyring::Operation *operation = state.batch.empty() ? nullptr : state.batch.back().get();
        if (operation == nullptr || operation->keys.size() == size)
            operation = prepare_in_batch(destination.place, destination.master_key, report);
        if (operation == nullptr || !guarded(report, [&] { add_key(*operation, *wrapping, open); }))
            return false;
    }
    if (!guarded(report, [&] {
            for (const auto &operation : state.batch) operation->work = work(*operation);
        }))
        return false;
    if (!try_batch(report)) return false;
    std::size_t at = 0;
    std::size_t within = 0;
    foreach (cell, wrappings) {
        const keyring::Operation &operation = *state.batch[at];
        fill_wrapping(destination, *static_cast<Wrapping *>(lfirst(cell)),
                      operation.keys[within].made);
        if (++within < operation.keys.size()) continue;
        ++at;
        within = 0;
    }
    begin_batch();
    return true;
}

// What was in hand beyond what the cache is to hold.
void drop_surplus() {
    Backend &state = backend();
    state.keys_in_hand = 0;
    ErrorReport report;
    if (!guarded(report, [&] { state.cache.shrink(static_cast<std::size_t>(setting_cache_size)); }))
        raise(report);
}

// By a group key: no KMS but the group's own takes part.
void wrap_in_group(const Destination &destination, List *wrappings) {
    ErrorReport report;
    ListCell *cell;
    foreach (cell, wrappings) {
        auto *wrapping = static_cast<Wrapping *>(lfirst(cell));
        Backend &state = backend();
        // both at once
        state.keys_in_hand = 4;
        const keyring::OpenKey *open = open_key(*wrapping->key);
        const keyring::OpenKey *group = open_key(*destination.group);
        if (!guarded(report, [&] {
                state.operation = std::make_unique<keyring::Operation>();
                add_key(*state.operation, *wrapping, open);
                return keyring::wrap_by_group(group->key, destination.group->tenant,
                                              state.operation->keys[0]);
            }))
            raise(report);
        fill_wrapping(destination, *wrapping, state.operation->keys[0].made);
        if (!guarded(report, [&] { state.operation.reset(); })) raise(report);
        drop_surplus();
    }
}

}  // namespace

Destination *at_server(const char *server, const char *master_key, bool own_master_key) {
    auto *destination = static_cast<Destination *>(palloc0(sizeof(Destination)));
    destination->place = lock_place(server);
    destination->server = destination->place.server_name;
    destination->master_key = pstrdup(master_key);
    destination->own_master_key = own_master_key;
    if (own_master_key && destination->place.dialect == &kms::local_dialect())
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("a local KMS has only the master keys of its file")));
    return destination;
}

Destination *in_group(const char *group) {
    auto *destination = static_cast<Destination *>(palloc0(sizeof(Destination)));
    auto *key = static_cast<KeyRow *>(palloc(sizeof(KeyRow)));
    if (!find_newest_key(group, crypto::Purpose::group, is_live, *key))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("group key \"%s\" does not exist", group),
                        errhint("SELECT envcrypt.create_group_key('%s', 'SERVER');", group)));
    destination->group = key;
    destination->server = empty;
    destination->master_key = empty;
    return destination;
}

List *places_of_new_keys(const TenantRow &tenant) {
    if (tenant.group_key[0] != '\0') return list_make1(in_group(tenant.group_key));
    List *places =
        list_make1(at_server(tenant.server, tenant.master_key, tenant.master_key[0] != '\0'));
    KeyRow newest;
    if (!find_newest_key(tenant.name, crypto::Purpose::data, is_live, newest)) return places;
    ListCell *cell;
    foreach (cell, find_wrapped_keys(newest.key_id)) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (strcmp(row->server, tenant.server) == 0) continue;
        if (row->group_key[0] != '\0') raise_foreign_group(newest, *row);
        places = lappend(places, at_server(row->server, row->own_master_key ? row->master_key : "",
                                           row->own_master_key));
    }
    return places;
}

bool wrap_keys(const Destination &destination, List *wrappings, ErrorReport &report) {
    if (wrappings == NIL) return true;
    Backend &state = backend();
    if (destination.group != nullptr) {
        wrap_in_group(destination, wrappings);
        return true;
    }
    // all of them at once, and no longer than that
    state.keys_in_hand = 2 * static_cast<std::size_t>(list_length(wrappings));
    (void)open_keys(keys_of(wrappings));
    const bool ok = run_at_kms(destination, wrappings, keyring::wrap_keys, true, report);
    drop_surplus();
    return ok;
}

bool rewrap_keys(const Destination &destination, List *wrappings, ErrorReport &report) {
    return wrappings == NIL ||
           run_at_kms(destination, wrappings, keyring::rewrap_keys, false, report);
}

bool can_rewrap(const Destination &destination, const WrappedKeyRow &row) {
    const kms::Dialect &dialect = *destination.place.dialect;
    if (!dialect.rewraps() || strcmp(row.server, destination.server) != 0) return false;
    if (dialect.rewraps_others()) return true;
    const char *master_key = destination.master_key;
    ListCell *cell;
    if (master_key[0] == '\0')
        foreach (cell, destination.place.server_options) {
            auto *option = static_cast<DefElem *>(lfirst(cell));
            if (strcmp(option->defname, "master_key") == 0) master_key = defGetString(option);
        }
    return strcmp(row.master_key, master_key) == 0;
}

void write_wrapping(const Wrapping &wrapping) {
    if (wrapping.before != nullptr)
        replace_wrapped_key(wrapping.row);
    else
        insert_wrapped_key(wrapping.row);
    ListCell *cell;
    foreach (cell, find_wrapped_keys(wrapping.row.key_id)) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (strcmp(row->server, wrapping.row.server) == 0 &&
            strcmp(row->group_key, wrapping.row.group_key) == 0 &&
            equal_bytes(row->wrapped, wrapping.row.wrapped) &&
            equal_bytes(row->attestation, wrapping.row.attestation))
            return;
    }
    elog(ERROR, "envcrypt: the wrapping just written is not there");
}

MasterKey prove_server(const Destination &destination) {
    Backend &state = backend();
    ErrorReport report;
    prepare_operation(destination.place, destination.master_key, crypto::Purpose::data,
                      random_key_id(), "rewrap_keys");
    if (!guarded(report, [&] { state.operation->work = keyring::check_server(*state.operation); }))
        raise(report);
    run_operation();
    const MasterKey found{kms_text(state.operation->made.master_key),
                          kms_text(state.operation->made.master_key_version)};
    if (!guarded(report, [&] { state.operation.reset(); })) raise(report);
    return found;
}

}  // namespace envcrypt::pg
