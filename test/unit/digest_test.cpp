// SHA-256, HMAC-SHA-256 and the KDF against published vectors and values that Python computed.
#include "crypto/digest.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support.hpp"

namespace envcrypt::crypto {
namespace {

using test::counting;
using test::hex;

std::string sha256_hex(std::string_view data) {
    return hex(sha256(as_bytes(data)));
}

std::string hmac_hex(ByteView key, std::string_view data) {
    return hex(hmac_sha256(key, {as_bytes(data)}));
}

TEST(Digest, Sha256OfFips180) {
    EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256_hex("abc"),
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Digest, HmacOfRfc4231) {
    EXPECT_EQ(hmac_hex(Bytes(20, 0x0b), "Hi There"),
              "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    EXPECT_EQ(hmac_hex(as_bytes("Jefe"), "what do ya want for nothing?"),
              "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    EXPECT_EQ(hmac_hex(Bytes(20, 0xaa), std::string(50, '\xdd')),
              "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    EXPECT_EQ(hmac_hex(counting<25>(1), std::string(50, '\xcd')),
              "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
    EXPECT_EQ(hmac_hex(Bytes(131, 0xaa), "Test Using Larger Than Block-Size Key - Hash Key First"),
              "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    EXPECT_EQ(hmac_hex(Bytes(131, 0xaa),
                       "This is a test using a larger than block-size key and a larger than "
                       "block-size data. The key needs to be hashed before being used by the HMAC "
                       "algorithm."),
              "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

TEST(Digest, HmacOfNothing) {
    constexpr const char *expected =
        "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad";
    EXPECT_EQ(hex(hmac_sha256({}, {})), expected);
    EXPECT_EQ(hex(hmac_sha256({}, {ByteView{}, ByteView{}})), expected);
}

TEST(Digest, HmacOfPartsIsThatOfTheirConcatenation) {
    const Bytes key(32, 7);
    const Digest whole = hmac_sha256(key, {as_bytes("what do ya want")});
    EXPECT_EQ(hmac_sha256(key, {as_bytes("what do"), {}, as_bytes(" ya"), as_bytes(" want")}),
              whole);
    EXPECT_NE(hmac_sha256(key, {as_bytes("what do"), as_bytes("ya want")}), whole);
}

std::string derived(ByteView key, std::string_view label, ByteView context) {
    std::array<std::uint8_t, kKeySize> out{};
    derive_key(key, label, context, out);
    return hex(out);
}

// hmac.new(key, b"\0\0\0\1" + label + b"\0" + context + b"\0\0\1\0", "sha256") in Python, with the
// key 00 01 .. 1f
TEST(Digest, KdfAgainstPython) {
    const auto key = counting<32>();
    EXPECT_EQ(derived(key, "envcrypt1 gcm", counting<4>(1)),
              "5b40fbb673763a63ee24fa0f32613416d0a2a92cc3e7abed20b76299ab5b78f9");
    EXPECT_EQ(derived(key, "", {}),
              "be27b734b68c7782d866819ae95ae24560bbd593476e9f8c0bf87db0b30a0316");
    EXPECT_EQ(derived(key, "L", counting<100>()),
              "4cdee8ad555cd859a3f64a6c266a7696f6f7589bafcccd7d82045093eba95b16");
}

TEST(Digest, KdfDependsOnAllItIsGiven) {
    const auto key = counting<32>();
    const std::string base = derived(key, "label", as_bytes("context"));
    EXPECT_NE(derived(counting<32>(1), "label", as_bytes("context")), base);
    EXPECT_NE(derived(key, "labe", as_bytes("context")), base);
    EXPECT_NE(derived(key, "label", as_bytes("contex")), base);
}

}  // namespace
}  // namespace envcrypt::crypto
