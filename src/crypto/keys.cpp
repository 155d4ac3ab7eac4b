// See keys.hpp.
#include "crypto/keys.hpp"

#include <algorithm>
#include <new>

#include "crypto/aead.hpp"

namespace envcrypt::crypto {

namespace {

constexpr std::uint8_t kWrapFormat = 1;
// Each wrapping has a subkey of its own, so the nonce needs no room.
constexpr std::array<std::uint8_t, kNonceSize> kZeroNonce{};

SecretBytes derive(Key key, std::string_view label, ByteView context) {
    SecretBytes derived(kKeySize);
    derive_key(key, label, context, derived.expose().first<kKeySize>());
    return derived;
}

Key as_key(const SecretBytes &key) {
    return key.expose().first<kKeySize>();
}

// header || salt || ciphertext || tag
Bytes wrap(Key wrapping, std::string_view label, ByteView header, WrapSalt salt,
           std::string_view context, Key key) {
    Bytes wrapped(header.begin(), header.end());
    wrapped.insert(wrapped.end(), salt.begin(), salt.end());
    const std::size_t start = wrapped.size();
    wrapped.resize(start + kKeySize + kTagSize);
    const SecretBytes subkey = derive(wrapping, label, salt);
    if (!Aead(as_key(subkey))
             .seal(kZeroNonce, as_bytes(context), key, ByteSpan(wrapped).subspan(start)))
        throw std::bad_alloc();
    return wrapped;
}

std::optional<SecretBytes> unwrap(Key wrapping, std::string_view label, std::size_t header_size,
                                  ByteView wrapped, std::string_view context) {
    const ByteView salt = wrapped.subspan(header_size, kWrapSaltSize);
    const SecretBytes subkey = derive(wrapping, label, salt);
    SecretBytes key(kKeySize);
    if (!Aead(as_key(subkey))
             .open(kZeroNonce, as_bytes(context), wrapped.subspan(header_size + kWrapSaltSize),
                   key.expose()))
        return std::nullopt;
    return key;
}

}  // namespace

const char *purpose_name(Purpose purpose) {
    switch (purpose) {
        case Purpose::data:
            return "data";
        case Purpose::search:
            return "search";
        case Purpose::group:
            break;
    }
    return "group";
}

std::string key_id_text(std::uint64_t key_id) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text(16, '0');
    for (std::size_t i = 16; i-- > 0; key_id >>= 4) text[i] = digits[key_id & 15];
    return text;
}

std::string wrap_context(Purpose purpose, std::uint64_t key_id, std::string_view tenant) {
    std::string context = "envcrypt1";
    context += '\0';
    context += purpose_name(purpose);
    context += '\0';
    context += key_id_text(key_id);
    context += '\0';
    context += tenant;
    return context;
}

std::string wrong_context(std::string context) {
    const std::size_t purpose = context.find('\0') + 1;
    const std::string any = key_id_text(~std::uint64_t{0});
    return context.replace(context.find('\0', purpose) + 1, any.size(), any);
}

Digest commitment(Key key, std::string_view context) {
    Digest digest;
    derive_key(key, "envcrypt1 commit", as_bytes(context), digest);
    return digest;
}

SecretBytes value_subkey(Key data_key, std::span<const std::uint8_t, kSaltSize> salt) {
    return derive(data_key, "envcrypt1 gcm", salt);
}

SecretBytes token_key(Key search_key) {
    return derive(search_key, "envcrypt1 token", {});
}

TokenBytes search_token(ByteView token_key, std::span<const std::uint8_t, 3> label,
                        std::uint8_t type, std::uint8_t mode, ByteView canonical) {
    const std::uint8_t placed[] = {type, mode};
    const Digest digest = hmac_sha256(token_key, {label, placed, canonical});
    TokenBytes token;
    std::copy_n(digest.begin(), token.size(), token.begin());
    return token;
}

Bytes group_wrap(Key group_key, WrapSalt salt, std::string_view child_context, Key child) {
    return wrap(group_key, "envcrypt1 wrap", std::array{kWrapFormat}, salt, child_context, child);
}

std::optional<SecretBytes> group_unwrap(Key group_key, ByteView wrapped,
                                        std::string_view child_context) {
    if (wrapped.size() != kGroupWrappedSize || wrapped[0] != kWrapFormat) return std::nullopt;
    return unwrap(group_key, "envcrypt1 wrap", 1, wrapped, child_context);
}

LocalId local_id(Key master) {
    const SecretBytes derived = derive(master, "envcrypt1 local-id", {});
    LocalId id;
    std::copy_n(derived.expose().begin(), id.size(), id.begin());
    return id;
}

Bytes local_wrap(Key master, WrapSalt salt, std::string_view context, Key key) {
    Bytes header{kWrapFormat};
    const LocalId id = local_id(master);
    header.insert(header.end(), id.begin(), id.end());
    return wrap(master, "envcrypt1 local", header, salt, context, key);
}

std::optional<LocalId> local_wrapped_by(ByteView wrapped) {
    if (wrapped.size() != kLocalWrappedSize || wrapped[0] != kWrapFormat) return std::nullopt;
    LocalId id;
    std::copy_n(wrapped.begin() + 1, id.size(), id.begin());
    return id;
}

std::optional<SecretBytes> local_unwrap(Key master, ByteView wrapped, std::string_view context) {
    if (local_wrapped_by(wrapped) != local_id(master)) return std::nullopt;
    return unwrap(master, "envcrypt1 local", 1 + kLocalIdSize, wrapped, context);
}

}  // namespace envcrypt::crypto
