// AES-256-GCM (NIST SP 800-38D) with a 12-byte nonce and a 16-byte tag, under one expanded key. Two
// libraries stand behind it, and what one seals the other opens.
#pragma once

#include <memory>

#include "core/bytes.hpp"
#include "core/secret.hpp"
#include "crypto/digest.hpp"

struct evp_cipher_ctx_st;

namespace envcrypt::crypto {

inline constexpr std::size_t kNonceSize = 12;
inline constexpr std::size_t kTagSize = 16;

// The libraries take lengths as int; the value format stays far below.
inline constexpr std::size_t kMaxAeadInput = 1u << 30;

// Which library does the work: `automatic` takes libsodium for short inputs on a CPU with AES
// instructions and OpenSSL else, as measured.
enum class AeadLibrary { automatic, sodium, openssl };

class Aead {
public:
    // Whether this build of libsodium on this CPU has AES-GCM.
    static bool sodium_has_aes();

    // Expands a key of 32 bytes. Throws std::bad_alloc.
    explicit Aead(std::span<const std::uint8_t, kKeySize> key,
                  AeadLibrary library = AeadLibrary::automatic);

    // Writes plaintext.size() + 16 bytes to `out`, which may not overlap the input. False only
    // where a length is out of range, OpenSSL has no memory, or this object is moved from or
    // inherited over fork (its key is zeroed there); `out` is then wiped.
    [[nodiscard]] bool seal(std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated,
                            ByteView plaintext, ByteSpan out);
    // Writes sealed.size() - 16 bytes to `out`. False where the tag does not fit (or as for seal);
    // `out` is then wiped: nothing unauthenticated is ever left there.
    [[nodiscard]] bool open(std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated,
                            ByteView sealed, ByteSpan out);

private:
    struct FreeContext {
        void operator()(evp_cipher_ctx_st *context) const noexcept;
    };

    bool is_inherited() const;
    bool use_sodium(std::size_t length) const;
    bool prepare_openssl();

    SecretBytes keys_;  // libsodium's expanded key, the key itself, a mark that a fork zeroes
    AeadLibrary library_;
    std::unique_ptr<evp_cipher_ctx_st, FreeContext> openssl_;  // made when first needed
};

}  // namespace envcrypt::crypto
