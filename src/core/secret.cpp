// See secret.hpp. Pieces up to 4 KiB come from 64 KiB chunks that are cut into slots of one size.
// Of the chunks of a size that hold nothing, one is kept. Larger pieces have a mapping of their
// own.
#include "core/secret.hpp"

#include <sodium.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace envcrypt {

namespace {

constexpr std::size_t kChunk = 64 * 1024;
// 64: keys and short tokens; 576: an expanded AES-GCM key of libsodium (512) and the key itself;
// 4096: the rest.
constexpr std::size_t kSlotSizes[] = {64, 576, 4096};
constexpr std::size_t kSlotKinds = std::size(kSlotSizes);

struct FreeSlot {
    FreeSlot *next;
};

// Stands at the beginning of each chunk, which lies at a multiple of its size.
struct Chunk {
    Chunk *previous;  // of those that have a free slot
    Chunk *next;
    FreeSlot *free;
    std::size_t used;  // slots
};
constexpr std::size_t kFirstSlot = 64;
static_assert(sizeof(Chunk) <= kFirstSlot);

struct Arena {
    pid_t owner;
    bool unlocked;
    std::size_t in_use;
    std::size_t reserved;
    Chunk *with_room[kSlotKinds];
    bool has_empty[kSlotKinds];  // a chunk among these that holds nothing
};

constinit Arena arena{};

std::size_t kind_for(std::size_t size) {
    std::size_t kind = 0;
    while (kind < kSlotKinds && kSlotSizes[kind] < size) ++kind;
    return kind;
}

std::size_t round_to_pages(std::size_t size) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return (size + page - 1) / page * page;
}

// Maps pages at a multiple of `alignment`, which is one of the page size.
std::uint8_t *map_pages(std::size_t size, std::size_t alignment) {
    const std::size_t room = size + alignment - round_to_pages(1);
    void *mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto *begin = static_cast<std::uint8_t *>(mapped);
    const auto past = reinterpret_cast<std::uintptr_t>(begin) % alignment;
    const std::size_t before = past == 0 ? 0 : alignment - past;
    std::uint8_t *pages = begin + before;
    if (before != 0) munmap(begin, before);
    if (room - before != size) munmap(pages + size, room - before - size);
    // sodium_mlock also leaves the pages out of core dumps, whether or not it can lock them
    if (sodium_mlock(pages, size) != 0) arena.unlocked = true;
    if (madvise(pages, size, MADV_WIPEONFORK) != 0) arena.unlocked = true;
    arena.reserved += size;
    return pages;
}

void link_chunk(Chunk &chunk, Chunk *&first) {
    chunk.previous = nullptr;
    chunk.next = first;
    if (first != nullptr) first->previous = &chunk;
    first = &chunk;
}

void unlink_chunk(Chunk &chunk, Chunk *&first) {
    (chunk.previous != nullptr ? chunk.previous->next : first) = chunk.next;
    if (chunk.next != nullptr) chunk.next->previous = chunk.previous;
}

Chunk &new_chunk(std::size_t slot_size) {
    std::uint8_t *pages = map_pages(kChunk, kChunk);
    auto *chunk = new (pages) Chunk{};
    for (std::size_t at = kFirstSlot; at + slot_size <= kChunk; at += slot_size)
        chunk->free = new (pages + at) FreeSlot{chunk->free};
    return *chunk;
}

Chunk &chunk_of(std::uint8_t *piece) {
    return *reinterpret_cast<Chunk *>(piece - reinterpret_cast<std::uintptr_t>(piece) % kChunk);
}

// What a forked child inherits is zeroed and unlocked: it starts with an arena of its own.
void forget_inherited() {
    if (const pid_t self = getpid(); arena.owner != self) {
        arena = Arena{};
        arena.owner = self;
    }
}

std::uint8_t *take(std::size_t size, std::size_t &capacity) {
    forget_inherited();
    const std::size_t kind = kind_for(size);
    std::uint8_t *piece;
    if (kind == kSlotKinds) {
        capacity = round_to_pages(size);
        piece = map_pages(capacity, round_to_pages(1));
    } else {
        capacity = kSlotSizes[kind];
        Chunk *&first = arena.with_room[kind];
        if (first == nullptr) link_chunk(new_chunk(capacity), first);
        Chunk &chunk = *first;
        piece = reinterpret_cast<std::uint8_t *>(chunk.free);
        chunk.free = chunk.free->next;
        if (chunk.used++ == 0) arena.has_empty[kind] = false;
        if (chunk.free == nullptr) unlink_chunk(chunk, first);
        std::memset(piece, 0, sizeof(FreeSlot));
    }
    arena.in_use += capacity;
    return piece;
}

void give_back(std::uint8_t *piece, std::size_t capacity, pid_t owner) noexcept {
    wipe({piece, capacity});
    // a piece inherited over fork belongs to no list of this process
    if (owner != arena.owner || owner != getpid()) return;
    arena.in_use -= capacity;
    const std::size_t kind = kind_for(capacity);
    if (kind == kSlotKinds) {
        munmap(piece, capacity);
        arena.reserved -= capacity;
    } else {
        Chunk &chunk = chunk_of(piece);
        Chunk *&first = arena.with_room[kind];
        if (chunk.free == nullptr) link_chunk(chunk, first);
        chunk.free = new (piece) FreeSlot{chunk.free};
        if (--chunk.used > 0 || !std::exchange(arena.has_empty[kind], true)) return;
        unlink_chunk(chunk, first);
        munmap(&chunk, kChunk);
        arena.reserved -= kChunk;
    }
}

}  // namespace

void wipe(ByteSpan bytes) noexcept {
    if (!bytes.empty()) sodium_memzero(bytes.data(), bytes.size());
}

bool equal_constant_time(ByteView a, ByteView b) noexcept {
    return a.size() == b.size() && (a.empty() || sodium_memcmp(a.data(), b.data(), a.size()) == 0);
}

bool secret_memory_is_locked() noexcept {
    return !arena.unlocked;
}

SecretMemory secret_memory() noexcept {
    return {arena.in_use, arena.reserved};
}

SecretBytes::SecretBytes(std::size_t size) {
    if (size == 0) return;
    data_ = take(size, capacity_);
    size_ = size;
    owner_ = arena.owner;
}

SecretBytes::SecretBytes(ByteView from) : SecretBytes(from.size()) {
    if (!from.empty()) std::memcpy(data_, from.data(), from.size());
}

SecretBytes::SecretBytes(SecretBytes &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)),
      owner_(other.owner_) {}

SecretBytes &SecretBytes::operator=(SecretBytes &&other) noexcept {
    if (this == &other) return *this;
    clear();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    owner_ = other.owner_;
    return *this;
}

void SecretBytes::append(ByteView more) {
    if (more.empty()) return;
    if (capacity_ - size_ < more.size()) {
        SecretBytes larger(std::max(size_ + more.size(), 2 * capacity_));
        if (size_ != 0) std::memcpy(larger.data_, data_, size_);
        std::memcpy(larger.data_ + size_, more.data(), more.size());
        larger.size_ = size_ + more.size();
        *this = std::move(larger);
        return;
    }
    std::memcpy(data_ + size_, more.data(), more.size());
    size_ += more.size();
}

void SecretBytes::shrink(std::size_t size) noexcept {
    if (size >= size_) return;
    wipe({data_ + size, size_ - size});
    size_ = size;
}

void SecretBytes::clear() noexcept {
    if (data_ != nullptr) give_back(data_, capacity_, owner_);
    data_ = nullptr;
    size_ = capacity_ = 0;
}

}  // namespace envcrypt
