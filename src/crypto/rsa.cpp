// See rsa.hpp.
#include "crypto/rsa.hpp"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <string>

#include "crypto/encoding.hpp"

namespace envcrypt::crypto {

namespace {

template <auto Free>
struct Deleter {
    template <class T>
    void operator()(T *object) const {
        Free(object);
    }
};
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using KeyContext = std::unique_ptr<EVP_PKEY_CTX, Deleter<EVP_PKEY_CTX_free>>;
using DigestContext = std::unique_ptr<EVP_MD_CTX, Deleter<EVP_MD_CTX_free>>;
using Number = std::unique_ptr<BIGNUM, Deleter<BN_free>>;
using ParamBuilder = std::unique_ptr<OSSL_PARAM_BLD, Deleter<OSSL_PARAM_BLD_free>>;
using Params = std::unique_ptr<OSSL_PARAM, Deleter<OSSL_PARAM_free>>;

constexpr int kMinBits = 2048;
constexpr int kMaxBits = 8192;

// OpenSSL keeps what went wrong for whoever asks next, who would be somebody else.
struct ErrorQueue {
    ErrorQueue() { ERR_set_mark(); }
    ErrorQueue(const ErrorQueue &) = delete;
    ~ErrorQueue() { ERR_pop_to_mark(); }
};

bool is_good_rsa(const EVP_PKEY *key) {
    return key != nullptr && EVP_PKEY_is_a(key, "RSA") == 1 && EVP_PKEY_get_bits(key) >= kMinBits &&
           EVP_PKEY_get_bits(key) <= kMaxBits;
}

Key public_key(ByteView modulus, ByteView exponent) {
    if (modulus.size() > kMaxBits / 8 || exponent.size() > 8) return nullptr;
    const Number n(BN_bin2bn(modulus.data(), static_cast<int>(modulus.size()), nullptr));
    const Number e(BN_bin2bn(exponent.data(), static_cast<int>(exponent.size()), nullptr));
    const ParamBuilder builder(OSSL_PARAM_BLD_new());
    const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, "RSA", nullptr));
    if (!n || !e || !builder || !context ||
        OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N, n.get()) != 1 ||
        OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E, e.get()) != 1)
        return nullptr;
    const Params params(OSSL_PARAM_BLD_to_param(builder.get()));
    EVP_PKEY *key = nullptr;
    if (!params || EVP_PKEY_fromdata_init(context.get()) != 1 ||
        EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params.get()) != 1)
        return nullptr;
    return Key(key);
}

// --- private keys. OpenSSL's own readers of PEM and DER free copies of the key unwiped, so they
// are read here, and its numbers are given to OpenSSL where they lie: in secret memory. ---

// Takes DER apart, element by element.
class Der {
public:
    explicit Der(ByteView bytes) : left_(bytes) {}

    // The contents of the next element, if it has this tag.
    std::optional<ByteView> take(std::uint8_t tag) {
        if (left_.size() < 2 || left_[0] != tag) return std::nullopt;
        std::size_t length = left_[1], at = 2;
        if (length >= 0x80) {
            const std::size_t count = length & 0x7f;
            if (count == 0 || count > 3 || count > left_.size() - at) return std::nullopt;
            length = 0;
            for (; at < 2 + count; ++at) length = length << 8 | left_[at];
        }
        if (length > left_.size() - at) return std::nullopt;
        const ByteView contents = left_.subspan(at, length);
        left_ = left_.subspan(at + length);
        return contents;
    }

private:
    ByteView left_;
};

constexpr std::uint8_t kInteger = 0x02, kOctets = 0x04, kIdentifier = 0x06, kSequence = 0x30;
constexpr std::uint8_t kRsaEncryption[] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01};

// What is between the lines BEGIN and END of a PEM with this label, decoded.
std::optional<SecretBytes> pem_contents(std::string_view pem, std::string_view label) {
    const std::string begin = "-----BEGIN " + std::string(label) + "-----";
    const std::string end = "-----END " + std::string(label) + "-----";
    const std::size_t from = pem.find(begin);
    if (from == std::string_view::npos) return std::nullopt;
    pem.remove_prefix(from + begin.size());
    const std::size_t to = pem.find(end);
    if (to == std::string_view::npos) return std::nullopt;
    SecretBytes text;
    for (const char c : pem.substr(0, to))
        if (c != '\n' && c != '\r' && c != ' ' && c != '\t')
            text.append(as_bytes(std::string_view(&c, 1)));
    return from_base64_secret(text.expose_text());
}

