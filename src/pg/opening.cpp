// See opening.hpp.
#include "pg/opening.hpp"

namespace envcrypt::pg {

namespace {

using keyring::OpenKey;

// A place that the current role may use, of one key.
struct Candidate {
    const WrappedKeyRow *row;
    const Place *place;
    bool failed;
    bool away;  // and so failed
};

// A server as the current role may use it, looked up once for all keys of a call: what is altered
// meanwhile is another identity, and must not make two of one.
struct KnownPlace {
    const char *server;
    PlaceFault fault;
    Place place;
};

// A key that is to be opened at a KMS.
struct Wanted {
    const KeyRow *key;
    List *candidates;      // of Candidate *, in the order in which they are tried
    ErrorReport *failure;  // the worst, with what the other places said
    bool is_asked;         // in the batch under way
    bool is_opened;        // by this call: it may have been pushed out of the cache since
};

// A key that a group key wraps.
struct Child {
    const KeyRow *key;
    const WrappedKeyRow *row;
    Wanted *group;
};

// What keeps an operation from one KMS, and not from the next.
bool is_failover(ErrorCode code) {
    return code == ErrorCode::unreachable || code == ErrorCode::throttled ||
           code == ErrorCode::misconfigured || code == ErrorCode::corrupt;
}

bool is_away(ErrorCode code) {
    return code == ErrorCode::unreachable || code == ErrorCode::throttled;
}

// Of the failures of several places, which is the one to tell.
int severity(ErrorCode code) {
    if (code == ErrorCode::corrupt) return 3;
    return is_away(code) ? 1 : 2;
}

bool is_unavailable(ErrorCode code) {
    return is_away(code) || code == ErrorCode::denied || code == ErrorCode::misconfigured;
}

// A KMS that was away is asked last for a while, which grows as it stays away. Where there is
// another, or a key of before, it then has to answer soon.
constexpr kms::Clock kFirstPause{5000};
constexpr kms::Clock kLongestPause{60000};
constexpr kms::Clock kProbePatience{2000};
// Where a key of before can serve on meanwhile, a KMS that has failed once is tried this much
// longer. The first attempt has all the time there is: it may be a denial that comes late.
constexpr kms::Clock kBridgePatience{1000};
constexpr kms::Clock kLeastPatience{100};

// Of a key that was destroyed since it was looked up, that.
[[noreturn]] void raise_wrapped_nowhere(const KeyRow &key) {
    KeyRow now_there;
    if (find_key(key.key_id, now_there) && now_there.state == KeyState::destroyed)
        raise_destroyed(key);
    ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                    errmsg("key %016llx of tenant \"%s\" is wrapped nowhere",
                           static_cast<unsigned long long>(key.key_id), key.tenant),
                    errhint("Restore the rows of envcrypt.wrapped_key from a backup.")));
    pg_unreachable();
}

KnownPlace *know_place(char *server, List *&places) {
    ListCell *cell;
    foreach (cell, places) {
        auto *known = static_cast<KnownPlace *>(lfirst(cell));
        if (strcmp(known->server, server) == 0) return known;
    }
    auto *known = static_cast<KnownPlace *>(palloc0(sizeof(KnownPlace)));
    known->server = server;
    known->fault = find_place(server, GetUserId(), known->place);
    places = lappend(places, known);
    return known;
}

// Returns null where the role may use none of the places, and `soft`. Raises where it may not, or
// where none of the places is a KMS server at all.
Wanted *find_candidates(const KeyRow &key, List *rows, List *&places, bool soft) {
    if (rows == NIL) raise_wrapped_nowhere(key);
    auto *wanted = static_cast<Wanted *>(palloc0(sizeof(Wanted)));
    wanted->key = &key;
    PlaceFault fault = PlaceFault::none;
    const char *fault_server = nullptr;
    ListCell *cell;
    foreach (cell, rows) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        const KnownPlace *known = know_place(row->server, places);
        if (known->fault == PlaceFault::none) {
            auto *candidate = static_cast<Candidate *>(palloc0(sizeof(Candidate)));
            candidate->row = row;
            candidate->place = &known->place;
            wanted->candidates = lappend(wanted->candidates, candidate);
        } else if (known->fault >= fault) {
            // the fault of the place that came closest is the one to tell
            fault = known->fault;
            fault_server = row->server;
        }
    }
    if (wanted->candidates != NIL) return wanted;
    // where there is no such server, the rows are wrong
    if (soft && (fault == PlaceFault::no_usage || fault == PlaceFault::no_mapping)) return nullptr;
    raise_place_fault(fault, fault_server, GetUserId());
}

