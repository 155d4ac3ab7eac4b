// The dialects: options, requests to the letter, and what each answer means. What a real server
// answers is tested on a real one in test/t.
#include "kms/dialect.hpp"

#include <gtest/gtest.h>

#include <string>

#include "crypto/encoding.hpp"
#include "crypto/keys.hpp"
#include "kms/vault.hpp"

namespace envcrypt::kms {
namespace {

constexpr const char *kKeyBase64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

Server vault_server() {
    Server server;
    server.name = "kms";
    server.dialect = &vault_dialect();
    server.options = {{"endpoint", "https://vault.internal:8200/"}, {"master_key", "app"}};
    server.identity = {{"auth", "token"}, {"token", "file:/t"}};
    return server;
}

http::Response response(int status, std::string_view body) {
    http::Response answer;
    answer.status = status;
    answer.body = SecretBytes(body);
    return answer;
}

std::string header(const http::Request &request, std::string_view name) {
    for (const http::Header &header : request.headers)
        if (header.name == name) return std::string(header.value.expose_text());
    return {};
}

http::Request request_for(const Server &server, const Ask &ask) {
    const Credential token{SecretBytes("the-token")};
    auto asked = server.dialect->ask(server, ask, token);
    return std::move(std::get<http::Request>(asked));
}

ErrorCode code_of(const Server &server, Verb verb, int status, std::string_view body) {
    Ask ask;
    ask.verb = verb;
    const Result<Answer> answer = server.dialect->read(server, ask, response(status, body));
    return answer ? ErrorCode::internal : answer.error().code;
}

TEST(Options, ADurationHasAUnitAndABound) {
    const std::pair<const char *, std::int64_t> durations[] = {
        {"0", 0},     {"90", 90},    {"90s", 90},   {"5min", 300},
        {"2h", 7200}, {"1d", 86400}, {"24h", 86400}};
    for (const auto &[text, seconds] : durations) {
        const auto read = parse_duration(text);
        ASSERT_TRUE(read) << text;
        EXPECT_EQ(*read, std::chrono::seconds(seconds)) << text;
    }
    for (const char *text : {"", "s", "-1s", "1.5h", "25h", "2d", "86401", "1 h", "h1", "5m",
                             "5MIN", "99999999999999999999s", "+1s"})
        EXPECT_FALSE(parse_duration(text)) << text;
    EXPECT_FALSE(check_options(vault_dialect(), OptionPlace::server, {{"outage_grace", "25h"}}));
    EXPECT_TRUE(check_options(vault_dialect(), OptionPlace::server,
                              {{"outage_grace", "24h"}, {"cache_ttl", "30s"}}));
    EXPECT_FALSE(check_options(local_dialect(), OptionPlace::server, {{"cache_ttl", "30s"}}));
    Server server;
    server.options = {{"cache_ttl", "30s"}};
    EXPECT_EQ(server.duration("cache_ttl", std::chrono::seconds(5)), std::chrono::seconds(30));
    EXPECT_EQ(server.duration("outage_grace", std::chrono::seconds(5)), std::chrono::seconds(5));
}

TEST(Options, UnknownOnesNameTheLegalOnes) {
    const Status status =
        check_options(vault_dialect(), OptionPlace::server, {{"end_point", "https://x"}});
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::misconfigured);
    EXPECT_NE(status.error().message.find("\"end_point\""), std::string::npos);
    for (const char *legal : {"endpoint", "master_key", "mount", "ca_file"})
        EXPECT_NE(status.error().hint.find(legal), std::string::npos) << legal;
    EXPECT_EQ(status.error().hint.find("secret_id"), std::string::npos);
}

TEST(Options, BelongToTheirPlace) {
    EXPECT_FALSE(check_options(vault_dialect(), OptionPlace::mapping, {{"endpoint", "https://x"}}));
    EXPECT_FALSE(check_options(vault_dialect(), OptionPlace::server, {{"token", "file:/x"}}));
    EXPECT_FALSE(check_options(local_dialect(), OptionPlace::mapping, {{"key_file", "/x"}}));
    EXPECT_TRUE(check_options(local_dialect(), OptionPlace::server, {{"key_file", "/x"}}));
}

TEST(Options, SecretsAreReferences) {
    for (const char *value : {"s.1234", "file:relative", "/path", "", "FILE:/x"}) {
        const Status status =
            check_options(vault_dialect(), OptionPlace::mapping, {{"token", value}});
        ASSERT_FALSE(status) << value;
        // the error repeats nothing of what may be a secret
        EXPECT_EQ(status.error().message, "invalid value for option \"token\"");
        EXPECT_EQ(status.error().detail, "");
        EXPECT_EQ(status.error().hint.find("1234"), std::string::npos);
    }
    EXPECT_TRUE(check_options(vault_dialect(), OptionPlace::mapping, {{"token", "file:/run/t"}}));
}

TEST(Options, EndpointsAreHttpsAndPlain) {
    for (const char *url : {"http://x", "https://", "https:///x", "https://user@x", "https://x?y",
                            "https://x#y", "https://x y", "ftp://x", "https://x\n", "https://:1"})
        EXPECT_FALSE(check_options(vault_dialect(), OptionPlace::server, {{"endpoint", url}}))
            << url;
    for (const char *url : {"https://x", "https://x:8200/prefix", "https://[::1]:8200/"})
        EXPECT_TRUE(check_options(vault_dialect(), OptionPlace::server, {{"endpoint", url}}))
            << url;
}

TEST(Options, NamesDoNotClimbOrEscape) {
    for (const char *name :
         {"", "/", "a/", "/a", "a//b", "..", "a/../b", ".", "a?b", "a%2f", "a b"})
        EXPECT_FALSE(check_options(vault_dialect(), OptionPlace::server, {{"master_key", name}}))
            << name;
    for (const char *name : {"a", "a.b_c-d", "a/b"})
        EXPECT_TRUE(check_options(vault_dialect(), OptionPlace::server, {{"master_key", name}}))
            << name;
}

TEST(Options, AuthMethodsAreListed) {
    const Status status = check_options(vault_dialect(), OptionPlace::mapping, {{"auth", "ldap"}});
    ASSERT_FALSE(status);
    EXPECT_NE(status.error().hint.find("token approle"), std::string::npos);
}

TEST(Options, WhatIsMissingIsNamed) {
    const auto missing = [](const char *option, bool of_server) {
        Server server = vault_server();
        server.identity = {{"auth", "approle"}, {"role_id", "r"}, {"secret_id", "file:/s"}};
        (of_server ? server.options : server.identity).erase(option);
        const Status status = vault_dialect().check_complete(server);
        return !status &&
               status.error().message.find(std::string("\"") + option + "\"") != std::string::npos;
    };
    EXPECT_TRUE(missing("endpoint", true));
    EXPECT_TRUE(missing("master_key", true));
    EXPECT_TRUE(missing("auth", false));
    EXPECT_TRUE(missing("role_id", false));
    EXPECT_TRUE(missing("secret_id", false));
    EXPECT_TRUE(vault_dialect().check_complete(vault_server()));
    Server local;
    local.dialect = &local_dialect();
    EXPECT_FALSE(local_dialect().check_complete(local));
}

TEST(Options, ATenantsMasterKeyIsCheckedLikeTheServers) {
    Server server = vault_server();
    EXPECT_FALSE(name_master_key(server, "../sys/seal"));
    EXPECT_EQ(server.option("master_key"), "app");
    EXPECT_TRUE(name_master_key(server, "own"));
    EXPECT_EQ(server.option("master_key"), "own");
    Server local;
    local.dialect = &local_dialect();
    EXPECT_TRUE(name_master_key(local, "local"));
    EXPECT_TRUE(local.options.empty());
}

TEST(Dialects, AreFoundByTheirWrapper) {
    EXPECT_EQ(find_dialect("envcrypt_vault"), &vault_dialect());
    EXPECT_EQ(find_dialect("envcrypt_local"), &local_dialect());
    EXPECT_EQ(find_dialect("postgres_fdw"), nullptr);
}

TEST(Vault, RequestsToTheLetter) {
    Server server = vault_server();
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    const std::string wrapped = "vault:v1:abc";
    Ask ask;
    ask.context = "context";

    ask.verb = Verb::make_data_key;
    http::Request request = request_for(server, ask);
    EXPECT_STREQ(request.method, "POST");
    EXPECT_EQ(request.url, "https://vault.internal:8200/v1/transit/datakey/plaintext/app");
    EXPECT_EQ(header(request, "X-Vault-Token"), "the-token");
    EXPECT_EQ(header(request, "Content-Type"), "application/json");
    EXPECT_EQ(request.body.expose_text(), R"({"context":"Y29udGV4dA=="})");

    ask.verb = Verb::wrap;
    ask.key = &key;
    request = request_for(server, ask);
    EXPECT_EQ(request.url, "https://vault.internal:8200/v1/transit/encrypt/app");
    EXPECT_EQ(request.body.expose_text(),
              std::string(R"({"context":"Y29udGV4dA==","plaintext":")") + kKeyBase64 + "\"}");

    ask.verb = Verb::unwrap;
    ask.wrapped = as_bytes(wrapped);
    server.options.insert_or_assign("mount", "team/transit");
    server.options.insert_or_assign("ca_file", "/ca.pem");
    request = request_for(server, ask);
    EXPECT_EQ(request.url, "https://vault.internal:8200/v1/team/transit/decrypt/app");
    EXPECT_EQ(request.body.expose_text(),
              R"({"context":"Y29udGV4dA==","ciphertext":"vault:v1:abc"})");
    EXPECT_EQ(request.transport.ca_file, "/ca.pem");
}

TEST(Vault, ReadsADataKey) {
    const Server server = vault_server();
    Ask ask;
    ask.verb = Verb::make_data_key;
    const Result<Answer> answer = server.dialect->read(
        server, ask,
        response(200, std::string(R"({"data":{"ciphertext":"vault:v12:xyz","plaintext":")") +
                          kKeyBase64 + "\"}}"));
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->master_key, "app");
    EXPECT_EQ(answer->master_key_version, "12");
    EXPECT_EQ(as_text(answer->wrapped), "vault:v12:xyz");
    EXPECT_EQ(crypto::to_base64(answer->key.expose()), kKeyBase64);
}

