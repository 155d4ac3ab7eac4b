// The retry policy, and points in time as KMSs write them.
#include "keyring/retry.hpp"

#include <gtest/gtest.h>

#include "kms/time.hpp"

namespace envcrypt::keyring {
namespace {

using kms::Clock;

constexpr Clock kPlenty{1000000};

TEST(Retry, OnlyOutagesAndThrottlingAreTriedAgain) {
    for (const ErrorCode code :
         {ErrorCode::denied, ErrorCode::misconfigured, ErrorCode::corrupt, ErrorCode::bad_answer,
          ErrorCode::internal, ErrorCode::no_key, ErrorCode::key_unusable})
        EXPECT_FALSE(retry_delay(code, 1, Clock(0), kPlenty, 0.5));
    EXPECT_TRUE(retry_delay(ErrorCode::unreachable, 1, Clock(0), kPlenty, 0.5));
    EXPECT_TRUE(retry_delay(ErrorCode::throttled, 1, Clock(0), kPlenty, 0.5));
}

TEST(Retry, GrowsWithFullJitterUpToACap) {
    EXPECT_EQ(*retry_delay(ErrorCode::unreachable, 1, Clock(0), kPlenty, 0.0), Clock(0));
    EXPECT_EQ(*retry_delay(ErrorCode::unreachable, 1, Clock(0), kPlenty, 0.5), Clock(50));
    EXPECT_EQ(*retry_delay(ErrorCode::unreachable, 2, Clock(0), kPlenty, 0.5), Clock(100));
    EXPECT_FALSE(retry_delay(ErrorCode::unreachable, 3, Clock(0), kPlenty, 0.5));
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 1, Clock(0), kPlenty, 0.5), Clock(100));
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 7, Clock(0), kPlenty, 0.5), Clock(2500));
}

TEST(Retry, ThrottlingAndWhatPassesSoonAreWaitedOut) {
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 1000, Clock(0), kPlenty, 0.5), Clock(2500));
    EXPECT_EQ(*retry_delay(ErrorCode::unreachable, 1000, Clock(0), kPlenty, 0.5, true), Clock(500));
    // the last tries spread over the time that is left
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 9, Clock(0), Clock(1020), 0.5), Clock(500));
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 9, Clock(0), Clock(1020), 0.99), Clock(990));
    EXPECT_FALSE(retry_delay(ErrorCode::throttled, 9, Clock(0), Clock(100), 0.5));
    EXPECT_FALSE(retry_delay(ErrorCode::unreachable, 9, Clock(0), Clock(60), 0.0, true));
}

TEST(Retry, WaitsAsLongAsTheKmsAsksAndNoLongerThanThereIsTime) {
    EXPECT_EQ(*retry_delay(ErrorCode::throttled, 1, Clock(3000), kPlenty, 0.5), Clock(3100));
    EXPECT_FALSE(retry_delay(ErrorCode::throttled, 1, Clock(3000), Clock(3000), 0.0));
    EXPECT_FALSE(retry_delay(ErrorCode::unreachable, 1, Clock(0), Clock(0), 0.0));
}

TEST(Retry, ReadsRetryAfter) {
    EXPECT_EQ(parse_retry_after("7"), Clock(7000));
    EXPECT_EQ(parse_retry_after("86400"), Clock(3600000));
    for (const char *nothing : {"", "-1", "7s", "99999999999", "Tue, 24 Nov 2026 19:28:31 GMT"})
        EXPECT_EQ(parse_retry_after(nothing), Clock(0)) << nothing;
}

TEST(Time, HttpDates) {
    EXPECT_EQ(kms::parse_http_date("Tue, 24 Nov 2026 19:28:31 GMT"), 1795548511);
    EXPECT_EQ(kms::parse_http_date("Thu, 01 Jan 1970 00:00:00 GMT"), 0);
    for (const char *bad : {"", "Tue, 24 Nov 2026 19:28:31", "Tue, 24 Foo 2026 19:28:31 GMT",
                            "Tue, 31 Feb 2026 19:28:31 GMT", "Tue, 24 Nov 2026 24:28:31 GMT",
                            "Tue, -4 Nov 2026 19:28:31 GMT", "Tuesday, 24-Nov-26 19:28:31 GMT"})
        EXPECT_FALSE(kms::parse_http_date(bad)) << bad;
}

TEST(Time, UtcTimes) {
    EXPECT_EQ(kms::parse_utc_time("2026-11-24T19:28:31Z"), 1795548511);
    EXPECT_EQ(kms::parse_utc_time("2026-11-24T19:28:31.123456Z"), 1795548511);
    for (const char *bad : {"", "Z", "2026-11-24T19:28:31", "2026-11-24T19:28:31+00:00",
                            "2026-11-24 19:28:31Z", "2026-13-24T19:28:31Z", "2026-11-24T19:28:31.Z",
                            "2026-11-24T19:28:31.1x2Z", "2026-02-29T00:00:00Z"})
        EXPECT_FALSE(kms::parse_utc_time(bad)) << bad;
    EXPECT_EQ(kms::basic_utc_time(1795548511), "20261124T192831Z");
    EXPECT_EQ(kms::basic_utc_time(0), "19700101T000000Z");
}

}  // namespace
}  // namespace envcrypt::keyring