// The RSAPrivateKey (RFC 8017 appendix A.1.2) in a PrivateKeyInfo (RFC 5208).
std::optional<ByteView> rsa_private_key(ByteView info) {
    const auto outer = Der(info).take(kSequence);
    if (!outer) return std::nullopt;
    Der members(*outer);
    if (!members.take(kInteger)) return std::nullopt;
    const auto algorithm = members.take(kSequence);
    if (!algorithm) return std::nullopt;
    const auto identifier = Der(*algorithm).take(kIdentifier);
    if (!identifier || !std::ranges::equal(*identifier, kRsaEncryption)) return std::nullopt;
    return members.take(kOctets);
}

// Null where it is none.
Key private_key(std::string_view pem) {
    if (pem.size() > 64 * 1024) return nullptr;
    const auto info = pem_contents(pem, "PRIVATE KEY");
    const auto bare = info ? std::nullopt : pem_contents(pem, "RSA PRIVATE KEY");
    std::optional<ByteView> encoded;
    if (info) encoded = rsa_private_key(info->expose());
    if (bare) encoded = bare->expose();
    if (encoded) encoded = Der(*encoded).take(kSequence);
    if (!encoded) return nullptr;
    Der members(*encoded);
    // of two primes
    const auto version = members.take(kInteger);
    if (!version || version->size() != 1 || (*version)[0] != 0) return nullptr;

    constexpr const char *names[] = {
        OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
        OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
        OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
        OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1};
    constexpr std::size_t count = std::size(names);
    SecretBytes numbers[count];
    OSSL_PARAM params[count + 1];
    for (std::size_t i = 0; i < count; ++i) {
        const auto number = members.take(kInteger);
        if (!number || number->empty() || number->size() > kMaxBits / 8 + 1 || (*number)[0] >= 0x80)
            return nullptr;
        numbers[i] = SecretBytes(*number);
        const ByteSpan bytes = numbers[i].expose();
        if constexpr (std::endian::native == std::endian::little) std::ranges::reverse(bytes);
        params[i] = OSSL_PARAM_construct_BN(names[i], bytes.data(), bytes.size());
    }
    params[count] = OSSL_PARAM_construct_end();
    const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, "RSA", nullptr));
    EVP_PKEY *key = nullptr;
    if (!context || EVP_PKEY_fromdata_init(context.get()) != 1 ||
        EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_KEYPAIR, params) != 1)
        return nullptr;
    return Key(key);
}

}  // namespace

std::optional<Bytes> sign_rs256(std::string_view private_key_pem, ByteView data) {
    const ErrorQueue errors;
    const Key key = private_key(private_key_pem);
    const DigestContext context(EVP_MD_CTX_new());
    std::size_t length = 0;
    if (!is_good_rsa(key.get()) || !context ||
        EVP_DigestSignInit_ex(context.get(), nullptr, "SHA256", nullptr, nullptr, key.get(),
                              nullptr) != 1 ||
        EVP_DigestSign(context.get(), nullptr, &length, data.data(), data.size()) != 1)
        return std::nullopt;
    Bytes signature(length);
    if (EVP_DigestSign(context.get(), signature.data(), &length, data.data(), data.size()) != 1)
        return std::nullopt;
    signature.resize(length);
    return signature;
}

bool verify_ps256(ByteView modulus, ByteView exponent, const Digest &digest, ByteView signature) {
    const ErrorQueue errors;
    const Key key = public_key(modulus, exponent);
    if (!is_good_rsa(key.get())) return false;
    const KeyContext context(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
    return context && EVP_PKEY_verify_init(context.get()) == 1 &&
           EVP_PKEY_CTX_set_rsa_padding(context.get(), RSA_PKCS1_PSS_PADDING) == 1 &&
           EVP_PKEY_CTX_set_signature_md(context.get(), EVP_sha256()) == 1 &&
           EVP_PKEY_CTX_set_rsa_pss_saltlen(context.get(), RSA_PSS_SALTLEN_DIGEST) == 1 &&
           EVP_PKEY_verify(context.get(), signature.data(), signature.size(), digest.data(),
                           digest.size()) == 1;
}

}  // namespace envcrypt::crypto