TEST(Vault, WrappingAnswersNoKey) {
    const Server server = vault_server();
    Ask ask;
    ask.verb = Verb::wrap;
    const Result<Answer> answer = server.dialect->read(
        server, ask, response(200, R"({"data":{"ciphertext":"vault:v2:xyz"}})"));
    ASSERT_TRUE(answer);
    EXPECT_TRUE(answer->key.empty());
    EXPECT_EQ(as_text(answer->wrapped), "vault:v2:xyz");
}

TEST(Vault, RefusesAnswersThatAreNone) {
    const Server server = vault_server();
    for (const char *body : {R"({"data":{}})", R"({"data":{"ciphertext":"vault:v1:x"}})",
                             R"({"data":{"ciphertext":"vault:v1:x","plaintext":"?"}})",
                             R"({"data":{"ciphertext":"vault:v1:x","plaintext":7}})",
                             R"({"data":{"ciphertext":"vault:vx:x","plaintext":"YQ=="}})",
                             R"({"data":{"ciphertext":"vault:v:x","plaintext":"YQ=="}})",
                             R"({"data":{"ciphertext":"nonsense","plaintext":"YQ=="}})"})
        EXPECT_EQ(code_of(server, Verb::make_data_key, 200, body), ErrorCode::bad_answer) << body;
    // not of the KMS's form: something else has answered
    for (const char *body :
         {"", "<html>", "{}", "[]", R"({"status":"ok"})",
          R"({"data":{"ciphertext":"vault:v1:x","plaintext":"YQ==","plaintext":"Yg=="}})"})
        EXPECT_EQ(code_of(server, Verb::make_data_key, 200, body), ErrorCode::unreachable) << body;
}

