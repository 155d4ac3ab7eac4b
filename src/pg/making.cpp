// See making.hpp.
#include "pg/making.hpp"

#include "crypto/random.hpp"
#include "pg/backend.hpp"
#include "pg/resolve.hpp"
#include "pg/text.hpp"

namespace envcrypt::pg {

namespace {

// Puts one more operation on the key into the batch.
keyring::Operation &prepare_for_key(const Place &place, const char *master_key, const KeyRow &key) {
    keyring::Operation &operation = prepare_in_batch(place, master_key);
    ErrorReport report;
    if (!guarded(report, [&] {
            operation.context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
        }))
        raise(report);
    return operation;
}

ByteView copy_bytes(const Bytes &bytes) {
    auto *copy = static_cast<std::uint8_t *>(palloc(bytes.size() + 1));
    memcpy(copy, bytes.data(), bytes.size());
    return {copy, bytes.size()};
}

}  // namespace

std::uint64_t random_key_id() {
    std::uint8_t bytes[8];
    ErrorReport report;
    if (!guarded(report, [&] { crypto::random_bytes(bytes); })) raise(report);
    return load_be64(bytes);
}

// What a KMS said, which is UTF-8, in the server's encoding.
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

void require_writable(const char *what) {
    PreventCommandIfReadOnly(what);
    PreventCommandIfParallelMode(what);
}

void make_keys(const TenantRow &tenant, const Place &place, KeyRow *keys, int count,
               bool first_of_tenant, Journal &journal) {
    Backend &state = backend();
    ErrorReport report;
    begin_wanting();
    for (int i = 0; i < count; ++i) {
        keyring::Operation &operation = prepare_for_key(place, tenant.master_key, keys[i]);
        if (!guarded(report, [&] { operation.work = keyring::make_key(operation); })) raise(report);
    }
    run_batch();
    for (int i = 0; i < count; ++i) {
        // what the operation holds stays alive until the next batch begins
        const keyring::Operation &operation = *state.batch[static_cast<std::size_t>(i)];
        const kms::Answer &made = operation.made;
        if (!guarded(report, [&] {
                keys[i].commitment = crypto::commitment(
                    operation.key.expose().first<crypto::kKeySize>(), operation.context);
                state.uncommitted.push_back(
                    {keys[i].key_id, GetCurrentTransactionNestLevel(), first_of_tenant, false});
            }))
            raise(report);
        insert_key(keys[i]);
        insert_wrapped_key({keys[i].key_id, tenant.server, copy_bytes(made.wrapped),
                            kms_text(made.master_key), kms_text(made.master_key_version),
                            copy_bytes(made.attestation)});
        journal.add_key(keys[i], tenant.server, made);
    }

    begin_wanting();
    for (int i = 0; i < count; ++i) {
        KeyRow persisted;
        if (!find_key(keys[i].key_id, persisted))
            elog(ERROR, "envcrypt: the key just made is not there");
        const auto *wrapped =
            static_cast<WrappedKeyRow *>(linitial(find_wrapped_keys(persisted.key_id)));
        keyring::Operation &operation = prepare_for_key(place, wrapped->master_key, persisted);
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
    begin_wanting();
    for (int i = 0; i < count; ++i) set_key_state(keys[i].key_id, KeyState::active);
}

}  // namespace envcrypt::pg
