// The pool of random bytes: what it draws, what it throws away, and that nothing comes twice. The
// source is replaced by a counting one where that must be seen.
#include "crypto/random.hpp"

#include <gtest/gtest.h>
#include <sodium.h>
#include <unistd.h>

#include <array>
#include <set>
#include <vector>

#include "support.hpp"

namespace envcrypt::crypto {
namespace {

using test::all_zero;

using Nonce = std::array<std::uint8_t, 12>;

// Hands out consecutive 16-bit numbers and keeps how many bytes were asked for each time.
struct CountingSource {
    static inline std::vector<std::size_t> draws;
    static inline std::uint16_t next = 1;

    static const char *name() { return "counting"; }
    static std::uint32_t number() { return 4; }
    static void fill(void *const out, const std::size_t size) {
        draws.push_back(size);
        auto *bytes = static_cast<std::uint8_t *>(out);
        for (std::size_t i = 0; i + 1 < size; i += 2, ++next) {
            bytes[i] = static_cast<std::uint8_t>(next >> 8);
            bytes[i + 1] = static_cast<std::uint8_t>(next);
        }
    }
};

class CountedPool : public ::testing::Test {
protected:
    void SetUp() override {
        ASSERT_GE(sodium_init(), 0);
        CountingSource::draws.clear();
        CountingSource::next = 1;
        static randombytes_implementation counting{CountingSource::name,
                                                   CountingSource::number,
                                                   nullptr,
                                                   nullptr,
                                                   CountingSource::fill,
                                                   nullptr};
        randombytes_set_implementation(&counting);
    }
    void TearDown() override {
        randombytes_set_implementation(&randombytes_sysrandom_implementation);
    }

    // The first number of two bytes that the pool hands out.
    std::uint16_t take(std::int64_t statement, pid_t pid) {
        std::array<std::uint8_t, 2> out{};
        pool_.take(out, statement, pid);
        return static_cast<std::uint16_t>(out[0] << 8 | out[1]);
    }

    RandomPool pool_;
};

TEST_F(CountedPool, GrowsWithinAStatement) {
    std::array<std::uint8_t, 128> out{};
    for (int i = 0; i < 200; ++i) pool_.take(out, 1, 1);
    ASSERT_GE(CountingSource::draws.size(), 7u);
    EXPECT_EQ((std::vector<std::size_t>(CountingSource::draws.begin(),
                                        CountingSource::draws.begin() + 7)),
              (std::vector<std::size_t>{256, 512, 1024, 2048, 4095, 4095, 4095}));
}

TEST_F(CountedPool, HandsOutEachByteOnce) {
    for (std::uint16_t expected = 1; expected <= 128; ++expected)
        ASSERT_EQ(take(1, 1), expected);  // all of the first draw
    EXPECT_EQ(CountingSource::draws.size(), 1u);
    for (std::uint16_t expected = 129; expected <= 129 + 255; ++expected)
        ASSERT_EQ(take(1, 1), expected);  // all of the second
    EXPECT_EQ(CountingSource::draws.size(), 2u);
}

TEST_F(CountedPool, NeverJoinsTwoDraws) {
    std::array<std::uint8_t, 250> most{};
    pool_.take(most, 1, 1);
    std::array<std::uint8_t, 12> out{};
    pool_.take(out, 1, 1);  // 6 bytes are left and thrown away
    EXPECT_EQ(out[1], 129);
    EXPECT_EQ(CountingSource::draws.size(), 2u);
}

TEST_F(CountedPool, AnotherStatementOrProcessDiscards) {
    EXPECT_EQ(take(7, 100), 1);
    EXPECT_EQ(take(7, 100), 2);
    EXPECT_EQ(take(8, 100), 129);
    EXPECT_EQ(take(8, 100), 130);
    EXPECT_EQ(take(8, 101), 257);
    EXPECT_EQ(take(7, 100), 385);
    EXPECT_EQ(CountingSource::draws, (std::vector<std::size_t>{256, 256, 256, 256}));
}

TEST_F(CountedPool, AnotherStatementStartsSmallAgain) {
    std::array<std::uint8_t, 256> out{};
    for (int i = 0; i < 10; ++i) pool_.take(out, 1, 1);
    const std::size_t before = CountingSource::draws.size();
    pool_.take(out, 2, 1);
    ASSERT_EQ(CountingSource::draws.size(), before + 1);
    EXPECT_EQ(CountingSource::draws.back(), 256u);
}

TEST_F(CountedPool, StatementAndProcessZero) {
    EXPECT_EQ(take(0, 0), 1);
    EXPECT_EQ(take(0, 0), 2);
}

TEST_F(CountedPool, TheLargestTake) {
    std::array<std::uint8_t, 256> out{};
    pool_.take(out, 1, 1);
    EXPECT_EQ(out[255], 128);
    pool_.take(out, 1, 1);
    EXPECT_EQ(out[1], 129);
    pool_.take({}, 1, 1);
    EXPECT_EQ(CountingSource::draws.size(), 2u);
}

// The child says the same statement and process, as one that forked unnoticed would.
TEST_F(CountedPool, AForkedChildDiscards) {
    EXPECT_EQ(take(1, 1), 1);
    EXPECT_EQ(test::in_child([this] { return take(1, 1); }), 129);
    EXPECT_EQ(test::in_child([this] { return take(2, 1); }), 129);
    EXPECT_EQ(test::in_child([this] {
                  take(1, 1);
                  return take(1, 1);
              }),
              130);
    EXPECT_EQ(take(1, 1), 2);
}

TEST(Random, AForkedChildDiffersFromItsParent) {
    RandomPool pool;
    Nonce first{};
    pool.take(first, 1, 1);
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    ASSERT_EQ(test::in_child([&] {
                  Nonce own{};
                  pool.take(own, 1, 1);
                  return write(ends[1], own.data(), own.size()) == 12 ? 0 : 1;
              }),
              0);
    Nonce childs{}, own{};
    ASSERT_EQ(read(ends[0], childs.data(), childs.size()), 12);
    close(ends[0]);
    close(ends[1]);
    pool.take(own, 1, 1);
    EXPECT_NE(childs, own);
    EXPECT_NE(childs, first);
    EXPECT_FALSE(all_zero(childs));
}

TEST(Random, NeverRepeats) {
    RandomPool pool;
    std::set<Nonce> seen;
    for (int i = 0; i < 20000; ++i) {
        Nonce nonce{};
        pool.take(nonce, i / 1000, 1 + i / 5000);
        ASSERT_TRUE(seen.insert(nonce).second) << i;
    }
}

TEST(Random, BytesAreFilled) {
    Bytes first(1000), second(1000);
    random_bytes(first);
    random_bytes(second);
    EXPECT_NE(first, second);
    EXPECT_FALSE(all_zero(ByteView(first).subspan(984)));
    random_bytes({});
}

}  // namespace
}  // namespace envcrypt::crypto
