// See json.hpp.
#include "kms/json.hpp"

#include <stdexcept>

// An assertion of the library must not abort the server, and its symbols must not meet another
// extension's.
#define RAPIDJSON_ASSERT(x) ((x) ? static_cast<void>(0) : throw std::logic_error("rapidjson: " #x))
#define RAPIDJSON_NOEXCEPT_ASSERT(x) static_cast<void>(x)
#define RAPIDJSON_NAMESPACE envcrypt::rapidjson
#define RAPIDJSON_NAMESPACE_BEGIN \
    namespace envcrypt {          \
    namespace rapidjson {
#define RAPIDJSON_NAMESPACE_END \
    }                           \
    }
#define RAPIDJSON_HAS_STDSTRING 0
#include <rapidjson/document.h>
#include <rapidjson/reader.h>
#include <rapidjson/writer.h>

namespace envcrypt::kms {

namespace {

constexpr int kMaxDepth = 16;
// Of all objects together: the search for twins takes the square of it.
constexpr int kMaxMembers = 4096;

// Hands everything on to the document, but stops at too many levels or members.
struct Limits : rapidjson::BaseReaderHandler<rapidjson::UTF8<>, Limits> {
    explicit Limits(rapidjson::Document &to) : document(to) {}
    rapidjson::Document &document;
    int depth = 0;
    int members = 0;

    bool Null() { return document.Null(); }
    bool Bool(bool b) { return document.Bool(b); }
    bool Int(int i) { return document.Int(i); }
    bool Uint(unsigned i) { return document.Uint(i); }
    bool Int64(std::int64_t i) { return document.Int64(i); }
    bool Uint64(std::uint64_t i) { return document.Uint64(i); }
    bool Double(double d) { return document.Double(d); }
    bool String(const char *s, rapidjson::SizeType n, bool copy) {
        return document.String(s, n, copy);
    }
    bool Key(const char *s, rapidjson::SizeType n, bool copy) {
        return ++members <= kMaxMembers && document.Key(s, n, copy);
    }
    bool StartObject() { return ++depth <= kMaxDepth && document.StartObject(); }
    bool EndObject(rapidjson::SizeType n) { return --depth, document.EndObject(n); }
    bool StartArray() { return ++depth <= kMaxDepth && document.StartArray(); }
    bool EndArray(rapidjson::SizeType n) { return --depth, document.EndArray(n); }
};

bool has_twin_members(const rapidjson::Value &value) {
    if (value.IsArray()) {
        for (const auto &element : value.GetArray())
            if (has_twin_members(element)) return true;
    } else if (value.IsObject()) {
        for (auto member = value.MemberBegin(); member != value.MemberEnd(); ++member) {
            if (value.FindMember(member->name) != member || has_twin_members(member->value))
                return true;
        }
    }
    return false;
}

struct SecretStream {
    using Ch = char;
    SecretBytes out;
    void Put(char c) {
        const auto byte = static_cast<std::uint8_t>(c);
        out.append({&byte, 1});
    }
    void Flush() {}
};

}  // namespace

struct Json::Parsed {
    SecretBytes text;
    rapidjson::Document document;

    const rapidjson::Value *find(Path path) const {
        const rapidjson::Value *at = &document;
        for (const char *name : path) {
            if (!at->IsObject()) return nullptr;
            const auto member = at->FindMember(name);
            if (member == at->MemberEnd()) return nullptr;
            at = &member->value;
        }
        return at;
    }
};

Json::Json(std::unique_ptr<Parsed> parsed) : parsed_(std::move(parsed)) {}
Json::Json(Json &&) noexcept = default;
Json &Json::operator=(Json &&) noexcept = default;
Json::~Json() = default;

std::optional<Json> Json::parse(SecretBytes text) {
    auto parsed = std::make_unique<Parsed>();
    parsed->text = std::move(text);
    const std::uint8_t zero = 0;
    // an embedded zero byte would end the text early
    if (parsed->text.expose_text().find('\0') != std::string_view::npos) return std::nullopt;
    parsed->text.append({&zero, 1});
    rapidjson::InsituStringStream stream(reinterpret_cast<char *>(parsed->text.expose().data()));
    bool ok = false;
    auto generate = [&](rapidjson::Document &document) {
        constexpr unsigned flags = rapidjson::kParseInsituFlag | rapidjson::kParseIterativeFlag |
                                   rapidjson::kParseValidateEncodingFlag;
        Limits limits(document);
        rapidjson::Reader reader;
        ok = !reader.Parse<flags>(stream, limits).IsError();
        return ok;
    };
    parsed->document.Populate(generate);
    if (!ok || !parsed->document.IsObject() || has_twin_members(parsed->document))
        return std::nullopt;
    return Json(std::move(parsed));
}

std::optional<std::string_view> Json::text(Path path) const {
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsString()) return std::nullopt;
    return std::string_view(value->GetString(), value->GetStringLength());
}

