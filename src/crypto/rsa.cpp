// See rsa.hpp.
#include "crypto/rsa.hpp"

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include <memory>

namespace envcrypt::crypto {

namespace {

template <auto Free>
struct Deleter {
    template <class T>
    void operator()(T *object) const {
        Free(object);
    }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
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

// A key under a passphrase is refused rather than asked for on the terminal.
int no_passphrase(char *, int, int, void *) {
    return 0;
}

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

}  // namespace

std::optional<Bytes> sign_rs256(std::string_view private_key_pem, ByteView data) {
    const ErrorQueue errors;
    if (private_key_pem.size() > 64 * 1024) return std::nullopt;
    const Bio bio(
        BIO_new_mem_buf(private_key_pem.data(), static_cast<int>(private_key_pem.size())));
    if (!bio) return std::nullopt;
    const Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
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
