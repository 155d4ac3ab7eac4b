// rewrap_keys(), add_wrapping(), drop_wrapping(): keys under a newer master key version, under
// another KMS, or under several. No value is touched. They commit batch by batch, hold no lock
// while a KMS is asked, and go on where an earlier CALL was interrupted.
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/journal.hpp"
#include "pg/making.hpp"
#include "pg/opening.hpp"
#include "pg/progress.hpp"
#include "pg/resolve.hpp"
#include "pg/wrapping.hpp"

namespace envcrypt::pg {

namespace {

// A master key under which keys are rewrapped, as it was when the run began.
struct Target {
    char *master_key;  // "": the one that the server's option names
    char *tenant;      // whose it is
    MasterKey newest;
    bool failed;
};

struct Move {
    const char *act;
    char *server;
    char *to_server;
    char *tenant;  // "": all; or a group
    bool is_group;
    char *master_key;  // add_wrapping: the tenant's own there
    Progress *progress;
    List *targets;  // of Target *
    MemoryContext all;
    MemoryContext batch;
    KeyIds refused;  // that were warned of
    int refused_room;
    bool passes_refused;  // it is known of them
    // of the batch under way
    List *done;  // of Wrapping *: what was wrapped and checked
    List *part;  // of Wrapping *: what a part of the batch is to do
    Target *part_target;
};

int batch_size() {
    return Max(64, Min(1024, 32 * setting_kms_concurrency));
}

int by_lock(const ListCell *a, const ListCell *b) {
    return compare_tenant_locks(static_cast<Wrapping *>(lfirst(a))->key->tenant,
                                static_cast<Wrapping *>(lfirst(b))->key->tenant);
}

int by_tenant_lock(const ListCell *a, const ListCell *b) {
    return compare_tenant_locks(static_cast<TenantRow *>(lfirst(a))->name,
                                static_cast<TenantRow *>(lfirst(b))->name);
}

// Raises where the server is gone, or goes by another name; until this transaction ends it stays.
void require_server(const char *name) {
    const Oid server = get_foreign_server_oid(name, true);
    if (OidIsValid(server)) LockDatabaseObject(ForeignServerRelationId, server, 0, AccessShareLock);
    if (!OidIsValid(server) || get_foreign_server_oid(name, true) != server)
        raise_place_fault(PlaceFault::no_server, name, GetUserId());
}

// Calls write(wrapping) for each, by tenant, each tenant locked, and journals those for which it is
// true. How many there were.
template <class Write>
int write_all(const Move &move, List *wrappings, Write write) {
    int count = 0;
    list_sort(wrappings, by_lock);
    Journal *journal = nullptr;
    const char *tenant = nullptr;
    ListCell *cell;
    foreach (cell, wrappings) {
        CHECK_FOR_INTERRUPTS();
        const auto *wrapping = static_cast<Wrapping *>(lfirst(cell));
        if (tenant == nullptr || strcmp(tenant, wrapping->key->tenant) != 0) {
            if (journal != nullptr) journal->write();
            journal = nullptr;
            tenant = wrapping->key->tenant;
            lock_tenant(tenant);
        }
        KeyRow key;
        if (!find_key(wrapping->key->key_id, key) || !is_live(key) || !write(*wrapping)) continue;
        ++count;
        if (journal == nullptr) journal = new (palloc(sizeof(Journal))) Journal(move.act, tenant);
        journal->add_wrapping(*wrapping);
    }
    if (journal != nullptr) journal->write();
    return count;
}
static_assert(std::is_trivially_destructible_v<Journal>);

bool is_same(const WrappedKeyRow *a, const WrappedKeyRow &b) {
    return a != nullptr && equal_bytes(a->wrapped, b.wrapped) &&
           equal_bytes(a->attestation, b.attestation);
}

// Whose new keys are wrapped there; a group's name is no tenant's.
bool find_tenant_of(const KeyRow &key, TenantRow &tenant) {
    return key.purpose != crypto::Purpose::group && find_tenant(key.tenant, tenant);
}

void place_tenant(const KeyRow &key, const char *from, const char *server, const char *master_key) {
    TenantRow tenant;
    if (!find_tenant_of(key, tenant) || strcmp(tenant.server, from) != 0) return;
    lock_tenant_row(key.tenant);
    if (find_tenant(key.tenant, tenant) && strcmp(tenant.server, from) == 0)
        set_tenant_place(key.tenant, server, master_key, tenant.group_key);
}

// The live key, where the run concerns it; else null.
KeyRow *key_of_run(const Move &move, std::uint64_t key_id) {
    for (int i = 0; move.passes_refused && i < move.refused.count; ++i)
        if (move.refused.ids[i] == key_id) return nullptr;
    auto *key = static_cast<KeyRow *>(palloc(sizeof(KeyRow)));
    if (!find_key(key_id, *key) || !is_live(*key)) return nullptr;
    if (move.tenant[0] != '\0' && (strcmp(key->tenant, move.tenant) != 0 ||
                                   (key->purpose == crypto::Purpose::group) != move.is_group))
        return nullptr;
    return key;
}

// What a move or a drop has left.
bool is_still_there(const Move &move, std::uint64_t key_id) {
    return key_of_run(move, key_id) != nullptr && find_wrapped_key(key_id, move.server) != nullptr;
}

// With more corrupt keys than this it is no longer the keys.
constexpr int kMostRefused = 10;

// Does these ids, in halves where a key among them is corrupt, and in the end all but that one,
// which is warned of. Whatever else fails is raised. How many were done.
template <class Step>
int do_part(Move &move, const std::uint64_t *ids, int count, Step &step) {
    struct Part {
        Move *move;
        Step *step;
        const std::uint64_t *ids;
        int count;
        int done;
    } part{&move, &step, ids, count, 0};
    ErrorData *error = try_part(
        [](void *argument) {
            auto *one = static_cast<Part *>(argument);
            one->move->done = one->move->part = NIL;
            one->done = (*one->step)(one->ids, one->count);
        },
        &part);
    if (error == nullptr) return part.done;
    if (error->sqlerrcode != ERRCODE_DATA_CORRUPTED || move.refused.count >= kMostRefused)
        ReThrowError(error);
    if (count > 1)
        return do_part(move, ids, count / 2, step) +
               do_part(move, ids + count / 2, count - count / 2, step);
    const MemoryContext before = MemoryContextSwitchTo(move.all);
    move.refused.add(ids[0], move.refused_room);
    MemoryContextSwitchTo(before);
    KeyRow key;
    const char *tenant = find_key(ids[0], key) ? key.tenant : "";
    note_key(ids[0]);
    warn_failure(move.act, tenant,
                 psprintf("key %016llx of tenant \"%s\" was left as it is",
                          static_cast<unsigned long long>(ids[0]), tenant),
                 error);
    return 0;
}

// Does the ids in batches, each in a transaction of its own: step(ids, count) says how many were
// done.
template <class Step>
void run_batches(Move &move, const KeyIds &ids, Step step) {
    const int size = batch_size();
    for (int begin = 0; begin < ids.count; begin += size) {
        const int count = Min(size, ids.count - begin);
        PushActiveSnapshot(GetTransactionSnapshot());
        MemoryContextSwitchTo(move.batch);
        require_server(move.server);
        const int done = do_part(move, ids.ids + begin, count, step);
        move.progress->advance(done, ids.count - begin - count);
        MemoryContextSwitchTo(move.all);
        MemoryContextReset(move.batch);
        PopActiveSnapshot();
        SPI_commit();
    }
}

// Waits for whoever is about to wrap a key at the server: what they make is seen from then on.
void wait_for_others(const Move &move) {
    PushActiveSnapshot(GetTransactionSnapshot());
    const Oid server = get_foreign_server_oid(move.server, true);
    if (OidIsValid(server))
        LockDatabaseObject(ForeignServerRelationId, server, 0, AccessExclusiveLock);
    PopActiveSnapshot();
    SPI_commit();
}

// Does all that list() finds, and again what was made meanwhile, as long as something was.
template <class List_, class Step>
void run_all(Move &move, const KeyIds &ids, List_ list, Step step) {
    constexpr int passes = 5;
    run_batches(move, ids, step);
    move.passes_refused = true;
    for (int pass = 1; pass < passes; ++pass) {
        const std::int64_t done = move.progress->done();
        wait_for_others(move);
        run_batches(move, list(), step);
        if (move.progress->done() == done) return;
    }
}

// Calls check(id) for each, whatever memory that takes.
template <class Check>
void check_all(const Move &move, const KeyIds &ids, Check check) {
    for (int i = 0; i < ids.count; ++i) {
        CHECK_FOR_INTERRUPTS();
        MemoryContextSwitchTo(move.batch);
        check(ids.ids[i]);
        MemoryContextSwitchTo(move.all);
        if (i % 1024 == 0) MemoryContextReset(move.batch);
    }
}

// Counts those of list() that left(id) names, in a transaction of its own, ends the run and says
// so.
template <class List_, class Left>
void finish(Move &move, List_ list, const char *what, const char *hint, Left left) {
    std::int64_t count = 0;
    move.passes_refused = false;
    PushActiveSnapshot(GetTransactionSnapshot());
    require_server(move.server);
    check_all(move, list(), [&](std::uint64_t id) {
        if (left(id)) ++count;
    });
    move.progress->finish(count);
    PopActiveSnapshot();
    ereport(count == 0 ? NOTICE : WARNING,
            (errmsg("%s: " INT64_FORMAT " keys %s, " INT64_FORMAT " left", move.act,
                    move.progress->done(), what, count),
             count == 0 ? 0 : errhint("%s", hint)));
}

// Begins a run.
void begin(Move &move, const KeyIds &ids) {
    PushActiveSnapshot(GetTransactionSnapshot());
    move.progress = new (palloc(sizeof(Progress)))
        Progress(move.act, move.server, move.to_server, move.tenant, ids.count);
    PopActiveSnapshot();
    SPI_commit();
}
static_assert(std::is_trivially_destructible_v<Progress>);

constexpr const char *kLeft = "The warnings say which; CALL it again once they open.";
constexpr const char *kOwnLeft =
    "Those under a tenant's own master key move by add_wrapping(server, tenant, master_key) and "
    "drop_wrapping(). For others the warnings say which; CALL it again.";

// --- rewrap_keys(server)

// The master key that rewraps the row.
const char *target_of(const KeyRow &key, const WrappedKeyRow &row) {
    if (!row.own_master_key) return "";
    TenantRow tenant;
    // as it was named, which an alias may have followed
    if (find_tenant_of(key, tenant) && strcmp(tenant.server, row.server) == 0 &&
        tenant.master_key[0] != '\0')
        return tenant.master_key;
    return row.master_key;
}

void prove_target(void *argument) {
    auto *move = static_cast<Move *>(argument);
    Target *target = move->part_target;
    const Destination *destination =
        at_server(move->server, target->master_key, target->master_key[0] != '\0');
    const MasterKey newest = prove_server(*destination);
    MemoryContextSwitchTo(move->all);
    target->newest = {pstrdup(newest.name), pstrdup(newest.version)};
    MemoryContextSwitchTo(move->batch);
}

// Does a part under a tenant's own master key. False where it could not be done, which is warned
// of.
bool try_target(Move &move, Target &target, void (*part)(void *)) {
    ErrorData *error = try_part(part, &move);
    if (error == nullptr) return true;
    if (error->sqlerrcode == ERRCODE_DATA_CORRUPTED) ReThrowError(error);
    warn_failure(move.act, target.tenant,
                 psprintf("keys under the own master key of tenant \"%s\" were left as they are",
                          target.tenant),
                 error);
    target.failed = true;
    return false;
}

// A KMS that a customer closes to us keeps nobody else's keys from being rewrapped.
Target *find_target(Move &move, const KeyRow &key, const char *master_key) {
    ListCell *cell;
    foreach (cell, move.targets) {
        auto *known = static_cast<Target *>(lfirst(cell));
        if (strcmp(known->master_key, master_key) == 0) return known;
    }
    MemoryContextSwitchTo(move.all);
    auto *target = static_cast<Target *>(palloc0(sizeof(Target)));
    target->master_key = pstrdup(master_key);
    target->tenant = pstrdup(key.tenant);
    move.targets = lappend(move.targets, target);
    MemoryContextSwitchTo(move.batch);
    move.part_target = target;
    if (master_key[0] == '\0') {
        prove_target(&move);
        return target;
    }
    (void)try_target(move, *target, prove_target);
    return target;
}

bool is_newest(const Move &move, const Target &target, const WrappedKeyRow &row) {
    if (target.newest.version[0] == '\0') return row.wrapped_at >= move.progress->started_at();
    return strcmp(row.master_key, target.newest.name) == 0 &&
           strcmp(row.master_key_version, target.newest.version) == 0;
}

void rewrap_part(void *argument) {
    auto *move = static_cast<Move *>(argument);
    const Target &target = *move->part_target;
    const Destination *destination =
        at_server(move->server, target.master_key, target.master_key[0] != '\0');
    List *inside = NIL;
    List *outside = NIL;
    ListCell *cell;
    foreach (cell, move->part) {
        auto *wrapping = static_cast<Wrapping *>(lfirst(cell));
        if (can_rewrap(*destination, *wrapping->before))
            inside = lappend(inside, wrapping);
        else
            outside = lappend(outside, wrapping);
    }
    ErrorReport report;
    if (!rewrap_keys(*destination, inside, report) || !wrap_keys(*destination, outside, report))
        raise(report);
}

int rewrap_batch(Move &move, const std::uint64_t *ids, int count) {
    List *todo = NIL;
    for (int i = 0; i < count; ++i) {
        const KeyRow *key = key_of_run(move, ids[i]);
        const WrappedKeyRow *row = key == nullptr ? nullptr : find_wrapped_key(ids[i], move.server);
        if (row == nullptr) continue;
        Target *target = find_target(move, *key, target_of(*key, *row));
        if (target->failed || is_newest(move, *target, *row)) continue;
        todo = lappend(todo, new_wrapping(key, row));
    }
    ListCell *cell;
    foreach (cell, move.targets) {
        auto *target = static_cast<Target *>(lfirst(cell));
        move.part = NIL;
        move.part_target = target;
        ListCell *other;
        foreach (other, todo) {
            auto *wrapping = static_cast<Wrapping *>(lfirst(other));
            if (strcmp(target_of(*wrapping->key, *wrapping->before), target->master_key) == 0)
                move.part = lappend(move.part, wrapping);
        }
        if (move.part == NIL) continue;
        if (target->master_key[0] == '\0')
            rewrap_part(&move);
        else if (!try_target(move, *target, rewrap_part))
            continue;
        move.done = list_concat(move.done, move.part);
    }
    return write_all(move, move.done, [&](const Wrapping &wrapping) {
        // another session may have been here
        if (!is_same(find_wrapped_key(wrapping.key->key_id, move.server), *wrapping.before))
            return false;
        write_wrapping(wrapping);
        return true;
    });
}

void rewrap_in_place(Move &move) {
    const auto list = [&] { return find_keys_wrapped_by(move.server); };
    const KeyIds ids = list();
    begin(move, ids);
    run_all(move, ids, list,
            [&](const std::uint64_t *some, int count) { return rewrap_batch(move, some, count); });
    finish(move, list, "rewrapped", kLeft, [&](std::uint64_t id) {
        const KeyRow *key = key_of_run(move, id);
        const WrappedKeyRow *row = key == nullptr ? nullptr : find_wrapped_key(id, move.server);
        if (row == nullptr) return false;
        const Target *target = find_target(move, *key, target_of(*key, *row));
        return target->failed || !is_newest(move, *target, *row);
    });
}

// Where the tenants of groups go should they leave them: where their group's key is wrapped now.
void place_tenants_of_groups(const Move &move) {
    constexpr int at_once = 256;
    List *tenants = find_tenants_at(move.server);
    list_sort(tenants, by_tenant_lock);
    int count = 0;
    PushActiveSnapshot(GetTransactionSnapshot());
    ListCell *cell;
    foreach (cell, tenants) {
        TenantRow tenant = *static_cast<TenantRow *>(lfirst(cell));
        if (tenant.group_key[0] == '\0' || tenant.state == TenantState::destroyed) continue;
        KeyRow group;
        if (!find_newest_key(tenant.group_key, crypto::Purpose::group, is_live, group)) continue;
        List *rows = find_wrapped_keys(group.key_id);
        if (rows == NIL || find_wrapped_key(group.key_id, move.server) != nullptr) continue;
        lock_tenant_row(tenant.name);
        if (find_tenant(tenant.name, tenant) && strcmp(tenant.server, move.server) == 0)
            set_tenant_place(tenant.name, static_cast<WrappedKeyRow *>(linitial(rows))->server, "",
                             tenant.group_key);
        if (++count % at_once != 0) continue;
        PopActiveSnapshot();
        SPI_commit();
        PushActiveSnapshot(GetTransactionSnapshot());
    }
    PopActiveSnapshot();
    SPI_commit();
}

// --- rewrap_keys(server, to_server)

int move_batch(Move &move, const std::uint64_t *ids, int count) {
    const Destination *destination = at_server(move.to_server, "", false);
    List *keys = NIL;
    List *rows = NIL;
    List *wrappings = NIL;
    for (int i = 0; i < count; ++i) {
        KeyRow *key = key_of_run(move, ids[i]);
        const WrappedKeyRow *row = key == nullptr ? nullptr : find_wrapped_key(ids[i], move.server);
        if (row == nullptr || row->own_master_key) continue;
        WrappedKeyRow *there = find_wrapped_key(ids[i], move.to_server);
        Wrapping *wrapping = new_wrapping(key, nullptr);
        move.done = lappend(move.done, wrapping);
        if (there == nullptr) {
            wrappings = lappend(wrappings, wrapping);
            continue;
        }
        wrapping->row = *there;
        keys = lappend(keys, key);
        rows = lappend(rows, there);
    }
    verify_wrapped_keys(destination->place, keys, rows);
    ErrorReport report;
    if (!wrap_keys(*destination, wrappings, report)) raise(report);
    return write_all(move, move.done, [&](const Wrapping &wrapping) {
        const std::uint64_t key_id = wrapping.key->key_id;
        const WrappedKeyRow *old = find_wrapped_key(key_id, move.server);
        const WrappedKeyRow *there = find_wrapped_key(key_id, move.to_server);
        if (old == nullptr) return false;
        // what was verified is what stays
        if (there != nullptr && !is_same(there, wrapping.row)) return false;
        if (there == nullptr) write_wrapping(wrapping);
        delete_wrapped_key(key_id, move.server, "");
        place_tenant(*wrapping.key, move.server, move.to_server, "");
        return true;
    });
}

void move_to(Move &move) {
    // proves that the KMS binds keys to their tenant, before anything depends on it
    (void)prove_server(*at_server(move.to_server, "", false));
    (void)place_of(move.server);
    const auto list = [&] { return find_keys_wrapped_by(move.server); };
    const KeyIds ids = list();
    begin(move, ids);
    run_all(move, ids, list,
            [&](const std::uint64_t *some, int count) { return move_batch(move, some, count); });
    place_tenants_of_groups(move);
    finish(move, list, "moved", kOwnLeft,
           [&](std::uint64_t id) { return is_still_there(move, id); });
}

// --- add_wrapping(), drop_wrapping()

// The keys that a run concerns: the tenant's, or all; those in groups are wrapped by no server.
KeyIds keys_of_tenant(const char *tenant, bool is_group) {
    if (tenant[0] == '\0') return find_live_keys();
    KeyIds ids{nullptr, 0};
    int room = 0;
    KeyRow group;
    if (is_group && find_newest_key(tenant, crypto::Purpose::group, is_live, group))
        ids.add(group.key_id, room);
    if (is_group) return ids;
    ListCell *cell;
    foreach (cell, find_all_keys(tenant)) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        if (is_live(*key)) ids.add(key->key_id, room);
    }
    return ids;
}

enum class Missing { no, yes, own_master_key };

// Whether the key lacks a wrapping there, and could have one by the server's master key.
Missing is_missing(const Move &move, const KeyRow &key) {
    bool own = false;
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key.key_id)) {
        const auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (row->group_key[0] != '\0' || strcmp(row->server, move.server) == 0) return Missing::no;
        own = own || row->own_master_key;
    }
    return own && move.master_key[0] == '\0' ? Missing::own_master_key : Missing::yes;
}

