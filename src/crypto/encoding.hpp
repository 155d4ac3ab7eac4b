// Hexadecimal, standard base64 (RFC 4648 section 4, padded) and base64url (section 5, without
// padding), strict: one text for each byte string. Both run in constant time for secrets of one
// length.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/bytes.hpp"
#include "core/secret.hpp"

namespace envcrypt::crypto {

// The length of the base64 text of n bytes, and the largest number of bytes that a text of n
// letters holds.
constexpr std::size_t base64_length(std::size_t n) {
    return (n + 2) / 3 * 4;
}
constexpr std::size_t base64_capacity(std::size_t n) {
    return n / 4 * 3;
}

// Writes exactly base64_length(bytes.size()) letters, and a zero byte after them: `out` holds one
// more.
void encode_base64(ByteView bytes, std::span<char> out);
// Decodes into `out` (base64_capacity(text.size()) bytes); the number of bytes, or nothing where
// the text is not the one encoding of any bytes.
std::optional<std::size_t> decode_base64(std::string_view text, ByteSpan out);

std::string to_base64(ByteView bytes);
SecretBytes to_base64_secret(ByteView bytes);
std::optional<SecretBytes> from_base64_secret(std::string_view text);

std::string to_base64url(ByteView bytes);
SecretBytes to_base64url_secret(ByteView bytes);
std::optional<SecretBytes> from_base64url_secret(std::string_view text);

std::string to_hex(ByteView bytes);
// Digits of either case.
std::optional<SecretBytes> from_hex_secret(std::string_view text);

}  // namespace envcrypt::crypto
