// See random.hpp.
#include "crypto/random.hpp"

#include <sodium.h>

#include <algorithm>

namespace envcrypt::crypto {

namespace {
constexpr std::size_t kFirstDraw = 256;
constexpr std::size_t kLargestDraw = 4096 - 1;
constexpr std::uint8_t kMark = 1;
}  // namespace

void random_bytes(ByteSpan out) {
    if (!out.empty()) randombytes_buf(out.data(), out.size());
}

void RandomPool::take(ByteSpan out, std::int64_t statement, pid_t pid) {
    // the arena's pages are zeroed in a forked child, so the mark tells a fork that `pid` does not
    const bool inherited = !bytes_.empty() && bytes_.expose().back() != kMark;
    if (statement != statement_ || pid != pid_ || inherited) {
        if (inherited) {
            bytes_.clear();
            filled_ = 0;
        }
        wipe(bytes_.expose().first(filled_));
        at_ = filled_ = 0;
        statement_ = statement;
        pid_ = pid;
    }
    if (filled_ - at_ < out.size()) refill();
    std::uint8_t *from = bytes_.expose().data() + at_;
    std::copy_n(from, out.size(), out.begin());
    wipe({from, out.size()});
    at_ += out.size();
}

void RandomPool::refill() {
    if (bytes_.empty()) {
        bytes_ = SecretBytes(kLargestDraw + 1);
        bytes_.expose().back() = kMark;
    }
    const std::size_t draw = filled_ == 0 ? kFirstDraw : std::min(2 * filled_, kLargestDraw);
    random_bytes(bytes_.expose().first(draw));
    at_ = 0;
    filled_ = draw;
}

}  // namespace envcrypt::crypto
