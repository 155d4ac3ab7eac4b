// What one backend of PostgreSQL holds: the open keys, credentials, the HTTPS engine, the operation
// under way; and the epoch, which moves on whenever something that a resolved key rests on may have
// changed.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "crypto/random.hpp"
#include "http/engine.hpp"
#include "keyring/cache.hpp"
#include "keyring/operation.hpp"
#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

// A key made in the transaction under way, or superseded in it by such a one.
struct UncommittedKey {
    std::uint64_t key_id;
    int nest_level;        // of the subtransaction that would take it back
    bool first_of_tenant;  // made by create_tenant(): its tenant does not exist without it
    bool superseded;       // still the newest that is committed
};

// A KMS that was away: when it is asked first again, and how long the pause was.
struct Away {
    kms::Clock until{};
    kms::Clock pause{};
};

// What the server's log is told once the transaction under way is committed.
struct CommitLine {
    std::string line;
    int nest_level;
};

// One of the operations that run_operations() drives.
struct Run {
    keyring::Operation *operation;
    bool started = false;
    bool finished = false;
    bool succeeded = false;
    http::TransferId transfer = 0;  // what it waits for; 0 is none
    kms::Clock deadline{};          // when it is given up: kms_timeout after its start
};

// An identity that the session brought itself, for one server, as one role.
struct BroughtIdentity {
    Oid server;
    Oid role;
    bool for_session;  // else for the transaction
    int nest_level;    // of the subtransaction that takes it back
    std::uint32_t serial;
    kms::Options options;
    std::shared_ptr<const std::map<std::string, SecretBytes, std::less<>>> contents;
    // Those of other servers whose secrets were read under it.
    std::set<keyring::IdentityId> used_by;
};

// The search keys of a tenant, open.
struct ResolvedSearch {
    static constexpr int kMaxKeys = 4;
    int count = 0;  // 0: not known, or more than fit
    struct {
        keyring::OpenKey *key;
        std::uint64_t serial;
        int version;
    } keys[kMaxKeys] = {};

    bool is_open() const {
        for (int i = 0; i < count; ++i)
            if (keys[i].key->serial != keys[i].serial) return false;
        return count > 0;
    }
};

// Moves on with every invalidation of the key tables, of servers, user mappings and roles.
extern std::uint64_t epoch;

struct Backend {
    keyring::Cache cache;
    keyring::Credentials credentials;
    crypto::RandomPool random;
    std::unique_ptr<http::Engine> engine;  // made when first needed
    bool connections_stale = false;        // they were made under options that changed
    std::unique_ptr<keyring::Operation> operation;
    std::vector<std::unique_ptr<keyring::Operation>> batch;  // what runs at once
    // Those of `batch` that more keys may join, by identity, master key and patience.
    using Filling = std::tuple<keyring::IdentityId, std::string, kms::Clock>;
    std::map<Filling, keyring::Operation *> batch_filling;
    std::vector<Run> runs;
    std::vector<UncommittedKey> uncommitted;
    std::vector<CommitLine> commit_lines;
    bool keys_changed = false;  // by the transaction under way, or one within it
    std::vector<BroughtIdentity> brought;
    std::map<keyring::IdentityId, Away> away;
    std::size_t keys_in_hand = 0;  // that many are needed at once: the cache holds them

    // What resolve.cpp found out in `resolved_epoch`: which open key a role may use.
    struct Resolved {
        keyring::OpenKey *key;
        std::uint64_t serial;
    };
    std::map<std::pair<Oid, std::string>, Resolved> for_sealing;          // by role and tenant
    std::map<std::pair<Oid, std::uint64_t>, Resolved> for_opening;        // by role and key id
    std::map<std::pair<Oid, std::string>, ResolvedSearch> for_searching;  // by role and tenant
    // What try_decrypt() was refused, and until when it does not ask again: by role and key id.
    std::map<std::pair<Oid, std::uint64_t>, kms::Clock> unavailable;
    std::uint64_t resolved_epoch = 0;
};

