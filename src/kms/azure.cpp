// Azure Key Vault and Managed HSM. https://learn.microsoft.com/en-us/rest/api/keyvault/keys/
//
// Neither RSA-OAEP-256 nor AES-KW binds a context, so what is wrapped is the key followed by
// SHA-256(C), and whoever unwraps compares. Anyone with the public key can wrap by RSA: so such a
// wrapping also bears an attestation, a PS256 signature by a key of the vault over
// SHA-256(C || commitment || wrapped), checked with the public key that the vault gives, never one
// from a catalog.
//
// A wrapping is kept as "azure:VERSION:" and the base64url that the vault answered, an attestation
// as VERSION, ":" and the base64url of the signature.
#include "kms/azure.hpp"

#include <algorithm>

#include "crypto/digest.hpp"
#include "crypto/encoding.hpp"
#include "crypto/keys.hpp"
#include "crypto/rsa.hpp"
#include "kms/json.hpp"

namespace envcrypt::kms {

namespace {

constexpr OptionPlace on_server = OptionPlace::server;
constexpr OptionPlace on_mapping = OptionPlace::mapping;
using enum OptionKind;

constexpr Option kOptions[] = {
    {"endpoint", on_server, https_url, "URL of the key vault or managed HSM"},
    {"master_key", on_server, name, "name of the key"},
    {"algorithm", on_server, name,
     "RSA-OAEP-256 (by default; for key vaults) or A256KW (for AES keys of a managed HSM)"},
    {"attestation_key", on_server, name, "name of the RSA key that signs, for RSA-OAEP-256"},
    {"resource", on_server, https_url,
     "whom tokens are for, by default https://vault.azure.net, for a managed HSM "
     "https://managedhsm.azure.net"},
    {"token_endpoint", on_server, https_url, "URL in place of https://login.microsoftonline.com"},
    {"secrets_endpoint", on_server, https_url, "URL in place of https://api.doppler.com"},
    {"metadata_endpoint", on_server, https_url, "URL in place of instance metadata"},
    {"cache_ttl", on_server, duration, "how long its keys serve before it is asked again"},
    {"outage_grace", on_server, duration, "how long they serve on where it cannot be reached"},
    {"ca_file", on_server, absolute_path,
     "CA certificates that the servers' certificates must chain to"},
    {"proxy", on_server, proxy_url, "proxy to reach the services by"},
    {"client_cert_file", on_server, absolute_path, "client certificate for mutual TLS"},
    {"client_key_file", on_server, absolute_path, "its private key"},
    {"auth", on_mapping, auth_method,
     "where the identity comes from: managed_identity, client_secret or federated"},
    {"tenant_id", on_mapping, name, "Entra tenant, for client_secret and federated"},
    {"client_id", on_mapping, name, "application, or user-assigned managed identity"},
    {"client_secret", on_mapping, secret_reference, "reference to the application's secret"},
    {"doppler_token", on_mapping, secret_file, "reference to the token for doppler: references"},
    {"federated_token_file", on_mapping, absolute_path, "file of the federated token"},
};
constexpr const char *kAuthMethods[] = {"managed_identity", "client_secret", "federated"};
constexpr const char *kBroughtMethods[] = {"client_secret", "federated"};

constexpr std::string_view kRsa = "RSA-OAEP-256";
constexpr std::string_view kAes = "A256KW";
constexpr std::string_view kPrefix = "azure:";
constexpr std::size_t kDigestSize = 32;

std::string_view algorithm(const Server &server) {
    const std::string_view given = server.option("algorithm");
    return given.empty() ? kRsa : given;
}

// A wrapping by RSA without a context (the article's format) is bound to nothing and needs none.
bool needs_attestation(const Server &server, const Ask &ask) {
    return algorithm(server) == kRsa && !ask.context.empty();
}

// "VERSION:REST"; nothing where it is not so.
struct Versioned {
    std::string_view version;
    std::string_view rest;
};
std::optional<Versioned> split(std::string_view text) {
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos || colon == 0 || colon > 64) return std::nullopt;
    const std::string_view version = text.substr(0, colon);
    if (!std::all_of(version.begin(), version.end(), [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        }))
        return std::nullopt;
    return Versioned{version, text.substr(colon + 1)};
}
std::optional<Versioned> split_wrapped(ByteView wrapped) {
    std::string_view text = as_text(wrapped);
    if (!text.starts_with(kPrefix)) return std::nullopt;
    text.remove_prefix(kPrefix.size());
    return split(text);
}

// The version that a kid names, https://VAULT/keys/NAME/VERSION; empty where it is another key's.
std::string_view version_of(std::string_view kid, std::string_view name) {
    const std::size_t slash = kid.rfind('/');
    if (slash == std::string_view::npos) return {};
    const std::string_view version = kid.substr(slash + 1);
    const std::string before = "/keys/" + std::string(name);
    // names of keys are compared without case
    std::string start(kid.substr(0, slash));
    std::string end = before;
    for (std::string *text : {&start, &end})
        for (char &c : *text)
            if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (!start.ends_with(end)) return {};
    const std::string only = std::string(version) + ":";
    const auto parts = split(only);
    return parts && parts->rest.empty() ? version : std::string_view();
}

crypto::Digest attested_digest(const Ask &ask, ByteView wrapped, ByteView key) {
    const crypto::Digest commitment =
        crypto::commitment(key.first<crypto::kKeySize>(), ask.context);
    Bytes attested(ask.context.begin(), ask.context.end());
    attested.insert(attested.end(), commitment.begin(), commitment.end());
    attested.insert(attested.end(), wrapped.begin(), wrapped.end());
    return crypto::sha256(attested);
}

SecretBytes operation_body(std::string_view algorithm, std::string_view value) {
    return write_json({{"alg", algorithm}, {"value", value}});
}

Error corrupt(const Server &server, const char *detail, const char *hint) {
    return {ErrorCode::corrupt, "could not unwrap a key with KMS \"" + server.name + "\"", detail,
            hint};
}

// What an identity needs, where a right is missing.
const char *needs(const Ask &ask) {
    if (ask.verb == Verb::unwrap)
        return ask.so_far == nullptr
                   ? "The identity needs keys/unwrap on the master key: the role Key Vault Crypto "
                     "Service Encryption User there."
                   : "The identity needs keys/read on the attestation key: the role Key Vault "
                     "Crypto Service Encryption User there.";
    return ask.so_far == nullptr
               ? "The identity needs keys/wrap on the master key: the role Key Vault Crypto "
                 "Service "
                 "Encryption User there."
               : "Whoever makes tenants, and nobody else, needs keys/sign on the attestation key: "
                 "the role Key Vault Crypto User there.";
}

constexpr std::string_view kService = "Azure Key Vault";

class Azure final : public Dialect {
public:
    const char *wrapper_name() const override { return "envcrypt_azure"; }
    std::span<const Option> options() const override { return kOptions; }
    std::span<const char *const> auth_methods() const override { return kAuthMethods; }
    std::span<const char *const> brought_methods() const override { return kBroughtMethods; }
    bool makes_data_keys() const override { return false; }

