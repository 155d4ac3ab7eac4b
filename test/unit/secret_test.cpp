// The arena of secrets: where pieces lie, that they are wiped, and what fork and core dumps see.
#include "core/secret.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support.hpp"

// AddressSanitizer's own mlock() does nothing and says that it did.
extern "C" int mlock(const void *address, std::size_t size) noexcept {
    return static_cast<int>(syscall(SYS_mlock, address, size));
}

namespace envcrypt {
namespace {

using test::all_zero;
using test::in_child;
using test::pattern;

static_assert(!std::is_copy_constructible_v<SecretBytes>);
static_assert(!std::is_copy_assignable_v<SecretBytes>);
static_assert(std::is_nothrow_move_constructible_v<SecretBytes>);

std::size_t in_use() {
    return secret_memory().in_use;
}

// Reads memory that was given back: pieces of up to 4 KiB stay mapped.
Bytes peek(const std::uint8_t *from, std::size_t size) {
    const volatile std::uint8_t *byte = from;
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = byte[i];
    return bytes;
}

// The flags of the mapping that holds `address`; empty where the kernel does not tell.
std::string vm_flags(const void *address) {
    std::ifstream smaps("/proc/self/smaps");
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    bool within = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long start = 0, end = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2)
            within = start <= wanted && wanted < end;
        else if (within && line.starts_with("VmFlags:"))
            return line.substr(8) + " ";
    }
    return {};
}

bool is_mapped(const void *address) {
    unsigned char resident = 0;
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = reinterpret_cast<std::uintptr_t>(address) / page * page;
    return mincore(reinterpret_cast<void *>(start), 1, &resident) == 0 || errno != ENOMEM;
}

struct Kind {
    std::size_t size;
    std::size_t piece;
};

TEST(Secret, PiecesAreOfTheSmallestKindThatFits) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::vector<Kind> kinds = {{1, 64},
                                     {32, 64},
                                     {64, 64},
                                     {65, 576},
                                     {576, 576},
                                     {577, 4096},
                                     {4096, 4096},
                                     {4097, (4097 + page - 1) / page * page},
                                     {100000, (100000 + page - 1) / page * page}};
    for (const Kind &kind : kinds) {
        const std::size_t before = in_use();
        SecretBytes secret(kind.size);
        EXPECT_EQ(secret.size(), kind.size);
        EXPECT_EQ(in_use() - before, kind.piece) << kind.size;
        secret.clear();
        EXPECT_EQ(in_use(), before) << kind.size;
        EXPECT_TRUE(secret.empty());
    }
}

TEST(Secret, EmptyTakesNoMemory) {
    const std::size_t before = in_use();
    SecretBytes none, zero(std::size_t{0}), text("");
    EXPECT_TRUE(none.empty() && zero.empty() && text.empty());
    EXPECT_EQ(zero.expose().size(), 0u);
    EXPECT_EQ(none.copy().size(), 0u);
    EXPECT_EQ(in_use(), before);
    none.append({});
    EXPECT_EQ(in_use(), before);
}

TEST(Secret, AlignedZeroedAndDisjoint) {
    for (const std::size_t size : {1, 33, 64, 300, 576, 1000, 4096, 5000}) {
        std::vector<SecretBytes> secrets;
        for (std::uint8_t i = 1; i <= 40; ++i) {
            secrets.emplace_back(size);
            SecretBytes &secret = secrets.back();
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(secret.expose().data()) % 16, 0u);
            EXPECT_TRUE(all_zero(secret.expose())) << size;
            for (std::uint8_t &byte : secret.expose()) byte = i;
        }
        for (std::uint8_t i = 1; i <= 40; ++i)
            for (const std::uint8_t byte : secrets[i - 1u].expose()) ASSERT_EQ(byte, i) << size;
    }
}

TEST(Secret, ReleasedPiecesAreWipedAndUsedAgain) {
    for (const std::size_t size : {64, 576, 4096}) {
        const std::uint8_t *address;
        {
            SecretBytes secret(pattern(size, 1));
            address = secret.expose().data();
            ASSERT_FALSE(all_zero(peek(address + 8, size - 8)));
        }
        // its first bytes now hold the link of the free list
        EXPECT_TRUE(all_zero(peek(address + 8, size - 8))) << size;
        SecretBytes next(size);
        EXPECT_EQ(next.expose().data(), address);
        EXPECT_TRUE(all_zero(next.expose()));
    }
}

