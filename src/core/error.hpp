// The one vocabulary of failure: what can go wrong (ErrorCode), how it is told (Error), and a value
// or that (Result). How a code becomes an SQLSTATE is src/pg/errors.cpp's business.
#pragma once

#ifdef POSTGRES_H
#error "core headers come before pg/pg.hpp"
#endif

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

namespace envcrypt {

enum class ErrorCode : std::uint8_t {
    malformed_value,  // bytes that are not a stored value
    malformed_text,   // text that is not the text form of a stored value
    mismatch,         // tag, label, type or associated data do not fit the value
    corrupt,          // a stored or unwrapped key is not what its commitment says
    damaged,          // an answer's checksum is wrong; corrupt where it stays so
    denied,           // the KMS says no, or a local right is missing
    unreachable,      // the KMS did not answer in time, or answered that it cannot now
    throttled,        // the KMS asks to slow down
    bad_answer,       // the KMS broke the protocol
    misconfigured,    // no retry helps until somebody changes an option, a file or the KMS
    no_key,           // no such tenant, no such key
    key_unusable,     // the tenant or key is disabled or destroyed
    too_large,        // a plaintext over the format's limit
    internal,         // a bug, or no memory
};

// Says what was being done and what happened (`message`), what the other side said about it
// (`detail`) and what to do (`hint`). Never holds a secret, a plaintext or a body.
struct Error {
    ErrorCode code = ErrorCode::internal;
    std::string message;
    std::string detail;
    std::string hint;
    // unreachable: by what was said, it is over within seconds
    bool passes_soon = false;
};

template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return state_.index() == 0; }
    explicit operator bool() const { return ok(); }

    // Only when ok().
    T &value() & { return std::get<0>(state_); }
    const T &value() const & { return std::get<0>(state_); }
    T &&value() && { return std::get<0>(std::move(state_)); }
    T *operator->() { return &std::get<0>(state_); }
    const T *operator->() const { return &std::get<0>(state_); }
    T &operator*() & { return std::get<0>(state_); }
    const T &operator*() const & { return std::get<0>(state_); }

    // Only when not ok().
    Error &error() & { return std::get<1>(state_); }
    const Error &error() const & { return std::get<1>(state_); }
    Error &&error() && { return std::get<1>(std::move(state_)); }

private:
    std::variant<T, Error> state_;
};

struct Unit {};
using Status = Result<Unit>;

}  // namespace envcrypt
