// See azure.hpp.
// https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
// https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
#include "identity/azure.hpp"

#include <charconv>

#include "identity/form.hpp"
#include "identity/secret.hpp"
#include "kms/azure.hpp"
#include "kms/json.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;

constexpr std::string_view kLogIn = "log in";
constexpr const char *kNeedsLogin =
    "Something between the database and the login refuses it: check the host's access to instance "
    "metadata, and the network.";
constexpr kms::Clock kMetadataPatience{3000};

// Numbers come as numbers from the login, as strings from instance metadata.
std::optional<std::int64_t> number(const Json &json, const char *name) {
    if (const auto plain = json.integer({name})) return plain;
    const auto text = json.text({name});
    std::int64_t value = 0;
    if (!text) return std::nullopt;
    const auto read = std::from_chars(text->data(), text->data() + text->size(), value);
    if (read.ec != std::errc() || read.ptr != text->data() + text->size()) return std::nullopt;
    return value;
}

Result<Credential> read_token(const kms::Server &server, const kms::Conversation &talk,
                              http::Response response) {
    if (response.status != 200) {
        const bool says_nothing = response.status == 429 || kms::is_outage_status(response.status);
        if (says_nothing || !is_oauth_error(response)) {
            Error error = kms::azure_error(server, kLogIn, response, kNeedsLogin, false);
            if (response.status == 429) error.hint = "Microsoft Entra asks to slow down.";
            return error;
        }
        const std::string detail =
            "Microsoft Entra answered HTTP " + std::to_string(response.status) + ".";
        const std::string message = "could not log in with KMS \"" + server.name + "\"";
        if (is_oauth_outage(response)) return Error{ErrorCode::unreachable, message, detail, {}};
        return Error{ErrorCode::denied, message, detail,
                     response.status == 400 || response.status == 401
                         ? "Microsoft Entra refuses the identity: check tenant_id, client_id and "
                           "the secret or token, which may have expired."
                         : kNeedsLogin};
    }
    const std::optional<Json> json = Json::parse(response.body.copy());
    if (!json || !json->has({"access_token"}))
        return kms::foreign_answer(server, kLogIn, "Microsoft Entra", response);
    const auto token = json->text({"access_token"});
    const auto seconds = number(*json, "expires_in");
    if (!token || !is_visible_ascii(*token) || !seconds || *seconds <= 0)
        return login_nonsense(server, "Microsoft Entra", "It had no access_token.");
    Credential credential{SecretBytes(*token)};
    set_lifetime(credential, talk.now(), *seconds);
    return credential;
}

kms::Task<Result<Credential>> from_instance(kms::Conversation &talk, const kms::Server &server) {
    constexpr std::string_view service = "Azure's instance metadata";
    std::string_view endpoint = server.option("metadata_endpoint");
    if (endpoint.empty()) endpoint = "http://169.254.169.254";
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    const std::string client_id(server.identity_option("client_id"));
    const SecretBytes query = write_form({{"api-version", "2018-02-01"},
                                          {"resource", kms::azure_resource(server)},
                                          {"client_id", client_id}});
    http::Request request;
    request.method = "GET";
    request.url = std::string(endpoint) + "/metadata/identity/oauth2/token?" +
                  std::string(query.expose_text());
    request.transport = server.transport();
    request.transport.proxy.clear();  // it is on this host
    request.timeout = kMetadataPatience;
    request.headers.push_back({"Metadata", SecretBytes("true")});
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return metadata_unreached(server, service, std::move(response.error()));
    // while the service is being updated, or starts, it says to try again
    const int status = response->status;
    if (status == 404 || status == 410 || status == 429 || kms::is_outage_status(status))
        co_return metadata_error(server, service, *response,
                                 "Azure's instance metadata answers so while it starts, is being "
                                 "updated, or is asked too often. Check that the host has a "
                                 "managed identity.");
    co_return read_token(server, talk, std::move(*response));
}

}  // namespace

kms::Task<Result<Credential>> obtain_azure_token(kms::Conversation &talk,
                                                 const kms::Server &server) {
    const std::string_view auth = server.identity_option("auth");
    if (auth == "managed_identity") co_return co_await from_instance(talk, server);
    const bool federated = auth == "federated";
    Result<SecretBytes> secret = Error{};
    if (federated) {
        secret = co_await read_option_file(talk, server, "federated_token_file");
    } else {
        secret = co_await read_secret(talk, server, "client_secret");
    }
    if (!secret) co_return std::move(secret.error());
    const std::string scope = kms::azure_resource(server) + "/.default";
    SecretBytes form = federated
                           ? write_form({{"grant_type", "client_credentials"},
                                         {"client_id", server.identity_option("client_id")},
                                         {"scope", scope},
                                         {"client_assertion_type",
                                          "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
                                         {"client_assertion", secret->expose_text()}})
                           : write_form({{"grant_type", "client_credentials"},
                                         {"client_id", server.identity_option("client_id")},
                                         {"scope", scope},
                                         {"client_secret", secret->expose_text()}});
    std::string_view login = server.option("token_endpoint");
    if (login.empty()) login = "https://login.microsoftonline.com";
    while (login.ends_with('/')) login.remove_suffix(1);
    http::Request request =
        token_request(server,
                      std::string(login) + "/" + std::string(server.identity_option("tenant_id")) +
                          "/oauth2/v2.0/token",
                      std::move(form));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_token(server, talk, std::move(*response));
}

std::string describe_azure(const kms::Server &server) {
    const std::string_view client = server.identity_option("client_id");
    return std::string(server.identity_option("auth")) +
           (client.empty() ? "" : " " + std::string(client));
}

}  // namespace envcrypt::identity