KeyRow *find_group(const char *name) {
    auto *group = static_cast<KeyRow *>(palloc(sizeof(KeyRow)));
    if (!find_newest_key(name, crypto::Purpose::group, is_live, *group))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_CORRUPTED), errmsg("group key \"%s\" does not exist", name),
                 errhint("Restore the rows of envcrypt.data_key from a backup.")));
    return group;
}

const WrappedKeyRow *find_group_wrapping(List *rows) {
    ListCell *cell;
    foreach (cell, rows) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (row->group_key[0] != '\0') return row;
    }
    return nullptr;
}

// Reads where the key is wrapped (`rows`) and returns the wrapping by a group key, or null where
// there is none. Raises where it is by another group than the one that the tenant's row names.
const WrappedKeyRow *group_wrapping(const KeyRow &key, List *&rows) {
    // the two tables are read one after the other, and a tenant may be moved in between
    constexpr int attempts = 5;
    for (int attempt = 1;; ++attempt) {
        rows = find_wrapped_keys(key.key_id);
        const WrappedKeyRow *in_group = find_group_wrapping(rows);
        if (in_group == nullptr) return nullptr;
        TenantRow tenant;
        if (key.purpose != crypto::Purpose::group && find_tenant(key.tenant, tenant) &&
            strcmp(tenant.group_key, in_group->group_key) == 0)
            return in_group;
        if (attempt == attempts) raise_foreign_group(key, *in_group);
    }
}

keyring::KeySource source_of(const KeyRow &key, const WrappedKeyRow &row) {
    return {key.purpose, key.tenant, key.commitment, row.wrapped, row.attestation};
}

// Returns the key where it is open as it was opened at one of these places or, where `by_group`
// is given, by that wrapping with a group key of these places. Returns null where it is not.
OpenKey *find_open_at(const Wanted &places, const KeyRow &key, const WrappedKeyRow *by_group,
                      bool stale = false) {
    Backend &state = backend();
    ErrorReport report;
    OpenKey *open = nullptr;
    ListCell *cell;
    foreach (cell, places.candidates) {
        const auto *candidate = static_cast<Candidate *>(lfirst(cell));
        const keyring::KeyRef ref{candidate->place->identity, key.key_id};
        const WrappedKeyRow &row = by_group != nullptr ? *by_group : *candidate->row;
        if (!guarded(report, [&] {
                const keyring::KeySource source = source_of(key, row);
                open = stale ? state.cache.find_stale(ref, source) : state.cache.find(ref, source);
            }))
            raise(report);
        if (open != nullptr) break;
    }
    return open;
}

// Returns the same of the key that the places are of.
OpenKey *find_open_at(const Wanted &places, bool stale = false) {
    return find_open_at(places, *places.key, nullptr, stale);
}

// Until when the KMS is asked last; nothing where it was not away.
std::optional<kms::Clock> away_until(const keyring::IdentityId &identity) {
    const Backend &state = backend();
    const auto found = state.away.find(identity);
    return found == state.away.end() ? std::nullopt : std::optional(found->second.until);
}

void note_away(Backend &state, const keyring::IdentityId &identity) {
    Away &away = state.away[identity];
    away.pause = std::clamp(away.pause * 2, kFirstPause, kLongestPause);
    away.until = now() + away.pause;
}

