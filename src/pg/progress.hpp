// How far the procedures have come that commit as they go: for others to watch, and for the next
// CALL to go on from. PostgreSQL frames.
#pragma once

#include <cstdint>

#include "pg/pg.hpp"

namespace envcrypt::pg {

// One run. What has the same act, servers and tenant is the same run; the texts must outlive it.
class Progress {
public:
    // Begins it. Nobody else does it until finish(), an error or the end of the session; raises
    // where somebody is at it.
    Progress(const char *act, const char *server, const char *to_server, const char *tenant,
             std::int64_t total);
    TimestampTz started_at() const { return started_at_; }
    std::int64_t done() const { return done_; }
    // In the transaction of what was done: so many more, and so many to go.
    void advance(std::int64_t done, std::int64_t left);
    // `left`: keys that are still to be done, for whatever reason.
    void finish(std::int64_t left);

private:
    void write(std::int64_t left, bool is_finished);

    const char *act_;
    const char *server_;
    const char *to_server_;
    const char *tenant_;
    std::uint32_t lock_id_ = 0;
    TimestampTz started_at_ = 0;
    std::int64_t done_ = 0;
};

}  // namespace envcrypt::pg
