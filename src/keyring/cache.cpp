// See cache.hpp.
#include "keyring/cache.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace envcrypt::keyring {

namespace {

std::uint32_t salt_number(std::span<const std::uint8_t, value::kSaltSize> salt) {
    std::uint32_t number;
    std::memcpy(&number, salt.data(), sizeof(number));
    return number;
}

crypto::Digest wrapping_digest(const KeySource &source) {
    std::array<std::uint8_t, 8> length;
    store_be64(length.data(), source.wrapped.size());
    return crypto::hmac_sha256({}, {length, source.wrapped, source.attestation});
}

}  // namespace

std::size_t Cache::SubkeyHash::operator()(const SubkeyRef &ref) const {
    return static_cast<std::size_t>(ref.salt * 0x9e3779b97f4a7c15u ^ ref.key_serial);
}

Cache::SubkeyRef Cache::subkey_ref(const Subkey &subkey) {
    return {subkey.key_serial, salt_number(subkey.salt)};
}

Cache::ById::iterator Cache::find_slot(const KeyRef &ref) {
    const auto [first, last] = by_id_.equal_range(ref.key_id);
    for (auto at = first; at != last; ++at)
        if (at->second->ref.identity == ref.identity) return at;
    return by_id_.end();
}

void Cache::unlink(OpenKey &key) {
    (key.older != nullptr ? key.older->newer : oldest_) = key.newer;
    (key.newer != nullptr ? key.newer->older : newest_) = key.older;
    key.older = key.newer = nullptr;
}

void Cache::link_newest(OpenKey &key) {
    key.older = newest_;
    (newest_ != nullptr ? newest_->newer : oldest_) = &key;
    newest_ = &key;
}

OpenKey *Cache::find_of(const KeyRef &ref, const KeySource &source) {
    const auto found = find_slot(ref);
    if (found == by_id_.end()) return nullptr;
    OpenKey &key = *found->second;
    const bool is_same = key.purpose == source.purpose && key.tenant == source.tenant &&
                         key.commitment == source.commitment;
    return is_same ? &key : nullptr;
}

OpenKey *Cache::find(const KeyRef &ref, const KeySource &source) {
    OpenKey *key = find_of(ref, source);
    if (key == nullptr) return nullptr;
    // one that serves on in an outage may have been wrapped anew before
    if (!key->stale && !key->bridged && key->wrapping != wrapping_digest(source)) make_stale(*key);
    if (key->stale) return nullptr;
    unlink(*key);
    link_newest(*key);
    return key;
}

OpenKey *Cache::find_stale(const KeyRef &ref, const KeySource &source) {
    OpenKey *key = find_of(ref, source);
    return key == nullptr || !key->stale ? nullptr : key;
}

kms::Clock Cache::due_time(const OpenKey &key) {
    return key.stale ? key.life.ends : key.life.expires;
}

template <class Change>
void Cache::change_due(OpenKey &key, Change change) {
    auto node = due_.extract({due_time(key), &key});
    change();
    node.value().first = due_time(key);
    due_.insert(std::move(node));
}

void Cache::make_stale(OpenKey &key) {
    drop_subkeys(key);
    key.serial = next_serial_++;
    key.sealing = nullptr;
    change_due(key, [&] { key.stale = true; });
}

void Cache::bridge(OpenKey &stale, kms::Clock until) {
    change_due(stale, [&] {
        stale.stale = false;
        stale.bridged = true;
        stale.life.expires = std::min(until, stale.life.ends);
    });
    unlink(stale);
    link_newest(stale);
}

void Cache::shrink(std::size_t limit) {
    while (by_id_.size() > limit) drop(*oldest_);
}

OpenKey &Cache::put(const KeyRef &ref, const KeySource &source, std::string server, SecretBytes key,
                    const Lifetime &life, std::size_t limit) {
    drop(ref);
    shrink(std::max<std::size_t>(limit, 1) - 1);
    if (free_keys_.empty()) {
        keys_.emplace_back();
        // so that to drop a key never throws
        free_keys_.reserve(keys_.size());
        free_keys_.push_back(&keys_.back());
    }
    OpenKey *slot = free_keys_.back();
    OpenKey filled;
    filled.serial = next_serial_++;
    filled.ref = ref;
    filled.purpose = source.purpose;
    filled.tenant = source.tenant;
    filled.commitment = source.commitment;
    filled.wrapping = wrapping_digest(source);
    filled.server = std::move(server);
    filled.key = std::move(key);
    filled.life = life;
    const auto due = due_.emplace(life.expires, slot).first;
    try {
        by_id_.emplace(ref.key_id, slot);
    } catch (...) {
        due_.erase(due);
        throw;
    }
    // from here on nothing throws
    free_keys_.pop_back();
    *slot = std::move(filled);
    link_newest(*slot);
    return *slot;
}

ByteView Cache::token_key(OpenKey &search_key) {
    if (search_key.token_key.empty())
        search_key.token_key = crypto::token_key(search_key.key.expose().first<crypto::kKeySize>());
    return search_key.token_key.expose();
}

void Cache::drop_subkeys(OpenKey &key) {
    if (!std::exchange(key.has_subkeys, false)) return;
    for (Subkey &subkey : subkeys_) {
        if (subkey.key_serial != key.serial) continue;
        by_salt_.erase(subkey_ref(subkey));
        subkey.aead.reset();
        subkey.serial = subkey.key_serial = 0;
    }
}