// Has an expired key serve on, since the KMS that gave it is away. False where there is none.
bool bridge(const Wanted &wanted) {
    if (wanted.failure != nullptr && wanted.failure->code == ErrorCode::corrupt) return false;
    OpenKey *stale = find_open_at(wanted, true);
    if (stale == nullptr) return false;
    bool is_its_own = false;
    ListCell *cell;
    foreach (cell, wanted.candidates) {
        const auto *candidate = static_cast<Candidate *>(lfirst(cell));
        if (candidate->place->identity == stale->ref.identity)
            is_its_own = candidate->away || !candidate->failed;
    }
    if (!is_its_own) return false;
    const kms::Clock until =
        std::max(away_until(stale->ref.identity).value_or(kms::Clock{}), now() + kms::Clock(1));
    Backend &state = backend();
    ErrorReport report;
    char server[NAMEDATALEN];
    if (!guarded(report, [&] {
            copy_text(server, stale->server);
            state.cache.bridge(*stale, until);
        }))
        raise(report);
    static std::optional<kms::Clock> warned;
    constexpr kms::Clock minute{60000};
    if (warned && now() - *warned < minute) return true;
    warned = now();
    ereport(WARNING, (errmsg("KMS \"%s\" is away: keys that it opened before serve on", server),
                      errdetail("They do until cache_ttl and outage_grace have passed; "
                                "envcrypt.cache shows when."),
                      errhint("See to the KMS before it ends.")));
    return true;
}

// The place to be tried next, and how long it may take (0: as long as any operation); null where
// all have failed or, where that is `soft` or a key of before can serve on, all are away.
Candidate *next_place(const Wanted &wanted, kms::Clock end, bool soft, kms::Clock &limit) {
    Candidate *next = nullptr;
    Candidate *first_away = nullptr;
    int left = 0;
    ListCell *cell;
    foreach (cell, wanted.candidates) {
        auto *candidate = static_cast<Candidate *>(lfirst(cell));
        if (candidate->failed) continue;
        ++left;
        const auto until = away_until(candidate->place->identity);
        if (until && now() < *until) {
            if (first_away == nullptr) first_away = candidate;
        } else if (next == nullptr) {
            next = candidate;
        }
    }
    const bool can_bridge = find_open_at(wanted, true) != nullptr;
    if (next == nullptr && !can_bridge && !soft) next = first_away;
    limit = kms::Clock{};
    if (next == nullptr || (list_length(wanted.candidates) == 1 && !can_bridge)) return next;
    limit = std::max((end - now()) / left, kLeastPatience);
    const bool was_away = away_until(next->place->identity).has_value();
    if (was_away && next != first_away) limit = std::min(limit, kProbePatience);
    return next;
}

// Has the batch open the key there. False where no request could be made.
bool add_to_batch(const KeyRow &key, const Candidate &candidate, kms::Clock limit,
                  kms::Clock patience, ErrorReport &report) {
    Backend &state = backend();
    const WrappedKeyRow &row = *candidate.row;
    const Place &place = *candidate.place;
    keyring::Operation *operation = nullptr;
    if (!guarded(report, [&] {
            const auto found = state.batch_filling.find({place.identity, row.master_key, patience});
            if (found != state.batch_filling.end() &&
                found->second->keys.size() < place.dialect->max_batch())
                operation = found->second;
        }))
        raise(report);
    const bool begins = operation == nullptr;
    if (begins) operation = prepare_in_batch(place, row.master_key, report);
    if (operation == nullptr) return false;
    if (!guarded(report, [&] {
            if (begins)
                state.batch_filling.insert_or_assign(
                    Backend::Filling{place.identity, row.master_key, patience}, operation);
            if (begins || limit < operation->limit) operation->limit = limit;
            operation->patience = patience;
            keyring::KeyToOpen &wanted = operation->keys.emplace_back();
            wanted.key_id = key.key_id;
            wanted.purpose = key.purpose;
            wanted.tenant = key.tenant;
            wanted.context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
            wanted.wrapped.assign(row.wrapped.begin(), row.wrapped.end());
            wanted.attestation.assign(row.attestation.begin(), row.attestation.end());
            wanted.commitment = key.commitment;
        }))
        raise(report);
    return true;
}

