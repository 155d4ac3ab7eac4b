// keyring/cache: bounds, expiry, who finds what, when a salt is drawn, and that nothing secret is
// left behind.
#include "keyring/cache.hpp"

#include <gtest/gtest.h>

#include <set>

namespace envcrypt::keyring {
namespace {

using std::chrono::seconds;

constexpr kms::Clock kStart{1000};

KeyRef ref(std::uint64_t key_id, std::uint32_t mapping = 1) {
    return {{1, 1, 1, 1, mapping, 1, 1, 1}, key_id};
}

SecretBytes key_bytes(std::uint8_t fill) {
    SecretBytes key(32);
    std::fill(key.expose().begin(), key.expose().end(), fill);
    return key;
}

constexpr std::uint8_t kWrapped[] = {1, 2, 3};
constexpr std::uint8_t kAttestation[] = {4};

KeySource source() {
    return {crypto::Purpose::data, "tenant", {}, kWrapped, kAttestation};
}

OpenKey *find(Cache &cache, const KeyRef &which) {
    return cache.find(which, source());
}

OpenKey *find_stale(Cache &cache, const KeyRef &which) {
    return cache.find_stale(which, source());
}

OpenKey &put(Cache &cache, const KeyRef &which, std::size_t limit = 1024, kms::Clock now = kStart,
             kms::Clock grace = {}) {
    return cache.put(which, source(), "server", key_bytes(static_cast<std::uint8_t>(which.key_id)),
                     {now, now + seconds(300), now + seconds(300) + grace}, limit);
}

TEST(Cache, FindsAKeyForItsIdentityOnly) {
    Cache cache;
    put(cache, ref(7));
    EXPECT_NE(find(cache, ref(7)), nullptr);
    EXPECT_EQ(find(cache, ref(7, 2)), nullptr);
    EXPECT_EQ(find(cache, ref(8)), nullptr);
    KeyRef altered = ref(7);
    altered.identity[1] = 2;  // the server was altered
    EXPECT_EQ(find(cache, altered), nullptr);
}

TEST(Cache, FindsAKeyAsWhatItWasOpenedOnly) {
    Cache cache;
    put(cache, ref(7));
    KeySource other = source();
    other.tenant = "another";
    EXPECT_EQ(cache.find(ref(7), other), nullptr);
    other = source();
    other.purpose = crypto::Purpose::search;
    EXPECT_EQ(cache.find(ref(7), other), nullptr);
    other = source();
    other.commitment[31] = 1;
    EXPECT_EQ(cache.find(ref(7), other), nullptr);
    EXPECT_NE(find(cache, ref(7)), nullptr) << "what the others asked for changes nothing";
}

TEST(Cache, IsStaleWhereItsWrappingIsAnother) {
    constexpr std::uint8_t longer[] = {1, 2, 3, 4};
    Cache cache;
    OpenKey &key = put(cache, ref(7));
    const std::uint64_t serial = key.serial;
    KeySource other = source();
    other.wrapped = longer;
    other.attestation = {};  // the same bytes, cut elsewhere
    EXPECT_EQ(cache.find(ref(7), other), nullptr);
    EXPECT_NE(key.serial, serial) << "whoever held it has to look again";
    EXPECT_EQ(find(cache, ref(7)), nullptr);
    ASSERT_EQ(cache.find_stale(ref(7), other), &key);
    other.tenant = "another";
    EXPECT_EQ(cache.find_stale(ref(7), other), nullptr) << "no outage makes it another tenant's";
    cache.bridge(key, kStart + seconds(10));
    other.tenant = "tenant";
    EXPECT_EQ(cache.find(ref(7), other), &key);
    cache.expire(kStart + seconds(10));
    EXPECT_EQ(cache.find(ref(7), other), nullptr);
}

TEST(Cache, DropsTheLeastRecentlyUsed) {
    Cache cache;
    put(cache, ref(1), 2);
    put(cache, ref(2), 2);
    find(cache, ref(1));
    put(cache, ref(3), 2);
    EXPECT_EQ(cache.size(), 2u);
    EXPECT_NE(find(cache, ref(1)), nullptr);
    EXPECT_EQ(find(cache, ref(2)), nullptr);
    put(cache, ref(4), 1);
    EXPECT_EQ(cache.size(), 1u);
}

TEST(Cache, DropsByIdentityKeyAndTime) {
    Cache cache;
    put(cache, ref(1, 1));
    put(cache, ref(1, 2));
    put(cache, ref(2, 1), 1024, kStart + seconds(100));
    cache.drop_identity(ref(0, 2).identity);
    EXPECT_EQ(find(cache, ref(1, 2)), nullptr);
    EXPECT_NE(find(cache, ref(1, 1)), nullptr);
    cache.expire(kStart + seconds(300) - kms::Clock(1));
    EXPECT_EQ(cache.size(), 2u);
    cache.expire(kStart + seconds(300));
    EXPECT_EQ(find(cache, ref(1, 1)), nullptr);
    EXPECT_EQ(cache.size(), 1u);
    cache.drop_key(2);
    EXPECT_EQ(cache.size(), 0u);
}

TEST(Cache, AnExpiredKeyServesOnlyWhileItIsBridged) {
    Cache cache;
    OpenKey &key = put(cache, ref(1), 1024, kStart, seconds(60));
    const std::uint8_t salt[value::kSaltSize] = {1};
    Subkey &subkey = cache.subkey(key, salt);
    const std::uint64_t serial = key.serial;
    const std::uint64_t subkey_serial = subkey.serial;
    EXPECT_EQ(find_stale(cache, ref(1)), nullptr);
    cache.expire(kStart + seconds(300));
    EXPECT_NE(key.serial, serial) << "whoever held it looks again";
    EXPECT_NE(subkey.serial, subkey_serial);
    EXPECT_EQ(find(cache, ref(1)), nullptr);
    ASSERT_EQ(find_stale(cache, ref(1)), &key);
    EXPECT_EQ(cache.size(), 1u);

    cache.bridge(key, kStart + seconds(310));
    EXPECT_EQ(find(cache, ref(1)), &key);
    EXPECT_TRUE(key.bridged);
    EXPECT_EQ(key.key.expose()[0], 1);
    cache.expire(kStart + seconds(310));
    ASSERT_EQ(find_stale(cache, ref(1)), &key);
    cache.bridge(key, kStart + seconds(1000));
    EXPECT_EQ(key.life.expires, kStart + seconds(360)) << "no longer than the grace";
    cache.expire(kStart + seconds(360));
    EXPECT_EQ(cache.size(), 0u);

    OpenKey &again = put(cache, ref(1), 1024, kStart, seconds(60));
    cache.expire(kStart + seconds(300));
    EXPECT_TRUE(again.stale);
    EXPECT_FALSE(put(cache, ref(1)).bridged) << "the KMS gave it anew";
    EXPECT_EQ(cache.size(), 1u);
    put(cache, ref(2), 1024, kStart, seconds(60));
    cache.expire(kStart + seconds(300));
    cache.drop_identity(ref(2).identity);
    EXPECT_EQ(cache.size(), 0u) << "a denial takes expired ones too";
}

TEST(Cache, DropsWhatAnOlderVersionOfAnIdentityOpened) {
    Cache cache;
    KeyRef newer = ref(1);
    newer.identity[1] = 2;
    put(cache, ref(1));
    put(cache, ref(1, 2));
    put(cache, newer);
    cache.drop_older(newer.identity);
    EXPECT_EQ(find(cache, ref(1)), nullptr);
    EXPECT_NE(find(cache, ref(1, 2)), nullptr) << "another mapping's";
    EXPECT_NE(find(cache, newer), nullptr);
    KeyRef of_role = ref(3);
    of_role.identity[7] = 2;
    put(cache, of_role);
    cache.drop_older(ref(3).identity);
    EXPECT_NE(find(cache, of_role), nullptr) << "another role's by the same mapping";
    KeyRef brought = ref(2, kNoMapping);
    KeyRef other = brought;
    other.identity[5] = 2;
    put(cache, brought);
    cache.drop_older(other.identity);
    EXPECT_NE(find(cache, brought), nullptr) << "two that a session brought are two";
}

TEST(Cache, ShrinksToALimit) {
    Cache cache;
    for (std::uint64_t id = 1; id <= 5; ++id) put(cache, ref(id));
    find(cache, ref(1));
    cache.shrink(2);
    EXPECT_EQ(cache.size(), 2u);
    EXPECT_NE(find(cache, ref(1)), nullptr);
    EXPECT_NE(find(cache, ref(5)), nullptr);
    cache.drop(ref(5));
    cache.drop(ref(5));
    EXPECT_EQ(cache.size(), 1u);
}

TEST(Cache, ADroppedKeyIsNotMistakenForItsSuccessor) {
    Cache cache;
    OpenKey &first = put(cache, ref(1));
    const std::uint64_t serial = first.serial;
    EXPECT_EQ(cache.clear(), 1u);
    EXPECT_NE(first.serial, serial);
    OpenKey &second = put(cache, ref(1));
    EXPECT_EQ(&second, &first) << "slots are used again";
    EXPECT_NE(second.serial, serial);
}

TEST(Cache, ReplacesAKeyThatIsThere) {
    Cache cache;
    const std::uint64_t serial = put(cache, ref(1)).serial;
    EXPECT_NE(put(cache, ref(1)).serial, serial);
    EXPECT_EQ(cache.size(), 1u);
}

TEST(Cache, LeavesNoSecretsBehind) {
    const std::size_t before = secret_memory().in_use;
    Cache cache;
    for (std::uint64_t id = 0; id < 100; ++id) {
        OpenKey &key = put(cache, ref(id));
        const std::uint8_t salt[value::kSaltSize] = {1, 2, 3, static_cast<std::uint8_t>(id)};
        cache.subkey(key, salt);
    }
    EXPECT_GT(secret_memory().in_use, before);
    cache.clear();
    EXPECT_EQ(secret_memory().in_use, before);
}

TEST(Cache, KeepsASubkeyPerSalt) {
    Cache cache;
    OpenKey &key = put(cache, ref(1));
    OpenKey &other = put(cache, ref(2));
    const std::uint8_t salt_a[value::kSaltSize] = {1}, salt_b[value::kSaltSize] = {2};
    Subkey &a = cache.subkey(key, salt_a);
    EXPECT_EQ(&cache.subkey(key, salt_a), &a);
    EXPECT_NE(&cache.subkey(key, salt_b), &a);
    EXPECT_NE(&cache.subkey(other, salt_a), &a);
    const std::uint64_t serial = a.serial;
    cache.drop_key(1);
    EXPECT_NE(a.serial, serial);
    EXPECT_EQ(a.aead, nullptr);
}

TEST(Cache, BoundsTheSubkeysAndSparesTheUsed) {
    Cache cache;
    OpenKey &key = put(cache, ref(1));
    const auto salt_of = [](std::uint32_t i) {
        return std::array<std::uint8_t, value::kSaltSize>{static_cast<std::uint8_t>(i),
                                                          static_cast<std::uint8_t>(i >> 8),
                                                          static_cast<std::uint8_t>(i >> 16), 0};
    };
    const auto hot_salt = salt_of(0xffffff);
    Subkey *hot = &cache.subkey(key, hot_salt);
    const std::uint64_t hot_serial = hot->serial;
    const std::size_t before = secret_memory().in_use;
    std::size_t at_limit = 0;
    for (std::uint32_t i = 0; i < 5 * Cache::kMaxSubkeys; ++i) {
        cache.subkey(key, salt_of(i));
        hot->used = true;
        if (i == Cache::kMaxSubkeys) at_limit = secret_memory().in_use;
    }
    EXPECT_EQ(hot->serial, hot_serial);
    EXPECT_EQ(secret_memory().in_use, at_limit);
    EXPECT_GT(at_limit, before);
}

std::array<std::uint8_t, value::kSaltSize> sealing_salt(Cache &cache, OpenKey &key,
                                                        crypto::RandomPool &random,
                                                        std::uint64_t bytes = 1, int pid = 1) {
    return cache.sealing_subkey(key, bytes, random, 1, pid).salt;
}

TEST(Cache, DrawsASaltPerKeyAndKeepsIt) {
    Cache cache;
    crypto::RandomPool random;
    OpenKey &key = put(cache, ref(1));
    OpenKey &other = put(cache, ref(2));
    const auto salt = sealing_salt(cache, key, random);
    EXPECT_EQ(sealing_salt(cache, key, random), salt);
    EXPECT_NE(sealing_salt(cache, other, random), salt);
}

TEST(Cache, DrawsASaltAnewWhenItMust) {
    Cache cache;
    crypto::RandomPool random;
    OpenKey &key = put(cache, ref(1));
    auto salt = sealing_salt(cache, key, random);

    EXPECT_NE(sealing_salt(cache, key, random, 1, 2), salt) << "another process";
    salt = sealing_salt(cache, key, random, 1, 2);

    key.sealed_values = kMaxValuesPerSalt - 1;
    EXPECT_EQ(sealing_salt(cache, key, random, 1, 2), salt);
    EXPECT_NE(sealing_salt(cache, key, random, 1, 2), salt) << "2^24 values";
    salt = sealing_salt(cache, key, random, 1, 2);

    key.sealed_bytes = kMaxBytesPerSalt - 10;
    EXPECT_EQ(sealing_salt(cache, key, random, 10, 2), salt);
    EXPECT_NE(sealing_salt(cache, key, random, 1, 2), salt) << "64 GiB";
    salt = sealing_salt(cache, key, random, 1, 2);

    cache.clear();
    EXPECT_NE(sealing_salt(cache, put(cache, ref(1)), random, 1, 2), salt) << "cache refilled";
}

}  // namespace
}  // namespace envcrypt::keyring
