// What is done with a KMS: make a key, open one, prove that a server works. Each is one piece of
// work that says what it needs (kms/task.hpp) and leaves its result in the Operation. Knows nothing
// of catalogs or of PostgreSQL.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "crypto/keys.hpp"
#include "identity/identity.hpp"
#include "kms/dialect.hpp"
#include "kms/task.hpp"

namespace envcrypt::keyring {

// Names a user mapping and its server as they were at one moment; any change of either makes
// another. [0] and [4] are their OIDs, the others say which version.
using IdentityId = std::array<std::uint32_t, 8>;
// In place of a mapping's OID: an identity that the session brought, [5] says which.
inline constexpr std::uint32_t kNoMapping = 0xffffffff;

// Credentials in use, by identity. A forgotten or expired one is obtained anew when needed.
class Credentials {
public:
    // Null where there is none, or none that lasts.
    const identity::Credential *find(const IdentityId &id, kms::Clock now) const;
    void keep(const IdentityId &id, identity::Credential credential, kms::Clock now);
    // One that could not be renewed serves on, and is not tried again before that time.
    void postpone_renewal(const IdentityId &id, kms::Clock until);
    void forget(const IdentityId &id) { kept_.erase(id); }
    // Only that one: another may have been obtained since it was refused.
    void forget(const IdentityId &id, std::uint64_t serial);
    void forget_mapping(std::uint32_t mapping, std::uint32_t version);
    void clear() {
        kept_.clear();
        clock_offsets_.clear();
    }

    // Of many operations at once, one obtains a credential for all that share the identity.
    class Obtaining {
    public:
        Obtaining(Credentials &all, const IdentityId &id) : all_(all), id_(id) {
            all_.obtaining_.insert(id_);
        }
        Obtaining(const Obtaining &) = delete;
        ~Obtaining() { all_.obtaining_.erase(id_); }

    private:
        Credentials &all_;
        IdentityId id_;
    };
    bool is_obtaining(const IdentityId &id) const { return obtaining_.contains(id); }

    // By how many seconds this host's clock is behind the KMS's, where that mattered.
    std::int64_t clock_offset(const IdentityId &id) const;
    void set_clock_offset(const IdentityId &id, std::int64_t seconds);

private:
    std::uint64_t last_serial_ = 0;
    std::map<IdentityId, identity::Credential> kept_;
    std::set<IdentityId> obtaining_;
    std::map<IdentityId, std::int64_t> clock_offsets_;
};

// One of the keys that open_keys() opens, wrap_keys() wraps or rewrap_keys() rewraps.
struct KeyToOpen {
    std::uint64_t key_id = 0;
    crypto::Purpose purpose{};
    std::string tenant;
    std::string context;  // of the three above
    Bytes wrapped;
    Bytes attestation;
    crypto::Digest commitment{};
    std::string master_key;           // rewrap_keys: what wrapped it
    SecretBytes key;                  // open_keys: what came of it; wrap_keys: what to wrap
    kms::Answer made;                 // wrap_keys, rewrap_keys: what came of it
    std::optional<ErrorCode> failed;  // open_keys: why it was not opened, where it was tried
};

struct Operation {
    // What is asked: set before the start.
    kms::Server server;
    IdentityId identity{};
    std::string context;          // C of the key
    Bytes wrapped;                // open_key, verify_key
    Bytes attestation;            // open_key, verify_key: what came with it
    crypto::Digest commitment{};  // open_key, verify_key
    Credentials *credentials = nullptr;
    std::vector<KeyToOpen> keys;  // open_keys, wrap_keys, rewrap_keys: all by one master key
    kms::Clock limit{};           // the most it may take; 0: what the driver gives every operation
    // How much longer it is tried once an attempt has failed; 0: as long as it may take.
    kms::Clock patience{};

    // What came of it.
    SecretBytes key;            // open_key, make_key
    kms::Answer made;           // make_key, check_server; its key lies in `key`
    std::string identity_text;  // check_server

    std::optional<kms::Clock> gives_up;  // once an attempt has failed

    kms::Conversation talk;
    kms::Task<Status> work;
};

// Unwraps `wrapped` and checks it against `commitment` (else corrupt).
kms::Task<Status> open_key(Operation &operation);

// Unwraps `wrapped`, of which nothing is known but that it has 32 bytes (else corrupt).
kms::Task<Status> unwrap_key(Operation &operation);

// Unwraps all of `keys` and checks each, in one request where the KMS takes so many. Fails with the
// first of them that does, a denial before all others; those that were opened nevertheless have
// their `key`.
kms::Task<Status> open_keys(Operation &operation);

// Wraps all of `keys` under the newest version of the server's master key, and unwraps and checks
// each of what came of it: only then is it fit to be kept. Fails with the first that does.
kms::Task<Status> wrap_keys(Operation &operation);

// The same of what is wrapped, inside the KMS: only where the dialect rewraps().
kms::Task<Status> rewrap_keys(Operation &operation);

// The same by a group key, which needs no KMS: unwraps `key.wrapped` (else corrupt, of the group of
// that name), or wraps `key.key` into `key.made` and proves that this opens again.
Status open_by_group(const SecretBytes &group_key, const std::string &group, KeyToOpen &key);
Status wrap_by_group(const SecretBytes &group_key, const std::string &group, KeyToOpen &key);

// Has a data key made and wrapped under `context`.
kms::Task<Status> make_key(Operation &operation);

// Unwraps what make_key() wrapped, checks it against `commitment`, and proves that the KMS refuses
// to unwrap it under another context (else misconfigured): only then is the key fit for use.
kms::Task<Status> verify_key(Operation &operation);

// Makes a key that is thrown away, verifies it, and asks the KMS who we are.
kms::Task<Status> check_server(Operation &operation);

}  // namespace envcrypt::keyring