// Of a tenant that is named: the master key that is to wrap is said, where it is the tenant's own,
// and what is said is not passed by.
void check_own(const Move &move, std::uint64_t key_id) {
    const KeyRow *key = key_of_run(move, key_id);
    if (key == nullptr) return;
    if (is_missing(move, *key) == Missing::own_master_key)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("tenant \"%s\" has a master key of its own", move.tenant),
                        errhint("Say by which master key of its own server \"%s\" is to wrap: "
                                "master_key => '...'.",
                                move.server)));
    const WrappedKeyRow *there = find_wrapped_key(key_id, move.server);
    if (there != nullptr && move.master_key[0] != '\0' && !there->own_master_key)
        ereport(ERROR,
                (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                 errmsg("server \"%s\" wraps keys of tenant \"%s\" already, by another master key",
                        move.server, move.tenant),
                 errhint("Make a second server at that KMS, add a wrapping there, and drop this "
                         "one.")));
}

int add_batch(Move &move, const std::uint64_t *ids, int count) {
    const Destination *destination =
        at_server(move.server, move.master_key, move.master_key[0] != '\0');
    for (int i = 0; i < count; ++i) {
        const KeyRow *key = key_of_run(move, ids[i]);
        if (key != nullptr && is_missing(move, *key) == Missing::yes)
            move.done = lappend(move.done, new_wrapping(key, nullptr));
    }
    ErrorReport report;
    if (!wrap_keys(*destination, move.done, report)) raise(report);
    return write_all(move, move.done, [&](const Wrapping &wrapping) {
        if (is_missing(move, *wrapping.key) != Missing::yes) return false;
        write_wrapping(wrapping);
        return true;
    });
}