TEST(Secret, ChunksAreReusedInsteadOfGrowing) {
    { SecretBytes warm(64); }
    const std::size_t reserved = secret_memory().reserved;
    for (int i = 0; i < 5000; ++i) SecretBytes secret(64);
    EXPECT_EQ(secret_memory().reserved, reserved);
    std::vector<SecretBytes> many;
    for (int i = 0; i < 1025; ++i) many.emplace_back(64);
    EXPECT_EQ(secret_memory().reserved % (64 * 1024), reserved % (64 * 1024));
    EXPECT_GT(secret_memory().reserved, reserved);
}

TEST(Secret, LargePiecesAreUnmapped) {
    const SecretMemory before = secret_memory();
    const void *address;
    {
        SecretBytes large(pattern(1000000, 3));
        address = large.expose().data();
        EXPECT_GE(secret_memory().reserved - before.reserved, 1000000u);
        EXPECT_TRUE(is_mapped(address));
        EXPECT_TRUE(equal_constant_time(large.expose(), pattern(1000000, 3)));
    }
    EXPECT_EQ(secret_memory().reserved, before.reserved);
    EXPECT_EQ(in_use(), before.in_use);
    EXPECT_FALSE(is_mapped(address));
}

TEST(Secret, AppendGrowsThroughAllKindsAndWipesWhatItLeaves) {
    const std::size_t before = in_use();
    SecretBytes secret;
    Bytes expected;
    for (int i = 0; expected.size() < 20000; ++i) {
        const Bytes more =
            pattern(1 + static_cast<std::size_t>(i) % 37, static_cast<std::uint8_t>(i));
        const std::uint8_t *old = secret.expose().data();
        const std::size_t old_size = secret.size();
        secret.append(more);
        expected.insert(expected.end(), more.begin(), more.end());
        ASSERT_EQ(secret.size(), expected.size());
        if (old != secret.expose().data() && old_size > 8 && old_size <= 4096) {
            ASSERT_TRUE(all_zero(peek(old + 8, old_size - 8))) << old_size;
        }
    }
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), secret.expose().begin()));
    secret.clear();
    EXPECT_EQ(in_use(), before);
}

TEST(Secret, AppendOfItself) {
    SecretBytes secret("0123456789abcdefghijklmnopqrstuvwxyzABCD");  // 40: the second one moves
    secret.append(secret.expose());
    EXPECT_EQ(secret.expose_text(),
              "0123456789abcdefghijklmnopqrstuvwxyzABCD0123456789abcdefghijklmnopqrstuvwxyzABCD");
    secret.append(secret.expose().subspan(36, 4));
    EXPECT_EQ(secret.expose_text().substr(76), "ABCDABCD");
}

TEST(Secret, ShrinkWipesTheRest) {
    SecretBytes secret("a password and more");
    const std::uint8_t *address = secret.expose().data();
    secret.shrink(10);
    EXPECT_EQ(secret.expose_text(), "a password");
    EXPECT_TRUE(all_zero(peek(address + 10, 9)));
    secret.shrink(11);
    EXPECT_EQ(secret.size(), 10u);
    secret.append(as_bytes("!"));
    EXPECT_EQ(secret.expose_text(), "a password!");
    EXPECT_EQ(secret.expose().data(), address);
}

TEST(Secret, MoveAndCopy) {
    const std::size_t before = in_use();
    SecretBytes first("first secret");
    const std::uint8_t *address = first.expose().data();
    SecretBytes second(std::move(first));
    EXPECT_TRUE(first.empty());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(second.expose().data(), address);

    SecretBytes third("third secret");
    const std::uint8_t *replaced = third.expose().data();
    third = std::move(second);
    EXPECT_TRUE(second.empty());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(third.expose_text(), "first secret");
    EXPECT_TRUE(all_zero(peek(replaced + 8, 4)));
    EXPECT_EQ(in_use() - before, 64u);

    SecretBytes &itself = third;
    third = std::move(itself);
    EXPECT_EQ(third.expose_text(), "first secret");

    SecretBytes copy = third.copy();
    EXPECT_NE(copy.expose().data(), third.expose().data());
    third.clear();
    third.clear();
    EXPECT_EQ(copy.expose_text(), "first secret");
    copy.clear();
    EXPECT_EQ(in_use(), before);
}

