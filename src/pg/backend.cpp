// The backend's state, when it comes to be and when it is wiped, and the epoch. See backend.hpp.
#include "pg/backend.hpp"

#include <time.h>

#include <algorithm>

namespace envcrypt::pg {

std::uint64_t epoch = 1;
KeyTables watched_tables{};

namespace {

// A change is to be seen within 100 ms: what is left is for a busy machine to come to it.
constexpr std::uint64_t kEpochCheckMs = 40;

// Never destroyed: exit() runs after PostgreSQL's own exit callbacks, which wipe what it holds. An
// inherited one belongs to another process and is abandoned.
Backend *the_backend = nullptr;
int the_backend_pid = 0;

std::uint64_t milliseconds(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1000 +
           static_cast<std::uint64_t>(time.tv_nsec) / 1000000;
}

}  // namespace

void wipe_keys() {
    if (Backend *state = backend_if_any()) {
        ErrorReport ignored;
        (void)guarded(ignored, [&] {
            state->runs.clear();
            state->batch.clear();
            state->batch_filling.clear();
            state->operation.reset();
            forget_brought(*state, [](const BroughtIdentity &) { return true; });
            (void)forget_keys(*state);
        });
    }
}

void raise_unlocked_memory() {
    wipe_keys();
    ereport(ERROR,
            (errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("could not lock keys in memory"),
             errdetail("envcrypt.require_mlock is on. This session's keys and credentials were "
                       "wiped, since they could have reached swap."),
             errhint("Raise the limit on locked memory (ulimit -l, LimitMEMLOCK) of the database "
                     "server, and connect anew.")));
    pg_unreachable();
}

namespace {

void on_exit(int, Datum) {
    wipe_keys();
}

void on_relation_change(Datum, Oid relation) {
    if (relation == InvalidOid || relation == watched_tables.tenant ||
        relation == watched_tables.data_key || relation == watched_tables.wrapped_key)
        ++epoch;
}

void on_catalog_change(Datum, int, uint32) {
    ++epoch;
}

void on_server_change(Datum, int, uint32) {
    ++epoch;
    if (Backend *state = backend_if_any()) state->connections_stale = true;
}

// Takes back what rolled back (sub)transactions made or were about to: keys, and an operation that
// an error left behind.
void roll_back(Backend &state, int from_level) {
    ErrorReport ignored;
    (void)guarded(ignored, [&] {
        state.runs.clear();
        state.batch.clear();
        state.batch_filling.clear();
        state.operation.reset();
        state.keys_in_hand = 0;
        std::erase_if(state.commit_lines,
                      [&](const CommitLine &line) { return line.nest_level >= from_level; });
        if (state.uncommitted.empty()) return;
        ++epoch;
        std::erase_if(state.uncommitted, [&](const UncommittedKey &made) {
            if (made.nest_level < from_level) return false;
            state.cache.drop_key(made.key_id);
            return true;
        });
    });
}

// What has had its time goes at the end of any transaction, whether it concerns envcrypt or not.
void expire_keys(Backend &state) {
    static std::uint64_t last = 0;
    const std::uint64_t tick = milliseconds(CLOCK_MONOTONIC_COARSE);
    if (state.cache.size() == 0 || tick - last < kEpochCheckMs) return;
    last = tick;
    ErrorReport ignored;
    (void)guarded(ignored, [&] { state.cache.expire(now()); });
}

// An identity that was brought for the transaction ends with it; one for the session does where the
// transaction that brought it is taken back.
void end_brought(Backend &state, bool committed) {
    if (state.brought.empty()) return;
    ErrorReport ignored;
    (void)guarded(ignored, [&] {
        forget_brought(state, [&](const BroughtIdentity &identity) {
            return !identity.for_session || (!committed && identity.nest_level > 0);
        });
        // of those that are left for one server and role, the last is the one
        forget_brought(state, [&](const BroughtIdentity &identity) {
            return std::any_of(
                state.brought.begin(), state.brought.end(), [&](const BroughtIdentity &other) {
                    return other.server == identity.server && other.role == identity.role &&
                           other.serial > identity.serial;
                });
        });
        for (BroughtIdentity &identity : state.brought) identity.nest_level = 0;
    });
}

void on_transaction(XactEvent event, void *) {
    Backend *state = backend_if_any();
    if (state == nullptr) return;
    switch (event) {
        case XACT_EVENT_PRE_PREPARE:
            if (!state->keys_changed) break;
            ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                            errmsg("cannot PREPARE a transaction that has changed keys"),
                            errhint("Commit the key change in a transaction of its own.")));
            break;
        case XACT_EVENT_ABORT:
        case XACT_EVENT_PARALLEL_ABORT:
            roll_back(*state, 0);
            end_brought(*state, false);
            state->keys_changed = false;
            expire_keys(*state);
            break;
        case XACT_EVENT_COMMIT:
        case XACT_EVENT_PREPARE:
        case XACT_EVENT_PARALLEL_COMMIT:
            end_brought(*state, true);
            state->keys_changed = false;
            expire_keys(*state);
            // an error now would be a PANIC: to the client, whose encoding may lack a letter, goes
            // nothing
            for (const CommitLine &line : state->commit_lines)
                ereport(LOG_SERVER_ONLY,
                        (errmsg("envcrypt: %s, committed at WAL %X/%X", line.line.c_str(),
                                static_cast<unsigned>(XactLastCommitEnd >> 32),
                                static_cast<unsigned>(XactLastCommitEnd)),
                         errhidestmt(true)));
            state->commit_lines.clear();
            if (state->uncommitted.empty()) break;
            state->uncommitted.clear();
            ++epoch;
            break;
        default:
            break;
    }
}