// A wrapping of the key elsewhere that the current role may use; null where there is none.
WrappedKeyRow *other_place(const Move &move, std::uint64_t key_id, Place &place) {
    ListCell *cell;
    foreach (cell, find_wrapped_keys(key_id)) {
        auto *row = static_cast<WrappedKeyRow *>(lfirst(cell));
        if (strcmp(row->server, move.server) != 0 && row->group_key[0] == '\0' &&
            find_place(row->server, GetUserId(), place) == PlaceFault::none)
            return row;
    }
    return nullptr;
}

[[noreturn]] void raise_last_wrapping(const Move &move, const KeyRow &key) {
    ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                    errmsg("key %016llx of %s \"%s\" is wrapped nowhere else",
                           static_cast<unsigned long long>(key.key_id),
                           key.purpose == crypto::Purpose::group ? "group" : "tenant", key.tenant),
                    errdetail("No other wrapping of it could be verified by this role."),
                    errhint("CALL envcrypt.add_wrapping('OTHER SERVER'); or "
                            "envcrypt.rewrap_keys('%s', 'OTHER SERVER').",
                            move.server)));
    pg_unreachable();
}

int drop_batch(Move &move, const std::uint64_t *ids, int count) {
    struct Verified {
        Place place;
        List *keys;
        List *rows;
    };
    List *places = NIL;
    ListCell *cell;
    for (int i = 0; i < count; ++i) {
        KeyRow *key = key_of_run(move, ids[i]);
        const WrappedKeyRow *row = key == nullptr ? nullptr : find_wrapped_key(ids[i], move.server);
        if (row == nullptr) continue;
        Place place;
        WrappedKeyRow *other = other_place(move, ids[i], place);
        if (other == nullptr) raise_last_wrapping(move, *key);
        Verified *verified = nullptr;
        foreach (cell, places) {
            auto *known = static_cast<Verified *>(lfirst(cell));
            if (known->place.server == place.server) verified = known;
        }
        if (verified == nullptr) {
            verified = static_cast<Verified *>(palloc0(sizeof(Verified)));
            verified->place = place;
            places = lappend(places, verified);
        }
        verified->keys = lappend(verified->keys, key);
        verified->rows = lappend(verified->rows, other);
        Wrapping *wrapping = new_wrapping(key, other);
        wrapping->row = *row;
        move.done = lappend(move.done, wrapping);
    }
    foreach (cell, places) {
        const auto *verified = static_cast<Verified *>(lfirst(cell));
        verify_wrapped_keys(verified->place, verified->keys, verified->rows);
    }
    return write_all(move, move.done, [&](const Wrapping &wrapping) {
        const WrappedKeyRow *other = wrapping.before;
        if (!is_same(find_wrapped_key(wrapping.key->key_id, other->server), *other)) return false;
        delete_wrapped_key(wrapping.key->key_id, move.server, "");
        place_tenant(*wrapping.key, move.server, other->server,
                     other->own_master_key ? other->master_key : "");
        return true;
    });
}

