// What several unit tests need: hexadecimal constants, and running a function in a forked child.
// Uses nothing of src/ but the types of views, so that it cannot share a mistake with what it
// tests.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "core/bytes.hpp"

namespace envcrypt::test {

inline Bytes unhex(std::string_view digits) {
    const auto nibble = [](char digit) {
        if (digit >= '0' && digit <= '9') return digit - '0';
        if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
        throw std::invalid_argument("not a hex digit");
    };
    if (digits.size() % 2 != 0) throw std::invalid_argument("an odd number of hex digits");
    Bytes bytes;
    for (std::size_t i = 0; i < digits.size(); i += 2)
        bytes.push_back(static_cast<std::uint8_t>(nibble(digits[i]) << 4 | nibble(digits[i + 1])));
    return bytes;
}

inline std::string hex(ByteView bytes) {
    std::string digits;
    for (const std::uint8_t byte : bytes) {
        digits += "0123456789abcdef"[byte >> 4];
        digits += "0123456789abcdef"[byte & 15];
    }
    return digits;
}

template <std::size_t N>
std::array<std::uint8_t, N> unhex_array(std::string_view digits) {
    const Bytes bytes = unhex(digits);
    if (bytes.size() != N) throw std::invalid_argument("another number of hex digits");
    std::array<std::uint8_t, N> array;
    std::copy(bytes.begin(), bytes.end(), array.begin());
    return array;
}

// 0, 1, 2, ... from `first`.
template <std::size_t N>
constexpr std::array<std::uint8_t, N> counting(std::uint8_t first = 0) {
    std::array<std::uint8_t, N> array{};
    for (std::size_t i = 0; i < N; ++i) array[i] = static_cast<std::uint8_t>(first + i);
    return array;
}

inline Bytes pattern(std::size_t size, std::uint8_t seed) {
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::uint8_t>(seed + i * 7 + (i >> 8));
    return bytes;
}

inline bool all_zero(ByteView bytes) {
    for (const std::uint8_t byte : bytes)
        if (byte != 0) return false;
    return true;
}

// The exit status of a child that ends with what `run` returns; -1 where it ended otherwise.
template <class Run>
int in_child(Run run) {
    const pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) _exit(run());
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

}  // namespace envcrypt::test