    std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                    const Credential &credential) const override {
        const std::string master = "keys/" + std::string(server.option("master_key"));
        const std::string attester = "keys/" + std::string(server.option("attestation_key"));
        if (ask.verb == Verb::unwrap) {
            if (ask.so_far != nullptr) {
                const auto attestation = split(as_text(ask.attestation));
                return azure_request(server, "GET",
                                     attester + "/" + std::string(attestation->version), credential,
                                     {});
            }
            const auto wrapped = split_wrapped(ask.wrapped);
            if (!wrapped)
                return Result<Answer>(
                    corrupt(server, "It was not wrapped by an Azure key vault.", ""));
            if (needs_attestation(server, ask) && !split(as_text(ask.attestation)))
                return Result<Answer>(corrupt(server, "The wrapping bears no attestation.",
                                              "Anyone with the public key could have made it."));
            return azure_request(server, "POST",
                                 master + "/" + std::string(wrapped->version) + "/unwrapkey",
                                 credential, operation_body(algorithm(server), wrapped->rest));
        }
        if (ask.so_far != nullptr) {
            const crypto::Digest digest =
                attested_digest(ask, ask.so_far->wrapped, ask.key->expose());
            return azure_request(server, "POST", attester + "/sign", credential,
                                 operation_body("PS256", crypto::to_base64url(digest)));
        }
        SecretBytes payload = ask.key->copy();
        if (!ask.context.empty()) payload.append(crypto::sha256(as_bytes(ask.context)));
        return azure_request(
            server, "POST", master + "/wrapkey", credential,
            operation_body(algorithm(server),
                           crypto::to_base64url_secret(payload.expose()).expose_text()));
    }

