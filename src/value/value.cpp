// See value.hpp.
#include "value/value.hpp"

#include <algorithm>
#include <cstring>

#include "crypto/encoding.hpp"

namespace envcrypt::value {

namespace {

constexpr std::uint8_t kFormat = 1;
constexpr std::uint8_t kAlgorithmAes256Gcm = 1;
constexpr std::uint8_t kFormatByte = kFormat << 4 | kAlgorithmAes256Gcm;
constexpr std::uint8_t kTypeMask = 0x1f;
constexpr std::uint8_t kLabelBit = 0x20;
constexpr std::uint8_t kTokenBit = 0x40;
constexpr std::uint8_t kBoundBit = 0x80;
constexpr std::size_t kLabelLetters = 5;

constexpr const char *kTypeNames[] = {
    "",     "text",      "bytea",       "boolean",  "int2", "int4", "int8",  "float8", "numeric",
    "date", "timestamp", "timestamptz", "interval", "uuid", "inet", "jsonb", "text[]"};
static_assert(std::size(kTypeNames) == kLastType + 1);

std::size_t authenticated_size(const Header &header) {
    return kOverhead - crypto::kTagSize + (header.label != 0 ? kLabelSize : 0) +
           (header.has_token ? kTokenFieldSize : 0);
}

// The cipher's associated data: the value's own bytes before the ciphertext, then the caller's.
class CipherAssociated {
public:
    CipherAssociated(ByteView authenticated, bool bound, ByteView associated_data)
        : view_(authenticated) {
        if (!bound) return;
        const std::size_t size = authenticated.size() + associated_data.size();
        std::uint8_t *joined = small_;
        if (size > sizeof(small_)) {
            large_.resize(size);
            joined = large_.data();
        }
        std::memcpy(joined, authenticated.data(), authenticated.size());
        std::memcpy(joined + authenticated.size(), associated_data.data(), associated_data.size());
        view_ = {joined, size};
    }
    CipherAssociated(const CipherAssociated &) = delete;
    CipherAssociated &operator=(const CipherAssociated &) = delete;

    ByteView view() const { return view_; }

private:
    std::uint8_t small_[256];
    Bytes large_;
    ByteView view_;
};

}  // namespace

bool is_label(Label label) {
    // read from the right: once a letter was seen, every place to its left holds one
    bool seen = false;
    std::size_t places = 0;
    for (; label != 0; label /= 27, ++places) {
        if (label % 27 != 0)
            seen = true;
        else if (seen)
            return false;
    }
    return seen && places == kLabelLetters;
}

bool is_searchable(Type type, SearchMode mode) {
    switch (type) {
        case Type::text:
            return mode != SearchMode::none;
        case Type::bytea:
        case Type::int2:
        case Type::int4:
        case Type::int8:
        case Type::numeric:
        case Type::date:
        case Type::timestamp:
        case Type::timestamptz:
        case Type::uuid:
        case Type::inet:
            return mode == SearchMode::exact;
        default:
            return false;
    }
}

const char *type_name(Type type) {
    const auto number = static_cast<std::uint8_t>(type);
    return number <= kLastType ? kTypeNames[number] : "";
}

std::optional<Label> make_label(std::string_view letters) {
    if (letters.empty() || letters.size() > kLabelLetters) return std::nullopt;
    Label label = 0;
    for (std::size_t i = 0; i < kLabelLetters; ++i) {
        label *= 27;
        if (i >= letters.size()) continue;
        if (letters[i] < 'a' || letters[i] > 'z') return std::nullopt;
        label += static_cast<Label>(letters[i] - 'a' + 1);
    }
    return label;
}

std::string label_text(Label label) {
    std::string letters;
    for (; label != 0; label /= 27)
        if (label % 27 != 0) letters += static_cast<char>('a' + label % 27 - 1);
    std::reverse(letters.begin(), letters.end());
    return letters;
}

const char *fault_name(Fault fault) {
    switch (fault) {
        case Fault::none:
            return "none";
        case Fault::too_short:
            return "too_short";
        case Fault::too_long:
            return "too_long";
        case Fault::unknown_format:
            return "unknown_format";
        case Fault::unknown_algorithm:
            return "unknown_algorithm";
        case Fault::unknown_type:
            return "unknown_type";
        case Fault::bad_label:
            return "bad_label";
        case Fault::token_without_label:
            return "token_without_label";
        case Fault::bad_search_mode:
            return "bad_search_mode";
        case Fault::bad_search_version:
            break;
    }
    return "bad_search_version";
}

Fault parse(ByteView bytes, Parsed &parsed) noexcept {
    if (bytes.empty()) return Fault::too_short;
    if (bytes[0] >> 4 != kFormat) return Fault::unknown_format;
    if ((bytes[0] & 0x0f) != kAlgorithmAes256Gcm) return Fault::unknown_algorithm;
    if (bytes.size() < kOverhead) return Fault::too_short;
    const std::uint8_t flags = bytes[1];
    const std::uint8_t type = flags & kTypeMask;
    if (type == 0 || type > kLastType) return Fault::unknown_type;

    Header header;
    header.type = static_cast<Type>(type);
    header.bound = (flags & kBoundBit) != 0;
    header.has_token = (flags & kTokenBit) != 0;
    header.key_id = load_be64(bytes.data() + 2);
    std::size_t at = 10;
    if ((flags & kLabelBit) != 0) {
        if (bytes.size() < kOverhead + kLabelSize) return Fault::too_short;
        header.label = Label{bytes[at]} << 16 | Label{bytes[at + 1]} << 8 | bytes[at + 2];
        if (!is_label(header.label)) return Fault::bad_label;
        at += kLabelSize;
    } else if (header.has_token) {
        return Fault::token_without_label;
    }
    if (header.has_token) {
        if (bytes.size() < kMaxOverhead) return Fault::too_short;
        header.token.mode = static_cast<SearchMode>(bytes[at] >> 6);
        header.token.version = bytes[at] & 0x3f;
        if (!is_searchable(header.type, header.token.mode)) return Fault::bad_search_mode;
        if (header.token.version == 0) return Fault::bad_search_version;
        std::memcpy(header.token.bytes.data(), bytes.data() + at + 1, crypto::kTokenSize);
        at += kTokenFieldSize;
    }
    const std::size_t sealed_at = at + kSaltSize + kNonceSize;
    if (bytes.size() - sealed_at - crypto::kTagSize > kMaxPlaintext) return Fault::too_long;
    parsed.header = header;
    parsed.authenticated = bytes.first(sealed_at);
    parsed.salt = bytes.subspan(at).first<kSaltSize>();
    parsed.nonce = bytes.subspan(at + kSaltSize).first<kNonceSize>();
    parsed.sealed = bytes.subspan(sealed_at);
    return Fault::none;
}

Error malformed(Fault fault) {
    return {ErrorCode::malformed_value,
            "invalid encrypted value",
            std::string("The check that failed: ") + fault_name(fault) + ".",
            {}};
}

std::size_t sealed_size(const Header &header, std::size_t plaintext_size) {
    return authenticated_size(header) + plaintext_size + crypto::kTagSize;
}

Status seal(crypto::Aead &subkey, const Header &header,
            std::span<const std::uint8_t, kSaltSize> salt,
            std::span<const std::uint8_t, kNonceSize> nonce, ByteView associated_data,
            ByteView plaintext, ByteSpan out) {
    if (plaintext.size() > kMaxPlaintext)
        return Error{ErrorCode::too_large,
                     "value is too long to be encrypted",
                     "At most 500 MiB fit into an encrypted value.",
                     {}};
    const std::size_t sealed_at = authenticated_size(header);
    if (out.size() != sealed_size(header, plaintext.size()) ||
        header.bound != !associated_data.empty())
        return Error{ErrorCode::internal, "value was sealed with the wrong sizes", {}, {}};

    out[0] = kFormatByte;
    out[1] = static_cast<std::uint8_t>(
        static_cast<std::uint8_t>(header.type) | (header.label != 0 ? kLabelBit : 0) |
        (header.has_token ? kTokenBit : 0) | (header.bound ? kBoundBit : 0));
    store_be64(out.data() + 2, header.key_id);
    std::size_t at = 10;
    if (header.label != 0) {
        out[at] = static_cast<std::uint8_t>(header.label >> 16);
        out[at + 1] = static_cast<std::uint8_t>(header.label >> 8);
        out[at + 2] = static_cast<std::uint8_t>(header.label);
        at += kLabelSize;
    }
    if (header.has_token) {
        out[at] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(header.token.mode) << 6 |
                                            header.token.version);
        std::memcpy(out.data() + at + 1, header.token.bytes.data(), crypto::kTokenSize);
        at += kTokenFieldSize;
    }
    std::memcpy(out.data() + at, salt.data(), kSaltSize);
    std::memcpy(out.data() + at + kSaltSize, nonce.data(), kNonceSize);

