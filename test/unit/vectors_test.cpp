// The golden vectors of test/vectors/format1.json, which an independent program made: parser,
// opener, sealer and derivations must agree with them. ENVCRYPT_TEST_DIR says where test/ is.
#include <gtest/gtest.h>
#include <rapidjson/document.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>

#include "crypto/keys.hpp"
#include "support.hpp"
#include "value/declaration.hpp"
#include "value/value.hpp"

namespace envcrypt {
namespace {

using crypto::kKeySize;
using test::hex;
using test::unhex;
using test::unhex_array;

using Json = rapidjson::Value;

const rapidjson::Document &vectors() {
    static const rapidjson::Document document = [] {
        const char *directory = std::getenv("ENVCRYPT_TEST_DIR");
        const std::string path =
            std::string(directory != nullptr ? directory : "test") + "/vectors/format1.json";
        std::ifstream file(path, std::ios::binary);
        const std::string content((std::istreambuf_iterator<char>(file)), {});
        rapidjson::Document parsed;
        parsed.Parse(content.data(), content.size());
        if (parsed.HasParseError()) throw std::runtime_error("cannot read " + path);
        return parsed;
    }();
    return document;
}

std::string text(const Json &entry, const char *name) {
    return {entry[name].GetString(), entry[name].GetStringLength()};
}

// A member that may be null or absent: "" then.
std::string optional_text(const Json &entry, const char *name) {
    return entry.HasMember(name) && entry[name].IsString() ? text(entry, name) : std::string();
}

Bytes bytes(const Json &entry, const char *name) {
    return unhex(text(entry, name));
}

std::array<std::uint8_t, kKeySize> key(const Json &entry, const char *name) {
    return unhex_array<kKeySize>(text(entry, name));
}

value::Type type_of(const Json &entry) {
    for (std::uint8_t type = 1; type <= value::kLastType; ++type)
        if (text(entry, "type") == value::type_name(static_cast<value::Type>(type)))
            return static_cast<value::Type>(type);
    throw std::runtime_error("no such type");
}

value::SearchMode mode_of(const Json &entry) {
    static const std::map<std::string, value::SearchMode> modes = {
        {"exact", value::SearchMode::exact},
        {"nocase", value::SearchMode::nocase},
        {"digits", value::SearchMode::digits}};
    return modes.at(text(entry, "mode"));
}

std::array<std::uint8_t, 3> label_field(const std::string &letters) {
    const value::Label label = value::make_label(letters).value();
    return {static_cast<std::uint8_t>(label >> 16), static_cast<std::uint8_t>(label >> 8),
            static_cast<std::uint8_t>(label)};
}

// "refused", or the bytes in hex.
std::string read_text(const std::string &form) {
    Bytes out(value::text_capacity(form.size()));
    const std::optional<std::size_t> size = value::from_text(form, out);
    return size ? hex(ByteView(out).first(*size)) : "refused";
}

constexpr std::array<std::uint8_t, value::kSaltSize> kNoSalt{};
constexpr std::array<std::uint8_t, value::kNonceSize> kNoNonce{};

TEST(Vectors, Good) {
    std::set<std::string> types;
    for (const Json &entry : vectors()["good"].GetArray()) {
        SCOPED_TRACE(text(entry, "name"));
        types.insert(text(entry, "type"));
        const Bytes stored = bytes(entry, "value"), plaintext = bytes(entry, "plaintext");
        const std::string associated = optional_text(entry, "associated_data");
        value::Parsed parsed{{}, {}, kNoSalt, kNoNonce, {}};
        ASSERT_EQ(value::parse(stored, parsed), value::Fault::none);

        const value::Header &header = parsed.header;
        EXPECT_EQ(header.type, type_of(entry));
        EXPECT_EQ(crypto::key_id_text(header.key_id), text(entry, "key_id"));
        EXPECT_EQ(value::label_text(header.label), optional_text(entry, "label"));
        EXPECT_EQ(header.bound, !associated.empty());
        EXPECT_EQ(hex(parsed.salt), text(entry, "salt"));
        EXPECT_EQ(hex(parsed.nonce), text(entry, "nonce"));
        ASSERT_EQ(header.has_token, entry["search"].IsObject());
        value::Header built{type_of(entry),
                            std::stoull(text(entry, "key_id"), nullptr, 16),
                            0,
                            header.has_token,
                            !associated.empty(),
                            {}};
        if (entry["label"].IsString())
            built.label = value::make_label(text(entry, "label")).value();
        if (header.has_token) {
            const Json &search = entry["search"];
            EXPECT_EQ(header.token.mode, mode_of(search));
            EXPECT_EQ(header.token.version, search["version"].GetUint());
            EXPECT_EQ(hex(header.token.bytes), text(search, "token"));
            built.token.mode = mode_of(search);
            built.token.version = static_cast<std::uint8_t>(search["version"].GetUint());
            built.token.bytes = crypto::search_token(
                crypto::token_key(key(search, "search_key")).expose(),
                label_field(text(entry, "label")), static_cast<std::uint8_t>(built.type),
                static_cast<std::uint8_t>(built.token.mode), bytes(search, "canonical"));
            Bytes buffer;
            const auto canonical =
                value::canonical(built.type, built.token.mode, plaintext, buffer);
            ASSERT_TRUE(canonical);
            EXPECT_EQ(hex(*canonical), text(search, "canonical"));
        }

        const SecretBytes subkey = crypto::value_subkey(key(entry, "dek"), parsed.salt);
        Bytes resealed(value::sealed_size(built, plaintext.size()));
        for (const auto library : {crypto::AeadLibrary::automatic, crypto::AeadLibrary::sodium,
                                   crypto::AeadLibrary::openssl}) {
            crypto::Aead aead(subkey.expose().first<kKeySize>(), library);
            Bytes opened(parsed.plaintext_size());
            ASSERT_TRUE(value::open(aead, parsed, as_bytes(associated), opened));
            EXPECT_EQ(hex(opened), text(entry, "plaintext"));
            ASSERT_TRUE(value::seal(aead, built, parsed.salt, parsed.nonce, as_bytes(associated),
                                    plaintext, resealed)
                            .ok());
            EXPECT_EQ(hex(resealed), text(entry, "value"));
        }

        std::string form(value::text_length(stored.size()) + 1, '#');
        value::to_text(stored, form);
        form.pop_back();
        EXPECT_EQ(form, text(entry, "text"));
        EXPECT_EQ(read_text(text(entry, "text")), text(entry, "value"));
    }
    EXPECT_EQ(types.size(), value::kLastType);
}

// What happens to these bytes, in the words of `expect`.
std::string fate(const Json &entry) {
    Bytes stored;
    if (entry.HasMember("text")) {
        const std::string read = read_text(text(entry, "text"));
        if (read == "refused") return "not_text";
        stored = unhex(read);
    } else {
        stored = bytes(entry, "value");
    }
    value::Parsed parsed{{}, {}, kNoSalt, kNoNonce, {}};
    const value::Fault fault = value::parse(stored, parsed);
    if (fault != value::Fault::none) return value::fault_name(fault);
    if (entry.HasMember("text")) return "none";

    const std::string associated = optional_text(entry, "associated_data");
    const SecretBytes subkey = crypto::value_subkey(key(entry, "dek"), parsed.salt);
    crypto::Aead aead(subkey.expose().first<kKeySize>());
    Bytes opened(parsed.plaintext_size(), 0xee);
    if (value::open(aead, parsed, as_bytes(associated), opened)) return "opened";
    EXPECT_TRUE(test::all_zero(opened));
    if (parsed.header.bound && associated.empty()) return "associated_data_missing";
    if (!parsed.header.bound && !associated.empty()) return "associated_data_unexpected";
    return "tag";
}

TEST(Vectors, Bad) {
    std::set<std::string> expected;
    for (const Json &entry : vectors()["bad"].GetArray()) {
        SCOPED_TRACE(text(entry, "name") + ": " + text(entry, "why"));
        const std::string expect = text(entry, "expect");
        expected.insert(expect);
        // whether a plaintext is one of its type is not this layer's to say
        EXPECT_EQ(fate(entry), expect == "bad_plaintext" ? "opened" : expect);
    }
    for (int fault = 1; fault <= static_cast<int>(value::Fault::bad_search_version); ++fault)
        if (const auto known = static_cast<value::Fault>(fault); known != value::Fault::too_long) {
            EXPECT_TRUE(expected.contains(value::fault_name(known))) << value::fault_name(known);
        }
    for (const char *fault : {"not_text", "tag", "associated_data_missing",
                              "associated_data_unexpected", "bad_plaintext"})
        EXPECT_TRUE(expected.contains(fault)) << fault;
}

const Json &derivations(const char *kind) {
    const Json &entries = vectors()["derivations"][kind];
    EXPECT_GT(entries.Size(), 0u) << kind;
    return entries;
}

TEST(Vectors, Kdf) {
    for (const Json &entry : derivations("kdf").GetArray()) {
        std::array<std::uint8_t, kKeySize> derived{};
        crypto::derive_key(key(entry, "key"), text(entry, "label"), bytes(entry, "context"),
                           derived);
        EXPECT_EQ(hex(derived), text(entry, "derived"));
    }
    for (const Json &entry : derivations("value_subkey").GetArray())
        EXPECT_EQ(hex(crypto::value_subkey(key(entry, "dek"), unhex_array<4>(text(entry, "salt")))
                          .expose()),
                  text(entry, "subkey"));
}

TEST(Vectors, Commitment) {
    static const std::map<std::string, crypto::Purpose> purposes = {
        {"data", crypto::Purpose::data},
        {"search", crypto::Purpose::search},
        {"group", crypto::Purpose::group}};
    for (const Json &entry : derivations("commitment").GetArray()) {
        const std::string context = crypto::wrap_context(
            purposes.at(text(entry, "purpose")), std::stoull(text(entry, "key_id"), nullptr, 16),
            text(entry, "tenant"));
        EXPECT_EQ(hex(as_bytes(context)), text(entry, "context"));
        EXPECT_EQ(hex(crypto::commitment(key(entry, "key"), context)), text(entry, "commitment"));
    }
}

TEST(Vectors, Token) {
    for (const Json &entry : derivations("token").GetArray()) {
        const SecretBytes token_key = crypto::token_key(key(entry, "search_key"));
        EXPECT_EQ(hex(token_key.expose()), text(entry, "token_key"));
        EXPECT_EQ(hex(crypto::search_token(token_key.expose(), label_field(text(entry, "label")),
                                           static_cast<std::uint8_t>(type_of(entry)),
                                           static_cast<std::uint8_t>(mode_of(entry)),
                                           bytes(entry, "canonical"))),
                  text(entry, "token"));
    }
}

TEST(Vectors, WrappedKeys) {
    for (const Json &entry : derivations("group_wrap").GetArray()) {
        const Bytes context = bytes(entry, "context"), wrapped = bytes(entry, "wrapped");
        EXPECT_EQ(crypto::group_wrap(key(entry, "key"), unhex_array<16>(text(entry, "salt")),
                                     as_text(context), key(entry, "child")),
                  wrapped);
        const auto child = crypto::group_unwrap(key(entry, "key"), wrapped, as_text(context));
        ASSERT_TRUE(child.has_value());
        EXPECT_EQ(hex(child->expose()), text(entry, "child"));
    }
    for (const Json &entry : derivations("local_wrap").GetArray()) {
        const Bytes context = bytes(entry, "context"), wrapped = bytes(entry, "wrapped");
        EXPECT_EQ(hex(crypto::local_id(key(entry, "key"))), text(entry, "local_id"));
        EXPECT_EQ(crypto::local_wrap(key(entry, "key"), unhex_array<16>(text(entry, "salt")),
                                     as_text(context), key(entry, "child")),
                  wrapped);
        const auto child = crypto::local_unwrap(key(entry, "key"), wrapped, as_text(context));
        ASSERT_TRUE(child.has_value());
        EXPECT_EQ(hex(child->expose()), text(entry, "child"));
    }
}

}  // namespace
}  // namespace envcrypt