    Result<Answer> read(const Server &server, const Ask &ask,
                        http::Response response) const override {
        const bool unwraps = ask.verb == Verb::unwrap;
        if (response.status != 200)
            return azure_error(server, doing(ask.verb), response, needs(ask),
                               unwraps && ask.so_far == nullptr);
        const std::string request_id = clean_request_id(response.header("x-ms-request-id"));
        const std::optional<Json> json = Json::parse(response.body.copy());
        if (!json || (!json->has({"kid"}) && !json->has({"value"}) && !json->has({"key"})))
            return foreign_answer(server, doing(ask.verb), kService, response);
        Result<Answer> answer =
            ask.so_far == nullptr
                ? (unwraps ? read_unwrapped(server, ask, *json) : read_wrapped(server, ask, *json))
                : (unwraps ? check_attestation(server, ask, *json)
                           : read_signature(server, ask, *json));
        // of the wrapping or unwrapping itself, where there are two requests
        if (answer)
            answer->request_id = ask.so_far == nullptr ? request_id : ask.so_far->request_id;
        return answer;
    }

    bool refuses_credential(const http::Response &response) const override {
        return response.status == 401 && is_azure_error(response);
    }

    Status check_complete(const Server &server) const override {
        for (const char *needed : {"endpoint", "master_key"})
            if (server.option(needed).empty()) return missing_option(server, on_server, needed);
        if (algorithm(server) != kRsa && algorithm(server) != kAes)
            return Error{ErrorCode::misconfigured,
                         "algorithm of KMS \"" + server.name + "\" is not known",
                         {},
                         "The server's option algorithm is RSA-OAEP-256 or A256KW."};
        if (algorithm(server) == kRsa && server.option("attestation_key").empty())
            return missing_option(server, on_server, "attestation_key");
        const std::string_view auth = server.identity_option("auth");
        if (auth.empty()) return missing_option(server, on_mapping, "auth");
        if (auth != "managed_identity")
            for (const char *needed : {"tenant_id", "client_id"})
                if (!server.has_identity_option(needed))
                    return missing_option(server, on_mapping, needed);
        const char *secret = auth == "client_secret" ? "client_secret"
                             : auth == "federated"   ? "federated_token_file"
                                                     : nullptr;
        if (secret != nullptr && !server.has_identity_option(secret))
            return missing_option(server, on_mapping, secret);
        return Unit{};
    }

private:
    static Result<Answer> read_wrapped(const Server &server, const Ask &ask, const Json &json) {
        const auto kid = json.text({"kid"});
        const auto value = json.text({"value"});
        Answer answer;
        answer.master_key = server.option("master_key");
        if (kid) answer.master_key_version = version_of(*kid, answer.master_key);
        if (answer.master_key_version.empty())
            return azure_nonsense(server, doing(ask.verb), "It had no kid of the key asked for.");
        if (!value || value->empty() || !crypto::from_base64url_secret(*value))
            return azure_nonsense(server, doing(ask.verb), "It had no value in base64url.");
        const std::string wrapped = std::string(kPrefix) + answer.master_key_version + ":";
        answer.wrapped.assign(wrapped.begin(), wrapped.end());
        answer.wrapped.insert(answer.wrapped.end(), value->begin(), value->end());
        answer.more = needs_attestation(server, ask);
        return answer;
    }