// Made at first use in each process; raises where there is no memory.
Backend &backend();
// The same where it exists already, else null. For callbacks.
Backend *backend_if_any();

// The settings (module.cpp).
extern char *setting_tenant;
extern std::uint64_t tenant_setting_changes;  // counts assignments of envcrypt.tenant
extern bool setting_tenant_per_transaction;   // envcrypt.tenant_scope = transaction
extern int setting_kms_timeout;               // milliseconds
extern int setting_kms_concurrency;
extern int setting_cache_ttl;     // seconds
extern int setting_outage_grace;  // seconds
extern int setting_cache_size;
extern bool setting_require_mlock;

// Raises where the tenant that envcrypt.tenant names was set for the session, or by another
// transaction, and envcrypt.tenant_scope refuses that.
void require_tenant_scope();

// Lets the epoch move: at each statement and every 40 ms within one, invalidations are accepted
// and expired keys dropped. A PostgreSQL frame; costs one reading of the coarse clock.
void follow_epoch();

// Wipes all open keys and credentials, those that the session brought too, and what operations
// under way and connections hold.
void wipe_keys();

// Raises under require_mlock where memory for keys could not be locked, having wiped them. To be
// called whenever a key was obtained and before one is used.
[[noreturn]] void raise_unlocked_memory();
inline void require_locked_memory() {
    if (unlikely(setting_require_mlock && !secret_memory_is_locked())) raise_unlocked_memory();
}

// Milliseconds since boot, suspended time included.
kms::Clock now();

// The key tables' OIDs, which the invalidation callback compares; set by keys.cpp.
struct KeyTables {
    Oid tenant;
    Oid data_key;
    Oid wrapped_key;
};
extern KeyTables watched_tables;

// Whether `backend().brought` holds any: a setting, since settings are what parallel workers get.
extern bool session_brought_identity;

// Forgets all open keys and all credentials, and closes the connections that they came by, whose
// buffers may hold them. Returns how many keys there were. Moves the epoch, since no pointer to a
// key is good any more. A C++ frame, with no operation under way.
std::size_t forget_keys(Backend &state);

// Forgets the identities that the session brought and that `condition` names, with all that was
// opened as them. A C++ frame.
template <class Condition>
void forget_brought(Backend &state, Condition condition) {
    // the condition may look at all of them
    std::vector<std::uint32_t> gone;
    for (const BroughtIdentity &identity : state.brought) {
        if (!condition(identity)) continue;
        gone.push_back(identity.serial);
        for (const keyring::IdentityId &other : identity.used_by) {
            state.cache.drop_identity(other);
            state.credentials.forget(other);
        }
    }
    for (const std::uint32_t serial : gone) {
        state.cache.drop_mapping(keyring::kNoMapping, serial);
        state.credentials.forget_mapping(keyring::kNoMapping, serial);
        std::erase_if(state.brought,
                      [&](const BroughtIdentity &other) { return other.serial == serial; });
        ++epoch;
    }
    if (!gone.empty() && state.engine != nullptr) state.engine->close_connections();
    session_brought_identity = !state.brought.empty();
}

// Makes room for a new batch.
void begin_batch();
// Drives all of `backend().runs` to their end, up to `setting_kms_concurrency` of them at once,
// waiting where it must. False where one failed, said by the report: the others are then left where
// they were, and the caller drops all. The one function of the project that waits: see below.
bool run_operations(ErrorReport &report);
// Drives all of `backend().batch` to their end; they then hold their results until the next batch
// begins. False where one failed, as the report says: nothing is left of the batch.
bool try_batch(ErrorReport &report);
// The same, raising the report.
void run_batch();
// Drives the operation that `backend().operation` holds to its end, waiting where it must. True
// where all went well: `backend().operation` then holds the result until the caller resets it; else
// the report says what happened. The one function of the project that waits: cancel, termination
// and timeouts act at any moment. Never to be called with an LWLock or a content lock held, in a
// critical section, or from the type's input, output or comparison functions.
bool run_operation(ErrorReport &report);
// The same, raising the report.
void run_operation();

}  // namespace envcrypt::pg