// Whether the name is a group's: where a tenant has it, too, it is the tenant's.
void name_tenant(Move &move) {
    TenantRow tenant;
    KeyRow group;
    move.is_group = move.tenant[0] != '\0' && is_tenant_name(move.tenant) &&
                    !find_tenant(move.tenant, tenant) &&
                    find_newest_key(move.tenant, crypto::Purpose::group, is_live, group);
}

Move read_arguments(FunctionCallInfo fcinfo, const char *act) {
    require_writable(psprintf("%s()", act));
    require_nonatomic(fcinfo, psprintf("%s()", act));
    Move move{};
    move.act = act;
    SPI_connect_ext(SPI_OPT_NONATOMIC);
    // what lives as long as the run lies in the memory of the procedure
    move.all = CurrentMemoryContext;
    move.batch = AllocSetContextCreate(move.all, "envcrypt batch", ALLOCSET_DEFAULT_SIZES);
    move.server = text_argument(fcinfo, 0, "server");
    move.to_server = pstrdup("");
    move.tenant = pstrdup("");
    move.master_key = pstrdup("");
    return move;
}

}  // namespace

// CALL rewrap_keys(server, to_server)
ENVCRYPT_ACT(envcrypt_rewrap_keys, "rewrap_keys") {
    Move move = read_arguments(fcinfo, "rewrap_keys");
    move.to_server = text_argument(fcinfo, 1, "to_server");
    if (strcmp(move.server, move.to_server) == 0)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("to_server is the server itself"),
                 errhint("Leave to_server out to rewrap under its newest master key.")));
    (void)place_of(move.server);
    if (move.to_server[0] == '\0')
        rewrap_in_place(move);
    else
        move_to(move);
    SPI_finish();
    PG_RETURN_VOID();
}

