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

std::vector<std::string_view> Json::texts(Path path) const {
    std::vector<std::string_view> found;
    const rapidjson::Value *value = parsed_->find(path);
    if (value == nullptr || !value->IsArray()) return found;
    for (const auto &element : value->GetArray())
        if (element.IsString()) found.emplace_back(element.GetString(), element.GetStringLength());
    return found;
}

SecretBytes write_json(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members) {
    SecretStream stream;
    rapidjson::Writer<SecretStream> writer(stream);
    writer.StartObject();
    for (const auto &[name, value] : members) {
        writer.Key(name.data(), static_cast<rapidjson::SizeType>(name.size()));
        writer.String(value.data(), static_cast<rapidjson::SizeType>(value.size()));
    }
    writer.EndObject();
    return std::move(stream.out);
}

}  // namespace envcrypt::kms
