// See secret.hpp.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
// https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
// https://learn.microsoft.com/en-us/rest/api/keyvault/secrets/get-secret/get-secret
// https://openbao.org/api-docs/secret/kv/kv-v2/
// https://docs.doppler.com/reference/secrets-get
#include "identity/secret.hpp"

#include <algorithm>

#include "crypto/encoding.hpp"
#include "identity/aws.hpp"
#include "identity/form.hpp"
#include "identity/gcp.hpp"
#include "kms/aws.hpp"
#include "kms/azure.hpp"
#include "kms/gcp.hpp"
#include "kms/json.hpp"
#include "kms/reference.hpp"
#include "kms/vault.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;
using kms::SecretReference;
using kms::SecretStore;

constexpr std::string_view kDoing = "read a secret";

Error secret_error(const kms::Server &server, std::string detail, std::string hint) {
    return {ErrorCode::misconfigured, "could not read a secret for KMS \"" + server.name + "\"",
            std::move(detail), std::move(hint)};
}

const kms::Dialect &dialect_of(SecretStore store) {
    switch (store) {
        case SecretStore::aws:
            return kms::aws_dialect();
        case SecretStore::gcp:
            return kms::gcp_dialect();
        case SecretStore::azure:
            return kms::azure_dialect();
        default:
            return kms::vault_dialect();
    }
}

http::Request secret_request(const kms::Server &store, const SecretReference &reference,
                             const Credential &credential, std::int64_t time) {
    const std::string name(reference.name);
    switch (reference.store) {
        case SecretStore::aws:
            return kms::aws_request(store, "secretsmanager", "secrets_endpoint",
                                    "secretsmanager.GetSecretValue",
                                    kms::write_json({{"SecretId", name}}), credential, time);
        case SecretStore::gcp:
            return kms::gcp_request(
                store, "GET",
                kms::gcp_endpoint(store, "secrets_endpoint",
                                  "https://secretmanager.googleapis.com") +
                    "/v1/" + name +
                    (name.find("/versions/") == std::string::npos ? "/versions/latest:access"
                                                                  : ":access"),
                credential, {});
        case SecretStore::azure:
            return kms::azure_request(store, "GET", "secrets/" + name, credential, {});
        default: {
            const std::size_t slash = name.find('/');
            return kms::vault_request(store, "GET",
                                      name.substr(0, slash) + "/data" + name.substr(slash),
                                      &credential.secret, {});
        }
    }
}

Error refusal(const kms::Server &store, const SecretReference &reference, http::Response response) {
    switch (reference.store) {
        case SecretStore::aws: {
            Error error = kms::aws_error(
                store, kDoing, response,
                "The identity needs secretsmanager:GetSecretValue on the secret, and kms:Decrypt "
                "on the key that encrypts it.");
            if (kms::aws_error_code(response) == "ResourceNotFoundException")
                error.hint = "There is no such secret in Secrets Manager.";
            return error;
        }
        case SecretStore::gcp:
            return kms::gcp_error(
                store, kDoing, response,
                "The identity needs the role roles/secretmanager.secretAccessor on the secret.",
                false);
        case SecretStore::azure:
            return kms::azure_error(
                store, kDoing, response,
                "The identity needs the role Key Vault Secrets User on the secret.", false);
        default: {
            const std::size_t slash = reference.name.find('/');
            return kms::vault_error(
                store, kDoing, std::move(response),
                kms::vault_needs(store, "read",
                                 std::string(reference.name.substr(0, slash)) + "/data" +
                                     std::string(reference.name.substr(slash))));
        }
    }
}

// The member of the answer that holds the secret.
std::optional<SecretBytes> secret_in(const Json &json, const SecretReference &reference) {
    std::optional<std::string_view> text;
    switch (reference.store) {
        case SecretStore::aws:
            if (const auto binary = json.text({"SecretBinary"}))
                return crypto::from_base64_secret(*binary);
            text = json.text({"SecretString"});
            break;
        case SecretStore::gcp: {
            const auto data = json.text({"payload", "data"});
            std::optional<SecretBytes> secret;
            if (data) secret = crypto::from_base64_secret(*data);
            if (secret &&
                json.text({"payload", "dataCrc32c"}) != kms::crc32c_text(secret->expose()))
                return std::nullopt;
            return secret;
        }
        case SecretStore::azure:
            text = json.text({"value"});
            break;
        case SecretStore::vault:
            text = json.text({"data", "data", std::string(reference.field).c_str()});
            break;
        default:
            text = json.text({"value", "computed"});
    }
    if (!text) return std::nullopt;
    return SecretBytes(*text);
}

// The field of a secret that is a document; the secret itself where none is asked for.
Result<SecretBytes> take_field(const kms::Server &server, const SecretReference &reference,
                               SecretBytes secret) {
    // like that of a file
    if (secret.expose_text().ends_with('\n')) secret.shrink(secret.size() - 1);
    if (reference.field.empty() || reference.store == SecretStore::vault) {
        if (secret.empty()) return secret_error(server, "The secret is empty.", {});
        return secret;
    }
    const std::optional<Json> document = Json::parse(std::move(secret));
    std::optional<std::string_view> field;
    if (document) field = document->text({std::string(reference.field).c_str()});
    if (!field || field->empty())
        return secret_error(server,
                            "The secret is no JSON document with the field \"" +
                                std::string(reference.field) + "\".",
                            {});
    return SecretBytes(*field);
}

