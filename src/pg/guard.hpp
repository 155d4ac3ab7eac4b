// The only legal door from a PostgreSQL frame into C++: guarded() runs a lambda and turns whatever
// it returns or throws into an ErrorReport, and raise() (errors.cpp) turns that into an error once
// no C++ object is alive any more.
#pragma once

#include <cstring>
#include <exception>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/error.hpp"

namespace envcrypt::pg {

// What survives of an Error when its strings are gone; texts that are too long are cut.
struct ErrorReport {
    ErrorCode code = ErrorCode::internal;
    char message[384];
    char detail[384];
    char hint[1024];

    // leaves the texts empty without writing all of them: one of these lies on the hot path
    ErrorReport() noexcept { message[0] = detail[0] = hint[0] = '\0'; }
};
static_assert(std::is_trivially_destructible_v<ErrorReport>);

template <std::size_t Size>
void copy_text(char (&to)[Size], std::string_view from) noexcept {
    to[from.copy(to, Size - 1)] = '\0';
}

inline void fill_report(ErrorReport &report, ErrorCode code, std::string_view message,
                        std::string_view detail = {}, std::string_view hint = {}) noexcept {
    report.code = code;
    copy_text(report.message, message);
    copy_text(report.detail, detail);
    copy_text(report.hint, hint);
}

// Runs `work`, which returns a Status or nothing and calls nothing of PostgreSQL. True where all
// went well; else the report says what happened.
template <class Work>
[[nodiscard]] bool guarded(ErrorReport &report, Work &&work) noexcept {
    static_assert(std::is_trivially_destructible_v<std::remove_reference_t<Work>>);
    try {
        if constexpr (std::is_void_v<decltype(work())>) {
            work();
            return true;
        } else {
            const Status status = work();
            if (status) return true;
            const Error &error = status.error();
            fill_report(report, error.code, error.message, error.detail, error.hint);
        }
    } catch (const std::bad_alloc &) {
        fill_report(report, ErrorCode::internal, "out of memory", "envcrypt got no memory.");
    } catch (const std::exception &bug) {
        fill_report(report, ErrorCode::internal, "envcrypt failed unexpectedly", bug.what());
    } catch (...) {
        fill_report(report, ErrorCode::internal, "envcrypt failed unexpectedly");
    }
    return false;
}

// Raises the report as an error. A PostgreSQL frame.
[[noreturn]] void raise(const ErrorReport &report);
// The SQLSTATE of a code, as MAKE_SQLSTATE packs it.
int sqlstate_of(ErrorCode code);

}  // namespace envcrypt::pg