TEST(Vault, WhatIsNotItsOwnWordIsNoDenial) {
    const Server server = vault_server();
    for (const int status : {204, 400, 401, 403, 404, 405, 418})
        for (const char *body :
             {"", "<html>s3cr3t</html>", "RBAC: access denied", R"({"error":"forbidden"})"}) {
            http::Response answer = response(status, body);
            answer.headers = {{"content-type", "text/html; charset=utf-8"}};
            EXPECT_FALSE(vault_dialect().refuses_credential(answer));
            const Result<Answer> read = server.dialect->read(server, {}, std::move(answer));
            ASSERT_FALSE(read);
            const Error &error = read.error();
            EXPECT_EQ(error.code, ErrorCode::unreachable) << status << body;
            EXPECT_EQ(error.message,
                      "could not unwrap a key with KMS \"kms\": something in front of it answered");
            EXPECT_EQ(error.detail.find("The answer is not one of OpenBao or Vault: HTTP status " +
                                        std::to_string(status) + ", content type text/html"),
                      0u)
                << error.detail;
            EXPECT_EQ((error.message + error.detail + error.hint).find("s3cr3t"),
                      std::string::npos);
        }
    // a content type that is none is not repeated
    http::Response strange = response(403, "");
    strange.headers = {{"content-type", "<s3cr3t>"}};
    EXPECT_EQ(describe_answer(strange), "HTTP status 403, no body");
}

