// When a failed call to a KMS is tried again. A pure function; who waits is src/pg/wait.cpp.
#pragma once

#include <optional>

#include "core/error.hpp"
#include "kms/task.hpp"

namespace envcrypt::keyring {

// How long to wait after the n-th attempt (from 1) failed, or nothing where another would not help
// or come too late. `retry_after` is what the KMS asked for (0: nothing), `left` the time until the
// operation is given up, `random` lies in [0, 1): exponential backoff with full jitter, as in
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ Throttling, and an
// outage that `passes_soon`, are waited out for all of the time.
std::optional<kms::Clock> retry_delay(ErrorCode code, int attempt, kms::Clock retry_after,
                                      kms::Clock left, double random, bool passes_soon = false);

// The value of a Retry-After header in seconds (RFC 9110 section 10.2.3); 0 where there is none, or
// it is a date.
kms::Clock parse_retry_after(std::string_view header);

}  // namespace envcrypt::keyring