void note_failure(Wanted &wanted, Candidate &candidate, const ErrorReport &report) {
    candidate.failed = true;
    candidate.away = is_away(report.code);
    if (wanted.failure == nullptr) {
        wanted.failure = static_cast<ErrorReport *>(palloc(sizeof(ErrorReport)));
        *wanted.failure = report;
        return;
    }
    ErrorReport other = report;
    if (severity(report.code) > severity(wanted.failure->code)) std::swap(other, *wanted.failure);
    char *detail = wanted.failure->detail;
    const std::size_t length = strlen(detail);
    snprintf(detail + length, sizeof(wanted.failure->detail) - length, "%sAnd %s.",
             length > 0 ? " " : "", other.message);
}

keyring::Lifetime lifetime(const keyring::Operation &operation) {
    const kms::Clock time = now();
    const kms::Clock expires =
        time + operation.server.duration("cache_ttl", std::chrono::seconds(setting_cache_ttl));
    return {time, expires,
            expires + operation.server.duration("outage_grace",
                                                std::chrono::seconds(setting_outage_grace))};
}

std::size_t cache_limit(const Backend &state) {
    return std::max(static_cast<std::size_t>(setting_cache_size), state.keys_in_hand);
}

// Takes what has been opened into the cache. A C++ frame.
void keep_opened(Backend &state, const keyring::IdentityId *denied) {
    const keyring::IdentityId *last = nullptr;
    for (Run &run : state.runs) {
        if (!run.finished) continue;
        keyring::Operation &operation = *run.operation;
        if (last == nullptr || *last != operation.identity)
            state.cache.drop_older(operation.identity);
        last = &operation.identity;
        if (run.succeeded) state.away.erase(operation.identity);
        // whoever was denied meanwhile keeps nothing
        if (denied != nullptr && operation.identity == *denied) continue;
        for (keyring::KeyToOpen &key : operation.keys) {
            if (key.key.empty()) continue;
            const keyring::KeyRef ref{operation.identity, key.key_id};
            const keyring::KeySource source{key.purpose, key.tenant, key.commitment, key.wrapped,
                                            key.attestation};
            state.cache.put(ref, source, operation.server.name, std::move(key.key),
                            lifetime(operation), cache_limit(state));
        }
    }
}

// What failed: an operation as a whole, or some of its keys.
struct Failure {
    keyring::IdentityId identity;
    char *master_key;
    std::uint64_t *keys;  // those that failed themselves
    int key_count;
    bool was_hurried;  // the KMS had less time than another key's operation gives it
};

// Who failed among the runs; its texts and arrays lie in the current memory context.
Failure find_failure(Backend &state) {
    Failure failure{};
    ErrorReport report;
    std::size_t count = 0;
    for (const Run &run : state.runs)
        if (run.finished && !run.succeeded) count = run.operation->keys.size();
    failure.keys = static_cast<std::uint64_t *>(palloc(sizeof(std::uint64_t) * (count + 1)));
    if (!guarded(report, [&] {
            for (const Run &run : state.runs) {
                if (!run.finished || run.succeeded) continue;
                failure.identity = run.operation->identity;
                failure.was_hurried = run.operation->gives_up.has_value();
                for (const keyring::KeyToOpen &key : run.operation->keys)
                    if (key.failed || failure.was_hurried)
                        failure.keys[failure.key_count++] = key.key_id;
            }
        }))
        raise(report);
    return failure;
}

bool names_key(const Failure &failure, std::uint64_t key_id) {
    return std::find(failure.keys, failure.keys + failure.key_count, key_id) !=
           failure.keys + failure.key_count;
}

