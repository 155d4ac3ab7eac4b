// kms/json: what is let in, what is refused, and that it is read in place.
#include "kms/json.hpp"

#include <gtest/gtest.h>

#include <string>

namespace envcrypt::kms {
namespace {

std::optional<Json> parse(std::string_view text) {
    return Json::parse(SecretBytes(text));
}

TEST(Json, FindsMembersByPath) {
    const auto json =
        parse(R"({"data":{"plaintext":"YQ==","key_version":7},"list":["a",1,"b"],"null":null})");
    ASSERT_TRUE(json);
    EXPECT_EQ(json->text({"data", "plaintext"}), "YQ==");
    EXPECT_EQ(json->integer({"data", "key_version"}), 7);
    EXPECT_EQ(json->texts({"list"}), (std::vector<std::string_view>{"a", "b"}));
    EXPECT_FALSE(json->text({"data", "key_version"}));
    EXPECT_FALSE(json->text({"null"}));
    EXPECT_FALSE(json->text({"data", "plaintext", "deeper"}));
    EXPECT_FALSE(json->integer({"data", "plaintext"}));
    EXPECT_FALSE(json->text({"nowhere"}));
    EXPECT_TRUE(json->texts({"data"}).empty());
}

TEST(Json, KeepsEscapedZeroBytesInStrings) {
    const auto json = parse(R"({"a":"x\u0000y"})");
    ASSERT_TRUE(json);
    EXPECT_EQ(json->text({"a"}), std::string_view("x\0y", 3));
}

TEST(Json, RefusesWhatIsNotOneObject) {
    for (const char *text : {"", " ", "[]", "1", "\"a\"", "{", "{}x", "{} {}", "{\"a\":1,}",
                             "{'a':1}", "{\"a\":NaN}", "<html>", "nul"})
        EXPECT_FALSE(parse(text)) << text;
    EXPECT_FALSE(parse(std::string_view("{}\0", 3)));
    EXPECT_FALSE(parse(std::string_view("{\"a\":\"\0\"}", 9)));
    EXPECT_FALSE(parse("{\"a\":\"\xff\"}"));
    EXPECT_FALSE(parse("{\"a\":\"\xc0\xaf\"}"));
}

TEST(Json, RefusesTwinMembersAtAnyLevel) {
    EXPECT_FALSE(parse(R"({"a":1,"a":2})"));
    EXPECT_FALSE(parse(R"({"x":{"a":1,"b":2,"a":3}})"));
    EXPECT_FALSE(parse(R"({"x":[{"a":1,"a":3}]})"));
    EXPECT_TRUE(parse(R"({"a":{"a":1},"b":{"a":1}})"));
}

std::string nested(int levels) {
    std::string text;
    for (int i = 0; i < levels; ++i) text += "{\"a\":";
    text += "1";
    for (int i = 0; i < levels; ++i) text += "}";
    return text;
}

TEST(Json, CapsDepthAndMembers) {
    EXPECT_TRUE(parse(nested(16)));
    EXPECT_FALSE(parse(nested(17)));
    EXPECT_FALSE(parse("{\"a\":" + std::string(200000, '[')));
    std::string many = "{";
    for (int i = 0; i < 4097; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
    EXPECT_FALSE(parse(many + "}"));
    many = "{";
    for (int i = 0; i < 4096; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
    EXPECT_TRUE(parse(many + "}"));
}

TEST(Json, WritesWhatItReads) {
    SecretBytes text = write_json({{"a", "quote\" backslash\\ line\n"}, {"b", ""}});
    EXPECT_EQ(text.expose_text(), R"({"a":"quote\" backslash\\ line\n","b":""})");
    const auto json = Json::parse(std::move(text));
    ASSERT_TRUE(json);
    EXPECT_EQ(json->text({"a"}), "quote\" backslash\\ line\n");
}

}  // namespace
}  // namespace envcrypt::kms
