// See digest.hpp. libsodium's incremental forms, since they need no heap.
#include "crypto/digest.hpp"

#include <sodium.h>

#include <algorithm>

namespace envcrypt::crypto {

static_assert(crypto_hash_sha256_BYTES == 32 && crypto_auth_hmacsha256_BYTES == 32);

Digest sha256(ByteView data) {
    Digest digest;
    crypto_hash_sha256(digest.data(), data.data(), data.size());
    return digest;
}

Digest hmac_sha256(ByteView key, std::initializer_list<ByteView> parts) {
    static constexpr std::uint8_t none[1] = {};  // libsodium takes no null pointer
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, key.empty() ? none : key.data(), key.size());
    for (const ByteView part : parts)
        if (!part.empty()) crypto_auth_hmacsha256_update(&state, part.data(), part.size());
    Digest digest;
    crypto_auth_hmacsha256_final(&state, digest.data());
    wipe({reinterpret_cast<std::uint8_t *>(&state), sizeof(state)});
    return digest;
}

void derive_key(ByteView key, std::string_view label, ByteView context,
                std::span<std::uint8_t, kKeySize> out) {
    static constexpr std::uint8_t counter[] = {0, 0, 0, 1};
    static constexpr std::uint8_t separator[] = {0};
    static constexpr std::uint8_t bits[] = {0, 0, 1, 0};
    Digest derived = hmac_sha256(key, {counter, as_bytes(label), separator, context, bits});
    std::copy(derived.begin(), derived.end(), out.begin());
    wipe(derived);
}

}  // namespace envcrypt::crypto
