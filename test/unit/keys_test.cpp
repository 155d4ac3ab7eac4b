// Contexts, commitments, subkeys, tokens and wrapped keys. The constants were computed by Python's
// hmac and cryptography with the key 00..1f, the child 20..3f and the salt 80..8f.
#include "crypto/keys.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support.hpp"

namespace envcrypt::crypto {
namespace {

using test::counting;
using test::hex;
using test::unhex_array;

constexpr auto kKey = counting<32>();
constexpr auto kChild = counting<32>(32);
constexpr auto kSalt = counting<16>(0x80);

std::string context() {
    return wrap_context(Purpose::data, 0xfedcba9876543210, "acme");
}

// The key in hex, or "refused".
std::string told(const std::optional<SecretBytes> &key) {
    return key ? hex(key->expose()) : "refused";
}

TEST(Keys, KeyIdText) {
    EXPECT_EQ(key_id_text(0), "0000000000000000");
    EXPECT_EQ(key_id_text(0x0123456789abcdef), "0123456789abcdef");
    EXPECT_EQ(key_id_text(0xfedcba9876543210), "fedcba9876543210");
    EXPECT_EQ(key_id_text(~std::uint64_t{0}), "ffffffffffffffff");
}

TEST(Keys, WrapContext) {
    EXPECT_EQ(hex(as_bytes(context())),
              "656e76637279707431006461746100666564636261393837363534333231300061636d65");
    using std::string_literals::operator""s;
    EXPECT_EQ(wrap_context(Purpose::search, 1, "t"),
              "envcrypt1\0search\0"s + "0000000000000001\0t"s);
    EXPECT_EQ(wrap_context(Purpose::group, 1, "t"), "envcrypt1\0group\0"s + "0000000000000001\0t"s);
    EXPECT_EQ(wrong_context(wrap_context(Purpose::group, 1, "t")),
              "envcrypt1\0group\0"s + "ffffffffffffffff\0t"s);
}

TEST(Keys, Commitment) {
    EXPECT_EQ(hex(commitment(kKey, context())),
              "6401541bb43be904f426c0e2226f6db0538eb77bd493da349bf0a104c320f43b");
    EXPECT_NE(commitment(kKey, context()), commitment(kChild, context()));
    EXPECT_NE(commitment(kKey, context()),
              commitment(kKey, wrap_context(Purpose::search, 0xfedcba9876543210, "acme")));
    EXPECT_NE(commitment(kKey, context()),
              commitment(kKey, wrap_context(Purpose::data, 0xfedcba9876543211, "acme")));
    EXPECT_NE(commitment(kKey, context()),
              commitment(kKey, wrap_context(Purpose::data, 0xfedcba9876543210, "acmf")));
}

TEST(Keys, ValueSubkey) {
    EXPECT_EQ(hex(value_subkey(kKey, counting<4>(0xa0)).expose()),
              "5f757f64df51de9aa07a0d54b394f444a218ad25b3e01067537c6ba4fe2ae271");
    EXPECT_NE(hex(value_subkey(kKey, counting<4>(0xa1)).expose()),
              hex(value_subkey(kKey, counting<4>(0xa0)).expose()));
}

TEST(Keys, Token) {
    const SecretBytes key = token_key(kKey);
    EXPECT_EQ(hex(key.expose()),
              "1cbcd1034e34df428cd6505e193e6d64b9abe9ee1f49baff64f6741acc4784a3");
    const auto ssn = unhex_array<3>("9fef9a");
    const ByteView number = as_bytes("078-05-1120");
    const TokenBytes token = search_token(key.expose(), ssn, 1, 1, number);
    EXPECT_EQ(hex(token), "4778d50b1a4097b3cf2cd4e0d88395fd");
    EXPECT_NE(search_token(key.expose(), unhex_array<3>("9fef9b"), 1, 1, number), token);
    EXPECT_NE(search_token(key.expose(), ssn, 2, 1, number), token);
    EXPECT_NE(search_token(key.expose(), ssn, 1, 2, number), token);
    EXPECT_NE(search_token(key.expose(), ssn, 1, 1, number.first(10)), token);
    EXPECT_NE(search_token(token_key(kChild).expose(), ssn, 1, 1, number), token);
}

constexpr const char *kGroupWrapped =
    "01808182838485868788898a8b8c8d8e8f22307e572384b378a59f2a92647106267c97216627c1ab1c93486abe80"
    "4056dd03d103843b1768f4843adfc849231e91";

TEST(Keys, GroupWrap) {
    const Bytes wrapped = group_wrap(kKey, kSalt, context(), kChild);
    EXPECT_EQ(wrapped.size(), 65u);
    EXPECT_EQ(hex(wrapped), kGroupWrapped);
    EXPECT_EQ(told(group_unwrap(kKey, wrapped, context())), hex(kChild));
}

TEST(Keys, GroupUnwrapRefuses) {
    const Bytes wrapped = test::unhex(kGroupWrapped);
    EXPECT_EQ(told(group_unwrap(kChild, wrapped, context())), "refused");
    for (const std::string &other :
         {wrap_context(Purpose::search, 0xfedcba9876543210, "acme"),
          wrap_context(Purpose::data, 0xfedcba9876543211, "acme"),
          wrap_context(Purpose::data, 0xfedcba9876543210, "acm"),
          wrap_context(Purpose::data, 0xfedcba9876543210, "acme2"), std::string()})
        EXPECT_EQ(told(group_unwrap(kKey, wrapped, other)), "refused") << hex(as_bytes(other));
    for (std::size_t size = 0; size < wrapped.size(); ++size)
        EXPECT_EQ(told(group_unwrap(kKey, ByteView(wrapped).first(size), context())), "refused");
    Bytes longer = wrapped;
    longer.push_back(0);
    EXPECT_EQ(told(group_unwrap(kKey, longer, context())), "refused");
    for (std::size_t bit = 0; bit < 8 * wrapped.size(); ++bit) {
        Bytes changed = wrapped;
        changed[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
        EXPECT_EQ(told(group_unwrap(kKey, changed, context())), "refused") << bit;
    }
}

constexpr const char *kLocalWrapped =
    "017a25fffa326f97bd808182838485868788898a8b8c8d8e8f64a793b2399b25b1e6a9ca22e8530cbe734ec2db42"
    "87096e1ee3efd527c55a56c601e99bbed270fd91c3dca257e35d60";

TEST(Keys, LocalWrap) {
    EXPECT_EQ(hex(local_id(kKey)), "7a25fffa326f97bd");
    const Bytes wrapped = local_wrap(kKey, kSalt, context(), kChild);
    EXPECT_EQ(wrapped.size(), 73u);
    EXPECT_EQ(hex(wrapped), kLocalWrapped);
    EXPECT_EQ(local_wrapped_by(wrapped), std::optional(local_id(kKey)));
    EXPECT_EQ(told(local_unwrap(kKey, wrapped, context())), hex(kChild));
}

TEST(Keys, LocalUnwrapRefuses) {
    const Bytes wrapped = test::unhex(kLocalWrapped);
    EXPECT_EQ(told(local_unwrap(kChild, wrapped, context())), "refused");
    EXPECT_EQ(told(local_unwrap(kKey, wrapped, "")), "refused");
    EXPECT_EQ(told(local_unwrap(kKey, wrapped, wrap_context(Purpose::data, 1, "acme"))), "refused");
    for (std::size_t size = 0; size < wrapped.size(); ++size) {
        EXPECT_EQ(told(local_unwrap(kKey, ByteView(wrapped).first(size), context())), "refused");
        EXPECT_FALSE(local_wrapped_by(ByteView(wrapped).first(size)).has_value());
    }
    Bytes longer = wrapped;
    longer.push_back(0);
    EXPECT_EQ(told(local_unwrap(kKey, longer, context())), "refused");
    EXPECT_FALSE(local_wrapped_by(longer).has_value());
    for (std::size_t bit = 0; bit < 8 * wrapped.size(); ++bit) {
        Bytes changed = wrapped;
        changed[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
        EXPECT_EQ(told(local_unwrap(kKey, changed, context())), "refused") << bit;
    }
    // another master key's id on what this one wrapped
    Bytes renamed = wrapped;
    const LocalId other = local_id(kChild);
    std::copy(other.begin(), other.end(), renamed.begin() + 1);
    EXPECT_EQ(told(local_unwrap(kKey, renamed, context())), "refused");
    EXPECT_EQ(told(local_unwrap(kChild, renamed, context())), "refused");
}

TEST(Keys, WrappingsAreNotInterchangeable) {
    const Bytes local = local_wrap(kKey, kSalt, context(), kChild);
    Bytes as_group{1};
    as_group.insert(as_group.end(), local.begin() + 9, local.end());
    EXPECT_EQ(told(group_unwrap(kKey, as_group, context())), "refused");
    EXPECT_NE(hex(group_wrap(kKey, counting<16>(1), context(), kChild)), kGroupWrapped);
}

}  // namespace
}  // namespace envcrypt::crypto
