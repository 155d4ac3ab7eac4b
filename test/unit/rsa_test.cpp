// RS256 and PS256 against OpenSSL used directly.
#include "crypto/rsa.hpp"

#include <gtest/gtest.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include <string>

#include "crypto/encoding.hpp"

namespace envcrypt::crypto {
namespace {

std::string pem_of(EVP_PKEY *key, const EVP_CIPHER *cipher = nullptr) {
    BIO *bio = BIO_new(BIO_s_mem());
    PEM_write_bio_PrivateKey(bio, key, cipher, nullptr, 0, nullptr,
                             cipher == nullptr ? nullptr : const_cast<char *>("pass"));
    char *text;
    const long length = BIO_get_mem_data(bio, &text);
    std::string pem(text, static_cast<std::size_t>(length));
    BIO_free(bio);
    return pem;
}

Bytes number_of(EVP_PKEY *key, const char *name) {
    BIGNUM *number = nullptr;
    EVP_PKEY_get_bn_param(key, name, &number);
    Bytes bytes(static_cast<std::size_t>(BN_num_bytes(number)));
    BN_bn2bin(number, bytes.data());
    BN_free(number);
    return bytes;
}

struct Key {
    EVP_PKEY *key;
    explicit Key(unsigned bits) : key(EVP_RSA_gen(bits)) {}
    Key(const Key &) = delete;
    ~Key() { EVP_PKEY_free(key); }
};

TEST(Rsa, SignsRs256) {
    const Key key(2048);
    const auto signature = sign_rs256(pem_of(key.key), as_bytes("data"));
    ASSERT_TRUE(signature);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    ASSERT_EQ(EVP_DigestVerifyInit(context, nullptr, EVP_sha256(), nullptr, key.key), 1);
    EXPECT_EQ(
        EVP_DigestVerify(context, signature->data(), signature->size(), as_bytes("data").data(), 4),
        1);
    EVP_MD_CTX_free(context);
}

TEST(Rsa, RefusesKeysThatAreNone) {
    const Key small(1024);
    EXPECT_FALSE(sign_rs256(pem_of(small.key), as_bytes("data")));
    const Key key(2048);
    // nobody is asked for a passphrase
    EXPECT_FALSE(sign_rs256(pem_of(key.key, EVP_aes_256_cbc()), as_bytes("data")));
    EVP_PKEY *curve = EVP_EC_gen("P-256");
    EXPECT_FALSE(sign_rs256(pem_of(curve), as_bytes("data")));
    EVP_PKEY_free(curve);
    for (const char *garbage :
         {"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"})
        EXPECT_FALSE(sign_rs256(garbage, as_bytes("data")));
}

// The form before PKCS #8.
TEST(Rsa, TakesBareKeys) {
    const Key key(2048);
    BIO *bio = BIO_new(BIO_s_mem());
    PEM_write_bio_PrivateKey_traditional(bio, key.key, nullptr, nullptr, 0, nullptr, nullptr);
    char *text;
    const long length = BIO_get_mem_data(bio, &text);
    const std::string_view pem(text, static_cast<std::size_t>(length));
    ASSERT_TRUE(pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    EXPECT_EQ(sign_rs256(pem, as_bytes("data")), sign_rs256(pem_of(key.key), as_bytes("data")));
    BIO_free(bio);
}

// Cut off anywhere, and with any byte of its structure altered.
TEST(Rsa, RefusesDamagedKeys) {
    const Key key(2048);
    unsigned char *encoded = nullptr;
    const int length = i2d_PrivateKey(key.key, &encoded);
    ASSERT_GT(length, 0);
    const Bytes der(encoded, encoded + length);
    OPENSSL_free(encoded);
    const auto sign = [](const Bytes &bytes) {
        return sign_rs256("-----BEGIN RSA PRIVATE KEY-----\n" + to_base64(bytes) +
                              "\n-----END RSA PRIVATE KEY-----\n",
                          as_bytes("data"));
    };
    ASSERT_TRUE(sign(der));
    for (std::size_t size = 0; size < der.size(); size += size < 40 ? 1 : 13)
        EXPECT_FALSE(sign(Bytes(der.begin(), der.begin() + static_cast<std::ptrdiff_t>(size))))
            << size;
    for (const std::size_t at : {0, 4, 7})
        for (const std::uint8_t byte : {0x00, 0x03, 0x80, 0x84, 0xff}) {
            Bytes altered = der;
            altered[at] = byte;
            EXPECT_FALSE(sign(altered)) << at;
        }
}

Bytes sign_pss(EVP_PKEY *key, const Digest &digest, int salt) {
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, nullptr);
    EVP_PKEY_sign_init(context);
    EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PSS_PADDING);
    EVP_PKEY_CTX_set_signature_md(context, EVP_sha256());
    EVP_PKEY_CTX_set_rsa_pss_saltlen(context, salt);
    std::size_t length = 0;
    EVP_PKEY_sign(context, nullptr, &length, digest.data(), digest.size());
    Bytes signature(length);
    EVP_PKEY_sign(context, signature.data(), &length, digest.data(), digest.size());
    EVP_PKEY_CTX_free(context);
    return signature;
}

TEST(Rsa, VerifiesPs256) {
    const Key key(2048);
    const Key other(2048);
    const Bytes n = number_of(key.key, OSSL_PKEY_PARAM_RSA_N);
    const Bytes e = number_of(key.key, OSSL_PKEY_PARAM_RSA_E);
    const Digest digest = sha256(as_bytes("data"));
    Bytes signature = sign_pss(key.key, digest, 32);
    EXPECT_TRUE(verify_ps256(n, e, digest, signature));
    EXPECT_FALSE(verify_ps256(n, e, sha256(as_bytes("datb")), signature));
    EXPECT_FALSE(verify_ps256(number_of(other.key, OSSL_PKEY_PARAM_RSA_N), e, digest, signature));
    EXPECT_FALSE(verify_ps256(n, e, digest, sign_pss(key.key, digest, 20)));
    signature[10] ^= 1;
    EXPECT_FALSE(verify_ps256(n, e, digest, signature));
    EXPECT_FALSE(verify_ps256(n, e, digest, {}));
    EXPECT_FALSE(verify_ps256({}, e, digest, signature));
    EXPECT_FALSE(verify_ps256(n, {}, digest, signature));
    const Bytes huge(5000, 0xff);
    EXPECT_FALSE(verify_ps256(huge, e, digest, signature));
}

TEST(Base64Url, IsStrict) {
    for (const std::string bytes : {"", "f", "fo", "foo", "\xff\xfe\xfd"}) {
        const std::string text = to_base64url(as_bytes(bytes));
        EXPECT_EQ(text.find_first_of("+/="), std::string::npos);
        const auto back = from_base64url_secret(text);
        ASSERT_TRUE(back) << text;
        EXPECT_EQ(back->expose_text(), bytes);
    }
    EXPECT_EQ(to_base64url(as_bytes("\xff\xfe\xfd")), "__79");
    for (const char *bad : {"a", "Zg==", "+/", "Zm 9", "Zm9v\n", "\x80\x80\x80\x80", "Zh"})
        EXPECT_FALSE(from_base64url_secret(bad)) << bad;
}

}  // namespace
}  // namespace envcrypt::crypto
