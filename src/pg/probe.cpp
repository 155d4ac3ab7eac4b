// See probe.hpp. The operators and support functions of btree and hash: values with a token by
// mode, version and token, the others after them by all their bytes.
#include "pg/probe.hpp"

#include "crypto/encoding.hpp"
#include "pg/guard.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

constexpr std::string_view kProbePrefix = "ep1:";
constexpr std::uint8_t kLabelAndToken = 0x60;
// Where a value with a token has it: after format, flags, key id and label.
constexpr std::size_t kTokenAt = 13;

// What a datum is sorted by: a token, or where `token` is null all bytes of the value.
struct SortKey {
    const std::uint8_t *token;
    Datum value;
};

SortKey key_of_value(Datum datum) {
    const auto *start =
        reinterpret_cast<const varlena *>(PG_DETOAST_DATUM_SLICE(datum, 0, kTokenAt + kProbeSize));
    const ByteView bytes = varlena_bytes(start);
    if (bytes.size() < kTokenAt + kProbeSize || (bytes[1] & kLabelAndToken) != kLabelAndToken)
        return {nullptr, datum};
    return {bytes.data() + kTokenAt, datum};
}

SortKey key_of_probe(Datum datum) {
    return {reinterpret_cast<const std::uint8_t *>(DatumGetPointer(datum)), 0};
}

int compare(const SortKey &left, const SortKey &right) {
    if (left.token != nullptr && right.token != nullptr)
        return memcmp(left.token, right.token, kProbeSize);
    if (left.token != nullptr) return -1;
    if (right.token != nullptr) return 1;
    const ByteView a = varlena_bytes(PG_DETOAST_DATUM_PACKED(left.value));
    const ByteView b = varlena_bytes(PG_DETOAST_DATUM_PACKED(right.value));
    const int order = memcmp(a.data(), b.data(), Min(a.size(), b.size()));
    if (order != 0) return order;
    return a.size() < b.size() ? -1 : a.size() > b.size() ? 1 : 0;
}

using KeyOf = SortKey (*)(Datum);
template <KeyOf left, KeyOf right>
int compare(FunctionCallInfo fcinfo) {
    return compare(left(PG_GETARG_DATUM(0)), right(PG_GETARG_DATUM(1)));
}

ByteView hashed(const SortKey &key) {
    if (key.token != nullptr) return {key.token, kProbeSize};
    return varlena_bytes(PG_DETOAST_DATUM_PACKED(key.value));
}

Datum hash(const SortKey &key) {
    const ByteView bytes = hashed(key);
    return hash_any(bytes.data(), static_cast<int>(bytes.size()));
}

Datum hash_extended(const SortKey &key, std::uint64_t seed) {
    const ByteView bytes = hashed(key);
    return hash_any_extended(bytes.data(), static_cast<int>(bytes.size()), seed);
}

}  // namespace

Datum make_probe(const value::Token &token) {
    auto *probe = static_cast<std::uint8_t *>(palloc(kProbeSize));
    probe[0] =
        static_cast<std::uint8_t>(static_cast<std::uint8_t>(token.mode) << 6 | token.version);
    memcpy(probe + 1, token.bytes.data(), token.bytes.size());
    return PointerGetDatum(probe);
}

#define ENVCRYPT_OPERATORS(pair, left, right)                \
    ENVCRYPT_FUNCTION(envcrypt_lt_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) < 0);  \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_le_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) <= 0); \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_eq_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) == 0); \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_ne_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) != 0); \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_ge_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) >= 0); \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_gt_##pair) {                  \
        PG_RETURN_BOOL((compare<left, right>(fcinfo)) > 0);  \
    }                                                        \
    ENVCRYPT_FUNCTION(envcrypt_cmp_##pair) {                 \
        PG_RETURN_INT32((compare<left, right>(fcinfo)));     \
    }
ENVCRYPT_OPERATORS(vv, key_of_value, key_of_value)
ENVCRYPT_OPERATORS(vp, key_of_value, key_of_probe)
ENVCRYPT_OPERATORS(pv, key_of_probe, key_of_value)
ENVCRYPT_OPERATORS(pp, key_of_probe, key_of_probe)

ENVCRYPT_FUNCTION(envcrypt_hash_v) {
    return hash(key_of_value(PG_GETARG_DATUM(0)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_p) {
    return hash(key_of_probe(PG_GETARG_DATUM(0)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_extended_v) {
    return hash_extended(key_of_value(PG_GETARG_DATUM(0)),
                         static_cast<std::uint64_t>(PG_GETARG_INT64(1)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_extended_p) {
    return hash_extended(key_of_probe(PG_GETARG_DATUM(0)),
                         static_cast<std::uint64_t>(PG_GETARG_INT64(1)));
}

// The text form of a probe: ep1: and base64 of its 17 bytes.
ENVCRYPT_FUNCTION(envcrypt_probe_in) {
    const std::string_view text = PG_GETARG_CSTRING(0);
    auto *probe = static_cast<std::uint8_t *>(palloc(kProbeSize + 3));
    std::optional<std::size_t> size;
    if (text.starts_with(kProbePrefix) &&
        crypto::base64_capacity(text.size() - kProbePrefix.size()) <= kProbeSize + 3)
        size = crypto::decode_base64(text.substr(kProbePrefix.size()), {probe, kProbeSize + 3});
    if (size != kProbeSize)
        ENVCRYPT_INPUT_ERROR(fcinfo,
                             (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
                              errmsg("invalid input for type probe"), errhidecontext(true)));
    PG_RETURN_POINTER(probe);
}

ENVCRYPT_FUNCTION(envcrypt_probe_out) {
    char encoded[32];
    crypto::encode_base64(
        {reinterpret_cast<const std::uint8_t *>(PG_GETARG_POINTER(0)), kProbeSize}, encoded);
    encoded[crypto::base64_length(kProbeSize)] = '\0';
    PG_RETURN_CSTRING(psprintf("ep1:%s", encoded));
}

ENVCRYPT_FUNCTION(envcrypt_probe_recv) {
    auto *message = reinterpret_cast<StringInfo>(PG_GETARG_POINTER(0));
    auto *probe = static_cast<char *>(palloc(kProbeSize));
    pq_copymsgbytes(message, probe, kProbeSize);
    PG_RETURN_POINTER(probe);
}

ENVCRYPT_FUNCTION(envcrypt_probe_send) {
    auto *sent = static_cast<bytea *>(palloc(VARHDRSZ + kProbeSize));
    SET_VARSIZE(sent, VARHDRSZ + kProbeSize);
    memcpy(VARDATA(sent), PG_GETARG_POINTER(0), kProbeSize);
    PG_RETURN_BYTEA_P(sent);
}

}  // namespace envcrypt::pg
