// See retry.hpp.
#include "keyring/retry.hpp"

#include <algorithm>
#include <charconv>

namespace envcrypt::keyring {

namespace {

struct Policy {
    int attempts;
    kms::Clock base;
    kms::Clock cap;
};
// An outage mostly lasts longer than a statement should; a quota is often free again in a second.
constexpr Policy kUnreachable{3, kms::Clock(100), kms::Clock(2000)};
constexpr Policy kThrottled{8, kms::Clock(200), kms::Clock(5000)};
// What is left after the wait must do for a round trip.
constexpr kms::Clock kRoundTrip{20};

}  // namespace

std::optional<kms::Clock> retry_delay(ErrorCode code, int attempt, kms::Clock retry_after,
                                      kms::Clock left, double random) {
    if (code != ErrorCode::unreachable && code != ErrorCode::throttled &&
        code != ErrorCode::damaged)
        return std::nullopt;
    const Policy &policy = code == ErrorCode::throttled ? kThrottled : kUnreachable;
    if (attempt >= policy.attempts) return std::nullopt;
    const kms::Clock longest = std::min(policy.cap, policy.base * (1 << (attempt - 1)));
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
