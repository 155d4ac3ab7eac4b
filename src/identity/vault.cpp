// See vault.hpp. https://openbao.org/api-docs/auth/ : approle, kubernetes, jwt, cert and token.
#include "identity/vault.hpp"

#include "identity/form.hpp"
#include "identity/secret.hpp"
#include "kms/json.hpp"
#include "kms/vault.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;
using kms::write_json;

constexpr std::string_view kLogIn = "log in";

http::Request login_request(const kms::Server &server, SecretBytes body) {
    std::string_view mount = server.identity_option("auth_mount");
    if (mount.empty()) mount = server.identity_option("auth");
    return kms::vault_request(server, "POST", "auth/" + std::string(mount) + "/login", nullptr,
                              std::move(body));
}

Result<Credential> read_login(const kms::Server &server, http::Response response, kms::Clock now) {
    if (response.status != 200) {
        const bool refused = response.status == 400;
        Error error =
            kms::vault_error(server, kLogIn, std::move(response),
                             "The KMS refuses the login: check the auth method's mount, and what "
                             "the role is bound to (addresses, claims, certificates).");
        // a token that has ended, is meant for somebody else, or a role that is gone: said in many
        // words
        if (refused && error.code == ErrorCode::misconfigured && error.hint.empty()) {
            error.code = ErrorCode::denied;
            error.hint =
                "Check the user mapping's role, and that what it logs in with is meant for that "
                "role and has not ended.";
        }
        return error;
    }
    const std::optional<Json> json = Json::parse(response.body.copy());
    if (!kms::is_vault_answer(json))
        return kms::foreign_answer(server, kLogIn, "OpenBao or Vault", response);
    const auto token = json->text({"auth", "client_token"});
    const auto seconds = json->integer({"auth", "lease_duration"});
    if (!token || !is_visible_ascii(*token) || !seconds || *seconds < 0)
        return kms::vault_nonsense(server, kLogIn, "It had no auth.client_token.");
    Credential credential{SecretBytes(*token)};
    set_lifetime(credential, now, *seconds);
    credential.renewable = json->boolean({"auth", "renewable"}).value_or(false);
    return credential;
}

}  // namespace

kms::Task<Result<Credential>> obtain_vault_token(kms::Conversation &talk,
                                                 const kms::Server &server) {
    if (server.identity_option("auth") == "token") {
        Result<SecretBytes> token = co_await read_secret(talk, server, "token");
        if (!token) co_return std::move(token.error());
        if (!is_visible_ascii(token->expose_text()))
            co_return Error{ErrorCode::misconfigured,
                            "token for KMS \"" + server.name + "\" cannot be sent",
                            "It contains a line break or another character that no token has.",
                            "Let the file that the user mapping's option token names hold the "
                            "token and nothing else."};
        co_return Credential{std::move(*token)};
    }
    SecretBytes body;
    const std::string auth(server.identity_option("auth"));
    if (auth == "cert") {
        body = write_json({{"name", server.identity_option("role")}});
    } else {
        const bool approle = auth == "approle";
        Result<SecretBytes> secret =
            co_await read_secret(talk, server, approle ? "secret_id" : "jwt");
        if (!secret) co_return std::move(secret.error());
        body = approle ? write_json({{"role_id", server.identity_option("role_id")},
                                     {"secret_id", secret->expose_text()}})
                       : write_json({{"role", server.identity_option("role")},
                                     {"jwt", secret->expose_text()}});
    }
    http::Request request = login_request(server, std::move(body));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_login(server, std::move(*response), talk.now());
}

kms::Task<Result<Credential>> renew_vault_token(kms::Conversation &talk, const kms::Server &server,
                                                const Credential &token) {
    if (!token.renewable) co_return co_await obtain_vault_token(talk, server);
    http::Request request =
        kms::vault_request(server, "POST", "auth/token/renew-self", &token.secret, {});
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (response && response->status == 200) {
        Result<Credential> renewed = read_login(server, std::move(*response), talk.now());
        // near its longest life the lease shrinks: then only a login helps
        if (renewed && renewed->expires > token.expires) co_return renewed;
    }
    co_return co_await obtain_vault_token(talk, server);
}

kms::Task<Result<std::string>> describe_vault_token(kms::Conversation &talk,
                                                    const kms::Server &server,
                                                    const Credential &token) {
    constexpr std::string_view doing = "look up the identity";
    http::Request request =
        kms::vault_request(server, "GET", "auth/token/lookup-self", &token.secret, {});
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, doing, std::move(response.error()));
    // it has proven itself; a role without the policy `default` may not look itself up
    if (response->status == 403 && kms::is_vault_error(*response))
        co_return std::string("a token that may not look itself up");
    if (response->status != 200)
        co_return kms::vault_error(server, doing, std::move(*response), {});
    const std::optional<Json> json = Json::parse(response->body.copy());
    if (!kms::is_vault_answer(json))
        co_return kms::foreign_answer(server, doing, "OpenBao or Vault", *response);
    const auto name = json->text({"data", "display_name"});
    if (!name) co_return kms::vault_nonsense(server, doing, "It had no data.display_name.");
    std::string text(*name);
    text += " (policies:";
    for (const std::string_view policy : json->texts({"data", "policies"}))
        text += " " + std::string(policy);
    co_return text + ")";
}

}  // namespace envcrypt::identity