TEST(Vault, ATenantsOwnRevocationIsADenial) {
    for (
        const auto &[status, body] : std::initializer_list<std::pair<int, const char *>>{
            {503, R"({"errors":["namespace is sealed"]})"},
            {404, R"({"errors":["namespace not found"]})"},
            {503,
             R"({"errors":["API access to this namespace has been locked by an administrator"]})"}})
        EXPECT_EQ(code_of(vault_server(), Verb::unwrap, status, body), ErrorCode::denied) << body;
    EXPECT_EQ(code_of(vault_server(), Verb::unwrap, 503, R"({"errors":["Vault is sealed"]})"),
              ErrorCode::unreachable);
}

struct ErrorCase {
    int status;
    const char *body;
    ErrorCode code;
};

class VaultErrors : public testing::TestWithParam<ErrorCase> {};

TEST_P(VaultErrors, HaveTheirClass) {
    const ErrorCase &given = GetParam();
    EXPECT_EQ(code_of(vault_server(), Verb::unwrap, given.status, given.body), given.code);
}

INSTANTIATE_TEST_SUITE_P(
    Table, VaultErrors,
    testing::Values(
        ErrorCase{403, R"({"errors":["permission denied"]})", ErrorCode::denied},
        ErrorCase{400, R"x({"errors":["version is disallowed by policy (too old)"]})x",
                  ErrorCode::denied},
        ErrorCase{400, R"({"errors":["operation on soft-deleted key"]})", ErrorCode::denied},
        ErrorCase{400, R"({"errors":["encryption key not found"]})", ErrorCode::denied},
        ErrorCase{400, R"({"errors":["invalid role or secret ID"]})", ErrorCode::denied},
        ErrorCase{429, R"({"errors":["rate limit quota exceeded"]})", ErrorCode::throttled},
        ErrorCase{412, "", ErrorCode::unreachable}, ErrorCase{472, "", ErrorCode::unreachable},
        ErrorCase{473, "", ErrorCode::unreachable}, ErrorCase{500, "", ErrorCode::unreachable},
        ErrorCase{502, "<html>", ErrorCode::unreachable},
        ErrorCase{503, R"({"errors":["Vault is sealed"]})", ErrorCode::unreachable},
        ErrorCase{599, "", ErrorCode::unreachable},
        ErrorCase{404, R"({"errors":[]})", ErrorCode::misconfigured},
        ErrorCase{400, R"({"errors":["missing 'context' for key derivation"]})",
                  ErrorCode::misconfigured},
        ErrorCase{400, R"({"errors":["something new"]})", ErrorCode::misconfigured},
        ErrorCase{418, R"({"errors":[]})", ErrorCode::misconfigured},
        ErrorCase{408, "", ErrorCode::unreachable}, ErrorCase{425, "", ErrorCode::unreachable},
        ErrorCase{400, R"({"errors":["cipher: message authentication failed"]})",
                  ErrorCode::corrupt},
        ErrorCase{400, R"({"errors":["invalid ciphertext: no prefix"]})", ErrorCode::corrupt},
        ErrorCase{400, R"({"errors":["invalid ciphertext: version is too new"]})",
                  ErrorCode::corrupt}));

TEST(Vault, ErrorsRepeatNothingOfTheBody) {
    const Server server = vault_server();
    const Result<Answer> answer = server.dialect->read(
        server, {},
        response(400, R"({"errors":["cipher: message authentication failed s3cr3t"]})"));
    ASSERT_FALSE(answer);
    const Error &error = answer.error();
    EXPECT_EQ((error.message + error.detail + error.hint).find("s3cr3t"), std::string::npos);
    EXPECT_NE(error.detail.find("message authentication failed"), std::string::npos);
}

