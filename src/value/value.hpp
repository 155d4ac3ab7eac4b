// The stored value, format 1: its parts, a strict parser, sealing and opening. Knows no keys but
// the one it is given, no tenants and no SQL. doc/format.md is its specification.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "core/bytes.hpp"
#include "core/error.hpp"
#include "crypto/aead.hpp"
#include "crypto/keys.hpp"

namespace envcrypt::value {

// Also the numbers that are stored.
enum class Type : std::uint8_t {
    text = 1,
    bytea = 2,
    boolean = 3,
    int2 = 4,
    int4 = 5,
    int8 = 6,
    float8 = 7,
    numeric = 8,
    date = 9,
    timestamp = 10,
    timestamptz = 11,
    interval = 12,
    uuid = 13,
    inet = 14,
    jsonb = 15,
    text_array = 16,
};
inline constexpr std::uint8_t kLastType = 16;
// The SQL name, as in `encrypted(NAME)`.
const char *type_name(Type type);

// Also the numbers that are stored; 0 is "none" and never stored.
enum class SearchMode : std::uint8_t { none = 0, exact = 1, nocase = 2, digits = 3 };

// One to five letters a-z, as a 24-bit number in base 27, left-aligned. 0 is no label.
using Label = std::uint32_t;
std::optional<Label> make_label(std::string_view letters);
std::string label_text(Label label);
bool is_label(Label label);
// Whether values of that type may bear a token of that mode.
bool is_searchable(Type type, SearchMode mode);

struct Token {
    SearchMode mode = SearchMode::none;
    std::uint8_t version = 0;  // of the search key, 1 to 63
    crypto::TokenBytes bytes{};
};

struct Header {
    Type type = Type::text;
    std::uint64_t key_id = 0;
    Label label = 0;
    bool has_token = false;
    bool bound = false;  // the caller's associated data takes part
    Token token;
};

inline constexpr std::size_t kSaltSize = crypto::kSaltSize;
inline constexpr std::size_t kNonceSize = crypto::kNonceSize;
inline constexpr std::size_t kOverhead = 2 + 8 + kSaltSize + kNonceSize + crypto::kTagSize;
inline constexpr std::size_t kLabelSize = 3;
inline constexpr std::size_t kTokenFieldSize = 1 + crypto::kTokenSize;
inline constexpr std::size_t kMaxOverhead = kOverhead + kLabelSize + kTokenFieldSize;
// So that every text form stays below PostgreSQL's 1 GB.
inline constexpr std::size_t kMaxPlaintext = std::size_t{500} * 1024 * 1024;

// A value taken apart; the views lie in the bytes it was parsed from.
struct Parsed {
    Header header;
    ByteView authenticated;  // every byte before the ciphertext
    std::span<const std::uint8_t, kSaltSize> salt{kNothing, kSaltSize};
    std::span<const std::uint8_t, kNonceSize> nonce{kNothing, kNonceSize};
    ByteView sealed;  // ciphertext and tag

    std::size_t plaintext_size() const { return sealed.size() - crypto::kTagSize; }

private:
    static constexpr std::uint8_t kNothing[kNonceSize] = {};
};

// Why bytes are not a value. The names are those in test/vectors and doc/format.md.
enum class Fault : std::uint8_t {
    none,
    too_short,          // fewer bytes than the flags ask for
    too_long,           // a plaintext over 500 MiB
    unknown_format,     // high nibble of byte 0
    unknown_algorithm,  // low nibble of byte 0
    unknown_type,       // type 0 or above 16
    bad_label,          // not one to five letters, left-aligned
    token_without_label,
    bad_search_mode,     // 0, or one that the type does not have
    bad_search_version,  // 0
};
const char *fault_name(Fault fault);

// Strict: one valid encoding for each value. Never throws, never allocates. `parsed` is set only
// where the answer is Fault::none.
Fault parse(ByteView bytes, Parsed &parsed) noexcept;
// The same as an Error (malformed_value) that echoes nothing of the bytes.
Error malformed(Fault fault);

// How long the value of a plaintext of `plaintext_size` bytes is.
std::size_t sealed_size(const Header &header, std::size_t plaintext_size);

// Writes the whole value into `out`, which has sealed_size() bytes. The header must be one that
// parse() accepts; `header.bound` says whether `associated_data` is bound, which is not empty then.
// Errors: too_large, internal.
Status seal(crypto::Aead &subkey, const Header &header,
            std::span<const std::uint8_t, kSaltSize> salt,
            std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated_data,
            ByteView plaintext, ByteSpan out);

// Writes parsed.plaintext_size() bytes to `out`. False where the tag does not fit (the value, its
// key or the associated data is another), and where associated data is given for a value that is
// not bound, or none for one that is; `out` is then wiped.
[[nodiscard]] bool open(crypto::Aead &subkey, const Parsed &parsed, ByteView associated_data,
                        ByteSpan out);

// The text form: "ec1:" and standard base64.
inline constexpr std::string_view kTextPrefix = "ec1:";
std::size_t text_length(std::size_t value_size);
// `out` has text_length() + 1 bytes; a zero byte ends it.
void to_text(ByteView value, std::span<char> out);
// The most bytes that a text of this length decodes to.
std::size_t text_capacity(std::size_t length);
// Decodes without looking at what it is; nothing where it is not "ec1:" and canonical base64.
std::optional<std::size_t> from_text(std::string_view text, ByteSpan out);
// Whether the text form of a value stands anywhere in the text, whatever stands around it.
bool contains_text(std::string_view text);

}  // namespace envcrypt::value
