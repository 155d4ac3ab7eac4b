// See declaration.hpp.
#include "value/declaration.hpp"

#include <algorithm>

namespace envcrypt::value {

namespace {

struct Alias {
    std::string_view name;
    Type type;
};
constexpr Alias kAliases[] = {
    {"bool", Type::boolean},
    {"smallint", Type::int2},
    {"integer", Type::int4},
    {"int", Type::int4},
    {"bigint", Type::int8},
    {"double precision", Type::float8},
    {"decimal", Type::numeric},
    {"timestamp without time zone", Type::timestamp},
    {"timestamp with time zone", Type::timestamptz},
    {"_text", Type::text_array},
};
constexpr const char *kSearchWords[] = {"", "searchable", "searchable_nocase", "searchable_digits"};

std::optional<Type> find_type(std::string_view name) {
    for (std::uint8_t i = 1; i <= kLastType; ++i)
        if (name == type_name(static_cast<Type>(i))) return static_cast<Type>(i);
    for (const Alias &alias : kAliases)
        if (name == alias.name) return alias.type;
    return std::nullopt;
}

Error invalid(std::string detail, std::string hint) {
    return {ErrorCode::misconfigured, "invalid declaration of an encrypted column",
            std::move(detail), std::move(hint)};
}

constexpr const char *kExample =
    "Write encrypted(text), encrypted(date, born) or encrypted(text, "
    "searchable, ssn): the type, how it is searched, the label.";

}  // namespace

std::int32_t to_typmod(const Declaration &declaration) {
    return static_cast<std::int32_t>(declaration.type) << 26 |
           static_cast<std::int32_t>(declaration.search) << 24 |
           static_cast<std::int32_t>(declaration.label);
}

std::optional<Declaration> from_typmod(std::int32_t typmod) {
    const std::int32_t type = typmod >> 26;
    if (typmod < 0 || type == 0 || type > kLastType) return std::nullopt;
    Declaration declaration{static_cast<Type>(type), static_cast<SearchMode>(typmod >> 24 & 3),
                            static_cast<Label>(typmod & 0xffffff)};
    if (declaration.label != 0 && !is_label(declaration.label)) return std::nullopt;
    if (declaration.search != SearchMode::none &&
        (declaration.label == 0 || !is_searchable(declaration.type, declaration.search)))
        return std::nullopt;
    return declaration;
}

Result<Declaration> read_declaration(std::span<const std::string_view> words) {
    Declaration declaration;
    const std::optional<Type> type = words.empty() ? std::nullopt : find_type(words[0]);
    if (!type) {
        std::string known;
        for (std::uint8_t i = 1; i <= kLastType; ++i)
            known += std::string(i == 1 ? "" : ", ") + type_name(static_cast<Type>(i));
        return invalid(words.empty() ? "It names no type of the plaintext."
                                     : "\"" + std::string(words[0]) + "\" is no type it knows.",
                       "The types are " + known +
                           ", without length or precision (the last one in quotes: 'text[]').");
    }
    declaration.type = *type;
    words = words.subspan(1);
    if (!words.empty() && words[0].starts_with("searchable")) {
        const std::optional<SearchMode> mode = find_search_word(words[0]);
        if (!mode)
            return invalid("It has no such way to search.",
                           "The ways are searchable, searchable_nocase and searchable_digits.");
        if (!is_searchable(*type, *mode))
            return invalid(std::string("A value of type ") + type_name(*type) + " cannot be " +
                               search_word(*mode) + ".",
                           is_searchable(*type, SearchMode::exact)
                               ? "Only text has searchable_nocase and searchable_digits."
                               : "Searchable are text, bytea, int2, int4, int8, numeric, date, "
                                 "timestamp, timestamptz, uuid and inet.");
        declaration.search = *mode;
        words = words.subspan(1);
    }
    if (!words.empty()) {
        const std::optional<Label> label = make_label(words[0]);
        if (!label)
            return invalid("\"" + std::string(words[0]) +
                               "\" is neither a way to search nor a label, which has one to five "
                               "letters a to z.",
                           kExample);
        declaration.label = *label;
        words = words.subspan(1);
    }
    if (!words.empty())
        return invalid("There is a word too many, or they are not in this order.", kExample);
    if (declaration.search != SearchMode::none && declaration.label == 0)
        return invalid("A searchable column needs a label: it is part of every token.", kExample);
    return declaration;
}

std::string declaration_text(const Declaration &declaration,
                             std::string (*quote)(std::string_view word)) {
    std::string text = quote(type_name(declaration.type));
    if (declaration.search != SearchMode::none)
        text += std::string(", ") + search_word(declaration.search);
    if (declaration.label != 0) text += ", " + quote(label_text(declaration.label));
    return text;
}

const char *search_word(SearchMode mode) {
    return kSearchWords[static_cast<std::size_t>(mode)];
}

std::optional<SearchMode> find_search_word(std::string_view word) {
    for (std::size_t i = 1; i < std::size(kSearchWords); ++i)
        if (word == kSearchWords[i]) return static_cast<SearchMode>(i);
    return std::nullopt;
}

std::optional<ByteView> canonical(Type type, SearchMode mode, ByteView plaintext, Bytes &buffer) {
    if (type == Type::text && mode == SearchMode::nocase) {
        buffer.assign(plaintext.begin(), plaintext.end());
        for (std::uint8_t &byte : buffer)
            if (byte >= 'A' && byte <= 'Z') byte = static_cast<std::uint8_t>(byte - 'A' + 'a');
        return buffer;
    }
    if (type == Type::text && mode == SearchMode::digits) {
        buffer.clear();
        buffer.reserve(plaintext.size());
        for (const std::uint8_t byte : plaintext)
            if (byte >= '0' && byte <= '9') buffer.push_back(byte);
        return buffer;
    }
    if (type != Type::numeric) return plaintext;

    // digit count, weight, sign, display scale, base-10000 digits: two bytes each
    constexpr std::size_t head = 8;
    if (plaintext.size() < head || plaintext.size() % 2 != 0) return std::nullopt;
    std::size_t digits = (plaintext.size() - head) / 2;
    if (digits != (std::size_t{plaintext[0]} << 8 | plaintext[1])) return std::nullopt;
    while (digits > 0 && plaintext[head + 2 * digits - 2] == 0 &&
           plaintext[head + 2 * digits - 1] == 0)
        --digits;
    buffer.resize(6 + 2 * digits);
    buffer[0] = static_cast<std::uint8_t>(digits >> 8);
    buffer[1] = static_cast<std::uint8_t>(digits);
    std::copy_n(plaintext.begin() + 2, 4, buffer.begin() + 2);
    std::copy_n(plaintext.begin() + head, 2 * digits, buffer.begin() + 6);
    return buffer;
}

}  // namespace envcrypt::value
