// The one function of the project that waits. See backend.hpp.
#include "pg/backend.hpp"
#include "pg/files.hpp"

#include <time.h>

#include <span>

namespace envcrypt::pg {

namespace {

// A connection each for a handful of servers, the descriptor that watches them, and the resolver's
// pair.
constexpr int kDescriptors = 8;

uint32 wait_event() {
#if PG_VERSION_NUM >= 170000
    static uint32 event = 0;
    if (event == 0) event = WaitEventExtensionNew("EnvcryptKms");
    return event;
#else
    return PG_WAIT_EXTENSION;
#endif
}

std::int64_t wall_time() {
    timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec;
}

void set_times(keyring::Operation &operation, kms::Clock time, kms::Clock deadline) {
    operation.talk.set_now(time);
    operation.talk.set_deadline(deadline);
    operation.talk.set_wall_time(wall_time());
}

kms::Clock time_limit(const keyring::Operation &operation) {
    const kms::Clock all(setting_kms_timeout);
    return operation.limit == kms::Clock{} ? all : std::min(all, operation.limit);
}

// Moves one operation on as far as it goes without the network and without others. True where it
// moved.
bool move(Backend &state, Run &run, kms::Clock time) {
    keyring::Operation &operation = *run.operation;
    bool moved = false;
    for (;; moved = true) {
        if (operation.work.done() || run.transfer != 0) return moved;
        const kms::Clock limit = time_limit(operation);
        if (!run.started) run.deadline = time + limit;
        set_times(operation, time, run.deadline);
        kms::Conversation &talk = operation.talk;
        if (talk.takes_beginning()) {
            run.deadline = time + limit;
            talk.set_deadline(run.deadline);
        }
        if (!run.started) {
            run.started = true;
            operation.work.start();
        } else if (talk.needs_file()) {
            talk.answer(read_file(talk.take_file()));
        } else if (const auto until = talk.sleeps_until()) {
            if (time < *until) return moved;
            talk.wake();
        } else if (talk.needs_exchange()) {
            http::Request request = talk.take_request();
            kms::Clock left = std::max(run.deadline - time, kms::Clock(1));
            if (request.timeout != kms::Clock{}) left = std::min(left, request.timeout);
            Result<http::TransferId> started = state.engine->start(std::move(request), left);
            if (!started)
                talk.answer(Result<http::Response>(std::move(started.error())));
            else
                run.transfer = *started;
        } else {
            return moved;  // waits for others
        }
    }
}

enum class Progress { done, waits, moved };

// The runs under way: those before `first` are done, those not begun come last.
std::span<Run> under_way(Backend &state, std::size_t first) {
    std::size_t end = first;
    while (end < state.runs.size() && state.runs[end].started) ++end;
    return std::span(state.runs).subspan(first, end - first);
}

// Moves the operations on until all are done or one has failed, or all have to wait; `wake` is then
// when the first of them sleeps no longer. Of those not begun, begins as many as may run at once.
// `first` is the first that is not done. A C++ frame.
Status advance(Backend &state, std::size_t concurrency, std::size_t &first, Progress &progress,
               kms::Clock &wake) {
    constexpr int passes = 16;  // then whoever waits for a cancel may hear it
    for (int pass = 0;; ++pass) {
        if (pass == passes) {
            progress = Progress::moved;
            return Unit{};
        }
        const kms::Clock time = now();
        bool moved = false;
        std::size_t running = 0;
        while (first < state.runs.size() && state.runs[first].finished) ++first;
        for (Run &run : std::span(state.runs).subspan(first)) {
            if (run.finished) continue;
            if (running == concurrency) break;
            ++running;
            if (move(state, run, time)) moved = true;
            if (!run.operation->work.done()) continue;
            run.finished = true;
            moved = true;
            Status status = run.operation->work.take();
            if (!status) return status;
            run.succeeded = true;
        }
        if (running == 0) {
            progress = Progress::done;
            return Unit{};
        }
        Status stepped = state.engine->step();
        while (auto finished = state.engine->take_finished()) {
            for (Run &run : under_way(state, first)) {
                if (run.transfer != finished->id) continue;
                run.transfer = 0;
                set_times(*run.operation, now(), run.deadline);
                run.operation->talk.answer(std::move(finished->result));
                moved = true;
                break;
            }
        }
        if (moved) {
            for (Run &run : under_way(state, first))
                if (!run.finished && run.operation->talk.needs_others()) run.operation->talk.wake();
            continue;
        }
        if (!stepped) return stepped;
        wake = kms::Clock::max();
        for (Run &run : under_way(state, first)) {
            if (run.finished) continue;
            if (run.operation->talk.needs_others() && time >= run.deadline)
                return Error{ErrorCode::unreachable,
                             "timeout while waiting for a login to KMS \"" +
                                 run.operation->server.name + "\"",
                             "Another operation of this session was to log in for all.",
                             {}};
            wake = std::min(wake, run.operation->talk.sleeps_until().value_or(run.deadline));
        }
        progress = Progress::waits;
        return Unit{};
    }
}

// The engine is kept for the life of the backend, and the descriptors it may use are accounted for.
void make_engine(Backend &state) {
    if (state.engine != nullptr) return;
    for (int i = 0; i < kDescriptors; ++i) ReserveExternalFD();
    ErrorReport report;
    const bool made = guarded(report, [&]() -> Status {
        Result<std::unique_ptr<http::Engine>> engine = http::Engine::create();
        if (!engine) return std::move(engine.error());
        state.engine = std::move(*engine);
        return Unit{};
    });
    if (!made) {
        for (int i = 0; i < kDescriptors; ++i) ReleaseExternalFD();
        raise(report);
    }
    bool wipes = true;
    if (!guarded(report, [&] { wipes = http::Engine::wipes_what_is_freed(); })) raise(report);
    if (!wipes)
        ereport(WARNING,
                (errmsg("could not have libcurl wipe the memory that it frees"),
                 errdetail("Another library in this session initialized libcurl before. Keys and "
                           "credentials that were sent or received may stay in freed memory."),
                 errhint("Use envcrypt in other sessions than what else uses libcurl.")));
}

void abandon(Backend &state) {
    ErrorReport ignored;
    (void)guarded(ignored, [&] {
        state.engine->abort();
        state.runs.clear();
        state.batch.clear();
        state.batch_filling.clear();
        state.operation.reset();
    });
}

}  // namespace

void begin_batch() {
    Backend &state = backend();
    ErrorReport report;
    if (!guarded(report, [&] {
            state.runs.clear();
            state.batch.clear();
            state.batch_filling.clear();
        }))
        raise(report);
}

bool run_operations(ErrorReport &report) {
    Backend &state = backend();
    bool ok = true;

    make_engine(state);
    // a connection and a resolver for each of many, as far as there are descriptors, but for one
    // that WaitLatchOrSocket() takes
    const int wanted = Min(static_cast<int>(state.runs.size()), setting_kms_concurrency);
    int concurrency = 1;
    const bool has_spare = AcquireExternalFD();
    for (; concurrency < wanted && AcquireExternalFD(); ++concurrency) {
        if (AcquireExternalFD()) continue;
        ReleaseExternalFD();
        break;
    }
    if (has_spare) ReleaseExternalFD();
    const int descriptors = 2 * (concurrency - 1);
    std::size_t first = 0;
    PG_TRY();
    {
        if (state.connections_stale) state.engine->close_connections();
        state.connections_stale = false;
        for (;;) {
            Progress progress = Progress::done;
            kms::Clock wake{};
            ok = guarded(report, [&] {
                return advance(state, static_cast<std::size_t>(concurrency), first, progress, wake);
            });
            if (!ok || progress == Progress::done) break;
            if (progress == Progress::moved) {
                CHECK_FOR_INTERRUPTS();
                continue;
            }
            const long remaining = static_cast<long>((wake - now()).count());
            const int events = WaitLatchOrSocket(
                MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
                state.engine->poll_fd(), Max(remaining, 1L), wait_event());
            if ((events & WL_LATCH_SET) != 0) {
                ResetLatch(MyLatch);
                CHECK_FOR_INTERRUPTS();
            }
        }
    }
    PG_CATCH();
    {
        for (int i = 0; i < descriptors; ++i) ReleaseExternalFD();
        abandon(state);
        PG_RE_THROW();
    }
    PG_END_TRY();
    for (int i = 0; i < descriptors; ++i) ReleaseExternalFD();
    require_locked_memory();
    if (!ok && report.code == ErrorCode::denied) {
        // whoever is denied keeps nothing open at that KMS
        ErrorReport ignored;
        (void)guarded(ignored, [&] {
            for (const Run &run : state.runs)
                if (run.finished && !run.succeeded)
                    state.cache.drop_identity(run.operation->identity);
        });
    }
    return ok;
}

bool try_batch(ErrorReport &report) {
    Backend &state = backend();
    if (!guarded(report, [&] {
            state.runs.clear();
            for (const auto &operation : state.batch) state.runs.push_back({operation.get()});
        }))
        return false;
    if (run_operations(report)) return true;
    abandon(state);
    return false;
}

void run_batch() {
    ErrorReport report;
    if (!try_batch(report)) raise(report);
}

bool run_operation(ErrorReport &report) {
    Backend &state = backend();
    if (!guarded(report, [&] {
            state.runs.clear();
            state.runs.push_back({state.operation.get()});
        }))
        return false;
    const bool ok = run_operations(report);
    if (!ok) abandon(state);
    return ok;
}

void run_operation() {
    ErrorReport report;
    if (!run_operation(report)) raise(report);
}

}  // namespace envcrypt::pg