kms::Task<Result<SecretBytes>> from_manager(kms::Conversation &talk, const kms::Server &server,
                                            SecretReference reference) {
    const auto found =
        std::find_if(server.referenced.begin(), server.referenced.end(),
                     [&](const kms::Server &other) { return other.name == reference.server; });
    if (found == server.referenced.end())
        co_return secret_error(server, "A reference may lead to files only, not to another one.",
                               "Let the mapping on the server that the reference names use file:.");
    const kms::Server &store = *found;
    if (store.dialect != &dialect_of(reference.store))
        co_return secret_error(
            server, "Server \"" + store.name + "\" is of another kind than the reference.", {});

    Result<Credential> credential = Error{};
    if (reference.store == SecretStore::gcp) {
        credential = co_await obtain_gcp_token(talk, store, GcpScope::secrets);
    } else {
        credential = co_await obtain(talk, store);
    }
    if (!credential) co_return std::move(credential.error());
    const std::function<http::Request(std::int64_t)> sign = [&](std::int64_t time) {
        return secret_request(store, reference, *credential, time);
    };
    Result<http::Response> response = co_await exchange_signed(talk, sign);
    if (!response) co_return kms::while_doing(store, kDoing, std::move(response.error()));
    if (response->status != 200) co_return refusal(store, reference, std::move(*response));
    const std::optional<Json> json = Json::parse(response->body.copy());
    if (!json) co_return kms::foreign_answer(store, kDoing, "a secrets manager", *response);
    std::optional<SecretBytes> secret = secret_in(*json, reference);
    if (!secret)
        co_return Error{ErrorCode::bad_answer,
                        "could not read a secret with KMS \"" + store.name + "\"",
                        "The answer had no such secret.", "Check its name and its field."};
    co_return take_field(server, reference, std::move(*secret));
}

kms::Task<Result<SecretBytes>> from_doppler(kms::Conversation &talk, const kms::Server &server,
                                            std::string name) {
    if (server.identity_option("doppler_token").empty())
        co_return kms::missing_option(server, kms::OptionPlace::mapping, "doppler_token");
    Result<SecretBytes> token = co_await read_secret(talk, server, "doppler_token");
    if (!token) co_return token;
    const std::size_t first = name.find('/');
    const std::size_t second = name.rfind('/');
    const SecretBytes query =
        write_form({{"project", std::string_view(name).substr(0, first)},
                    {"config", std::string_view(name).substr(first + 1, second - first - 1)},
                    {"name", std::string_view(name).substr(second + 1)}});
    std::string_view endpoint = server.option("secrets_endpoint");
    if (endpoint.empty()) endpoint = "https://api.doppler.com";
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    const Credential credential{std::move(*token)};
    http::Request request = kms::gcp_request(
        server, "GET",
        std::string(endpoint) + "/v3/configs/config/secret?" + std::string(query.expose_text()),
        credential, {});
    // Doppler is not in the house of the KMS: the system's CAs, and no certificate of ours
    if (server.option("secrets_endpoint").empty()) request.transport.ca_file.clear();
    request.transport.client_cert_file.clear();
    request.transport.client_key_file.clear();
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kDoing, std::move(response.error()));
    const std::optional<Json> json = Json::parse(response->body.copy());
    const bool says_enough = response->status == 429 || kms::is_outage_status(response->status);
    if (!says_enough && !(json && (json->has({"success"}) || json->has({"value"}))))
        co_return kms::foreign_answer(server, kDoing, "Doppler", *response);
    if (response->status != 200)
        co_return Error{response->status == 429 ? ErrorCode::throttled
                        : says_enough           ? ErrorCode::unreachable
                                                : ErrorCode::denied,
                        "could not read a secret for KMS \"" + server.name + "\"",
                        "Doppler answered HTTP " + std::to_string(response->status) + ".",
                        "Check the reference, and the token that doppler_token refers to."};
    const SecretReference reference{SecretStore::doppler, {}, {}, {}};
    std::optional<SecretBytes> secret = secret_in(*json, reference);
    if (!secret) co_return secret_error(server, "Doppler's answer had no such secret.", {});
    co_return take_field(server, reference, std::move(*secret));
}

}  // namespace

kms::Task<Result<SecretBytes>> read_option_file(kms::Conversation &talk, const kms::Server &server,
                                                std::string option) {
    if (server.brought) {
        const auto found = server.brought->find(option);
        if (found != server.brought->end()) co_return found->second.copy();
        co_return kms::missing_option(server, kms::OptionPlace::mapping, option);
    }
    kms::FileRequest file{std::string(server.identity_option(option)), false};
    co_return co_await talk.read_file(std::move(file));
}

kms::Task<Result<SecretBytes>> read_secret(kms::Conversation &talk, const kms::Server &server,
                                           std::string option) {
    if (server.brought) co_return co_await read_option_file(talk, server, std::move(option));
    const auto reference = kms::parse_reference(server.identity_option(option));
    if (!reference) co_return kms::missing_option(server, kms::OptionPlace::mapping, option);
    if (reference->store == SecretStore::file) {
        kms::FileRequest file{std::string(reference->name), false};
        co_return co_await talk.read_file(std::move(file));
    }
    if (reference->store == SecretStore::doppler)
        co_return co_await from_doppler(talk, server, std::string(reference->name));
    co_return co_await from_manager(talk, server, *reference);
}

}  // namespace envcrypt::identity
