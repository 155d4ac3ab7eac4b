// Random bytes from the kernel, singly or through a small pool.
#pragma once

#include <sys/types.h>
#include <array>
#include <cstdint>

#include "core/bytes.hpp"
#include "core/secret.hpp"

namespace envcrypt::crypto {

// One getrandom(2).
void random_bytes(ByteSpan out);

// One getrandom per value costs ten times the cipher. The pool draws ahead within a statement, 256
// bytes at first and up to 4 KiB, and throws away what is left when the statement or the process is
// another: a forked process repeats nothing, and a cloned machine only within one running
// statement.
class RandomPool {
public:
    // Fills `out` (at most 256 bytes). `statement` is any number that differs between statements.
    void take(ByteSpan out, std::int64_t statement, pid_t pid);

private:
    void refill();

    SecretBytes bytes_;       // the last byte is a mark that a fork zeroes
    std::size_t at_ = 0;      // the first unused byte
    std::size_t filled_ = 0;  // how many were drawn
    std::int64_t statement_ = 0;
    pid_t pid_ = 0;
};

}  // namespace envcrypt::crypto
