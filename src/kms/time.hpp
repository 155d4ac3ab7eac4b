// Points in time as KMSs write them, in seconds since 1970. Reads no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace envcrypt::kms {

// "Tue, 24 Nov 2026 19:28:31 GMT" (RFC 9110 section 5.6.7, the preferred form).
std::optional<std::int64_t> parse_http_date(std::string_view text);

// "2026-11-24T19:28:31Z" (RFC 3339 in UTC), with or without a fraction, which is dropped.
std::optional<std::int64_t> parse_utc_time(std::string_view text);

// "20261124T192831Z" (ISO 8601, basic).
std::string basic_utc_time(std::int64_t seconds);

}  // namespace envcrypt::kms
