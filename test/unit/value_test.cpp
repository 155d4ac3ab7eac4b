// The stored value: the layout of every header, every fault, labels, and that a value which was
// changed in any bit or cut anywhere never opens.
#include "value/value.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "support.hpp"

namespace envcrypt::value {
namespace {

using test::all_zero;
using test::counting;
using test::hex;
using test::pattern;

constexpr auto kSubkey = counting<32>();
constexpr auto kSalt = counting<4>(0xc0);
constexpr auto kNonce = counting<12>(0xd0);
constexpr std::uint64_t kKeyId = 0xfedcba9876543210;
const std::string kRow = "patient:42";

// Format 1, section "Types".
bool may_search(int type, int mode) {
    static const std::set<int> exact = {1, 2, 4, 5, 6, 8, 9, 10, 11, 13, 14};
    return mode == 1 ? exact.contains(type) : type == 1 && (mode == 2 || mode == 3);
}

Header make_header(Type type, Label label = 0, SearchMode mode = SearchMode::none,
                   std::uint8_t version = 0, bool bound = false) {
    Header header;
    header.type = type;
    header.key_id = kKeyId;
    header.label = label;
    header.bound = bound;
    header.has_token = mode != SearchMode::none;
    header.token = {mode, version, {}};
    if (header.has_token) header.token.bytes = counting<16>(0xe0);
    return header;
}

ByteView row_of(const Header &header) {
    return header.bound ? as_bytes(kRow) : ByteView{};
}

Bytes sealed(const Header &header, ByteView plaintext) {
    crypto::Aead subkey(kSubkey);
    Bytes out(sealed_size(header, plaintext.size()), 0xee);
    const Status status = seal(subkey, header, kSalt, kNonce, row_of(header), plaintext, out);
    if (!status) {
        ADD_FAILURE() << status.error().message;
        return {};
    }
    return out;
}

Fault fault_of(ByteView bytes) {
    Parsed parsed{{}, {}, kSalt, kNonce, {}};
    return parse(bytes, parsed);
}

// Whether these bytes parse and open, with the associated data.
bool opens(ByteView bytes, ByteView associated_data) {
    Parsed parsed{{}, {}, kSalt, kNonce, {}};
    if (parse(bytes, parsed) != Fault::none) return false;
    crypto::Aead subkey(kSubkey);
    Bytes out(parsed.plaintext_size());
    return open(subkey, parsed, associated_data, out);
}

std::vector<Header> every_header() {
    std::vector<Header> headers;
    for (int type = 1; type <= 16; ++type)
        for (const bool bound : {false, true}) {
            const auto t = static_cast<Type>(type);
            headers.push_back(make_header(t, 0, SearchMode::none, 0, bound));
            headers.push_back(make_header(t, *make_label("ssn"), SearchMode::none, 0, bound));
            for (int mode = 1; mode <= 3; ++mode)
                if (may_search(type, mode))
                    for (const std::uint8_t version :
                         {std::uint8_t{1}, std::uint8_t{2}, std::uint8_t{32}, std::uint8_t{63}})
                        headers.push_back(make_header(
                            t, *make_label("ssn"), static_cast<SearchMode>(mode), version, bound));
        }
    return headers;
}

TEST(Value, EveryHeaderRoundTrips) {
    const Bytes plaintext = pattern(11, 1);
    const std::vector<Header> headers = every_header();
    ASSERT_EQ(headers.size(), 2u * (16 * 2 + 11 * 4 + 2 * 4));
    for (const Header &header : headers) {
        const Bytes bytes = sealed(header, plaintext);
        // the layout, told independently of the code
        std::string expected = "11";
        const int flags = static_cast<int>(header.type) | (header.label != 0 ? 32 : 0) |
                          (header.has_token ? 64 : 0) | (header.bound ? 128 : 0);
        expected += hex(Bytes{static_cast<std::uint8_t>(flags)}) + "fedcba9876543210";
        if (header.label != 0) expected += "9fef9a";
        if (header.has_token)
            expected += hex(Bytes{static_cast<std::uint8_t>(
                            static_cast<int>(header.token.mode) * 64 + header.token.version)}) +
                        "e0e1e2e3e4e5e6e7e8e9eaebecedeeef";
        expected += "c0c1c2c3d0d1d2d3d4d5d6d7d8d9dadb";
        ASSERT_EQ(hex(bytes).substr(0, expected.size()), expected);
        ASSERT_EQ(bytes.size(), expected.size() / 2 + plaintext.size() + 16);

        Parsed parsed{{}, {}, kSalt, kNonce, {}};
        ASSERT_EQ(parse(bytes, parsed), Fault::none) << expected;
        EXPECT_EQ(parsed.header.type, header.type);
        EXPECT_EQ(parsed.header.key_id, kKeyId);
        EXPECT_EQ(parsed.header.label, header.label);
        EXPECT_EQ(parsed.header.has_token, header.has_token);
        EXPECT_EQ(parsed.header.bound, header.bound);
        EXPECT_EQ(parsed.header.token.mode, header.token.mode);
        EXPECT_EQ(parsed.header.token.version, header.token.version);
        EXPECT_EQ(parsed.header.token.bytes, header.token.bytes);
        EXPECT_EQ(hex(parsed.authenticated), expected);
        EXPECT_EQ(hex(parsed.salt), hex(kSalt));
        EXPECT_EQ(hex(parsed.nonce), hex(kNonce));
        EXPECT_EQ(parsed.plaintext_size(), plaintext.size());
        crypto::Aead subkey(kSubkey);
        Bytes opened(plaintext.size());
        ASSERT_TRUE(open(subkey, parsed, row_of(header), opened)) << expected;
        EXPECT_EQ(opened, plaintext);
    }
}

TEST(Value, Sizes) {
    EXPECT_EQ(sealed_size(make_header(Type::text), 0), 42u);
    EXPECT_EQ(sealed_size(make_header(Type::text, *make_label("a")), 0), 45u);
    EXPECT_EQ(sealed_size(make_header(Type::text, *make_label("a"), SearchMode::exact, 1), 0), 62u);
    EXPECT_EQ(sealed_size(make_header(Type::text, 0, SearchMode::none, 0, true), 1000), 1042u);
    for (const std::size_t size : {0, 1, 95, 96, 97, 4096, 100000}) {
        const Bytes bytes = sealed(make_header(Type::bytea), pattern(size, 1));
        EXPECT_EQ(bytes.size(), 42 + size);
        EXPECT_TRUE(opens(bytes, {})) << size;
    }
}

TEST(Value, EveryFlippedBitFails) {
    for (const Header &header :
         {make_header(Type::text), make_header(Type::text, *make_label("ssn")),
          make_header(Type::text, 0, SearchMode::none, 0, true),
          make_header(Type::text, *make_label("ssn"), SearchMode::nocase, 5),
          make_header(Type::bytea, *make_label("zz"), SearchMode::exact, 1, true)})
        for (const std::size_t size : {0, 11, 120}) {
            const Bytes bytes = sealed(header, pattern(size, 1));
            ASSERT_TRUE(opens(bytes, row_of(header)));
            for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
                Bytes changed = bytes;
                changed[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
                EXPECT_FALSE(opens(changed, as_bytes(kRow))) << bit;
                EXPECT_FALSE(opens(changed, {})) << bit;
            }
        }
}

TEST(Value, CutAnywhereFails) {
    for (const Header &header : every_header()) {
        const Bytes bytes = sealed(header, pattern(5, 1));
        for (std::size_t size = 0; size < bytes.size(); ++size) {
            const ByteView cut = ByteView(bytes).first(size);
            ASSERT_FALSE(opens(cut, row_of(header))) << size;
            ASSERT_EQ(fault_of(cut), size < bytes.size() - 5 ? Fault::too_short : Fault::none)
                << size;
        }
        Bytes longer = bytes;
        longer.push_back(0);
        ASSERT_FALSE(opens(longer, row_of(header)));
    }
}

TEST(Value, FirstByteTellsTheFormat) {
    const Bytes good = sealed(make_header(Type::text), pattern(5, 1));
    for (int byte = 0; byte < 256; ++byte) {
        Bytes changed = good;
        changed[0] = static_cast<std::uint8_t>(byte);
        const Fault expected = byte == 0x11       ? Fault::none
                               : byte >> 4 == 0x1 ? Fault::unknown_algorithm
                                                  : Fault::unknown_format;
        EXPECT_EQ(fault_of(changed), expected) << byte;
        if (expected != Fault::none) {
            EXPECT_EQ(fault_of(ByteView(changed).first(1)), expected) << byte;
        }
    }
}

TEST(Value, TypesModesAndVersions) {
    for (int type = 0; type < 32; ++type)
        for (int byte = 0; byte < 256; ++byte) {
            Bytes bytes =
                sealed(make_header(Type::text, *make_label("ssn"), SearchMode::exact, 1), {});
            bytes[1] = static_cast<std::uint8_t>(0x60 | type);
            bytes[13] = static_cast<std::uint8_t>(byte);
            const Fault expected = type == 0 || type > 16         ? Fault::unknown_type
                                   : !may_search(type, byte / 64) ? Fault::bad_search_mode
                                   : byte % 64 == 0               ? Fault::bad_search_version
                                                                  : Fault::none;
            ASSERT_EQ(fault_of(bytes), expected) << type << ' ' << byte;
        }
    Bytes unlabelled =
        sealed(make_header(Type::text, *make_label("ssn"), SearchMode::exact, 1), {});
    unlabelled[1] = 0x41;
    EXPECT_EQ(fault_of(unlabelled), Fault::token_without_label);
    unlabelled[1] = 0xc1;
    EXPECT_EQ(fault_of(unlabelled), Fault::token_without_label);
}

TEST(Value, ParsedIsSetOnlyBySuccess) {
    Parsed parsed{{}, {}, kSalt, kNonce, {}};
    parsed.header.key_id = 7;
    Bytes bytes = sealed(make_header(Type::text), {});
    bytes.pop_back();
    EXPECT_EQ(parse(bytes, parsed), Fault::too_short);
    EXPECT_EQ(parsed.header.key_id, 7u);
    EXPECT_EQ(parsed.salt.data(), kSalt.data());
}

TEST(Value, FaultsHaveNamesAndErrorsEchoNothing) {
    std::set<std::string> names;
    for (int fault = 0; fault <= static_cast<int>(Fault::bad_search_version); ++fault)
        names.insert(fault_name(static_cast<Fault>(fault)));
    EXPECT_EQ(names, (std::set<std::string>{"none", "too_short", "too_long", "unknown_format",
                                            "unknown_algorithm", "unknown_type", "bad_label",
                                            "token_without_label", "bad_search_mode",
                                            "bad_search_version"}));
    const Error error = malformed(Fault::bad_label);
    EXPECT_EQ(error.code, ErrorCode::malformed_value);
    EXPECT_EQ(error.detail, "The check that failed: bad_label.");
}

TEST(Value, TypeNames) {
    EXPECT_STREQ(type_name(Type::text), "text");
    EXPECT_STREQ(type_name(Type::float8), "float8");
    EXPECT_STREQ(type_name(Type::text_array), "text[]");
    std::set<std::string> names;
    for (int type = 1; type <= kLastType; ++type) names.insert(type_name(static_cast<Type>(type)));
    EXPECT_EQ(names.size(), 16u);
}

TEST(Value, Labels) {
    EXPECT_EQ(make_label("a"), 0x081bf1u);
    EXPECT_EQ(make_label("ssn"), 0x9fef9au);
    EXPECT_EQ(make_label("zzzzz"), 0xdaf26au);
    EXPECT_EQ(make_label("aaaaa"), 551881u);
    EXPECT_EQ(make_label("az"), 1043199u);
    for (const char *letters :
         {"a", "z", "ab", "zz", "abc", "abcd", "zzzz", "email", "aaaaa", "zzzzz", "az", "za"}) {
        ASSERT_TRUE(make_label(letters).has_value()) << letters;
        EXPECT_EQ(label_text(*make_label(letters)), letters);
    }
    for (const char *letters :
         {"", "abcdef", "A", "Ssn", "s1", "s ", " s", "s-n", "s_n", "`", "{", "\xc3\xa4", "ab\xff"})
        EXPECT_EQ(make_label(letters), std::nullopt) << letters;
    EXPECT_EQ(make_label(std::string_view("a\0", 2)), std::nullopt);
    EXPECT_EQ(label_text(0), "");
}

// All 2^24 numbers: those that parse are exactly the labels that can be written, in their order.
TEST(Value, LabelFieldsAreExactlyTheLabels) {
    Bytes bytes = sealed(make_header(Type::text, *make_label("a")), {});
    std::size_t valid = 0;
    for (Label label = 0; label < 1u << 24; ++label) {
        bytes[10] = static_cast<std::uint8_t>(label >> 16);
        bytes[11] = static_cast<std::uint8_t>(label >> 8);
        bytes[12] = static_cast<std::uint8_t>(label);
        const Fault fault = fault_of(bytes);
        if (fault == Fault::none) {
            ++valid;
            // the text of one in a thousand, since this takes the time
            if (label % 1009 == 0) {
                ASSERT_EQ(make_label(label_text(label)), label);
            }
        } else {
            ASSERT_EQ(fault, Fault::bad_label);
        }
    }
    EXPECT_EQ(valid, 26u + 676u + 17576u + 456976u + 11881376u);
}

TEST(Value, AssociatedData) {
    const Bytes plain = sealed(make_header(Type::text), pattern(5, 1));
    const Bytes bound =
        sealed(make_header(Type::text, 0, SearchMode::none, 0, true), pattern(5, 1));
    EXPECT_TRUE(opens(plain, {}));
    EXPECT_FALSE(opens(plain, as_bytes(kRow)));
    EXPECT_TRUE(opens(bound, as_bytes(kRow)));
    EXPECT_FALSE(opens(bound, {}));
    EXPECT_FALSE(opens(bound, as_bytes("patient:43")));
    EXPECT_FALSE(opens(bound, as_bytes("patient:4")));
    EXPECT_FALSE(opens(bound, as_bytes("patient:422")));

    // bit 7 set, but sealed with nothing: only who has the key can make it
    Bytes forged(42 + 5);
    std::memcpy(forged.data(), bound.data(), 26);
    crypto::Aead subkey(kSubkey);
    ASSERT_TRUE(subkey.seal(kNonce, ByteView(forged).first(26), pattern(5, 1),
                            ByteSpan(forged).subspan(26)));
    EXPECT_EQ(fault_of(forged), Fault::none);
    EXPECT_FALSE(opens(forged, {}));

    Parsed parsed{{}, {}, kSalt, kNonce, {}};
    ASSERT_EQ(parse(bound, parsed), Fault::none);
    Bytes out(5, 0xee);
    EXPECT_FALSE(open(subkey, parsed, {}, out));
    EXPECT_TRUE(all_zero(out));
    out.assign(5, 0xee);
    EXPECT_FALSE(open(subkey, parsed, as_bytes("patient:43"), out));
    EXPECT_TRUE(all_zero(out));
}

TEST(Value, SealRefusesWrongSizes) {
    crypto::Aead subkey(kSubkey);
    const Bytes plaintext = pattern(5, 1);
    const auto code = [&](const Header &header, ByteView associated, std::size_t size) {
        Bytes out(size);
        const Status status = seal(subkey, header, kSalt, kNonce, associated, plaintext, out);
        return status ? std::string("sealed")
                      : std::to_string(static_cast<int>(status.error().code));
    };
    const std::string internal = std::to_string(static_cast<int>(ErrorCode::internal));
    const Header plain = make_header(Type::text);
    const Header bound = make_header(Type::text, 0, SearchMode::none, 0, true);
    EXPECT_EQ(code(plain, {}, 47), "sealed");
    EXPECT_EQ(code(plain, {}, 46), internal);
    EXPECT_EQ(code(plain, {}, 48), internal);
    EXPECT_EQ(code(plain, {}, 0), internal);
    EXPECT_EQ(code(plain, as_bytes(kRow), 47), internal);
    EXPECT_EQ(code(bound, as_bytes(kRow), 47), "sealed");
    EXPECT_EQ(code(bound, {}, 47), internal);
}

// The memory behind these views does not exist: both answers come from the length alone.
TEST(Value, TooLarge) {
    Bytes bytes = sealed(make_header(Type::bytea), {});
    EXPECT_EQ(fault_of(ByteView(bytes.data(), 42 + kMaxPlaintext)), Fault::none);
    EXPECT_EQ(fault_of(ByteView(bytes.data(), 42 + kMaxPlaintext + 1)), Fault::too_long);
    bytes = sealed(make_header(Type::text, *make_label("ssn"), SearchMode::exact, 1), {});
    EXPECT_EQ(fault_of(ByteView(bytes.data(), 62 + kMaxPlaintext)), Fault::none);
    EXPECT_EQ(fault_of(ByteView(bytes.data(), 62 + kMaxPlaintext + 1)), Fault::too_long);

    crypto::Aead subkey(kSubkey);
    const Status status = seal(subkey, make_header(Type::bytea), kSalt, kNonce, {},
                               ByteView(bytes.data(), kMaxPlaintext + 1), bytes);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::too_large);
    EXPECT_LT(text_length(kMaxOverhead + kMaxPlaintext), std::size_t{1} << 30);
}

std::string text_of(ByteView bytes) {
    std::string text(text_length(bytes.size()) + 1, '#');
    to_text(bytes, text);
    EXPECT_EQ(text.back(), '\0');
    text.pop_back();
    return text;
}

// The bytes in hex, or "refused".
std::string read_text(std::string_view text) {
    Bytes out(text_capacity(text.size()), 0xee);
    const std::optional<std::size_t> size = from_text(text, out);
    return size ? hex(ByteView(out).first(*size)) : "refused";
}

TEST(Value, TextForm) {
    EXPECT_EQ(text_of(Bytes{0xfb, 0xff}), "ec1:+/8=");
    EXPECT_EQ(text_of({}), "ec1:");
    for (std::size_t size = 0; size < 100; ++size) {
        const Bytes bytes = pattern(size, 0x11);
        EXPECT_EQ(text_of(bytes).size(), text_length(size));
        EXPECT_EQ(read_text(text_of(bytes)), hex(bytes));
    }
    std::string small(8, '#');
    to_text(Bytes{0xfb, 0xff}, small);  // no room for the zero byte
    EXPECT_EQ(small, "########");
}

TEST(Value, TextFormIsStrict) {
    EXPECT_EQ(read_text("ec1:Zm9v"), "666f6f");
    for (const char *text : {"",
                             "e",
                             "ec1",
                             "ec1Zm9v",
                             "Zm9v",
                             "EC1:Zm9v",
                             "ec2:Zm9v",
                             " ec1:Zm9v",
                             "ec1: Zm9v",
                             "ec1:Zm9v ",
                             "ec1:Zm9v\n",
                             "ec1:Zm9",
                             "ec1:Zm8",
                             "ec1:Zm9=",
                             "ec1:Zg==Zg==",
                             "ec1:=",
                             "ec1:====",
                             "ec1:Zm9v====",
                             "ec1:Zm\n9v",
                             "ec1:Zm-_",
                             "ec1::Zm9",
                             "ec1:ec1:Zm9v",
                             "\\x1101",
                             "ec1:Zm9v    ",
                             "ec1:Zm9\xc3",
                             "ec1:Zm\xc3\xa9"})
        EXPECT_EQ(read_text(text), "refused") << text;
    EXPECT_EQ(text_capacity(0), 0u);
    EXPECT_EQ(text_capacity(3), 0u);
    EXPECT_EQ(text_capacity(4), 0u);
    EXPECT_EQ(text_capacity(8), 3u);
    Bytes small(2, 0xee);
    EXPECT_EQ(from_text("ec1:Zm9v", small), std::nullopt);
}

TEST(Value, ATextThatHoldsATextForm) {
    Header headers[5];
    headers[1].label = *make_label("ssn");
    for (int i = 2; i < 5; ++i) {
        headers[i].label = *make_label("ssn");
        headers[i].has_token = true;
        headers[i].token.mode = SearchMode::exact;
        headers[i].token.version = 1;
        headers[i].type = i == 3 ? Type::int4 : Type::text;
    }
    headers[4].bound = true;
    const SecretBytes key(crypto::kKeySize);
    crypto::Aead aead(key.expose().first<crypto::kKeySize>());
    const std::array<std::uint8_t, kSaltSize> salt{};
    const std::array<std::uint8_t, kNonceSize> nonce{};
    for (const Header &header : headers)
        for (std::size_t size = 0; size < 66; ++size) {
            if (header.type == Type::int4 && size != 4) continue;
            const Bytes plaintext(size, 'x');
            Bytes sealed(sealed_size(header, size));
            ASSERT_TRUE(seal(aead, header, salt, nonce, header.bound ? as_bytes("row") : ByteView(),
                             plaintext, sealed));
            const std::string form = text_of(sealed);
            for (const char *before : {"", "x", "ec1:", "ec1:AAAA ", "{\"a\": \""})
                for (const char *after : {"", ", more", " ", "\"}", "\n", "a", "ab", "abc", "Jack",
                                          "Junior", "Juniors"}) {
                    EXPECT_TRUE(contains_text(before + form + after)) << form << after;
                    EXPECT_FALSE(contains_text(before + form.substr(0, 40) + after));
                }
            EXPECT_FALSE(contains_text("x" + form.substr(4)));
            EXPECT_TRUE(contains_text("ec1:" + form + form));
        }
    for (const char *text : {"", "e", "ec1:", "ec1:ec1:", "an ec1: value", "ec1:AAAA",
                             "ec1:====================================================="})
        EXPECT_FALSE(contains_text(text)) << text;
}

}  // namespace
}  // namespace envcrypt::value