    static Result<Answer> read_signature(const Server &server, const Ask &ask, const Json &json) {
        const auto kid = json.text({"kid"});
        const auto value = json.text({"value"});
        std::string_view version;
        if (kid) version = version_of(*kid, server.option("attestation_key"));
        if (version.empty() || !value || value->empty() || !crypto::from_base64url_secret(*value))
            return azure_nonsense(server, doing(ask.verb), "It had no signature.");
        Answer answer;
        answer.wrapped = ask.so_far->wrapped;
        answer.master_key = ask.so_far->master_key;
        answer.master_key_version = ask.so_far->master_key_version;
        const std::string attestation = std::string(version) + ":" + std::string(*value);
        answer.attestation.assign(attestation.begin(), attestation.end());
        return answer;
    }

    static Result<Answer> read_unwrapped(const Server &server, const Ask &ask, const Json &json) {
        const auto value = json.text({"value"});
        std::optional<SecretBytes> payload;
        if (value) payload = crypto::from_base64url_secret(*value);
        if (!payload)
            return azure_nonsense(server, doing(ask.verb), "It had no value in base64url.");
        const std::size_t bound = ask.context.empty() ? 0 : kDigestSize;
        if (payload->size() != crypto::kKeySize + bound)
            return corrupt(server, "What was unwrapped has another length than was wrapped.", "");
        if (bound != 0 && !equal_constant_time(payload->expose().subspan(crypto::kKeySize),
                                               crypto::sha256(as_bytes(ask.context))))
            return corrupt(server, "The wrapped key belongs to another tenant or key.", "");
        payload->shrink(crypto::kKeySize);
        Answer answer;
        answer.key = std::move(*payload);
        answer.wrapped.assign(ask.wrapped.begin(), ask.wrapped.end());
        answer.master_key = server.option("master_key");
        answer.master_key_version = split_wrapped(ask.wrapped)->version;
        answer.more = needs_attestation(server, ask);
        return answer;
    }

    static Result<Answer> check_attestation(const Server &server, const Ask &ask,
                                            const Json &json) {
        const auto attestation = split(as_text(ask.attestation));
        const auto signature = crypto::from_base64url_secret(attestation->rest);
        const auto n = json.text({"key", "n"});
        const auto e = json.text({"key", "e"});
        std::optional<SecretBytes> modulus;
        std::optional<SecretBytes> exponent;
        if (n) modulus = crypto::from_base64url_secret(*n);
        if (e) exponent = crypto::from_base64url_secret(*e);
        if (!modulus || !exponent)
            return azure_nonsense(server, doing(ask.verb), "It had no public key.");
        const crypto::Digest digest = attested_digest(ask, ask.wrapped, ask.so_far->key.expose());
        if (!signature || !crypto::verify_ps256(modulus->expose(), exponent->expose(), digest,
                                                signature->expose()))
            return corrupt(server, "The attestation of the wrapping is wrong.",
                           "Anyone with the public key could have made the wrapping.");
        Answer answer;
        answer.key = ask.so_far->key.copy();
        answer.wrapped = ask.so_far->wrapped;
        answer.master_key = ask.so_far->master_key;
        answer.master_key_version = ask.so_far->master_key_version;
        answer.attestation.assign(ask.attestation.begin(), ask.attestation.end());
        return answer;
    }
};

}  // namespace

