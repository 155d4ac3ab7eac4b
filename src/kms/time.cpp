// See time.hpp.
#include "kms/time.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>

namespace envcrypt::kms {

namespace {

// The number that exactly these digits are.
std::optional<int> digits(std::string_view text, std::size_t from, std::size_t count) {
    if (text.size() < from + count) return std::nullopt;
    int number = 0;
    const char *end = text.data() + from + count;
    if (text[from] < '0' || text[from] > '9') return std::nullopt;
    const auto read = std::from_chars(text.data() + from, end, number);
    if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return number;
}

std::optional<std::int64_t> seconds_of(std::optional<int> year, std::optional<int> month,
                                       std::optional<int> day, std::optional<int> hour,
                                       std::optional<int> minute, std::optional<int> second) {
    if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
    if (*hour > 23 || *minute > 59 || *second > 60) return std::nullopt;
    const std::chrono::year_month_day date{std::chrono::year(*year),
                                           std::chrono::month(static_cast<unsigned>(*month)),
                                           std::chrono::day(static_cast<unsigned>(*day))};
    if (!date.ok()) return std::nullopt;
    const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
    return ((days * 24 + *hour) * 60 + *minute) * 60 + *second;
}

}  // namespace

std::optional<std::int64_t> parse_http_date(std::string_view text) {
    // Tue, 24 Nov 2026 19:28:31 GMT
    constexpr std::string_view shape = "xxx, dd xxx dddd dd:dd:dd GMT";
    if (text.size() != shape.size()) return std::nullopt;
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] != 'x' && shape[i] != 'd' && shape[i] != text[i]) return std::nullopt;
    constexpr std::array<std::string_view, 12> months = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const auto month = std::find(months.begin(), months.end(), text.substr(8, 3));
    if (month == months.end()) return std::nullopt;
    return seconds_of(digits(text, 12, 4), static_cast<int>(month - months.begin()) + 1,
                      digits(text, 5, 2), digits(text, 17, 2), digits(text, 20, 2),
                      digits(text, 23, 2));
}

std::optional<std::int64_t> parse_utc_time(std::string_view text) {
    // 2026-11-24T19:28:31
    constexpr std::string_view shape = "dddd-dd-ddTdd:dd:dd";
    if (text.size() <= shape.size() || text.back() != 'Z') return std::nullopt;
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] != 'd' && shape[i] != text[i]) return std::nullopt;
    const std::string_view fraction = text.substr(shape.size(), text.size() - shape.size() - 1);
    if (!fraction.empty() &&
        (fraction[0] != '.' || fraction.size() == 1 ||
         fraction.find_first_not_of("0123456789", 1) != std::string_view::npos))
        return std::nullopt;
    return seconds_of(digits(text, 0, 4), digits(text, 5, 2), digits(text, 8, 2),
                      digits(text, 11, 2), digits(text, 14, 2), digits(text, 17, 2));
}

std::string basic_utc_time(std::int64_t seconds) {
    const std::chrono::sys_seconds time{std::chrono::seconds(seconds)};
    const auto day = std::chrono::floor<std::chrono::days>(time);
    const std::chrono::year_month_day date(day);
    const std::chrono::hh_mm_ss clock(time - day);
    std::string text;
    const auto put = [&](long number, int width) {
        std::string shown = std::to_string(number);
        text.append(static_cast<std::size_t>(width) - shown.size(), '0').append(shown);
    };
    put(static_cast<int>(date.year()), 4);
    put(static_cast<unsigned>(date.month()), 2);
    put(static_cast<unsigned>(date.day()), 2);
    text += 'T';
    put(clock.hours().count(), 2);
    put(clock.minutes().count(), 2);
    put(clock.seconds().count(), 2);
    return text + 'Z';
}

}  // namespace envcrypt::kms
