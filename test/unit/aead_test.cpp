// AES-256-GCM: published vectors, both libraries against each other, and every way to fail.
#include "crypto/aead.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace envcrypt::crypto {
namespace {

using test::all_zero;
using test::counting;
using test::hex;
using test::pattern;
using test::unhex;
using test::unhex_array;

constexpr auto kKey = counting<32>(0x40);
constexpr auto kNonce = counting<12>(0xb0);

class EachLibrary : public ::testing::TestWithParam<AeadLibrary> {
protected:
    void SetUp() override {
        if (GetParam() == AeadLibrary::sodium && !Aead::sodium_has_aes())
            GTEST_SKIP() << "libsodium has no AES-GCM here";
    }
};

INSTANTIATE_TEST_SUITE_P(Aead, EachLibrary,
                         ::testing::Values(AeadLibrary::automatic, AeadLibrary::sodium,
                                           AeadLibrary::openssl),
                         [](const auto &test) {
                             return std::string(test.param == AeadLibrary::automatic ? "automatic"
                                                : test.param == AeadLibrary::sodium  ? "sodium"
                                                                                     : "openssl");
                         });

struct Vector {
    const char *key, *nonce, *associated, *plaintext, *ciphertext, *tag;
};

constexpr const char *kZeroKey = "0000000000000000000000000000000000000000000000000000000000000000";
constexpr const char *kFeffKey = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";

// Test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", as submitted to
// NIST.
constexpr Vector kVectors[] = {
    {kZeroKey, "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    {kZeroKey, "000000000000000000000000", "", "00000000000000000000000000000000",
     "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
    {kFeffKey, "cafebabefacedbaddecaf888", "",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6"
     "b525b16aedf5aa0de657ba637b391aafd255",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b105682"
     "8838c5f61e6393ba7a0abcc9f662898015ad",
     "b094dac5d93471bdec1a502270e3cc6c"},
    {kFeffKey, "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6"
     "b525b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b105682"
     "8838c5f61e6393ba7a0abcc9f662",
     "76fc6ece0f4e1768cddf8853bb2d551b"},
};

TEST_P(EachLibrary, PublishedVectors) {
    for (const Vector &vector : kVectors) {
        Aead aead(unhex_array<32>(vector.key), GetParam());
        const auto nonce = unhex_array<12>(vector.nonce);
        const Bytes plaintext = unhex(vector.plaintext), associated = unhex(vector.associated);
        Bytes sealed(plaintext.size() + kTagSize), opened(plaintext.size(), 0xee);
        ASSERT_TRUE(aead.seal(nonce, associated, plaintext, sealed));
        EXPECT_EQ(hex(sealed), std::string(vector.ciphertext) + vector.tag);
        ASSERT_TRUE(aead.open(nonce, associated, sealed, opened));
        EXPECT_EQ(opened, plaintext);
    }
}

// One object for all, so that nothing of a message stays behind for the next.
TEST(Aead, LibrariesOpenEachOther) {
    if (!Aead::sodium_has_aes()) GTEST_SKIP() << "libsodium has no AES-GCM here";
    Aead sodium(kKey, AeadLibrary::sodium), openssl(kKey, AeadLibrary::openssl), either(kKey);
    std::vector<std::size_t> sizes;
    for (std::size_t size = 0; size <= 600; ++size) sizes.push_back(size);
    for (const std::size_t size : {4095, 4096, 4097, 65536, 1000003}) sizes.push_back(size);
    for (const std::size_t size : sizes) {
        const Bytes plaintext = pattern(size, 3), associated = pattern(size % 77, 5);
        auto nonce = kNonce;
        nonce[0] = static_cast<std::uint8_t>(size);
        Bytes by_sodium(size + kTagSize), by_openssl(size + kTagSize), by_either(size + kTagSize);
        ASSERT_TRUE(sodium.seal(nonce, associated, plaintext, by_sodium));
        ASSERT_TRUE(openssl.seal(nonce, associated, plaintext, by_openssl));
        ASSERT_TRUE(either.seal(nonce, associated, plaintext, by_either));
        ASSERT_EQ(by_sodium, by_openssl) << size;
        ASSERT_EQ(by_sodium, by_either) << size;
        for (Aead *opener : {&sodium, &openssl, &either}) {
            Bytes opened(size, 0xee);
            ASSERT_TRUE(opener->open(nonce, associated, by_sodium, opened)) << size;
            ASSERT_EQ(opened, plaintext) << size;
        }
    }
}

TEST_P(EachLibrary, WhatDoesNotFitIsRefusedAndWiped) {
    for (const std::size_t size : {1, 16, 96, 97, 500, 5000}) {
        Aead aead(kKey, GetParam());
        const Bytes plaintext = pattern(size, 1), associated = pattern(20, 2);
        Bytes sealed(size + kTagSize);
        ASSERT_TRUE(aead.seal(kNonce, associated, plaintext, sealed));

        const auto refused = [&](Aead &opener, std::span<const std::uint8_t, 12> nonce,
                                 ByteView data, ByteView input) {
            Bytes out(input.size() - kTagSize, 0xee);
            return !opener.open(nonce, data, input, out) && all_zero(out);
        };
        for (const std::size_t at : {std::size_t{0}, size / 2, size - 1, size, size + 15}) {
            Bytes changed = sealed;
            changed[at] ^= 0x10;
            EXPECT_TRUE(refused(aead, kNonce, associated, changed)) << size << ' ' << at;
        }
        auto nonce = kNonce;
        nonce[11] ^= 1;
        EXPECT_TRUE(refused(aead, nonce, associated, sealed)) << size;
        Bytes other = associated;
        other[19] ^= 1;
        EXPECT_TRUE(refused(aead, kNonce, other, sealed)) << size;
        EXPECT_TRUE(refused(aead, kNonce, ByteView(associated).first(19), sealed)) << size;
        EXPECT_TRUE(refused(aead, kNonce, {}, sealed)) << size;
        EXPECT_TRUE(refused(aead, kNonce, associated, ByteView(sealed).first(size + 15))) << size;
        Aead another(counting<32>(0x41), GetParam());
        EXPECT_TRUE(refused(another, kNonce, associated, sealed)) << size;

        // none of that spoilt the object
        Bytes opened(size);
        EXPECT_TRUE(aead.open(kNonce, associated, sealed, opened));
        EXPECT_EQ(opened, plaintext);
    }
}

TEST_P(EachLibrary, EmptyPlaintext) {
    Aead aead(kKey, GetParam());
    Bytes tag(kTagSize);
    ASSERT_TRUE(aead.seal(kNonce, as_bytes("header"), {}, tag));
    EXPECT_TRUE(aead.open(kNonce, as_bytes("header"), tag, {}));
    EXPECT_FALSE(aead.open(kNonce, as_bytes("headers"), tag, {}));
    tag[15] ^= 1;
    EXPECT_FALSE(aead.open(kNonce, as_bytes("header"), tag, {}));
}

TEST_P(EachLibrary, LengthsAreChecked) {
    Aead aead(kKey, GetParam());
    const Bytes plaintext = pattern(32, 1);
    for (const std::size_t size : {0, 16, 32, 47, 49}) {
        Bytes out(size, 0xee);
        EXPECT_FALSE(aead.seal(kNonce, {}, plaintext, out)) << size;
        EXPECT_TRUE(all_zero(out)) << size;
    }
    Bytes sealed(48);
    ASSERT_TRUE(aead.seal(kNonce, {}, plaintext, sealed));
    for (const std::size_t size : {0, 31, 33, 48}) {
        Bytes out(size, 0xee);
        EXPECT_FALSE(aead.open(kNonce, {}, sealed, out)) << size;
        EXPECT_TRUE(all_zero(out)) << size;
    }
    for (std::size_t size = 0; size < kTagSize; ++size)
        EXPECT_FALSE(aead.open(kNonce, {}, ByteView(sealed).first(size), {})) << size;

    // Over the limit. The memory behind these views does not exist and must not be touched.
    const ByteView over(plaintext.data(), kMaxAeadInput + 1);
    Bytes out(16, 0xee);
    EXPECT_FALSE(aead.seal(kNonce, over, {}, out));
    EXPECT_FALSE(aead.open(kNonce, over, Bytes(kTagSize), {}));
    EXPECT_FALSE(aead.seal(kNonce, {}, over, out));
    EXPECT_FALSE(aead.open(kNonce, {}, over, out));
}

TEST_P(EachLibrary, MovedObjects) {
    Aead first(kKey, GetParam());
    Bytes sealed(16 + 200), opened(200);
    ASSERT_TRUE(first.seal(kNonce, {}, pattern(200, 1), sealed));
    Aead second(std::move(first));
    EXPECT_TRUE(second.open(kNonce, {}, sealed, opened));
    EXPECT_EQ(opened, pattern(200, 1));
    EXPECT_FALSE(first.open(kNonce, {}, sealed, opened));  // NOLINT(bugprone-use-after-move)
    EXPECT_TRUE(all_zero(opened));
}

// Its key is zeroed there; to seal with it would be to seal under a key that everybody knows.
TEST_P(EachLibrary, UselessInAForkedChild) {
    Aead aead(kKey, GetParam());
    Bytes sealed(16 + 11);
    ASSERT_TRUE(aead.seal(kNonce, {}, pattern(11, 1), sealed));
    EXPECT_EQ(test::in_child([&] {
                  Bytes out(27, 0xee), opened(11, 0xee);
                  if (aead.seal(kNonce, {}, pattern(11, 1), out) || !all_zero(out)) return 1;
                  if (aead.open(kNonce, {}, sealed, opened) || !all_zero(opened)) return 2;
                  Aead own(kKey, GetParam());
                  return own.open(kNonce, {}, sealed, opened) ? 0 : 3;
              }),
              0);
    Bytes opened(11);
    EXPECT_TRUE(aead.open(kNonce, {}, sealed, opened));
}

}  // namespace
}  // namespace envcrypt::crypto
