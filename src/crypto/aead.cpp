// See aead.hpp.
#include "crypto/aead.hpp"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <sodium.h>

#include <cstring>
#include <new>

namespace envcrypt::crypto {

namespace {

static_assert(crypto_aead_aes256gcm_NPUBBYTES == kNonceSize);
static_assert(crypto_aead_aes256gcm_ABYTES == kTagSize);
static_assert(alignof(crypto_aead_aes256gcm_state) <= 16);

constexpr std::size_t kExpandedSize = sizeof(crypto_aead_aes256gcm_state);
constexpr std::uint8_t kMark = 1;

// Below this many bytes libsodium is the faster: measured on libsodium 1.0.18 with OpenSSL 3.0 and
// on 1.0.22 with 3.6, 2026-11 (make bench ONLY=aead).
constexpr std::size_t kSodiumMaxInput = 96;

const EVP_CIPHER *gcm_cipher() {
    // fetched once: EVP_aes_256_gcm() is looked up again at every use
    static const EVP_CIPHER *const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
    return cipher;
}

const crypto_aead_aes256gcm_state *expanded(const SecretBytes &keys) {
    return reinterpret_cast<const crypto_aead_aes256gcm_state *>(keys.expose().data());
}

bool lengths_fit(ByteView associated, ByteView input) {
    return associated.size() <= kMaxAeadInput && input.size() <= kMaxAeadInput;
}

int as_int(std::size_t length) {
    return static_cast<int>(length);
}

bool failed(ByteSpan out) {
    wipe(out);
    return false;
}

// What OpenSSL queued would otherwise be read as libcurl's or the server's own error.
bool openssl_failed(ByteSpan out) {
    ERR_clear_error();
    return failed(out);
}

}  // namespace

bool Aead::sodium_has_aes() {
    static const bool available = sodium_init() >= 0 && crypto_aead_aes256gcm_is_available() == 1;
    return available;
}

void Aead::FreeContext::operator()(evp_cipher_ctx_st *context) const noexcept {
    EVP_CIPHER_CTX_free(context);  // cleanses the key schedule
}

Aead::Aead(std::span<const std::uint8_t, kKeySize> key, AeadLibrary library)
    : keys_(kExpandedSize + kKeySize + 1),
      library_(sodium_has_aes() ? library : AeadLibrary::openssl) {
    std::memcpy(keys_.expose().data() + kExpandedSize, key.data(), kKeySize);
    keys_.expose().back() = kMark;
    if (library_ != AeadLibrary::openssl)
        crypto_aead_aes256gcm_beforenm(
            reinterpret_cast<crypto_aead_aes256gcm_state *>(keys_.expose().data()), key.data());
}

bool Aead::use_sodium(std::size_t length) const {
    return library_ == AeadLibrary::sodium ||
           (library_ == AeadLibrary::automatic && length <= kSodiumMaxInput);
}

bool Aead::is_inherited() const {
    return keys_.empty() || keys_.expose().back() != kMark;
}

bool Aead::prepare_openssl() {
    if (openssl_ != nullptr) return true;
    std::unique_ptr<evp_cipher_ctx_st, FreeContext> context(EVP_CIPHER_CTX_new());
    const std::uint8_t *key = keys_.expose().data() + kExpandedSize;
    if (context == nullptr || gcm_cipher() == nullptr ||
        EVP_CipherInit_ex(context.get(), gcm_cipher(), nullptr, key, nullptr, 1) != 1)
        return false;
    openssl_ = std::move(context);
    return true;
}

bool Aead::seal(std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated,
                ByteView plaintext, ByteSpan out) {
    if (is_inherited() || !lengths_fit(associated, plaintext) ||
        out.size() != plaintext.size() + kTagSize)
        return failed(out);
    if (use_sodium(plaintext.size()))
        return crypto_aead_aes256gcm_encrypt_afternm(
                   out.data(), nullptr, plaintext.data(), plaintext.size(), associated.data(),
                   associated.size(), nullptr, nonce.data(), expanded(keys_)) == 0;
    if (!prepare_openssl()) return openssl_failed(out);
    EVP_CIPHER_CTX *context = openssl_.get();
    int written = 0;
    if (EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, nonce.data(), 1) != 1 ||
        (!associated.empty() && EVP_CipherUpdate(context, nullptr, &written, associated.data(),
                                                 as_int(associated.size())) != 1) ||
        (!plaintext.empty() && EVP_CipherUpdate(context, out.data(), &written, plaintext.data(),
                                                as_int(plaintext.size())) != 1) ||
        EVP_CipherFinal_ex(context, out.data() + plaintext.size(), &written) != 1 ||
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagSize,
                            out.data() + plaintext.size()) != 1)
        return openssl_failed(out);
    return true;
}

bool Aead::open(std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated,
                ByteView sealed, ByteSpan out) {
    if (is_inherited() || sealed.size() < kTagSize || !lengths_fit(associated, sealed) ||
        out.size() != sealed.size() - kTagSize)
        return failed(out);
    if (use_sodium(out.size())) {
        if (crypto_aead_aes256gcm_decrypt_afternm(
                out.data(), nullptr, nullptr, sealed.data(), sealed.size(), associated.data(),
                associated.size(), nonce.data(), expanded(keys_)) == 0)
            return true;
        return failed(out);
    }
    if (!prepare_openssl()) return openssl_failed(out);
    EVP_CIPHER_CTX *context = openssl_.get();
    // OpenSSL takes the expected tag through a pointer to non-const, and only reads it
    auto *tag = const_cast<std::uint8_t *>(sealed.data() + out.size());
    std::uint8_t nothing[kTagSize];
    int written = 0;
    if (EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, nonce.data(), 0) != 1 ||
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagSize, tag) != 1 ||
        (!associated.empty() && EVP_CipherUpdate(context, nullptr, &written, associated.data(),
                                                 as_int(associated.size())) != 1) ||
        (!out.empty() &&
         EVP_CipherUpdate(context, out.data(), &written, sealed.data(), as_int(out.size())) != 1) ||
        EVP_CipherFinal_ex(context, nothing, &written) != 1)
        return openssl_failed(out);
    return true;
}

}  // namespace envcrypt::crypto
