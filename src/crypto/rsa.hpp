// The two RSA signatures that identities and attestations need, by OpenSSL.
#pragma once

#include <optional>
#include <string_view>

#include "core/bytes.hpp"
#include "core/secret.hpp"
#include "crypto/digest.hpp"

namespace envcrypt::crypto {

// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2; "RS256" of RFC 7518) over `data`, by a
// private key in PEM. Nothing where that is no RSA key of at least 2048 bits.
std::optional<Bytes> sign_rs256(std::string_view private_key_pem, ByteView data);

// Whether `signature` is one by RSASSA-PSS with SHA-256 and a salt of 32 bytes (RFC 8017 section
// 8.1; "PS256") over data of that digest. The public key as a JWK gives it: modulus and exponent,
// big-endian; false for one below 2048 or above 8192 bits.
bool verify_ps256(ByteView modulus, ByteView exponent, const Digest &digest, ByteView signature);

}  // namespace envcrypt::crypto