// CALL add_wrapping(server, tenant, master_key)
ENVCRYPT_ACT(envcrypt_add_wrapping, "add_wrapping") {
    Move move = read_arguments(fcinfo, "add_wrapping");
    move.tenant = text_argument(fcinfo, 1, "tenant");
    move.master_key = text_argument(fcinfo, 2, "master_key");
    if (move.master_key[0] != '\0' && move.tenant[0] == '\0')
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("master_key needs a tenant"), errhint("Name the tenant, too.")));
    name_tenant(move);
    if (move.tenant[0] != '\0' && !move.is_group) {
        const TenantRow tenant = require_tenant(move.tenant, false);
        if (tenant.group_key[0] != '\0')
            ereport(ERROR,
                    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                     errmsg("tenant \"%s\" is in the group \"%s\"", move.tenant, tenant.group_key),
                     errdetail("Its keys are wrapped by the group key, and that by servers."),
                     errhint("Name no tenant, which adds a wrapping of the group keys too; or take "
                             "it out of the group: move_tenant('%s', '').",
                             move.tenant)));
    }
    (void)prove_server(*at_server(move.server, move.master_key, move.master_key[0] != '\0'));
    const auto list = [&] { return keys_of_tenant(move.tenant, move.is_group); };
    const KeyIds ids = list();
    if (move.tenant[0] != '\0')
        check_all(move, ids, [&](std::uint64_t id) { check_own(move, id); });
    begin(move, ids);
    run_all(move, ids, list,
            [&](const std::uint64_t *some, int count) { return add_batch(move, some, count); });
    finish(move, list, "wrapped", kOwnLeft, [&](std::uint64_t id) {
        const KeyRow *key = key_of_run(move, id);
        return key != nullptr && is_missing(move, *key) != Missing::no;
    });
    SPI_finish();
    PG_RETURN_VOID();
}

// CALL drop_wrapping(server, tenant)
ENVCRYPT_ACT(envcrypt_drop_wrapping, "drop_wrapping") {
    Move move = read_arguments(fcinfo, "drop_wrapping");
    move.tenant = text_argument(fcinfo, 1, "tenant");
    name_tenant(move);
    if (move.tenant[0] != '\0' && !move.is_group) (void)require_tenant(move.tenant, false);
    require_server(move.server);
    const auto list = [&] { return find_keys_wrapped_by(move.server); };
    const KeyIds ids = list();
    check_all(move, ids, [&](std::uint64_t id) {
        const KeyRow *key = key_of_run(move, id);
        Place place;
        if (key != nullptr && other_place(move, id, place) == nullptr)
            raise_last_wrapping(move, *key);
    });
    begin(move, ids);
    run_all(move, ids, list,
            [&](const std::uint64_t *some, int count) { return drop_batch(move, some, count); });
    place_tenants_of_groups(move);
    finish(move, list, "dropped", kLeft,
           [&](std::uint64_t id) { return is_still_there(move, id); });
    SPI_finish();
    PG_RETURN_VOID();
}

}  // namespace envcrypt::pg
