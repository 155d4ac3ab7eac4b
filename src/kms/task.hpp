// How an operation is written as straight code although it does no I/O: a coroutine (Task) that
// tells a Conversation what it needs, and is resumed with the answer by whoever drives it
// (src/pg/wait.cpp, or a test).
#pragma once

#include <chrono>
#include <coroutine>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "core/error.hpp"
#include "core/secret.hpp"
#include "http/message.hpp"

namespace envcrypt::kms {

using Clock =
    std::chrono::milliseconds;  // since some fixed point, going on while the machine sleeps

// A coroutine that starts when it is awaited, or by start(), and owns its frame: destroying it, at
// whatever point it waits, runs the destructors of all that it holds.
template <class T>
class [[nodiscard]] Task {
public:
    struct promise_type {
        std::optional<T> result;
        std::exception_ptr thrown;
        std::coroutine_handle<> awaiting;

        Task get_return_object() {
            return Task(std::coroutine_handle<promise_type>::from_promise(*this));
        }
        std::suspend_always initial_suspend() noexcept { return {}; }
        auto final_suspend() noexcept {
            struct Final {
                bool await_ready() noexcept { return false; }
                std::coroutine_handle<> await_suspend(
                    std::coroutine_handle<promise_type> self) noexcept {
                    if (self.promise().awaiting) return self.promise().awaiting;
                    return std::noop_coroutine();
                }
                void await_resume() noexcept {}
            };
            return Final{};
        }
        void return_value(T value) { result.emplace(std::move(value)); }
        void unhandled_exception() { thrown = std::current_exception(); }
    };

    Task() = default;
    Task(Task &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Task &operator=(Task &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Task() {
        if (handle_) handle_.destroy();
    }

    // Runs up to the first need, or to the end.
    void start() { handle_.resume(); }
    bool done() const { return handle_ && handle_.done(); }
    // Only when done(), once. Throws what the coroutine threw.
    T take() {
        if (handle_.promise().thrown) std::rethrow_exception(handle_.promise().thrown);
        return std::move(*handle_.promise().result);
    }

    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) noexcept {
        handle_.promise().awaiting = awaiting;
        return handle_;
    }
    T await_resume() { return take(); }

private:
    explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
    std::coroutine_handle<promise_type> handle_;
};

// A file to be read whole, at most 64 KiB, without one newline at its end. `private_to_owner`:
// refused unless it belongs to the user who asks, or root, and nobody else has any right to it.
struct FileRequest {
    std::string path;
    bool private_to_owner = false;
};

class Conversation {
public:
    // The operation's side: co_await these.
    auto exchange(http::Request request) {
        if (patience_ != Clock{} && (request.timeout == Clock{} || patience_ < request.timeout))
            request.timeout = patience_;
        need_ = std::move(request);
        return Awaiter<Result<http::Response>>{this};
    }
    auto read_file(FileRequest file) {
        need_ = std::move(file);
        return Awaiter<Result<SecretBytes>>{this};
    }
    // To go on at that time.
    auto sleep_until(Clock time) {
        need_ = Sleep{time};
        return Awaiter<Unit>{this};
    }
    // To go on when another operation under way has moved.
    auto wait_for_others() {
        need_ = Others{};
        return Awaiter<Unit>{this};
    }
    Clock now() const { return now_; }
    // When the driver gives up: nothing that ends later is worth starting.
    Clock deadline() const { return deadline_; }
    // What follows is an operation of its own, with as much time as this one had.
    void begin_anew() { begins_anew_ = true; }
    // The header Retry-After of the last answer; empty where it had none.
    std::string_view retry_after() const { return retry_after_; }
    // The most that each exchange from here on may take; 0: whatever the operation has left.
    void set_patience(Clock patience) { patience_ = patience; }
    // Seconds since 1970 by the clock on the wall, which signatures and tokens go by.
    std::int64_t wall_time() const { return wall_time_ + clock_offset_; }
    // By how many seconds the clock on the wall is behind that of the KMS, where that was found
    // out.
    std::int64_t clock_offset() const { return clock_offset_; }
    void set_clock_offset(std::int64_t seconds) { clock_offset_ = seconds; }

    // The driver's side. What the operation waits for; taking it leaves nothing.
    bool needs_exchange() const { return std::holds_alternative<http::Request>(need_); }
    bool needs_file() const { return std::holds_alternative<FileRequest>(need_); }
    bool needs_others() const { return std::holds_alternative<Others>(need_); }
    // Nothing where it does not sleep.
    std::optional<Clock> sleeps_until() const {
        const Sleep *sleep = std::get_if<Sleep>(&need_);
        return sleep == nullptr ? std::nullopt : std::optional(sleep->until);
    }
    http::Request take_request() {
        return std::get<http::Request>(std::exchange(need_, Nothing{}));
    }
    FileRequest take_file() { return std::get<FileRequest>(std::exchange(need_, Nothing{})); }
    void set_now(Clock now) { now_ = now; }
    void set_deadline(Clock deadline) { deadline_ = deadline; }
    bool takes_beginning() { return std::exchange(begins_anew_, false); }
    void set_wall_time(std::int64_t seconds) { wall_time_ = seconds; }
    // Goes on with the operation. The type must be that of what it needs.
    void answer(Result<http::Response> response) {
        retry_after_ = response ? std::string(response->header("retry-after")) : std::string();
        resume(std::move(response));
    }
    void answer(Result<SecretBytes> contents) { resume(std::move(contents)); }
    void wake() {
        need_ = Nothing{};
        resume(Unit{});
    }

private:
    using Nothing = std::monostate;
    struct Sleep {
        Clock until;
    };
    struct Others {};

    template <class T>
    struct Awaiter {
        Conversation *talk;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> waiting) noexcept { talk->waiting_ = waiting; }
        T await_resume() { return std::get<T>(std::exchange(talk->answer_, Nothing{})); }
    };

    template <class T>
    void resume(T answer) {
        answer_ = std::move(answer);
        std::exchange(waiting_, nullptr).resume();
    }

    std::variant<Nothing, http::Request, FileRequest, Sleep, Others> need_;
    std::variant<Nothing, Result<http::Response>, Result<SecretBytes>, Unit> answer_;
    std::coroutine_handle<> waiting_;
    Clock now_{};
    Clock deadline_ = Clock::max();
    Clock patience_{};
    std::int64_t wall_time_ = 0;
    std::int64_t clock_offset_ = 0;
    bool begins_anew_ = false;
    std::string retry_after_;
};

}  // namespace envcrypt::kms
