// See progress.hpp.
#include "pg/progress.hpp"

#include "pg/table.hpp"

namespace envcrypt::pg {

namespace {

namespace column {
enum {
    act = 1,
    server,
    to_server,
    tenant,
    role,
    lock_id,
    total,
    done,
    left_over,
    started_at,
    updated_at,
    is_finished,
    count = is_finished
};
}
constexpr Table kRun{"run", column::count, nullptr};
constexpr const char *kIndex = "run_pkey";
constexpr int kKeys = 4;

void find_by(ScanKeyData *keys, const char *act, const char *server, const char *to_server,
             const char *tenant) {
    key_equals(&keys[0], column::act, act);
    key_equals(&keys[1], column::server, server);
    key_equals(&keys[2], column::to_server, to_server);
    key_equals(&keys[3], column::tenant, tenant);
}

}  // namespace

Progress::Progress(const char *act, const char *server, const char *to_server, const char *tenant,
                   std::int64_t total)
    : act_(act), server_(server), to_server_(to_server), tenant_(tenant) {
    const char *what = psprintf("%s %s %s %s", act, server, to_server, tenant);
    const std::uint32_t lock_id =
        hash_bytes(reinterpret_cast<const unsigned char *>(what), static_cast<int>(strlen(what)));
    // held over the commits, until the end or an error
    LOCKTAG tag;
    SET_LOCKTAG_OBJECT(tag, MyDatabaseId, own_relation(kRun.name), lock_id, 0);
    if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
                        errmsg("another session is at this %s already", act),
                        errhint("envcrypt.progress shows how far it is.")));
    lock_id_ = lock_id;
    const TimestampTz time = GetCurrentTimestamp();
    ScanKeyData keys[kKeys];
    started_at_ = time;
    find_by(keys, act, server, to_server, tenant);
    (void)delete_rows(kRun, kIndex, keys, kKeys);
    Datum values[column::count];
    values[column::act - 1] = text_datum(act);
    values[column::server - 1] = text_datum(server);
    values[column::to_server - 1] = text_datum(to_server);
    values[column::tenant - 1] = text_datum(tenant);
    values[column::role - 1] = text_datum(GetUserNameFromId(GetUserId(), false));
    values[column::lock_id - 1] = Int64GetDatum(lock_id);
    values[column::total - 1] = Int64GetDatum(total);
    values[column::done - 1] = Int64GetDatum(0);
    values[column::left_over - 1] = Int64GetDatum(total);
    values[column::started_at - 1] = TimestampTzGetDatum(started_at_);
    values[column::updated_at - 1] = TimestampTzGetDatum(time);
    values[column::is_finished - 1] = BoolGetDatum(false);
    insert_row(kRun, values);
}

void Progress::write(std::int64_t left, bool is_finished) {
    ScanKeyData keys[kKeys];
    find_by(keys, act_, server_, to_server_, tenant_);
    Datum values[kMaxColumns] = {};
    bool replaced[kMaxColumns] = {};
    values[column::done - 1] = Int64GetDatum(done_);
    values[column::left_over - 1] = Int64GetDatum(left);
    values[column::updated_at - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
    values[column::is_finished - 1] = BoolGetDatum(is_finished);
    for (const int changed :
         {column::done, column::left_over, column::updated_at, column::is_finished})
        replaced[changed - 1] = true;
    (void)update_rows(kRun, kIndex, keys, kKeys, values, replaced);
}

void Progress::advance(std::int64_t done, std::int64_t left) {
    done_ += done;
    write(left, false);
}

void Progress::finish(std::int64_t left) {
    write(left, true);
    LOCKTAG tag;
    SET_LOCKTAG_OBJECT(tag, MyDatabaseId, own_relation(kRun.name), lock_id_, 0);
    LockRelease(&tag, ExclusiveLock, true);
}

}  // namespace envcrypt::pg