// Which places a failure concerns: what is away, all of that KMS, or the keys of an operation that
// was hurried; what is misconfigured, all by that master key; what is corrupt, that wrapping only.
// False where it concerns none.
bool note_failures(List *wanted, const Failure &failure, const ErrorReport &report) {
    const char *master_key = nullptr;
    ListCell *cell;
    foreach (cell, wanted) {
        const auto *one = static_cast<Wanted *>(lfirst(cell));
        if (!names_key(failure, one->key->key_id)) continue;
        ListCell *other;
        foreach (other, one->candidates) {
            const auto *candidate = static_cast<Candidate *>(lfirst(other));
            if (candidate->place->identity == failure.identity)
                master_key = candidate->row->master_key;
        }
    }
    bool any = false;
    foreach (cell, wanted) {
        auto *one = static_cast<Wanted *>(lfirst(cell));
        ListCell *other;
        foreach (other, one->candidates) {
            auto *candidate = static_cast<Candidate *>(lfirst(other));
            if (candidate->failed || candidate->place->identity != failure.identity) continue;
            const bool concerned =
                (is_away(report.code) && !failure.was_hurried) ||
                names_key(failure, one->key->key_id) ||
                (report.code == ErrorCode::misconfigured && master_key != nullptr &&
                 strcmp(candidate->row->master_key, master_key) == 0);
            if (!concerned) continue;
            note_failure(*one, *candidate, report);
            any = true;
        }
    }
    return any;
}

// Drops what was opened of these at any of their places, where one of them denies: what one denies
// is not served from another. Of a group key, what it opened, too.
void drop_denied(List *wanted, const keyring::IdentityId &denied) {
    Backend &state = backend();
    ListCell *cell;
    foreach (cell, wanted) {
        const auto *one = static_cast<Wanted *>(lfirst(cell));
        bool concerned = false;
        ListCell *other;
        foreach (other, one->candidates)
            concerned =
                concerned || static_cast<Candidate *>(lfirst(other))->place->identity == denied;
        if (!concerned) continue;
        foreach (other, one->candidates) {
            const keyring::IdentityId &identity =
                static_cast<Candidate *>(lfirst(other))->place->identity;
            ErrorReport report;
            if (!guarded(report, [&] {
                    if (one->key->purpose == crypto::Purpose::group)
                        state.cache.drop_identity(identity);
                    else
                        state.cache.drop(keyring::KeyRef{identity, one->key->key_id});
                }))
                raise(report);
        }
    }
}

// Opens all of them at the KMSs. False where one is unavailable, and `soft`. Each round opens all
// that are left, or one of their places fails.
bool open_at_kms(List *wanted, bool soft) {
    Backend &state = backend();
    const kms::Clock end = now() + kms::Clock(setting_kms_timeout);
    for (;;) {
        begin_batch();
        ErrorReport report;
        ListCell *cell;
        foreach (cell, wanted) {
            auto *one = static_cast<Wanted *>(lfirst(cell));
            one->is_opened = one->is_opened || find_open_at(*one) != nullptr;
            one->is_asked = false;
            while (!one->is_opened && !one->is_asked) {
                kms::Clock limit{};
                Candidate *place = next_place(*one, end, soft, limit);
                if (place == nullptr) {
                    one->is_opened = bridge(*one);
                    if (one->is_opened) break;
                    if (soft && (one->failure == nullptr || is_unavailable(one->failure->code)))
                        return false;
                    if (one->failure == nullptr) elog(ERROR, "envcrypt: no place to open a key at");
                    raise(*one->failure);
                }
                const bool can_bridge = find_open_at(*one, true) != nullptr;
                one->is_asked = add_to_batch(*one->key, *place, limit,
                                             can_bridge ? kBridgePatience : kms::Clock{}, report);
                if (one->is_asked) break;
                note_failure(*one, *place, report);
                if (report.code != ErrorCode::misconfigured) {
                    if (soft && is_unavailable(report.code)) return false;
                    raise(report);
                }
            }
        }
        if (state.batch.empty()) return true;
        if (!guarded(report, [&] {
                for (const auto &operation : state.batch) {
                    operation->work = keyring::open_keys(*operation);
                    state.runs.push_back({operation.get()});
                }
            }))
            raise(report);
        const bool ok = run_operations(report);
        Failure failure{};
        if (!ok) failure = find_failure(state);
        const bool was_denied = !ok && report.code == ErrorCode::denied;
        ErrorReport kept;
        if (!guarded(kept, [&] {
                if (!ok) state.engine->abort();
                if (!ok && is_away(report.code)) note_away(state, failure.identity);
                keep_opened(state, was_denied ? &failure.identity : nullptr);
            }))
            raise(kept);
        if (ok) {
            foreach (cell, wanted) {
                auto *one = static_cast<Wanted *>(lfirst(cell));
                one->is_opened = one->is_opened || one->is_asked;
            }
            continue;
        }
        if (is_failover(report.code) && note_failures(wanted, failure, report)) continue;
        if (was_denied) drop_denied(wanted, failure.identity);
        begin_batch();
        if (soft && is_unavailable(report.code)) return false;
        raise(report);
    }
}

