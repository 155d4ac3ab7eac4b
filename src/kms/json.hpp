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
    std::optional<bool> boolean(Path path) const;
    // Whether there is a member, of whatever type.
    bool has(Path path) const;
    // The strings of an array, without its other members.
    std::vector<std::string_view> texts(Path path) const;
    // An array's length, and a string in an object that is its element.
    std::optional<std::size_t> length(Path array) const;
    std::optional<std::string_view> element_text(Path array, std::size_t element,
                                                 const char *name) const;
    // The strings `name` of the objects in the arrays `inner` of the objects in `array`.
    std::vector<std::string_view> nested_texts(Path array, const char *inner,
                                               const char *name) const;

private:
    struct Parsed;
    explicit Json(std::unique_ptr<Parsed> parsed);
    std::unique_ptr<Parsed> parsed_;
};

// Writes one object of strings, numbers, objects and arrays of objects, into secret memory. Names
// and strings must be UTF-8.
class JsonWriter {
public:
    JsonWriter();
    ~JsonWriter();
    JsonWriter &add(std::string_view name, std::string_view value);
    JsonWriter &add(std::string_view name, std::int64_t value);
    JsonWriter &open(std::string_view name);  // a member that is an object
    JsonWriter &open_array(std::string_view name);
    JsonWriter &open_element();  // an object in an array
    JsonWriter &close();         // what was opened last
    SecretBytes finish();        // once

private:
    struct Writer;
    std::unique_ptr<Writer> writer_;
};

// An object of strings, which must be UTF-8.
SecretBytes write_json(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members);

}  // namespace envcrypt::kms
