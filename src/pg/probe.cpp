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

// What a datum is sorted by: a token, or without one all bytes of the value. Sorts call this in a
// memory context that lives as long as they do: nothing may be left there.
class SortKey {
public:
    static SortKey of_value(Datum datum) {
        SortKey key;
        key.value_ = datum;
        auto *value = reinterpret_cast<varlena *>(DatumGetPointer(datum));
        if (!VARATT_IS_EXTERNAL(value) && !VARATT_IS_COMPRESSED(value)) {
            key.in_place_ = token_in(varlena_bytes(value));
            return key;
        }
        auto *start =
            reinterpret_cast<varlena *>(PG_DETOAST_DATUM_SLICE(datum, 0, kTokenAt + kProbeSize));
        if (const std::uint8_t *token = token_in(varlena_bytes(start))) {
            memcpy(key.copy_, token, kProbeSize);
            key.is_copied_ = true;
        }
        pfree(start);
        return key;
    }
    static SortKey of_probe(Datum datum) {
        SortKey key;
        key.in_place_ = reinterpret_cast<const std::uint8_t *>(DatumGetPointer(datum));
        return key;
    }

    // Null where the value has none.
    const std::uint8_t *token() const { return is_copied_ ? copy_ : in_place_; }

    // What comes of all bytes of the value.
    template <class Function>
    auto with_bytes(const Function &function) const {
        auto *value = reinterpret_cast<varlena *>(DatumGetPointer(value_));
        auto *whole = PG_DETOAST_DATUM_PACKED(value_);
        const auto result = function(varlena_bytes(whole));
        if (whole != value) pfree(whole);
        return result;
    }

private:
    static const std::uint8_t *token_in(ByteView bytes) {
        return bytes.size() < kTokenAt + kProbeSize || (bytes[1] & kLabelAndToken) != kLabelAndToken
                   ? nullptr
                   : bytes.data() + kTokenAt;
    }

    Datum value_ = 0;
    const std::uint8_t *in_place_ = nullptr;
    bool is_copied_ = false;
    std::uint8_t copy_[kProbeSize];
};

int compare(const SortKey &left, const SortKey &right) {
    const std::uint8_t *a = left.token();
    const std::uint8_t *b = right.token();
    if (a != nullptr && b != nullptr) return memcmp(a, b, kProbeSize);
    if (a != nullptr) return -1;
    if (b != nullptr) return 1;
    return left.with_bytes([&](ByteView x) {
        return right.with_bytes([&](ByteView y) {
            const int order = memcmp(x.data(), y.data(), Min(x.size(), y.size()));
            if (order != 0) return order;
            return x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0;
        });
    });
}

using KeyOf = SortKey (*)(Datum);
template <KeyOf left, KeyOf right>
int compare(FunctionCallInfo fcinfo) {
    return compare(left(PG_GETARG_DATUM(0)), right(PG_GETARG_DATUM(1)));
}

Datum hash(const SortKey &key) {
    const auto of = [](ByteView bytes) {
        return hash_any(bytes.data(), static_cast<int>(bytes.size()));
    };
    return key.token() != nullptr ? of({key.token(), kProbeSize}) : key.with_bytes(of);
}

Datum hash_extended(const SortKey &key, std::uint64_t seed) {
    const auto of = [&](ByteView bytes) {
        return hash_any_extended(bytes.data(), static_cast<int>(bytes.size()), seed);
    };
    return key.token() != nullptr ? of({key.token(), kProbeSize}) : key.with_bytes(of);
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
ENVCRYPT_OPERATORS(vv, SortKey::of_value, SortKey::of_value)
ENVCRYPT_OPERATORS(vp, SortKey::of_value, SortKey::of_probe)
ENVCRYPT_OPERATORS(pv, SortKey::of_probe, SortKey::of_value)
ENVCRYPT_OPERATORS(pp, SortKey::of_probe, SortKey::of_probe)

ENVCRYPT_FUNCTION(envcrypt_hash_v) {
    return hash(SortKey::of_value(PG_GETARG_DATUM(0)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_p) {
    return hash(SortKey::of_probe(PG_GETARG_DATUM(0)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_extended_v) {
    return hash_extended(SortKey::of_value(PG_GETARG_DATUM(0)),
                         static_cast<std::uint64_t>(PG_GETARG_INT64(1)));
}
ENVCRYPT_FUNCTION(envcrypt_hash_extended_p) {
    return hash_extended(SortKey::of_probe(PG_GETARG_DATUM(0)),
                         static_cast<std::uint64_t>(PG_GETARG_INT64(1)));
}

bool read_probe(std::string_view text, std::uint8_t *probe) {
    if (!text.starts_with(kProbePrefix) ||
        crypto::base64_capacity(text.size() - kProbePrefix.size()) > kProbeSize + 3)
        return false;
    return crypto::decode_base64(text.substr(kProbePrefix.size()), {probe, kProbeSize + 3}) ==
           kProbeSize;
}

// The text form of a probe: ep1: and base64 of its 17 bytes.
ENVCRYPT_FUNCTION(envcrypt_probe_in) {
    auto *probe = static_cast<std::uint8_t *>(palloc(kProbeSize + 3));
    if (!read_probe(PG_GETARG_CSTRING(0), probe))
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
