// Logins against answers made up here: what metadata services and token endpoints say, and what
// AWS's config and credentials files mean.
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <variant>
#include <vector>

#include "identity/identity.hpp"

namespace envcrypt::identity {
namespace {

using http::Response;

Response reply(int status, std::string_view body, const char *type = "text/html") {
    Response response;
    response.status = status;
    response.headers = {{"content-type", type}};
    response.body = SecretBytes(body);
    return response;
}

// One login. `answers` go in order to what is read and asked.
struct Login {
    std::deque<std::variant<Response, std::string>> answers;
    std::vector<std::string> asked;
    std::vector<std::string> bodies;

    Result<Credential> run(const kms::Server &server) {
        kms::Conversation talk;
        talk.set_wall_time(1795548511);
        talk.set_now(kms::Clock(1000));
        kms::Task<Result<Credential>> work = obtain(talk, server);
        work.start();
        while (!work.done()) {
            if (answers.empty()) return Error{ErrorCode::internal, "more is asked", {}, {}};
            auto answer = std::move(answers.front());
            answers.pop_front();
            if (talk.needs_file()) {
                asked.push_back(talk.take_file().path);
                talk.answer(Result<SecretBytes>(SecretBytes(std::get<std::string>(answer))));
            } else {
                http::Request request = talk.take_request();
                asked.push_back(request.url);
                bodies.emplace_back(request.body.expose_text());
                talk.answer(Result<Response>(std::move(std::get<Response>(answer))));
            }
        }
        EXPECT_TRUE(answers.empty()) << "less is asked than was expected";
        return work.take();
    }
};

kms::Server aws(kms::Options identity) {
    kms::Server server;
    server.name = "kms";
    server.dialect = &kms::aws_dialect();
    server.options = {{"master_key", "alias/app"}, {"region", "eu-central-1"}};
    server.identity = std::move(identity);
    return server;
}

kms::Server gcp(kms::Options identity) {
    kms::Server server;
    server.name = "kms";
    server.dialect = &kms::gcp_dialect();
    server.options = {{"master_key", "projects/p/locations/l/keyRings/r/cryptoKeys/k"}};
    server.identity = std::move(identity);
    return server;
}

kms::Server azure(kms::Options identity) {
    kms::Server server;
    server.name = "kms";
    server.dialect = &kms::azure_dialect();
    server.options = {{"endpoint", "https://v.vault.azure.net"}, {"master_key", "app"}};
    server.identity = std::move(identity);
    return server;
}

template <class... Answer>
Error failure_of(const kms::Server &server, Answer... answers) {
    Login login;
    (login.answers.emplace_back(std::move(answers)), ...);
    const Result<Credential> credential = login.run(server);
    EXPECT_FALSE(credential);
    return credential ? Error{} : credential.error();
}

TEST(Metadata, WhatStartsOrThrottlesIsNoDenial) {
    struct Case {
        kms::Server server;
        const char *says;
        std::vector<int> passing;
    };
    const Case cases[] = {
        {aws({{"auth", "container"}}), "role is attached", {400, 404, 408, 425, 500, 502, 503}},
        {aws({{"auth", "instance"}}), "IMDSv2", {404, 408, 425, 500, 503}},
        {gcp({{"auth", "metadata"}}), "metadata server", {404, 408, 425, 500, 503}},
        {azure({{"auth", "managed_identity"}}),
         "instance metadata",
         {404, 408, 410, 425, 500, 503}},
    };
    for (const Case &given : cases) {
        for (const int status : given.passing) {
            const Error error = failure_of(given.server, reply(status, "<html>s3cr3t"));
            EXPECT_EQ(error.code, ErrorCode::unreachable) << given.says << status;
            EXPECT_TRUE(error.passes_soon) << given.says << status;
            EXPECT_NE(error.hint.find(given.says), std::string::npos) << error.hint;
            EXPECT_NE(error.detail.find("HTTP status " + std::to_string(status)),
                      std::string::npos);
            EXPECT_EQ((error.detail + error.hint).find("s3cr3t"), std::string::npos);
        }
        const Error busy = failure_of(given.server, reply(429, ""));
        EXPECT_EQ(busy.code, ErrorCode::throttled) << given.says;
        EXPECT_NE(busy.hint.find(given.says), std::string::npos) << busy.hint;
        // of a mesh
        for (const int status : {403, 401})
            EXPECT_EQ(failure_of(given.server, reply(status, "RBAC: access denied")).code,
                      ErrorCode::unreachable)
                << given.says;
        EXPECT_EQ(failure_of(given.server, reply(200, "<html> </html>")).code,
                  ErrorCode::unreachable)
            << given.says;
    }
}

TEST(Metadata, AnInstanceWithoutARoleIsToldSo) {
    const Error error =
        failure_of(aws({{"auth", "instance"}}), reply(200, "token"), reply(404, "<html>"));
    EXPECT_EQ(error.code, ErrorCode::unreachable);
    EXPECT_NE(error.detail.find("It named no role."), std::string::npos);
    EXPECT_NE(error.hint.find("Attach an instance profile"), std::string::npos);
}

TEST(Metadata, ItsOwnWordsAreADenial) {
    EXPECT_EQ(failure_of(aws({{"auth", "container"}}),
                         reply(403, R"({"code":"AccessDenied","message":"no"})"))
                  .code,
              ErrorCode::denied);
    EXPECT_EQ(failure_of(azure({{"auth", "managed_identity"}}),
                         reply(400, R"({"error":"invalid_request"})"))
                  .code,
              ErrorCode::denied);
    Response google = reply(403, "no");
    google.headers.push_back({"metadata-flavor", "Google"});
    EXPECT_EQ(failure_of(gcp({{"auth", "metadata"}}), std::move(google)).code, ErrorCode::denied);
}

TEST(TokenEndpoint, OnlyItsOwnWordsAreADenial) {
    const kms::Server entra = azure({{"auth", "client_secret"},
                                     {"tenant_id", "t"},
                                     {"client_id", "c"},
                                     {"client_secret", "file:/s"}});
    const kms::Server sts = aws({{"auth", "web_identity"},
                                 {"role_arn", "arn:aws:iam::1:role/r"},
                                 {"web_identity_token_file", "/t"}});
    for (const int status : {400, 401, 403, 404})
        for (const char *body : {"", "<html>", "RBAC: access denied", R"({"message":"no"})"})
            for (const kms::Server *server : {&entra, &sts})
                EXPECT_EQ(failure_of(*server, std::string("secret"), reply(status, body)).code,
                          ErrorCode::unreachable)
                    << status << body;
    for (const kms::Server *server : {&entra, &sts})
        EXPECT_EQ(failure_of(*server, std::string("secret"), reply(200, "<html>")).code,
                  ErrorCode::unreachable);
    for (const int status : {400, 401})
        EXPECT_EQ(
            failure_of(entra, std::string("secret"), reply(status, R"({"error":"invalid_client"})"))
                .code,
            ErrorCode::denied);
    EXPECT_EQ(failure_of(entra, std::string("secret"),
                         reply(400, R"({"error":"temporarily_unavailable"})"))
                  .code,
              ErrorCode::unreachable);
    EXPECT_EQ(failure_of(sts, std::string("secret"),
                         reply(403, "<ErrorResponse><Error><Code>AccessDenied</Code></Error>"))
                  .code,
              ErrorCode::denied);
}

// --- AWS's files

constexpr std::string_view kCredentials =
    "[default]\naws_access_key_id = BASE\naws_secret_access_key = s\n";

// What a profile of these files logs in as: "BASE" by its keys, the role's ARN by AssumeRole, or
// the detail of the error.
std::string login_as(std::string_view credentials, std::string_view config,
                     const char *profile = "p") {
    const kms::Server server = aws({{"auth", "profile"},
                                    {"credentials_file", "/credentials"},
                                    {"config_file", "/config"},
                                    {"profile", profile}});
    kms::Conversation talk;
    talk.set_wall_time(1795548511);
    kms::Task<Result<Credential>> work = obtain(talk, server);
    work.start();
    for (const std::string_view file : {credentials, config})
        if (!work.done()) {
            talk.take_file();
            talk.answer(Result<SecretBytes>(SecretBytes(file)));
        }
    if (!work.done()) {
        http::Request request = talk.take_request();
        const std::string body(request.body.expose_text());
        const std::size_t arn = body.find("RoleArn=");
        return body.substr(arn, body.find('&', arn) - arn);
    }
    const Result<Credential> credential = work.take();
    if (credential) return credential->id;
    EXPECT_EQ(credential.error().code, ErrorCode::misconfigured);
    return credential.error().detail;
}

TEST(AwsFiles, AreReadAsAwsReadsThem) {
    const std::string role = "RoleArn=arn%3Ar";
    const char *role_forms[] = {
        "[profile p]\nrole_arn = arn:r\nsource_profile = default\n",
        "[profile p]\n  role_arn = arn:r\n  source_profile = default\n",
        "[profile p]\n\trole_arn=arn:r\n\tsource_profile=default\n",
        "[profile  p]\nrole_arn = arn:r\nsource_profile = default\n",
        "[profile\tp]\nrole_arn = arn:r\nsource_profile = default\n",
        "[profile 'p']\nROLE_ARN = arn:r\nSource_Profile = default\n",
        "[profile p]\nrole_arn: arn:r\nsource_profile : default\n",
        "[profile p] # comment\nrole_arn = arn:r\nsource_profile = default\n",
        "  [profile p]\n  role_arn = arn:r\n  source_profile = default\n",
        "[profile p]\r\nrole_arn = arn:r\r\nsource_profile = default\r\n",
        "[services x]\nkms =\n  endpoint_url = https://x\n[profile p]\nservices = x\nrole_arn = "
        "arn:r\nsource_profile = default\n",
        "# c\n; c\n[profile p]\ns3 =\n  role_arn = arn:other\nrole_arn = arn:r\nsource_profile = "
        "default\n",
    };
    for (const char *form : role_forms) EXPECT_EQ(login_as(kCredentials, form), role) << form;
    EXPECT_EQ(login_as(kCredentials,
                       "[profile default]\nrole_arn = arn:r\nsource_profile = default", "default"),
              role);
    // of two sections for one profile, the later one
    EXPECT_EQ(login_as(kCredentials,
                       "[profile default]\nrole_arn = arn:r\nsource_profile = default\n[default]\n",
                       "default"),
              "BASE");
    // a source with a blank in its name
    EXPECT_EQ(login_as("[with blank]\naws_access_key_id = B\naws_secret_access_key = s\n",
                       "[profile p]\nrole_arn = arn:r\nsource_profile = with blank\n"),
              role);
    // the keys of a source go before its role
    EXPECT_EQ(login_as("[q]\naws_access_key_id = B\naws_secret_access_key = s\n",
                       "[profile q]\nrole_arn = arn:q\nsource_profile = x\n[profile p]\nrole_arn = "
                       "arn:r\nsource_profile = q\n"),
              role);
}

TEST(AwsFiles, WhatCannotBeReadSoIsRefused) {
    const auto refused = [](std::string_view config, const char *words) {
        const std::string said =
            login_as("[p]\naws_access_key_id = BASE\naws_secret_access_key = s\n", config);
        EXPECT_NE(said.find(words), std::string::npos) << config << "\n" << said;
    };
    refused("[profile p]\nregion = x\n[profile p]\nrole_arn = arn:r\n", "Line 3");
    refused("[profile p]\nrole_arn = a\nrole_arn = b\n", "Line 3");
    refused("[profile p]\nrole_arn\n", "Line 2");
    refused("role_arn = a\n[profile p]\n", "Line 1");
    refused("[profile p]\n= a\n", "Line 2");
    refused("[profile p]\n\xc2\xa0role_arn = a\n", "Line 2");
    refused("[profile p]\n\x0crole_arn = a\x0b\n", "Line 2");
    refused("[profile p]\nrole_arn = arn:r\n  source_profile = default\n", "several lines");
    refused("[profile p]\nrole_arn =\n", "empty role_arn");
    refused("[profile p]\nrole_arn = arn:r # mine\nsource_profile = p\n", "role_arn that is none");
    refused("[profile p]\nsource_profile = default\n", "source_profile and no role_arn");
    refused("[profile p]\nrole_arn = a\nsource_profile = p\ncredential_source = EcsContainer\n",
            "source_profile and credential_source");
    refused("[profile p]\nsso_session = s\n", "sso_session");
    refused("[profile p]\ncredential_process = /bin/x\n", "credential_process");
    refused("[profile p]\naws_session_token = t\n", "keys in both files");
}

}  // namespace
}  // namespace envcrypt::identity