http::Request azure_request(const Server &server, const char *method, std::string_view path,
                            const Credential &token, SecretBytes body) {
    std::string_view endpoint = server.option("endpoint");
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    http::Request request;
    request.method = method;
    request.url = std::string(endpoint) + "/" + std::string(path) + "?api-version=7.4";
    request.transport = server.transport();
    SecretBytes bearer("Bearer ");
    bearer.append(token.secret.expose());
    request.headers.push_back({"Authorization", std::move(bearer)});
    if (!body.empty()) request.headers.push_back({"Content-Type", SecretBytes("application/json")});
    request.body = std::move(body);
    return request;
}

std::string azure_resource(const Server &server) {
    std::string_view resource = server.option("resource");
    while (resource.ends_with('/')) resource.remove_suffix(1);
    if (!resource.empty()) return std::string(resource);
    std::string_view endpoint = server.option("endpoint");
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    return endpoint.ends_with(".managedhsm.azure.net") ? "https://managedhsm.azure.net"
                                                       : "https://vault.azure.net";
}

bool is_azure_error(const http::Response &response) {
    const std::optional<Json> json = Json::parse(response.body.copy());
    return json && json->text({"error", "code"});
}

Error azure_error(const Server &server, std::string_view doing, const http::Response &response,
                  const char *needs, bool unwrapping) {
    struct Saying {
        const char *code;
        const char *hint;
    };
    const Saying sayings[] = {
        {"KeyDisabled", "The key, or this version of it, is disabled; it can be enabled."},
        {"ForbiddenByRbac", needs},
        {"ForbiddenByPolicy",
         "The vault's access policy must let the identity get and unwrapKey, and whoever makes "
         "tenants wrapKey and sign as well; to read a secret, get secrets."},
        {"ForbiddenByFirewall", "The vault's firewall does not let the database host in."},
        {"KeyOperationForbidden",
         "The key's operations must include wrapKey and unwrapKey, those of the attestation key "
         "sign."},
    };
    const int status = response.status;
    Error error{ErrorCode::misconfigured,
                "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
                "Azure answered HTTP " + std::to_string(status) + ".",
                {}};
    if (status == 429) {
        error.code = ErrorCode::throttled;
        error.hint = "The vault's service limit is used up.";
    } else if (is_outage_status(status)) {
        error.code = ErrorCode::unreachable;
    } else if (!is_azure_error(response)) {
        return foreign_answer(server, doing, kService, response);
    } else if (status == 401) {
        error.code = ErrorCode::denied;
        error.hint =
            "Azure refuses the identity: check what the user mapping's options name, and "
            "the server's option resource.";
    } else if (status == 403) {
        error.code = ErrorCode::denied;
        error.hint = needs;
        const std::optional<Json> json = Json::parse(response.body.copy());
        std::string_view inner;
        if (json) inner = json->text({"error", "innererror", "code"}).value_or("");
        for (const Saying &saying : sayings) {
            if (inner != saying.code) continue;
            error.detail = "Azure answered HTTP 403, " + std::string(inner) + ".";
            error.hint = saying.hint;
        }
    } else if (status == 404) {
        error.code = ErrorCode::denied;
        error.hint =
            "Check the server's options master_key and attestation_key: there is no such "
            "key, or no such version of it.";
    } else if (status == 400 && unwrapping) {
        error.code = ErrorCode::corrupt;
        error.hint =
            "The wrapped key was altered, or another version of the master key wrapped it.";
    } else {
        error.hint = "Check the server's options endpoint, master_key and algorithm.";
    }
    return error;
}

Error azure_nonsense(const Server &server, std::string_view doing, std::string_view what) {
    return {ErrorCode::bad_answer,
            "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
            "The answer was not one of Azure Key Vault. " + std::string(what),
            "Check that the server's option endpoint names the vault itself."};
}

const Dialect &azure_dialect() {
    static constinit const Azure dialect;
    return dialect;
}

}  // namespace envcrypt::kms
