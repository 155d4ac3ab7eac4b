// encrypt_envelope() and decrypt_envelope(): the three-part format of the article that this
// extension was born from, one data key for each value, as Python writes it by boto3's
// generate_data_key() and AESGCM(key).encrypt(nonce, plaintext, None).
#include "crypto/aead.hpp"
#include "crypto/random.hpp"
#include "pg/backend.hpp"
#include "pg/rights.hpp"
#include "pg/servers.hpp"
#include "pg/text.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

// The server's master key, for a data key that is bound to no tenant.
void prepare_envelope(const char *server) {
    Place place;
    const PlaceFault fault = find_place(server, GetUserId(), place);
    if (fault != PlaceFault::none) raise_place_fault(fault, server, GetUserId());
    prepare_unbound_operation(place);
}

bytea *new_bytea(std::size_t size) {
    auto *result = static_cast<bytea *>(palloc(VARHDRSZ + size));
    SET_VARSIZE(result, VARHDRSZ + size);
    return result;
}

std::uint8_t *contents(bytea *bytes) {
    return reinterpret_cast<std::uint8_t *>(VARDATA(bytes));
}

Datum encrypt(FunctionCallInfo fcinfo, ByteView plaintext) {
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("encrypt_envelope() must be called where a record is accepted")));
    if (plaintext.size() > value::kMaxPlaintext)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("plaintext is longer than 500 MiB")));
    Backend &state = backend();
    ErrorReport report;
    prepare_envelope(text_to_cstring(PG_GETARG_TEXT_PP(0)));
    if (!guarded(report, [&] { state.operation->work = keyring::make_key(*state.operation); }))
        raise(report);
    run_operation();

    bytea *wrapped = new_bytea(state.operation->made.wrapped.size());
    bytea *nonce = new_bytea(crypto::kNonceSize);
    bytea *sealed = new_bytea(plaintext.size() + crypto::kTagSize);
    if (!guarded(report, [&]() -> Status {
            const Bytes &made = state.operation->made.wrapped;
            std::copy(made.begin(), made.end(), contents(wrapped));
            const std::span<std::uint8_t, crypto::kNonceSize> iv(contents(nonce),
                                                                 crypto::kNonceSize);
            crypto::random_bytes(iv);
            crypto::Aead aead(state.operation->key.expose().first<crypto::kKeySize>());
            const bool ok = aead.seal(iv, {}, plaintext,
                                      {contents(sealed), plaintext.size() + crypto::kTagSize});
            state.operation.reset();
            if (!ok) return Error{ErrorCode::internal, "could not encrypt", {}, {}};
            return Unit{};
        }))
        raise(report);
    Datum values[] = {PointerGetDatum(wrapped), PointerGetDatum(nonce), PointerGetDatum(sealed)};
    bool nulls[] = {false, false, false};
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
}

}  // namespace

ENVCRYPT_FUNCTION(envcrypt_encrypt_envelope_text) {
    refuse_maintenance();
    require_right(fcinfo->flinfo->fn_oid);
    return encrypt(fcinfo, to_utf8(varlena_bytes(PG_GETARG_TEXT_PP(1)), "plaintext"));
}

ENVCRYPT_FUNCTION(envcrypt_encrypt_envelope_bytea) {
    refuse_maintenance();
    require_right(fcinfo->flinfo->fn_oid);
    return encrypt(fcinfo, varlena_bytes(PG_GETARG_BYTEA_PP(1)));
}

// decrypt_envelope(server, encrypted_dek, nonce, ciphertext)
ENVCRYPT_FUNCTION(envcrypt_decrypt_envelope) {
    refuse_maintenance();
    require_right(fcinfo->flinfo->fn_oid);
    const ByteView wrapped = varlena_bytes(PG_GETARG_BYTEA_PP(1));
    const ByteView nonce = varlena_bytes(PG_GETARG_BYTEA_PP(2));
    const ByteView sealed = varlena_bytes(PG_GETARG_BYTEA_PP(3));
    if (wrapped.empty() || wrapped.size() > kMaxWrapped)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("encrypted_dek is no wrapped key"),
                        errdetail("It has %zu bytes.", wrapped.size())));
    if (nonce.size() != crypto::kNonceSize)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("nonce has %zu bytes", nonce.size()),
                        errdetail("AES-GCM's nonce has 12.")));
    if (sealed.size() < crypto::kTagSize || sealed.size() > value::kMaxPlaintext + crypto::kTagSize)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("ciphertext has %zu bytes", sealed.size()),
                        errdetail("It ends with a tag of 16 bytes, and has at most 500 MiB.")));
    Backend &state = backend();
    ErrorReport report;
    prepare_envelope(text_to_cstring(PG_GETARG_TEXT_PP(0)));
    if (!guarded(report, [&] {
            state.operation->wrapped.assign(wrapped.begin(), wrapped.end());
            state.operation->work = keyring::unwrap_key(*state.operation);
        }))
        raise(report);
    run_operation();

    const std::size_t size = sealed.size() - crypto::kTagSize;
    bytea *plaintext = new_bytea(size);
    if (!guarded(report, [&]() -> Status {
            crypto::Aead aead(state.operation->key.expose().first<crypto::kKeySize>());
            const bool ok = aead.open(nonce.first<crypto::kNonceSize>(), {}, sealed,
                                      {contents(plaintext), size});
            state.operation.reset();
            if (!ok)
                return Error{ErrorCode::mismatch, "could not decrypt an envelope",
                             "The tag does not fit: key, nonce and ciphertext do not belong "
                             "together, or were altered.",
                             "(encrypt_envelope(...)).* makes such values, since it is called for "
                             "each column: call it in FROM."};
            return Unit{};
        }))
        raise(report);
    PG_RETURN_BYTEA_P(plaintext);
}

}  // namespace envcrypt::pg
