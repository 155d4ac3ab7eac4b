// The one function of the project that waits. See backend.hpp.
#include "pg/backend.hpp"
#include "pg/files.hpp"

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

enum class Progress { done, waits };

// Moves the operation on until it is done or has to wait for the network. A C++ frame.
Status advance(Backend &state, kms::Clock deadline, Progress &progress) {
    keyring::Operation &operation = *state.operation;
    for (;;) {
        const kms::Clock time = now();
        operation.talk.set_now(time);
        if (operation.work.done()) {
            progress = Progress::done;
            return operation.work.take();
        }
        if (operation.talk.needs_file()) {
            operation.talk.answer(read_file(operation.talk.take_file()));
            continue;
        }
        if (operation.talk.needs_exchange()) {
            Result<http::TransferId> started = state.engine->start(
                operation.talk.take_request(), std::max(deadline - time, kms::Clock(1)));
            if (!started) {
                operation.talk.answer(Result<http::Response>(std::move(started.error())));
                continue;
            }
        }
        Status stepped = state.engine->step();
        if (auto finished = state.engine->take_finished()) {
            operation.talk.answer(std::move(finished->result));
            continue;
        }
        if (!stepped) return stepped;
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
    if (made) return;
    for (int i = 0; i < kDescriptors; ++i) ReleaseExternalFD();
    raise(report);
}

void abandon(Backend &state) {
    ErrorReport ignored;
    (void)guarded(ignored, [&] {
        state.engine->abort();
        state.operation.reset();
    });
}

}  // namespace

bool run_operation(ErrorReport &report) {
    Backend &state = backend();
    bool ok = true;

    make_engine(state);
    PG_TRY();
    {
        const kms::Clock deadline = now() + kms::Clock(setting_kms_timeout);
        ok = guarded(report, [&] {
            state.operation->talk.set_now(now());
            state.operation->work.start();
        });
        while (ok) {
            Progress progress = Progress::done;
            ok = guarded(report, [&] { return advance(state, deadline, progress); });
            if (!ok || progress == Progress::done) break;
            const long remaining = static_cast<long>((deadline - now()).count());
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
        abandon(state);
        PG_RE_THROW();
    }
    PG_END_TRY();
    if (!ok) {
        // whoever is denied keeps nothing open at that KMS
        const keyring::IdentityId identity = state.operation->identity;
        abandon(state);
        if (report.code == ErrorCode::denied) {
            ErrorReport ignored;
            (void)guarded(ignored, [&] { state.cache.drop_identity(identity); });
        }
    }
    return ok;
}

void run_operation() {
    ErrorReport report;
    if (!run_operation(report)) raise(report);
}

}  // namespace envcrypt::pg
