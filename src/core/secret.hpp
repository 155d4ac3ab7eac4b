// Memory for secrets: an arena of locked pages that are left out of core dumps and zeroed in a
// forked child, and SecretBytes, the only owner of a piece of it. What is no secret does not belong
// here.
#pragma once

#ifdef POSTGRES_H
#error "core headers come before pg/pg.hpp"
#endif

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/bytes.hpp"

namespace envcrypt {

// Zeroes memory in a way that no optimizer removes.
void wipe(ByteSpan bytes) noexcept;

// Constant-time comparison of two byte strings; false if their lengths differ.
bool equal_constant_time(ByteView a, ByteView b) noexcept;

// True unless a page of this process's arena could not be locked (RLIMIT_MEMLOCK): the secrets in
// it may then reach swap. Core dumps and forked children are kept out all the same.
bool secret_memory_is_locked() noexcept;

// Bytes held by secrets now, and bytes of address space taken from the system for them.
struct SecretMemory {
    std::size_t in_use;
    std::size_t reserved;
};
SecretMemory secret_memory() noexcept;

// Owns a wiped-on-release piece of the arena, aligned to 16 bytes and zeroed at first. Move-only,
// has no operator<< and no comparison. Throws std::bad_alloc where the system gives no memory.
class SecretBytes {
public:
    SecretBytes() noexcept = default;
    explicit SecretBytes(std::size_t size);
    explicit SecretBytes(ByteView from);
    explicit SecretBytes(std::string_view from) : SecretBytes(as_bytes(from)) {}
    SecretBytes(SecretBytes &&other) noexcept;
    SecretBytes &operator=(SecretBytes &&other) noexcept;
    SecretBytes(const SecretBytes &) = delete;
    SecretBytes &operator=(const SecretBytes &) = delete;
    ~SecretBytes() { clear(); }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    // The secret itself; a name that can be searched for.
    ByteSpan expose() noexcept { return {data_, size_}; }
    ByteView expose() const noexcept { return {data_, size_}; }
    std::string_view expose_text() const noexcept { return as_text(expose()); }

    SecretBytes copy() const { return SecretBytes(expose()); }
    // Appends (`more` may lie in this piece), moving to a larger one and wiping the old where
    // needed.
    void append(ByteView more);
    // Forgets the bytes after the first `size`, which are wiped. Only to at most size().
    void shrink(std::size_t size) noexcept;
    void clear() noexcept;

private:
    std::uint8_t *data_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
    pid_t owner_ = 0;  // the process that took the piece
};

}  // namespace envcrypt
