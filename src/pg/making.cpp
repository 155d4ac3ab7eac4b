// See making.hpp.
#include "pg/making.hpp"

#include "crypto/random.hpp"
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/opening.hpp"
#include "pg/text.hpp"

namespace envcrypt::pg {

namespace {

// Puts one more operation on the key into the batch.
keyring::Operation &prepare_for_key(const Place &place, const char *master_key, const KeyRow &key) {
    ErrorReport report;
    keyring::Operation *operation = prepare_in_batch(place, master_key, report);
    if (operation == nullptr || !guarded(report, [&] {
            operation->context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
        }))
        raise(report);
    return *operation;
}

// Has the KMS make them, persists them, and proves what was persisted.
void make_at_kms(const Destination &destination, KeyRow *keys, int count, bool first_of_tenant,
                 Journal &journal) {
    Backend &state = backend();
    ErrorReport report;
    begin_batch();
    for (int i = 0; i < count; ++i) {
        keyring::Operation &operation =
            prepare_for_key(destination.place, destination.master_key, keys[i]);
        if (!guarded(report, [&] { operation.work = keyring::make_key(operation); })) raise(report);
    }
    run_batch();
    for (int i = 0; i < count; ++i) {
        // what the operation holds stays alive until the next batch begins
        const keyring::Operation &operation = *state.batch[static_cast<std::size_t>(i)];
        if (!guarded(report, [&] {
                keys[i].commitment = crypto::commitment(
                    operation.key.expose().first<crypto::kKeySize>(), operation.context);
            }))
            raise(report);
        note_uncommitted(keys[i], first_of_tenant);
        Wrapping wrapping{&keys[i], nullptr, {}, nullptr};
        fill_wrapping(destination, wrapping, operation.made);
        insert_key(keys[i]);
        write_wrapping(wrapping);
        journal.add_wrapping(wrapping);
    }

    begin_batch();
    for (int i = 0; i < count; ++i) {
        KeyRow persisted;
        const WrappedKeyRow *wrapped = find_wrapped_key(keys[i].key_id, destination.server);
        if (!find_key(keys[i].key_id, persisted) || wrapped == nullptr)
            elog(ERROR, "envcrypt: the key just made is not there");
        keyring::Operation &operation =
            prepare_for_key(destination.place, wrapped->master_key, persisted);
        if (!guarded(report, [&] {
                operation.wrapped.assign(wrapped->wrapped.begin(), wrapped->wrapped.end());
                operation.attestation.assign(wrapped->attestation.begin(),
                                             wrapped->attestation.end());
                operation.commitment = persisted.commitment;
                operation.work = keyring::verify_key(operation);
            }))
            raise(report);
    }
    run_batch();
    begin_batch();
}

// The same with keys from the kernel, wrapped by a group key.
void make_in_group(const Destination &destination, KeyRow *keys, int count, bool first_of_tenant,
                   Journal &journal) {
    Backend &state = backend();
    ErrorReport report;
    for (int i = 0; i < count; ++i) {
        const keyring::OpenKey *group = open_key(*destination.group);
        if (!guarded(report, [&] {
                state.operation = std::make_unique<keyring::Operation>();
                keyring::KeyToOpen &made = state.operation->keys.emplace_back();
                made.context =
                    crypto::wrap_context(keys[i].purpose, keys[i].key_id, keys[i].tenant);
                made.key = SecretBytes(crypto::kKeySize);
                crypto::random_bytes(made.key.expose());
                keys[i].commitment = made.commitment =
                    crypto::commitment(made.key.expose().first<crypto::kKeySize>(), made.context);
                return keyring::wrap_by_group(group->key, destination.group->tenant, made);
            }))
            raise(report);
        note_uncommitted(keys[i], first_of_tenant);
        Wrapping wrapping{&keys[i], nullptr, {}, nullptr};
        fill_wrapping(destination, wrapping, state.operation->keys[0].made);
        if (!guarded(report, [&] { state.operation.reset(); })) raise(report);
        insert_key(keys[i]);
        write_wrapping(wrapping);
        journal.add_wrapping(wrapping);
        (void)open_key(keys[i]);
    }
}

}  // namespace

std::uint64_t random_key_id() {
    std::uint8_t bytes[8];
    ErrorReport report;
    if (!guarded(report, [&] { crypto::random_bytes(bytes); })) raise(report);
    return load_be64(bytes);
}

char *kms_text(const std::string &said) {
    return text_to_cstring(from_utf8(as_bytes(said)));
}

Place place_of(const char *server) {
    Place place;
    const PlaceFault fault = find_place(server, GetUserId(), place);
    if (fault != PlaceFault::none) raise_place_fault(fault, server, GetUserId());
    return place;
}

Place lock_place(const char *server) {
    const Place place = place_of(server);
    LockDatabaseObject(ForeignServerRelationId, place.server, 0, AccessShareLock);
    return place_of(server);
}

void note_uncommitted(const KeyRow &key, bool first_of_tenant) {
    note_key(key.key_id);
    ErrorReport report;
    Backend &state = backend();
    if (!guarded(report, [&] {
            state.uncommitted.push_back(
                {key.key_id, GetCurrentTransactionNestLevel(), first_of_tenant, false});
        }))
        raise(report);
}

void supersede_key(std::uint64_t key_id) {
    ErrorReport report;
    Backend &state = backend();
    if (!guarded(report, [&] {
            state.uncommitted.push_back({key_id, GetCurrentTransactionNestLevel(), false, true});
        }))
        raise(report);
    set_key_state(key_id, KeyState::decrypt_only);
}

void make_keys(List *places, KeyRow *keys, int count, bool first_of_tenant, Journal &journal) {
    const auto *first = static_cast<Destination *>(linitial(places));
    if (first->group != nullptr)
        make_in_group(*first, keys, count, first_of_tenant, journal);
    else
        make_at_kms(*first, keys, count, first_of_tenant, journal);
    ListCell *cell;
    for_each_from(cell, places, 1) {
        List *wrappings = NIL;
        for (int i = 0; i < count; ++i) {
            wrappings = lappend(wrappings, new_wrapping(&keys[i], nullptr));
        }
        ErrorReport report;
        if (!wrap_keys(*static_cast<Destination *>(lfirst(cell)), wrappings, report)) raise(report);
        ListCell *made;
        foreach (made, wrappings) {
            const auto *wrapping = static_cast<Wrapping *>(lfirst(made));
            write_wrapping(*wrapping);
            journal.add_wrapping(*wrapping);
        }
    }
    for (int i = 0; i < count; ++i) set_key_state(keys[i].key_id, KeyState::active);
}

}  // namespace envcrypt::pg