void on_subtransaction(SubXactEvent event, SubTransactionId, SubTransactionId, void *) {
    Backend *state = backend_if_any();
    if (state == nullptr) return;
    const int level = GetCurrentTransactionNestLevel();
    if (event == SUBXACT_EVENT_ABORT_SUB) {
        roll_back(*state, level);
        ErrorReport ignored;
        (void)guarded(ignored, [&] {
            forget_brought(*state, [&](const BroughtIdentity &identity) {
                return identity.nest_level >= level;
            });
        });
    } else if (event == SUBXACT_EVENT_COMMIT_SUB) {
        for (BroughtIdentity &identity : state->brought)
            if (identity.nest_level == level) identity.nest_level = level - 1;
        for (CommitLine &line : state->commit_lines)
            if (line.nest_level == level) line.nest_level = level - 1;
        if (state->uncommitted.empty()) return;
        for (UncommittedKey &made : state->uncommitted)
            if (made.nest_level == level) made.nest_level = level - 1;
        ++epoch;
    }
}

// PostgreSQL's slots for these are few and their overflow is FATAL: once in each process, and only
// after a start that succeeded.
void register_callbacks() {
    static bool registered = false;
    if (registered) return;
    registered = true;
    before_shmem_exit(on_exit, 0);
    CacheRegisterRelcacheCallback(on_relation_change, 0);
    CacheRegisterSyscacheCallback(FOREIGNSERVEROID, on_server_change, 0);
    CacheRegisterSyscacheCallback(USERMAPPINGOID, on_catalog_change, 0);
    CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, on_catalog_change, 0);
    CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, on_catalog_change, 0);
    CacheRegisterSyscacheCallback(AUTHOID, on_catalog_change, 0);
    CacheRegisterSyscacheCallback(PROCOID, on_catalog_change, 0);
    RegisterXactCallback(on_transaction, nullptr);
    RegisterSubXactCallback(on_subtransaction, nullptr);
}

}  // namespace

Backend *backend_if_any() {
    return the_backend_pid == MyProcPid ? the_backend : nullptr;
}

std::size_t forget_keys(Backend &state) {
    const std::size_t forgotten = state.cache.clear();
    state.credentials.clear();
    // whoever held a pointer to a key looks again
    ++epoch;
    state.cache.release();
    if (state.engine != nullptr) state.engine->close_connections();
    return forgotten;
}

Backend &backend() {
    if (the_backend_pid != MyProcPid) {
        register_callbacks();
        ErrorReport report;
        Backend *made = nullptr;
        if (!guarded(report, [&]() -> Status {
                made = new Backend;
                return Unit{};
            }))
            raise(report);
        the_backend = made;
        the_backend_pid = MyProcPid;
    }
    return *the_backend;
}

kms::Clock now() {
    return kms::Clock(static_cast<std::int64_t>(milliseconds(CLOCK_BOOTTIME)));
}

void follow_epoch() {
    static TimestampTz last_statement = 0;
    static std::uint64_t last_check = 0;
    const TimestampTz statement = GetCurrentStatementStartTimestamp();
    const std::uint64_t tick = milliseconds(CLOCK_MONOTONIC_COARSE);
    if (statement == last_statement && tick - last_check < kEpochCheckMs) return;
    last_statement = statement;
    last_check = tick;
    AcceptInvalidationMessages();
    if (Backend *state = backend_if_any()) {
        ErrorReport report;
        if (!guarded(report, [&] { state->cache.expire(now()); })) raise(report);
    }
}

}  // namespace envcrypt::pg
