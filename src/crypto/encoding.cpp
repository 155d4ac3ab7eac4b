// See encoding.hpp.
#include "crypto/encoding.hpp"

#include <sodium.h>

namespace envcrypt::crypto {

namespace {

// libsodium 1.0.18 takes every byte from 0x80 on for the letter '/'.
bool is_ascii(std::string_view text) {
    std::uint8_t seen = 0;
    for (const std::uint8_t byte : as_bytes(text)) seen |= byte;
    return seen < 0x80;
}

}  // namespace

void encode_base64(ByteView bytes, std::span<char> out) {
    if (out.size() <= base64_length(bytes.size())) return;  // libsodium would abort
    sodium_bin2base64(out.data(), out.size(), bytes.data(), bytes.size(),
                      sodium_base64_VARIANT_ORIGINAL);
}

std::optional<std::size_t> decode_base64(std::string_view text, ByteSpan out) {
    std::size_t length = 0;
    if (text.size() % 4 != 0) return std::nullopt;
    if (text.empty()) return 0;
    if (out.empty() || !is_ascii(text) ||
        sodium_base642bin(out.data(), out.size(), text.data(), text.size(), nullptr, &length,
                          nullptr, sodium_base64_VARIANT_ORIGINAL) != 0) {
        wipe(out);
        return std::nullopt;
    }
    return length;
}

std::string to_base64(ByteView bytes) {
    std::string text(base64_length(bytes.size()) + 1, '\0');
    encode_base64(bytes, text);
    text.pop_back();
    return text;
}

SecretBytes to_base64_secret(ByteView bytes) {
    SecretBytes text(base64_length(bytes.size()) + 1);
    encode_base64(bytes, {reinterpret_cast<char *>(text.expose().data()), text.size()});
    text.shrink(text.size() - 1);
    return text;
}

std::optional<SecretBytes> from_base64_secret(std::string_view text) {
    SecretBytes bytes(base64_capacity(text.size()));
    const std::optional<std::size_t> length = decode_base64(text, bytes.expose());
    if (!length) return std::nullopt;
    bytes.shrink(*length);
    return bytes;
}

std::string to_base64url(ByteView bytes) {
    return std::string(to_base64url_secret(bytes).expose_text());
}

SecretBytes to_base64url_secret(ByteView bytes) {
    constexpr int variant = sodium_base64_VARIANT_URLSAFE_NO_PADDING;
    SecretBytes text(sodium_base64_encoded_len(bytes.size(), variant));
    sodium_bin2base64(reinterpret_cast<char *>(text.expose().data()), text.size(), bytes.data(),
                      bytes.size(), variant);
    text.shrink(text.size() - 1);
    return text;
}

std::optional<SecretBytes> from_base64url_secret(std::string_view text) {
    if (text.empty()) return SecretBytes();
    SecretBytes bytes(text.size());
    std::size_t length = 0;
    if (!is_ascii(text) ||
        sodium_base642bin(bytes.expose().data(), bytes.size(), text.data(), text.size(), nullptr,
                          &length, nullptr, sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0)
        return std::nullopt;
    bytes.shrink(length);
    return bytes;
}

std::string to_hex(ByteView bytes) {
    std::string text(2 * bytes.size() + 1, '\0');
    sodium_bin2hex(text.data(), text.size(), bytes.data(), bytes.size());
    text.pop_back();
    return text;
}

std::optional<SecretBytes> from_hex_secret(std::string_view text) {
    SecretBytes bytes(text.size() / 2);
    std::size_t length = 0;
    if (text.empty()) return bytes;
    if (text.size() % 2 != 0 ||
        sodium_hex2bin(bytes.expose().data(), bytes.size(), text.data(), text.size(), nullptr,
                       &length, nullptr) != 0 ||
        length != bytes.size())
        return std::nullopt;
    return bytes;
}

}  // namespace envcrypt::crypto