void Cache::drop(ById::iterator at) {
    OpenKey &key = *at->second;
    drop_subkeys(key);
    by_id_.erase(at);
    due_.erase({due_time(key), &key});
    unlink(key);
    key = OpenKey{};
    free_keys_.push_back(&key);
}

void Cache::drop(OpenKey &key) {
    drop(find_slot(key.ref));
}

template <class Condition>
void Cache::drop_if(Condition condition) {
    for (OpenKey &key : keys_)
        if (key.serial != 0 && condition(key)) drop(key);
}

void Cache::drop_identity(const IdentityId &identity) {
    drop_if([&](const OpenKey &key) { return key.ref.identity == identity; });
}

void Cache::drop_older(const IdentityId &identity) {
    if (identity[4] == kNoMapping || newest_identities_.contains(identity)) return;
    const auto is_older = [&](const IdentityId &other) {
        const bool is_other_version =
            !std::equal(other.begin() + 1, other.begin() + 4, identity.begin() + 1) ||
            other[5] != identity[5];
        // [6] and [7] may tell roles apart that share a mapping
        return other[0] == identity[0] && other[4] == identity[4] && is_other_version;
    };
    drop_if([&](const OpenKey &key) { return is_older(key.ref.identity); });
    std::erase_if(newest_identities_, is_older);
    newest_identities_.insert(identity);
}

void Cache::drop_mapping(std::uint32_t mapping, std::uint32_t version) {
    drop_if([&](const OpenKey &key) {
        return key.ref.identity[4] == mapping && key.ref.identity[5] == version;
    });
}

void Cache::drop_key(std::uint64_t key_id) {
    for (auto at = by_id_.find(key_id); at != by_id_.end(); at = by_id_.find(key_id)) drop(at);
}

void Cache::drop_tenant(std::string_view tenant) {
    drop_if([&](const OpenKey &key) { return key.tenant == tenant; });
}

void Cache::drop(const KeyRef &ref) {
    const auto found = find_slot(ref);
    if (found != by_id_.end()) drop(found);
}

void Cache::expire(kms::Clock now) {
    while (!due_.empty() && due_.begin()->first <= now) {
        OpenKey &key = *due_.begin()->second;
        if (key.life.ends <= now)
            drop(key);
        else
            make_stale(key);
    }
}

std::size_t Cache::clear() {
    const std::size_t open = by_id_.size();
    drop_if([](const OpenKey &) { return true; });
    return open;
}

void Cache::release() {
    if (!by_id_.empty()) return;
    // swapping leaves nothing allocated, as clearing would
    std::deque<OpenKey>().swap(keys_);
    std::vector<OpenKey *>().swap(free_keys_);
    std::deque<Subkey>().swap(subkeys_);
    by_id_ = ById();
    by_salt_.clear();
    by_salt_.rehash(0);
    hand_ = 0;
}

Subkey &Cache::free_subkey() {
    if (subkeys_.size() < kMaxSubkeys) return subkeys_.emplace_back();
    for (;; hand_ = (hand_ + 1) % kMaxSubkeys) {
        Subkey &subkey = subkeys_[hand_];
        if (!std::exchange(subkey.used, false)) {
            hand_ = (hand_ + 1) % kMaxSubkeys;
            return subkey;
        }
    }
}

Subkey &Cache::subkey(OpenKey &key, std::span<const std::uint8_t, value::kSaltSize> salt) {
    const auto found = by_salt_.find({key.serial, salt_number(salt)});
    if (found != by_salt_.end()) {
        found->second->used = true;
        return *found->second;
    }
    const SecretBytes derived =
        crypto::value_subkey(key.key.expose().first<crypto::kKeySize>(), salt);
    auto aead = std::make_unique<crypto::Aead>(derived.expose().first<crypto::kKeySize>());
    Subkey &slot = free_subkey();
    if (slot.serial != 0) {
        by_salt_.erase(subkey_ref(slot));
        slot.serial = slot.key_serial = 0;
    }
    by_salt_.emplace(SubkeyRef{key.serial, salt_number(salt)}, &slot);
    key.has_subkeys = true;
    slot.serial = next_serial_++;
    slot.key_serial = key.serial;
    std::memcpy(slot.salt.data(), salt.data(), salt.size());
    slot.used = false;  // many values bear a salt that no other does
    slot.aead = std::move(aead);
    return slot;
}

Subkey &Cache::sealing_subkey(OpenKey &key, std::uint64_t bytes, crypto::RandomPool &random,
                              std::int64_t statement, std::int32_t pid) {
    const bool kept = key.sealing != nullptr && key.sealing->serial == key.sealing_serial;
    if (key.sealing == nullptr || key.sealing_pid != pid ||
        key.sealed_values >= kMaxValuesPerSalt || key.sealed_bytes + bytes > kMaxBytesPerSalt ||
        !kept) {
        std::array<std::uint8_t, value::kSaltSize> salt;
        random.take(salt, statement, pid);
        key.sealing = &subkey(key, salt);
        key.sealing_serial = key.sealing->serial;
        key.sealing_pid = pid;
        key.sealed_values = key.sealed_bytes = 0;
    }
    ++key.sealed_values;
    key.sealed_bytes += bytes;
    key.sealing->used = true;
    return *key.sealing;
}

}  // namespace envcrypt::keyring
