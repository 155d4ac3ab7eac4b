// Carries requests over HTTPS without ever blocking: one libcurl multi handle, watched through one
// descriptor. Does not retry, does not know what a request means, and does not wait:
// src/pg/wait.cpp does. The only file of the project that sees libcurl is engine.cpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/error.hpp"
#include "http/message.hpp"

namespace envcrypt::http {

using TransferId = std::uint64_t;

struct Finished {
    TransferId id;
    // unreachable: resolving, connecting, TLS cut short, timeout; misconfigured: certificate, host
    // name, CA file, TLS below 1.2, client certificate; bad_answer: oversize, not HTTP.
    Result<Response> result;
};

// Belongs to the process that made it: a forked child must neither use nor destroy it. The process
// ignores SIGPIPE, as PostgreSQL does. A std::bad_alloc may leave start() and step(), nothing else
// does; what was under way is then known only to abort().
class Engine {
public:
    // internal, or misconfigured where this libcurl lacks https. Initialises libcurl on first use.
    static Result<std::unique_ptr<Engine>> create();
    virtual ~Engine() = default;

    // Whether libcurl wipes what it frees. False where somebody else initialised libcurl in this
    // process before: requests and answers then stay in freed memory until it is used again.
    static bool wipes_what_is_freed();

    // Readable whenever step() has something to do, timers included. Stays the same for life.
    virtual int poll_fd() const noexcept = 0;
    // Starts a transfer that fails as unreachable after `timeout`. Takes the request over.
    // misconfigured, before any I/O: not an https URL, a user name in it, a header that HTTP
    // forbids.
    virtual Result<TransferId> start(Request request, std::chrono::milliseconds timeout) = 0;
    // Moves every transfer on as far as it goes now. Fails only where libcurl itself is broken; all
    // transfers are then reported as finished.
    virtual Status step() = 0;
    // Each finished transfer once.
    virtual std::optional<Finished> take_finished() = 0;
    // Forgets every transfer, finished ones too, without waiting for anything (not even for the
    // resolver's thread, which keeps one descriptor and ends by itself). Connections that are in
    // doubt are closed, idle ones are kept.
    virtual void abort() noexcept = 0;
    // abort(), and closes the idle connections too: after a server's options, or the files they
    // name, have changed, and where nothing of what went over them may stay in memory.
    virtual void close_connections() noexcept = 0;
};

}  // namespace envcrypt::http
