// The keys that this backend holds open, with the subkeys derived from them: bounded, expiring,
// wiped when dropped. It decides nothing about rights: whoever looks a key up says for which
// identity.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/secret.hpp"
#include "crypto/aead.hpp"
#include "crypto/keys.hpp"
#include "crypto/random.hpp"
#include "keyring/operation.hpp"
#include "value/value.hpp"

namespace envcrypt::keyring {

// Which key, opened as whom.
struct KeyRef {
    IdentityId identity{};
    std::uint64_t key_id = 0;
    bool operator==(const KeyRef &) const = default;
};

// What the key tables say of a key: an open key serves only where they say what it was opened by.
struct KeySource {
    crypto::Purpose purpose;
    std::string_view tenant;  // of a group key: the group
    crypto::Digest commitment;
    // At one place: a KMS server or a group key.
    ByteView wrapped;
    ByteView attestation;
};

// An AES key derived from a data key and a salt, expanded. Its memory lives as long as the process;
// what it holds is that of one (key, salt) as long as `serial` stays.
struct Subkey {
    std::uint64_t serial = 0;
    std::uint64_t key_serial = 0;
    std::array<std::uint8_t, value::kSaltSize> salt{};
    bool used = false;  // since the clock hand came by
    std::unique_ptr<crypto::Aead> aead;
};

// How long an open key serves.
struct Lifetime {
    kms::Clock opened{};
    kms::Clock expires{};  // when the KMS is to be asked again
    kms::Clock ends{};     // until when it is kept, should the KMS be away; not before `expires`
};

// A slot for an open key; likewise one key's as long as `serial` stays. It lives until
// Cache::release().
struct OpenKey {
    std::uint64_t serial = 0;
    KeyRef ref;
    crypto::Purpose purpose{};
    std::string tenant;
    crypto::Digest commitment{};
    crypto::Digest wrapping{};  // of KeySource::wrapped and attestation
    std::string server;
    SecretBytes key;
    SecretBytes token_key;  // of a search key, once it was needed
    Lifetime life;
    bool stale = false;    // expired, or wrapped anew: used no more, unless bridge() says so
    bool bridged = false;  // in use although expired, since its KMS is away
    // The keys used just before and just after this one; null at either end.
    OpenKey *older = nullptr;
    OpenKey *newer = nullptr;

    bool has_subkeys = false;  // may have some

    // Sealing: the salt that this backend drew, and what was sealed under it.
    Subkey *sealing = nullptr;
    std::uint64_t sealing_serial = 0;
    std::int32_t sealing_pid = 0;
    std::uint64_t sealed_values = 0;
    std::uint64_t sealed_bytes = 0;
};

// What one salt is used for, at most: NIST SP 800-38D's bounds with the margin that doc/format.md
// computes.
inline constexpr std::uint64_t kMaxValuesPerSalt = std::uint64_t{1} << 24;
inline constexpr std::uint64_t kMaxBytesPerSalt = std::uint64_t{64} << 30;

class Cache {
public:
    // Expanded subkeys kept: 576 bytes of locked memory each.
    static constexpr std::size_t kMaxSubkeys = 1024;

    // Returns null where the key is not open for this identity, or was opened as another purpose's
    // or tenant's or with another commitment. Where only its wrapping is another now, as after a
    // rewrap, it becomes stale: the KMS is to be asked again.
    OpenKey *find(const KeyRef &ref, const KeySource &source);
    // Returns the same of a stale one, whatever its wrapping.
    OpenKey *find_stale(const KeyRef &ref, const KeySource &source);
    // Has an expired one serve until then, at most to its end.
    void bridge(OpenKey &stale, kms::Clock until);
    // Takes the key in, dropping the least recently used one where there are `limit` already.
    OpenKey &put(const KeyRef &ref, const KeySource &source, std::string server, SecretBytes key,
                 const Lifetime &life, std::size_t limit);

    // The token key of an open search key (crypto::token_key), valid as long as the key's serial.
    static ByteView token_key(OpenKey &search_key);

    void drop_identity(const IdentityId &identity);
    // What was opened as an older version of the same mapping and server.
    void drop_older(const IdentityId &identity);
    // All versions of one mapping: ref.identity[4] and [5].
    void drop_mapping(std::uint32_t mapping, std::uint32_t version);
    void drop_key(std::uint64_t key_id);
    void drop(const KeyRef &ref);
    void drop_tenant(std::string_view tenant);
    // Drops those that are at their end, and makes stale those that have expired: whoever held one
    // finds another serial. Costs nothing until the first of them is due.
    void expire(kms::Clock now);
    // Drops the least recently used ones beyond the limit.
    void shrink(std::size_t limit);
    // Returns how many keys were open.
    std::size_t clear();
    // Returns the memory of free slots where no key is open. Nobody may hold a pointer to a slot
    // or a subkey any more.
    void release();

    // The subkey for a salt, derived where it is not kept.
    Subkey &subkey(OpenKey &key, std::span<const std::uint8_t, value::kSaltSize> salt);
    // The subkey to seal `bytes` more bytes with: under a salt drawn from `random` when the key
    // came into the cache, when the process is another, and when the one in use is used up.
    Subkey &sealing_subkey(OpenKey &key, std::uint64_t bytes, crypto::RandomPool &random,
                           std::int64_t statement, std::int32_t pid);

    template <class Visit>
    void for_each(Visit visit) const {
        for (const auto &[key_id, key] : by_id_) visit(*key);
    }
    std::size_t size() const { return by_id_.size(); }

private:
    using ById = std::unordered_multimap<std::uint64_t, OpenKey *>;
    struct SubkeyRef {
        std::uint64_t key_serial;
        std::uint32_t salt;
        bool operator==(const SubkeyRef &) const = default;
    };
    struct SubkeyHash {
        std::size_t operator()(const SubkeyRef &ref) const;
    };
    static SubkeyRef subkey_ref(const Subkey &subkey);

    ById::iterator find_slot(const KeyRef &ref);
    OpenKey *find_of(const KeyRef &ref, const KeySource &source);
    static kms::Clock due_time(const OpenKey &key);
    // Changes the key as `change` does, and when it is due.
    template <class Change>
    void change_due(OpenKey &key, Change change);
    void make_stale(OpenKey &key);
    void drop(OpenKey &key);
    void drop(ById::iterator at);
    // The order of use.
    void unlink(OpenKey &key);
    void link_newest(OpenKey &key);
    void drop_subkeys(OpenKey &key);
    template <class Condition>
    void drop_if(Condition condition);
    Subkey &free_subkey();

    std::uint64_t next_serial_ = 1;
    std::deque<OpenKey> keys_;
    std::vector<OpenKey *> free_keys_;
    ById by_id_;  // a key is open under few identities
    OpenKey *oldest_ = nullptr;
    OpenKey *newest_ = nullptr;
    std::set<std::pair<kms::Clock, OpenKey *>> due_;  // when each expires or, if stale, ends
    std::set<IdentityId> newest_identities_;          // those that drop_older() has seen last
    std::deque<Subkey> subkeys_;
    std::size_t hand_ = 0;
    std::unordered_map<SubkeyRef, Subkey *, SubkeyHash> by_salt_;
};

}  // namespace envcrypt::keyring