TEST(Vault, NamesThePathThatThePolicyLacks) {
    const std::pair<Verb, const char *> paths[] = {{Verb::make_data_key, "/datakey/plaintext/"},
                                                   {Verb::wrap, "/encrypt/"},
                                                   {Verb::unwrap, "/decrypt/"},
                                                   {Verb::rewrap, "/rewrap/"}};
    Server server = vault_server();
    server.options["mount"] = "team/transit";
    for (const auto &[verb, path] : paths) {
        Ask ask;
        ask.verb = verb;
        const Result<Answer> answer =
            server.dialect->read(server, ask, response(403, R"({"errors":[]})"));
        ASSERT_FALSE(answer);
        EXPECT_NE(answer.error().hint.find("update on team/transit" + std::string(path) +
                                           std::string(server.option("master_key")) + "."),
                  std::string::npos)
            << answer.error().hint;
    }
}

TEST(Vault, OnlyA403RefusesTheCredential) {
    EXPECT_TRUE(vault_dialect().refuses_credential(response(403, R"({"errors":[]})")));
    for (const int status : {200, 400, 404, 429, 500, 503})
        EXPECT_FALSE(vault_dialect().refuses_credential(response(status, R"({"errors":[]})")));
}

Result<Answer> ask_local(const Ask &ask, std::string_view key_file) {
    Server server;
    server.name = "file";
    server.dialect = &local_dialect();
    const Credential contents{SecretBytes(key_file)};
    auto asked = server.dialect->ask(server, ask, contents);
    return std::move(std::get<Result<Answer>>(asked));
}

const std::string kOld(64, 'a'), kNew(64, 'b');

TEST(Local, WrapsWithTheLastLineAndUnwrapsWithAny) {
    Ask make;
    make.verb = Verb::make_data_key;
    make.context = "C";
    const Result<Answer> made = ask_local(make, kOld);
    ASSERT_TRUE(made);
    EXPECT_EQ(made->wrapped.size(), crypto::kLocalWrappedSize);
    EXPECT_EQ(made->key.size(), 32u);
    EXPECT_EQ(made->master_key_version.size(), 16u);

    Ask unwrap;
    unwrap.context = "C";
    unwrap.wrapped = made->wrapped;
    const Result<Answer> opened = ask_local(unwrap, kOld + "\n" + kNew);
    ASSERT_TRUE(opened);
    EXPECT_TRUE(equal_constant_time(opened->key.expose(), made->key.expose()));
    EXPECT_EQ(opened->master_key_version, made->master_key_version);

    const Result<Answer> made_later = ask_local(make, kOld + "\n" + kNew);
    ASSERT_TRUE(made_later);
    EXPECT_NE(made_later->master_key_version, made->master_key_version);

    const Result<Answer> without = ask_local(unwrap, kNew);
    ASSERT_FALSE(without);
    EXPECT_EQ(without.error().code, ErrorCode::corrupt);
}

TEST(Local, WrapsAGivenKey) {
    const SecretBytes key(std::string(32, 'k'));
    Ask wrap;
    wrap.verb = Verb::wrap;
    wrap.context = "C";
    wrap.key = &key;
    const Result<Answer> wrapped = ask_local(wrap, kNew);
    ASSERT_TRUE(wrapped);
    Ask unwrap;
    unwrap.context = "C";
    unwrap.wrapped = wrapped->wrapped;
    const Result<Answer> opened = ask_local(unwrap, kNew);
    ASSERT_TRUE(opened);
    EXPECT_TRUE(equal_constant_time(opened->key.expose(), key.expose()));
}

TEST(Local, BindsTheContext) {
    Ask make;
    make.verb = Verb::make_data_key;
    make.context = "C";
    Result<Answer> made = ask_local(make, kOld);
    ASSERT_TRUE(made);
    Ask unwrap;
    unwrap.context = "D";
    unwrap.wrapped = made->wrapped;
    const Result<Answer> opened = ask_local(unwrap, kOld);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::corrupt);
}

TEST(Local, RefusesMalformedKeyFiles) {
    Ask make;
    make.verb = Verb::make_data_key;
    for (const std::string &file :
         {std::string("x"), kOld + "0", kOld.substr(1), kOld + "\n\n" + kNew, kOld + "\r",
          std::string(64, 'g'), "\n" + kOld, std::string()}) {
        const Result<Answer> made = ask_local(make, file);
        ASSERT_FALSE(made);
        EXPECT_EQ(made.error().code, ErrorCode::misconfigured);
        EXPECT_EQ((made.error().message + made.error().detail).find(kOld.substr(0, 8)),
                  std::string::npos);
    }
}

}  // namespace
}  // namespace envcrypt::kms
