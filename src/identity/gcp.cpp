// See gcp.hpp. https://developers.google.com/identity/protocols/oauth2/service-account (RFC 7523),
// https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token (RFC 8693)
#include "identity/gcp.hpp"

#include "crypto/encoding.hpp"
#include "crypto/rsa.hpp"
#include "identity/form.hpp"
#include "identity/secret.hpp"
#include "kms/gcp.hpp"
#include "kms/json.hpp"
#include "kms/time.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;

constexpr std::string_view kLogIn = "log in";
constexpr std::string_view kGoogle = "Google";
constexpr const char *kNeedsAccount =
    "The host needs a service account whose access scopes include cloudkms or cloud-platform.";
constexpr const char *kNeedsTrust =
    "Google refuses the identity: check the file that credentials_file names, and what its pool or "
    "its service account lets in.";
constexpr const char *kNeedsImpersonation =
    "The federated identity needs the role roles/iam.workloadIdentityUser on the service account "
    "that the file names.";
constexpr kms::Clock kMetadataPatience{3000};
constexpr std::int64_t kAssertionSeconds = 3600;

const char *scope_url(GcpScope scope) {
    return scope == GcpScope::kms ? "https://www.googleapis.com/auth/cloudkms"
                                  : "https://www.googleapis.com/auth/cloud-platform";
}

Error file_error(const kms::Server &server, const char *what) {
    return {ErrorCode::misconfigured, "could not log in with KMS \"" + server.name + "\"",
            std::string("The file that credentials_file names ") + what,
            "Use the JSON file of a service account, or of a workload identity federation."};
}

// Answers of token endpoints say what is wrong by OAuth's words, others as the KMS does.
Error token_error(const kms::Server &server, const http::Response &response, const char *needs) {
    Error error = kms::gcp_error(server, kLogIn, response, needs, false);
    const bool by_oauth = is_oauth_error(response);
    if (response.status == 429 || kms::is_outage_status(response.status) ||
        (!by_oauth && !kms::is_gcp_error(response)))
        return error;
    if (by_oauth) {
        error.code = ErrorCode::denied;
        error.message = "could not log in with KMS \"" + server.name + "\"";
        error.detail = "Google answered HTTP " + std::to_string(response.status) + ".";
        error.hint = needs;
    }
    if (is_oauth_outage(response)) {
        error.code = ErrorCode::unreachable;
        error.hint = {};
    } else if (response.status == 400 || response.status == 401) {
        error.code = ErrorCode::denied;
        error.hint =
            "Google refuses the identity: check the file that credentials_file names, "
            "whether its key still exists, and the clock of the database host.";
    }
    return error;
}

Result<Credential> read_token(const kms::Server &server, const kms::Conversation &talk,
                              http::Response response, const char *needs) {
    if (response.status != 200) return token_error(server, response, needs);
    const std::optional<Json> json = Json::parse(response.body.copy());
    if (!json || !json->has({"access_token"}))
        return kms::foreign_answer(server, kLogIn, kGoogle, response);
    const auto token = json->text({"access_token"});
    const auto seconds = json->integer({"expires_in"});
    if (!token || !is_visible_ascii(*token) || !seconds || *seconds <= 0)
        return login_nonsense(server, kGoogle, "It had no access_token.");
    Credential credential{SecretBytes(*token)};
    set_lifetime(credential, talk.now(), *seconds);
    return credential;
}

kms::Task<Result<Credential>> from_metadata(kms::Conversation &talk, const kms::Server &server,
                                            GcpScope scope) {
    constexpr std::string_view service = "Google's metadata server";
    http::Request request;
    request.method = "GET";
    request.url =
        kms::gcp_endpoint(server, "metadata_endpoint", "http://169.254.169.254") +
        "/computeMetadata/v1/instance/service-accounts/default/token?scopes=" + scope_url(scope);
    request.transport = server.transport();
    request.transport.proxy.clear();  // it is on this host
    request.timeout = kMetadataPatience;
    request.headers.push_back({"Metadata-Flavor", SecretBytes("Google")});
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return metadata_unreached(server, service, std::move(response.error()));
    const bool is_its_own = response->header("metadata-flavor") == "Google";
    const bool refuses = response->status == 400 || response->status == 403;
    if (!is_its_own && (response->status == 200 || refuses))
        co_return kms::foreign_answer(server, kLogIn, service, *response);
    if (response->status == 200)
        co_return read_token(server, talk, std::move(*response), kNeedsAccount);
    Error error = metadata_error(server, service, *response,
                                 std::string("Google's metadata server answers so until it knows "
                                             "the host's service account. ") +
                                     kNeedsAccount);
    if (refuses) {
        error.code = ErrorCode::denied;
        error.hint = kNeedsAccount;
    }
    co_return error;
}

