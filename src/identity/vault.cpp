// See vault.hpp. https://openbao.org/api-docs/auth/approle/ and .../auth/token/
#include "identity/vault.hpp"

#include <algorithm>

#include "kms/json.hpp"
#include "kms/vault.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;

constexpr std::string_view kFileScheme = "file:";
constexpr std::string_view kLogIn = "log in";
// A token is renewed when a tenth of its time is left.
constexpr std::int64_t kUsablePart = 900;  // milliseconds of each second

kms::FileRequest referenced_file(const kms::Server &server, std::string_view option) {
    // check_options() let only file: references in
    return {std::string(server.identity_option(option).substr(kFileScheme.size())), false};
}

http::Request login_request(const kms::Server &server, SecretBytes body) {
    std::string_view mount = server.identity_option("auth_mount");
    if (mount.empty()) mount = server.identity_option("auth");
    return kms::vault_request(server, "POST", "auth/" + std::string(mount) + "/login", nullptr,
                              std::move(body));
}

// Tokens are visible ASCII. One that could not be sent must not be kept: nothing would refuse it.
bool is_token(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

Result<Credential> read_login(const kms::Server &server, http::Response response, kms::Clock now) {
    if (response.status != 200) return kms::vault_error(server, kLogIn, std::move(response));
    const std::optional<Json> json = Json::parse(std::move(response.body));
    if (!json) return kms::vault_nonsense(server, kLogIn, "It was not JSON as expected.");
    const auto token = json->text({"auth", "client_token"});
    const auto seconds = json->integer({"auth", "lease_duration"});
    if (!token || !is_token(*token) || !seconds || *seconds < 0)
        return kms::vault_nonsense(server, kLogIn, "It had no auth.client_token.");
    Credential credential{SecretBytes(*token)};
    constexpr std::int64_t forever = 10LL * 365 * 24 * 3600;
    if (*seconds > 0 && *seconds < forever)
        credential.expires = now + kms::Clock(*seconds * kUsablePart);
    return credential;
}

}  // namespace

kms::Task<Result<Credential>> obtain_vault_token(kms::Conversation &talk,
                                                 const kms::Server &server) {
    if (server.identity_option("auth") == "token") {
        kms::FileRequest file = referenced_file(server, "token");
        Result<SecretBytes> token = co_await talk.read_file(std::move(file));
        if (!token) co_return std::move(token.error());
        if (!is_token(token->expose_text()))
            co_return Error{ErrorCode::misconfigured,
                            "token for KMS \"" + server.name + "\" cannot be sent",
                            "It contains a line break or another character that no token has.",
                            "Let the file that the user mapping's option token names hold the "
                            "token and nothing else."};
        co_return Credential{std::move(*token)};
    }
    kms::FileRequest file = referenced_file(server, "secret_id");
    Result<SecretBytes> secret_id = co_await talk.read_file(std::move(file));
    if (!secret_id) co_return std::move(secret_id.error());
    SecretBytes body = kms::write_json(
        {{"role_id", server.identity_option("role_id")}, {"secret_id", secret_id->expose_text()}});
    http::Request request = login_request(server, std::move(body));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_login(server, std::move(*response), talk.now());
}

kms::Task<Result<std::string>> describe_vault_token(kms::Conversation &talk,
                                                    const kms::Server &server,
                                                    const Credential &token) {
    constexpr std::string_view doing = "look up the identity";
    http::Request request =
        kms::vault_request(server, "GET", "auth/token/lookup-self", &token.secret, {});
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, doing, std::move(response.error()));
    if (response->status != 200) co_return kms::vault_error(server, doing, std::move(*response));
    const std::optional<Json> json = Json::parse(std::move(response->body));
    std::optional<std::string_view> name;
    if (json) name = json->text({"data", "display_name"});
    if (!name) co_return kms::vault_nonsense(server, doing, "It had no data.display_name.");
    std::string text(*name);
    text += " (policies:";
    for (const std::string_view policy : json->texts({"data", "policies"}))
        text += " " + std::string(policy);
    co_return text + ")";
}

}  // namespace envcrypt::identity