std::optional<std::int64_t> Json::integer(Path path) const {
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsInt64()) return std::nullopt;
    return value->GetInt64();
}

bool Json::has(Path path) const {
    return parsed_->find(path) != nullptr;
}

std::vector<std::string_view> Json::texts(Path path) const {
    std::vector<std::string_view> found;
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsArray()) return found;
    for (const auto &element : value->GetArray())
        if (element.IsString()) found.emplace_back(element.GetString(), element.GetStringLength());
    return found;
}

std::optional<bool> Json::boolean(Path path) const {
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsBool()) return std::nullopt;
    return value->GetBool();
}

std::optional<std::size_t> Json::length(Path array) const {
    const rapidjson::Value *value = parsed_->find(array);
    if (value == nullptr || !value->IsArray()) return std::nullopt;
    return value->Size();
}

std::vector<std::string_view> Json::nested_texts(Path path, const char *inner,
                                                 const char *name) const {
    std::vector<std::string_view> found;
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsArray()) return found;
    for (const auto &element : value->GetArray()) {
        if (!element.IsObject()) continue;
        const auto array = element.FindMember(inner);
        if (array == element.MemberEnd() || !array->value.IsArray()) continue;
        for (const auto &item : array->value.GetArray()) {
            if (!item.IsObject()) continue;
            const auto text = item.FindMember(name);
            if (text != item.MemberEnd() && text->value.IsString())
                found.emplace_back(text->value.GetString(), text->value.GetStringLength());
        }
    }
    return found;
}

std::optional<std::string_view> Json::element_text(Path array, std::size_t element,
                                                   const char *name) const {
    const rapidjson::Value *value = parsed_->find(array);
    if (value == nullptr || !value->IsArray() || element >= value->Size()) return std::nullopt;
    const rapidjson::Value &object = (*value)[static_cast<rapidjson::SizeType>(element)];
    if (!object.IsObject()) return std::nullopt;
    const auto member = object.FindMember(name);
    if (member == object.MemberEnd() || !member->value.IsString()) return std::nullopt;
    return std::string_view(member->value.GetString(), member->value.GetStringLength());
}

struct JsonWriter::Writer {
    SecretStream stream;
    rapidjson::Writer<SecretStream> json{stream};
    std::vector<bool> arrays;  // what is open, within the object itself

    void key(std::string_view name) {
        json.Key(name.data(), static_cast<rapidjson::SizeType>(name.size()));
    }
};

JsonWriter::JsonWriter() : writer_(std::make_unique<Writer>()) {
    writer_->json.StartObject();
}
JsonWriter::~JsonWriter() = default;

JsonWriter &JsonWriter::add(std::string_view name, std::string_view value) {
    writer_->key(name);
    writer_->json.String(value.data(), static_cast<rapidjson::SizeType>(value.size()));
    return *this;
}

JsonWriter &JsonWriter::add(std::string_view name, std::int64_t value) {
    writer_->key(name);
    writer_->json.Int64(value);
    return *this;
}

JsonWriter &JsonWriter::open(std::string_view name) {
    writer_->key(name);
    writer_->json.StartObject();
    writer_->arrays.push_back(false);
    return *this;
}

JsonWriter &JsonWriter::open_array(std::string_view name) {
    writer_->key(name);
    writer_->json.StartArray();
    writer_->arrays.push_back(true);
    return *this;
}

JsonWriter &JsonWriter::open_element() {
    writer_->json.StartObject();
    writer_->arrays.push_back(false);
    return *this;
}

JsonWriter &JsonWriter::close() {
    if (writer_->arrays.back())
        writer_->json.EndArray();
    else
        writer_->json.EndObject();
    writer_->arrays.pop_back();
    return *this;
}

SecretBytes JsonWriter::finish() {
    writer_->json.EndObject();
    return std::move(writer_->stream.out);
}

SecretBytes write_json(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members) {
    JsonWriter writer;
    for (const auto &[name, value] : members) writer.add(name, value);
    return writer.finish();
}

}  // namespace envcrypt::kms