TEST(Secret, WipeAndCompare) {
    Bytes bytes = pattern(100, 5);
    wipe(ByteSpan(bytes).subspan(10, 80));
    EXPECT_TRUE(all_zero(ByteView(bytes).subspan(10, 80)));
    EXPECT_EQ(bytes[9], pattern(100, 5)[9]);
    EXPECT_EQ(bytes[90], pattern(100, 5)[90]);
    wipe({});

    const Bytes a = pattern(33, 1);
    EXPECT_TRUE(equal_constant_time(a, a));
    EXPECT_TRUE(equal_constant_time({}, {}));
    EXPECT_FALSE(equal_constant_time(a, {}));
    EXPECT_FALSE(equal_constant_time(a, ByteView(a).first(32)));
    for (std::size_t bit = 0; bit < 8 * a.size(); ++bit) {
        Bytes b = a;
        b[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
        EXPECT_FALSE(equal_constant_time(a, b)) << bit;
    }
}

TEST(Secret, LeftOutOfCoreDumpsAndOfForks) {
    for (const std::size_t size : {64, 576, 4096, 70000}) {
        SecretBytes secret(size);
        const std::string flags = vm_flags(secret.expose().data());
        if (flags.empty()) GTEST_SKIP() << "/proc/self/smaps has no VmFlags here";
        EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
        EXPECT_NE(flags.find(" wf "), std::string::npos) << flags;
        EXPECT_EQ(flags.find(" lo ") != std::string::npos, secret_memory_is_locked()) << flags;
    }
    int ordinary = 0;
    const std::string stack = vm_flags(&ordinary);
    EXPECT_EQ(stack.find(" dd "), std::string::npos) << stack;
}

TEST(Secret, ForkedChildSeesZeroesAndStartsItsOwnArena) {
    SecretBytes small("a secret of the parent");
    SecretBytes large(pattern(50000, 9));
    const int status = in_child([&] {
        if (!all_zero(small.expose()) || small.size() != 22) return 1;
        if (!all_zero(large.expose())) return 2;
        SecretBytes own("the child's");
        if (own.expose_text() != "the child's" || in_use() != 64) return 3;
        if (own.expose().data() == small.expose().data()) return 4;
        // What was inherited goes back to no list of the child, whichever order it is done in.
        const std::uint8_t *inherited = small.expose().data();
        small.clear();
        large.clear();
        if (in_use() != 64 || secret_memory().reserved != 64 * 1024) return 5;
        SecretBytes next("next");
        if (next.expose().data() == inherited || next.expose_text() != "next") return 6;
        return 0;
    });
    EXPECT_EQ(status, 0);
    EXPECT_EQ(small.expose_text(), "a secret of the parent");
    EXPECT_TRUE(equal_constant_time(large.expose(), pattern(50000, 9)));
}

TEST(Secret, ForkedChildReleasesBeforeItTakes) {
    SecretBytes secret("a secret of the parent");
    const int status = in_child([&] {
        secret.clear();
        SecretBytes own("the child's");
        SecretBytes moved = std::move(own);
        moved.append(pattern(100, 1));
        return in_use() == 576 && moved.size() == 111 ? 0 : 1;
    });
    EXPECT_EQ(status, 0);
    EXPECT_EQ(secret.expose_text(), "a secret of the parent");
}

TEST(Secret, TellsWhetherItIsLocked) {
    const int forbidden = in_child([] {
        const rlimit none{0, 0};
        if (setrlimit(RLIMIT_MEMLOCK, &none) != 0) return 1;
        // root may lock in spite of the limit
        if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 2;
        SecretBytes secret("still works");
        if (secret_memory_is_locked()) return 3;
        if (secret.expose_text() != "still works") return 4;
        const std::string flags = vm_flags(secret.expose().data());
        if (!flags.empty() && flags.find(" dd ") == std::string::npos) return 5;
        if (!flags.empty() && flags.find(" wf ") == std::string::npos) return 6;
        return flags.find(" lo ") == std::string::npos ? 0 : 7;
    });
    EXPECT_EQ(forbidden, 0);
}

TEST(Secret, NoMemoryIsAnException) {
    const std::size_t before = in_use();
    EXPECT_THROW(SecretBytes(std::size_t{1} << 60), std::bad_alloc);
    EXPECT_EQ(in_use(), before);
}

}  // namespace
}  // namespace envcrypt