kms::Task<Result<Credential>> from_service_account(kms::Conversation &talk,
                                                   const kms::Server &server, const Json &file,
                                                   GcpScope scope) {
    const auto email = file.text({"client_email"});
    const auto private_key = file.text({"private_key"});
    const auto key_id = file.text({"private_key_id"});
    const auto token_uri = file.text({"token_uri"});
    if (!email || !private_key || !token_uri) co_return file_error(server, "is incomplete.");
    // what a session brings does not say where requests go
    constexpr std::string_view google = "https://oauth2.googleapis.com/token";
    const std::string url =
        kms::gcp_endpoint(server, "token_endpoint", server.brought ? google : *token_uri);

    kms::JsonWriter header;
    header.add("alg", "RS256").add("typ", "JWT");
    if (key_id) header.add("kid", *key_id);
    kms::JsonWriter claims;
    claims.add("iss", *email)
        .add("scope", scope_url(scope))
        // whose token it is, not where an option sends it
        .add("aud", server.brought ? google : *token_uri)
        .add("iat", talk.wall_time())
        .add("exp", talk.wall_time() + kAssertionSeconds);
    SecretBytes assertion = crypto::to_base64url_secret(header.finish().expose());
    assertion.append(as_bytes("."));
    assertion.append(crypto::to_base64url_secret(claims.finish().expose()).expose());
    // the assertion is worth a token for an hour, and so is its signature
    std::optional<Bytes> signature = crypto::sign_rs256(*private_key, assertion.expose());
    if (!signature) co_return file_error(server, "has no usable private_key.");
    assertion.append(as_bytes("."));
    assertion.append(crypto::to_base64url_secret(*signature).expose());
    wipe(*signature);

    http::Request request =
        token_request(server, url,
                      write_form({{"grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"},
                                  {"assertion", assertion.expose_text()}}));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_token(server, talk, std::move(*response), kNeedsTrust);
}

// The subject token is read each time: whoever provides it replaces it.
kms::Task<Result<Credential>> from_external_account(kms::Conversation &talk,
                                                    const kms::Server &server, const Json &file,
                                                    GcpScope scope) {
    const auto audience = file.text({"audience"});
    const auto token_type = file.text({"subject_token_type"});
    const auto token_url = file.text({"token_url"});
    const auto source = file.text({"credential_source", "file"});
    if (!audience || !token_type || !token_url || !source || !source->starts_with('/'))
        co_return file_error(server, "is incomplete: it needs credential_source.file.");
    const auto field = file.text({"credential_source", "format", "subject_token_field_name"});
    const auto impersonation = file.text({"service_account_impersonation_url"});

    kms::FileRequest subject_file{std::string(*source), false};
    Result<SecretBytes> subject = co_await talk.read_file(std::move(subject_file));
    if (!subject) co_return std::move(subject.error());
    if (field) {
        const std::optional<Json> document = Json::parse(std::move(*subject));
        std::optional<std::string_view> token;
        if (document) token = document->text({std::string(*field).c_str()});
        if (!token) co_return file_error(server, "names a subject token that is not there.");
        subject = SecretBytes(*token);
    }
    http::Request request = token_request(
        server, kms::gcp_endpoint(server, "sts_endpoint", *token_url),
        write_form({{"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"},
                    {"audience", *audience},
                    {"scope", impersonation ? scope_url(GcpScope::secrets) : scope_url(scope)},
                    {"requested_token_type", "urn:ietf:params:oauth:token-type:access_token"},
                    {"subject_token_type", *token_type},
                    {"subject_token", subject->expose_text()}}));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    Result<Credential> federated = read_token(server, talk, std::move(*response), kNeedsTrust);
    if (!federated || !impersonation) co_return federated;

    // the service account is impersonated with it
    const std::string body = std::string(R"({"scope":[")") + scope_url(scope) +
                             R"("],"lifetime":")" + std::to_string(kAssertionSeconds) + R"(s"})";
    http::Request impersonate = kms::gcp_request(server, "POST", std::string(*impersonation),
                                                 *federated, SecretBytes(body));
    Result<http::Response> answer = co_await talk.exchange(std::move(impersonate));
    if (!answer) co_return kms::while_doing(server, kLogIn, std::move(answer.error()));
    if (answer->status != 200) co_return token_error(server, *answer, kNeedsImpersonation);
    const std::optional<Json> json = Json::parse(answer->body.copy());
    if (!json || !json->has({"accessToken"}))
        co_return kms::foreign_answer(server, kLogIn, kGoogle, *answer);
    const auto token = json->text({"accessToken"});
    const auto end = kms::parse_utc_time(json->text({"expireTime"}).value_or(""));
    if (!token || !is_visible_ascii(*token) || !end || *end <= talk.wall_time())
        co_return login_nonsense(server, kGoogle, "It had no accessToken.");
    Credential credential{SecretBytes(*token)};
    set_lifetime(credential, talk.now(), *end - talk.wall_time());
    co_return credential;
}

}  // namespace

kms::Task<Result<Credential>> obtain_gcp_token(kms::Conversation &talk, const kms::Server &server,
                                               GcpScope scope) {
    const std::string auth(server.identity_option("auth"));
    if (auth == "metadata") co_return co_await from_metadata(talk, server, scope);
    Result<SecretBytes> contents = co_await read_option_file(talk, server, "credentials_file");
    if (!contents) co_return std::move(contents.error());
    const std::optional<Json> json = Json::parse(std::move(*contents));
    if (!json) co_return file_error(server, "is not JSON as expected.");
    if (json->text({"type"}) != auth) co_return file_error(server, "is of another type than auth.");
    if (auth == "service_account")
        co_return co_await from_service_account(talk, server, *json, scope);
    co_return co_await from_external_account(talk, server, *json, scope);
}

std::string describe_gcp(const kms::Server &server) {
    const std::string_view file = server.identity_option("credentials_file");
    return std::string(server.identity_option("auth")) +
           (file.empty() ? "" : " of " + std::string(file));
}

}  // namespace envcrypt::identity