    const CipherAssociated associated(out.first(sealed_at), header.bound, associated_data);
    if (!subkey.seal(nonce, associated.view(), plaintext, out.subspan(sealed_at)))
        return Error{ErrorCode::internal, "could not encrypt", "The cipher failed.", {}};
    return Unit{};
}

bool open(crypto::Aead &subkey, const Parsed &parsed, ByteView associated_data, ByteSpan out) {
    if (parsed.header.bound != !associated_data.empty()) {
        wipe(out);
        return false;
    }
    const CipherAssociated associated(parsed.authenticated, parsed.header.bound, associated_data);
    return subkey.open(parsed.nonce, associated.view(), parsed.sealed, out);
}

std::size_t text_length(std::size_t value_size) {
    return kTextPrefix.size() + crypto::base64_length(value_size);
}

void to_text(ByteView value, std::span<char> out) {
    if (out.size() <= text_length(value.size())) return;
    std::memcpy(out.data(), kTextPrefix.data(), kTextPrefix.size());
    crypto::encode_base64(value, out.subspan(kTextPrefix.size()));
}

std::size_t text_capacity(std::size_t length) {
    return length < kTextPrefix.size() ? 0 : crypto::base64_capacity(length - kTextPrefix.size());
}

std::optional<std::size_t> from_text(std::string_view text, ByteSpan out) {
    if (!text.starts_with(kTextPrefix)) return std::nullopt;
    return crypto::decode_base64(text.substr(kTextPrefix.size()), out);
}

bool contains_text(std::string_view text) {
    // enough for every header and tag
    constexpr std::size_t enough = 84;
    constexpr std::string_view alphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::size_t at = text.find(kTextPrefix); at != std::string_view::npos;
         at = text.find(kTextPrefix, at + 1)) {
        std::string_view encoded = text.substr(at + kTextPrefix.size(), enough);
        encoded = encoded.substr(0, encoded.find_first_not_of(alphabet));
        std::string whole(encoded.substr(0, encoded.size() / 4 * 4));
        // the last letters of a value with padding, or of the text after one without
        std::string padded(encoded);
        while (padded.size() % 4 != 0) padded += padded.size() % 4 == 1 ? 'A' : '=';
        for (const std::string &candidate : {whole, padded}) {
            std::array<std::uint8_t, enough + 3> bytes;
            const auto size = crypto::decode_base64(candidate, bytes);
            Parsed parsed;
            if (size && parse({bytes.data(), *size}, parsed) == Fault::none) return true;
        }
    }
    return false;
}

}  // namespace envcrypt::value
