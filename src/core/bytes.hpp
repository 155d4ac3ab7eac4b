// Views of bytes, and integers in network order. Owns nothing and checks nothing but lengths.
#pragma once

#ifdef POSTGRES_H
#error "core headers come before pg/pg.hpp"
#endif

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace envcrypt {

using Bytes = std::vector<std::uint8_t>;
using ByteView = std::span<const std::uint8_t>;
using ByteSpan = std::span<std::uint8_t>;

inline ByteView as_bytes(std::string_view text) {
    return {reinterpret_cast<const std::uint8_t *>(text.data()), text.size()};
}

inline std::string_view as_text(ByteView bytes) {
    return {reinterpret_cast<const char *>(bytes.data()), bytes.size()};
}

// Of what is no secret.
inline bool equal_bytes(ByteView a, ByteView b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

inline std::uint64_t load_be64(const std::uint8_t *from) {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | from[i];
    return value;
}

inline void store_be64(std::uint8_t *to, std::uint64_t value) {
    for (int i = 7; i >= 0; --i, value >>= 8) to[i] = static_cast<std::uint8_t>(value);
}

}  // namespace envcrypt