// Opens a key by its group key. False where that is unavailable, and `soft`.
bool open_child(const Child &child, bool soft) {
    Backend &state = backend();
    OpenKey *group = find_open_at(*child.group);
    if (group == nullptr) {
        child.group->is_opened = false;
        if (!open_at_kms(list_make1(child.group), soft)) return false;
        group = find_open_at(*child.group);
        if (group == nullptr) raise_altered();
    }
    ErrorReport report;
    const KeyRow &key = *child.key;
    if (!guarded(report, [&]() -> Status {
            keyring::KeyToOpen opened;
            opened.context = crypto::wrap_context(key.purpose, key.key_id, key.tenant);
            opened.wrapped.assign(child.row->wrapped.begin(), child.row->wrapped.end());
            opened.commitment = key.commitment;
            Status status = keyring::open_by_group(group->key, child.group->key->tenant, opened);
            if (!status) return status;
            const keyring::KeyRef ref{group->ref.identity, key.key_id};
            keyring::Lifetime life = group->life;
            life.opened = now();
            const bool bridged = group->bridged;
            OpenKey &kept = state.cache.put(ref, source_of(key, *child.row), group->server,
                                            std::move(opened.key), life, cache_limit(state));
            kept.bridged = bridged;
            return status;
        }))
        raise(report);
    return true;
}

}  // namespace

void raise_destroyed(const KeyRow &key) {
    ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                    errmsg("key %016llx of tenant \"%s\" is destroyed",
                           static_cast<unsigned long long>(key.key_id), key.tenant),
                    errhint("Its keys are gone for good; the receipt is in envcrypt.journal.")));
    pg_unreachable();
}

void raise_foreign_group(const KeyRow &key, const WrappedKeyRow &row) {
    ereport(
        ERROR,
        (errcode(ERRCODE_DATA_CORRUPTED),
         errmsg("key %016llx of tenant \"%s\" is wrapped by group key \"%s\", which is not the "
                "tenant's",
                static_cast<unsigned long long>(key.key_id), key.tenant, row.group_key),
         errdetail("The row of envcrypt.tenant names another group key or none. The row of "
                   "envcrypt.wrapped_key may have been planted."),
         errhint("Look for who wrote to the key tables. If envcrypt.tenant was changed, put its "
                 "group_key back; else restore the rows from a backup.")));
    pg_unreachable();
}

void raise_altered() {
    ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                    errmsg("servers or user mappings were altered while keys were being opened"),
                    errhint("Repeat the transaction.")));
    pg_unreachable();
}

// Warns once a session that keys lie in memory that could not be locked.
static void warn_of_unlocked_memory() {
    static bool warned = false;
    if (secret_memory_is_locked() || warned) return;
    warned = true;
    ereport(WARNING,
            (errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("could not lock keys in memory"),
             errdetail("They may reach swap."),
             errhint("Raise the limit on locked memory (ulimit -l, LimitMEMLOCK) of the database "
                     "server.")));
}

