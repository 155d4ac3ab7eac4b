// Base64 and hexadecimal: the vectors of RFC 4648, and that every other spelling is refused.
#include "crypto/encoding.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace envcrypt::crypto {
namespace {

using test::all_zero;
using test::hex;
using test::pattern;

// The bytes in hex, or "refused".
std::string base64_read(std::string_view text) {
    const std::optional<SecretBytes> bytes = from_base64_secret(text);
    return bytes ? hex(bytes->expose()) : "refused";
}

std::string hex_read(std::string_view text) {
    const std::optional<SecretBytes> bytes = from_hex_secret(text);
    return bytes ? hex(bytes->expose()) : "refused";
}

TEST(Base64, OfRfc4648) {
    const std::vector<std::pair<std::string, std::string>> vectors = {{"", ""},
                                                                      {"f", "Zg=="},
                                                                      {"fo", "Zm8="},
                                                                      {"foo", "Zm9v"},
                                                                      {"foob", "Zm9vYg=="},
                                                                      {"fooba", "Zm9vYmE="},
                                                                      {"foobar", "Zm9vYmFy"},
                                                                      {"\xfb\xff", "+/8="}};
    for (const auto &[bytes, text] : vectors) {
        EXPECT_EQ(to_base64(as_bytes(bytes)), text);
        EXPECT_EQ(to_base64_secret(as_bytes(bytes)).expose_text(), text);
        EXPECT_EQ(base64_read(text), hex(as_bytes(bytes)));
        EXPECT_EQ(base64_length(bytes.size()), text.size());
        EXPECT_GE(base64_capacity(text.size()), bytes.size());
    }
}

TEST(Base64, RoundTripOfEveryLength) {
    for (std::size_t size = 0; size < 300; ++size) {
        const Bytes bytes = pattern(size, static_cast<std::uint8_t>(size));
        const std::string text = to_base64(bytes);
        EXPECT_EQ(text.size(), base64_length(size));
        EXPECT_EQ(base64_read(text), hex(bytes));
    }
}

TEST(Base64, RefusesEveryOtherSpelling) {
    for (const char *text :
         {"Z",        "Zg",       "Zg=",          "Zm8",     "Zm9vYg",
          "Zm9vYg=",  "Zm9vYmE",  // padding is missing
          "=",        "==",       "===",          "====",    "Z===",
          "Zm9v====", "Zg======",                                         // or too much
          "Zg==Zg==", "Zg==Zm9v", "Z=g=",         "=Zg=",    "Zm8=Zm8=",  // or inside
          " Zg==",    "Zg== ",    "Zg==\n",       "Z g==",   "Zm9v\nZm9v",
          "Zm9v    ", "    ",     "Zm9v\r\n\r\n", "\tZm9",   "Zm-v",
          "Zm_v",     "Zm*v",     "Zm,v",         "Zm\x80v", "\xc3\xa9Zm"})
        EXPECT_EQ(base64_read(text), "refused") << text;
    EXPECT_EQ(base64_read(std::string_view("Zm9\0", 4)), "refused");
    EXPECT_EQ(base64_read(std::string_view("Zm9v\0\0\0\0", 8)), "refused");
}

// Each of the 256 bytes in each place of a group.
TEST(Base64, KnowsItsAlphabet) {
    const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int byte = 0; byte < 256; ++byte)
        for (std::size_t place = 0; place < 4; ++place) {
            std::string text = "AAAAAAAA";
            text[place] = static_cast<char>(byte);
            EXPECT_EQ(base64_read(text) != "refused",
                      alphabet.find(static_cast<char>(byte)) != std::string::npos)
                << byte << ' ' << place;
        }
}

// Of the 64 letters that may stand last before the padding, 16 or 4 encode something.
TEST(Base64, RefusesTrailingBits) {
    const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::set<std::string> one, two;
    for (const char letter : alphabet) {
        if (const std::string got = base64_read(std::string("AA") + letter + "="); got != "refused")
            one.insert(got);
        if (const std::string got = base64_read(std::string("A") + letter + "=="); got != "refused")
            two.insert(got);
    }
    EXPECT_EQ(one.size(), 16u);
    EXPECT_EQ(two.size(), 4u);
    EXPECT_EQ(base64_read("Zh=="), "refused");
    EXPECT_EQ(base64_read("Zm9="), "refused");
}

TEST(Base64, KnowsTheRoomItHas) {
    Bytes out(6, 0xee);
    EXPECT_EQ(decode_base64("Zm9vYmE=", out), std::optional<std::size_t>(5));
    EXPECT_EQ(as_text(ByteView(out).first(5)), "fooba");
    Bytes small(5, 0xee);
    EXPECT_EQ(decode_base64("Zm9vYmFy", small), std::nullopt);
    EXPECT_TRUE(all_zero(small));
    EXPECT_EQ(decode_base64("", {}), std::optional<std::size_t>(0));
    EXPECT_EQ(decode_base64("Zg==", {}), std::nullopt);

    std::string exact(8, '#'), fits(9, '#');
    encode_base64(as_bytes("fooba"), exact);  // no room for the zero byte
    EXPECT_EQ(exact, "########");
    encode_base64(as_bytes("fooba"), fits);
    EXPECT_EQ(fits, std::string("Zm9vYmE=") + '\0');
    std::string empty(1, '#');
    encode_base64({}, empty);
    EXPECT_EQ(empty, std::string(1, '\0'));
}

TEST(Hex, RoundTrip) {
    for (std::size_t size = 0; size < 70; ++size) {
        const Bytes bytes = pattern(size, 0xf1);
        EXPECT_EQ(to_hex(bytes), hex(bytes));
        EXPECT_EQ(hex_read(to_hex(bytes)), hex(bytes));
    }
    EXPECT_EQ(to_hex(Bytes{0x00, 0x9f, 0xff}), "009fff");
    EXPECT_EQ(hex_read("aBcDeF09"), "abcdef09");
}

TEST(Hex, KnowsItsDigits) {
    const std::string digits = "0123456789abcdefABCDEF";
    for (int byte = 0; byte < 256; ++byte)
        for (std::size_t place = 0; place < 2; ++place) {
            std::string text = "0000";
            text[place] = static_cast<char>(byte);
            EXPECT_EQ(hex_read(text) != "refused",
                      digits.find(static_cast<char>(byte)) != std::string::npos)
                << byte << ' ' << place;
        }
}

TEST(Hex, RefusesEverythingElse) {
    for (const char *text : {"0", "000", "0g", "g0", " 00", "00 ", "0 0", "00 00", "00\n", "0x00",
                             "00:00", "\\x00", "0\xc3", "zz"})
        EXPECT_EQ(hex_read(text), "refused") << text;
    EXPECT_EQ(hex_read(std::string_view("00\0\0", 4)), "refused");
}

}  // namespace
}  // namespace envcrypt::crypto
