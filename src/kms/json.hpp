// The little JSON that KMSs speak. Read in place, so that secrets stay in the buffer they came in,
// and strictly: UTF-8, no member twice, at most 16 levels and 4096 members. The only file of the
// project that sees RapidJSON is json.cpp.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/secret.hpp"

namespace envcrypt::kms {

class Json {
public:
    // Takes the text over and overwrites it. Nothing where it is not one JSON object as above.
    static std::optional<Json> parse(SecretBytes text);
    Json(Json &&) noexcept;
    Json &operator=(Json &&) noexcept;
    ~Json();

    using Path = std::initializer_list<const char *>;
    // The member at the end of a path of member names; nothing where there is none of that type.
    // What is returned lies in this object.
    std::optional<std::string_view> text(Path path) const;
    std::optional<std::int64_t> integer(Path path) const;
    // The strings of an array, without its other members.
    std::vector<std::string_view> texts(Path path) const;

private:
    struct Parsed;
    explicit Json(std::unique_ptr<Parsed> parsed);
    std::unique_ptr<Parsed> parsed_;
};

// An object of strings, which must be UTF-8.
SecretBytes write_json(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members);

}  // namespace envcrypt::kms