bool open_keys(List *keys, bool soft) {
    List *wanted = NIL;
    List *children = NIL;
    List *groups = NIL;
    List *places = NIL;
    ListCell *cell;
    foreach (cell, keys) {
        CHECK_FOR_INTERRUPTS();
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        List *rows = NIL;
        const WrappedKeyRow *in_group = group_wrapping(*key, rows);
        if (in_group == nullptr) {
            Wanted *one = find_candidates(*key, rows, places, soft);
            if (one == nullptr) return false;
            if (find_open_at(*one) == nullptr) wanted = lappend(wanted, one);
            continue;
        }
        Wanted *group = nullptr;
        bool is_new = false;
        ListCell *other;
        foreach (other, groups) {
            auto *known = static_cast<Wanted *>(lfirst(other));
            if (strcmp(known->key->tenant, in_group->group_key) == 0) group = known;
        }
        if (group == nullptr) {
            KeyRow *row = find_group(in_group->group_key);
            group = find_candidates(*row, find_wrapped_keys(row->key_id), places, soft);
            if (group == nullptr) return false;
            groups = lappend(groups, group);
            is_new = true;
        }
        if (is_new && find_open_at(*group) == nullptr) wanted = lappend(wanted, group);
        if (find_open_at(*group, *key, in_group) != nullptr) continue;
        auto *child = static_cast<Child *>(palloc(sizeof(Child)));
        *child = {key, in_group, group};
        children = lappend(children, child);
    }
    if (wanted == NIL && children == NIL) {
        require_locked_memory();
        return true;
    }
    if (!open_at_kms(wanted, soft)) return false;
    // the group stays while its children come
    Backend &state = backend();
    const std::size_t in_hand = state.keys_in_hand;
    state.keys_in_hand = std::max<std::size_t>(in_hand, 2);
    bool ok = true;
    foreach (cell, children) ok = ok && open_child(*static_cast<Child *>(lfirst(cell)), soft);
    state.keys_in_hand = in_hand;
    if (!ok) return false;
    begin_batch();
    require_locked_memory();
    warn_of_unlocked_memory();
    return true;
}

void verify_wrapped_keys(const Place &place, List *keys, List *rows) {
    if (keys == NIL) return;
    Backend &state = backend();
    ErrorReport report;
    begin_batch();
    ListCell *key;
    ListCell *row;
    forboth(key, keys, row, rows) {
        const Candidate candidate{static_cast<WrappedKeyRow *>(lfirst(row)), &place, false, false};
        if (!add_to_batch(*static_cast<KeyRow *>(lfirst(key)), candidate, {}, {}, report))
            raise(report);
    }
    if (!guarded(report, [&] {
            for (const auto &operation : state.batch)
                operation->work = keyring::open_keys(*operation);
        }))
        raise(report);
    run_batch();
    begin_batch();
}

OpenKey *find_open_key(const KeyRow &key) {
    List *rows = NIL;
    const WrappedKeyRow *in_group = group_wrapping(key, rows);
    if (in_group != nullptr) {
        const KeyRow *group = find_group(in_group->group_key);
        rows = find_wrapped_keys(group->key_id);
    }
    if (rows == NIL) return nullptr;
    List *known = NIL;
    const Wanted *places = find_candidates(key, rows, known, true);
    return places == nullptr ? nullptr : find_open_at(*places, key, in_group);
}

OpenKey *open_key(const KeyRow &key, bool soft) {
    // a server that is altered meanwhile makes another identity
    constexpr int attempts = 5;
    for (int i = 0; i < attempts; ++i) {
        if (OpenKey *open = find_open_key(key)) return open;
        List *one = list_make1(const_cast<KeyRow *>(&key));
        if (!open_keys(one, soft)) return nullptr;
    }
    if (OpenKey *open = find_open_key(key)) return open;
    raise_altered();
}

}  // namespace envcrypt::pg
