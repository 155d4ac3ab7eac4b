// SHA-256 (FIPS 180-4), HMAC-SHA-256 (FIPS 198-1) and the key derivation of NIST SP 800-108r1.
#pragma once

#include <array>
#include <initializer_list>
#include <string_view>

#include "core/bytes.hpp"
#include "core/secret.hpp"

namespace envcrypt::crypto {

inline constexpr std::size_t kKeySize = 32;

using Digest = std::array<std::uint8_t, 32>;

Digest sha256(ByteView data);

// HMAC over the concatenation of `parts`. A key of any length.
Digest hmac_sha256(ByteView key, std::initializer_list<ByteView> parts);

// KDF(K, L, x) = HMAC-SHA-256(K, 00000001 || L || 00 || x || 00000100): SP 800-108r1, section 4.1
// (counter mode, 32-bit counter before the fixed input, one block, length in bits). The result is a
// secret, the caller keeps it in one.
void derive_key(ByteView key, std::string_view label, ByteView context,
                std::span<std::uint8_t, kKeySize> out);

}  // namespace envcrypt::crypto
