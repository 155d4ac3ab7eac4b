// What is derived from a key: contexts, commitments, subkeys, search tokens, and keys wrapped by
// other keys of ours. doc/format.md tells the same in prose.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "core/bytes.hpp"
#include "core/secret.hpp"
#include "crypto/digest.hpp"

namespace envcrypt::crypto {

enum class Purpose { data, search, group };
const char *purpose_name(Purpose purpose);

// 16 lower-case hex digits: how a key id is shown and sent.
std::string key_id_text(std::uint64_t key_id);

// C = "envcrypt1" 00 purpose 00 key id (16 hex) 00 tenant: what a wrapping of a key is bound to.
// For a group key the group's name stands for the tenant. The tenant is UTF-8 without zero bytes.
std::string wrap_context(Purpose purpose, std::uint64_t key_id, std::string_view tenant);

// The same for the key id ffffffffffffffff, which no key has: what a wrapping must not open under.
std::string wrong_context(std::string context);

using Key = std::span<const std::uint8_t, kKeySize>;

// What the catalog keeps of a key, to notice a wrong one: KDF(key, "envcrypt1 commit", C).
Digest commitment(Key key, std::string_view context);

inline constexpr std::size_t kSaltSize = 4;
// The AES key of the values under one (data key, salt): KDF(key, "envcrypt1 gcm", salt).
SecretBytes value_subkey(Key data_key, std::span<const std::uint8_t, kSaltSize> salt);

// T = KDF(search key, "envcrypt1 token", empty), and the token of a value: the first 16 bytes of
// HMAC-SHA-256(T, label (3) || type (1) || mode (1) || canonical bytes).
inline constexpr std::size_t kTokenSize = 16;
using TokenBytes = std::array<std::uint8_t, kTokenSize>;
SecretBytes token_key(Key search_key);
TokenBytes search_token(ByteView token_key, std::span<const std::uint8_t, 3> label,
                        std::uint8_t type, std::uint8_t mode, ByteView canonical);

inline constexpr std::size_t kWrapSaltSize = 16;
using WrapSalt = std::span<const std::uint8_t, kWrapSaltSize>;

// A key wrapped by a group key: 01 || salt || AES-256-GCM(KDF(group key, "envcrypt1 wrap", salt),
// zero nonce, associated data C of the child, key): 65 bytes.
inline constexpr std::size_t kGroupWrappedSize = 1 + kWrapSaltSize + kKeySize + 16;
Bytes group_wrap(Key group_key, WrapSalt salt, std::string_view child_context, Key child);
std::optional<SecretBytes> group_unwrap(Key group_key, ByteView wrapped,
                                        std::string_view child_context);

// A master key that lies in a file: its id is the first 8 bytes of KDF(master, "envcrypt1
// local-id", empty), and what it wraps is 01 || id || salt || AES-256-GCM(KDF(master, "envcrypt1
// local", salt), zero nonce, C, key): 73 bytes.
inline constexpr std::size_t kLocalIdSize = 8;
inline constexpr std::size_t kLocalWrappedSize = kGroupWrappedSize + kLocalIdSize;
using LocalId = std::array<std::uint8_t, kLocalIdSize>;
LocalId local_id(Key master);
Bytes local_wrap(Key master, WrapSalt salt, std::string_view context, Key key);
// The id that a wrapping names; nothing where it is not one.
std::optional<LocalId> local_wrapped_by(ByteView wrapped);
std::optional<SecretBytes> local_unwrap(Key master, ByteView wrapped, std::string_view context);

}  // namespace envcrypt::crypto
