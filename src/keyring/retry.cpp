// See retry.hpp.
#include "keyring/retry.hpp"

#include <algorithm>
#include <charconv>

namespace envcrypt::keyring {

namespace {

struct Policy {
    int attempts;  // 0: as many as there is time for
    kms::Clock base;
    kms::Clock cap;
};
// An outage mostly lasts longer than a statement should; a quota is often free again in a second,
// and so is a cluster that elects its leader, or a metadata service that starts.
constexpr Policy kUnreachable{3, kms::Clock(100), kms::Clock(2000)};
constexpr Policy kPassing{0, kms::Clock(100), kms::Clock(1000)};
constexpr Policy kThrottled{0, kms::Clock(200), kms::Clock(5000)};
// Beyond it the wait has long reached its cap.
constexpr int kDoublings = 10;
// What is left after the wait must do for a round trip.
constexpr kms::Clock kRoundTrip{20};

}  // namespace

std::optional<kms::Clock> retry_delay(ErrorCode code, int attempt, kms::Clock retry_after,
                                      kms::Clock left, double random, bool passes_soon) {
    if (code != ErrorCode::unreachable && code != ErrorCode::throttled &&
        code != ErrorCode::damaged)
        return std::nullopt;
    const Policy &policy = code == ErrorCode::throttled ? kThrottled
                           : passes_soon                ? kPassing
                                                        : kUnreachable;
    if (policy.attempts != 0 && attempt >= policy.attempts) return std::nullopt;
    const kms::Clock latest = left - kRoundTrip - retry_after;
    kms::Clock longest =
        std::min(policy.cap, policy.base * (1 << std::min(attempt - 1, kDoublings)));
    // the last try is spread over what time is left, rather than given up for a long wait
    if (policy.attempts == 0) longest = std::min(longest, latest);
    if (longest < kms::Clock(0)) return std::nullopt;
    if (policy.attempts == 0 && longest < policy.base / 2) return std::nullopt;
    const kms::Clock delay =
        retry_after +
        kms::Clock(static_cast<std::int64_t>(random * static_cast<double>(longest.count())));
    if (delay + kRoundTrip > left) return std::nullopt;
    return delay;
}

kms::Clock parse_retry_after(std::string_view header) {
    int seconds = 0;
    const auto read = std::from_chars(header.data(), header.data() + header.size(), seconds);
    constexpr int longest = 3600;
    if (read.ec != std::errc() || read.ptr != header.data() + header.size() || seconds < 0)
        return kms::Clock(0);
    return kms::Clock(std::min(seconds, longest) * 1000);
}

}  // namespace envcrypt::keyring
