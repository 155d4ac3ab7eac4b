// The transit engine of OpenBao and HashiCorp Vault, with derived keys only: `context` then takes
// part in the wrapping. https://openbao.org/api-docs/secret/transit/ How a role logs in is
// identity/vault.cpp's business.
#include "kms/vault.hpp"
#include "crypto/encoding.hpp"
#include "kms/dialect.hpp"
#include "kms/json.hpp"

namespace envcrypt::kms {

namespace {

constexpr OptionPlace on_server = OptionPlace::server;
constexpr OptionPlace on_mapping = OptionPlace::mapping;
using enum OptionKind;

constexpr Option kOptions[] = {
    {"endpoint", on_server, https_url, "URL of the server"},
    {"master_key", on_server, name, "name of the derived transit key"},
    {"mount", on_server, name, "mount point of the transit engine, by default transit"},
    {"namespace", on_server, name, "namespace of the transit engine and the auth methods"},
    {"cache_ttl", on_server, duration, "how long its keys serve before it is asked again"},
    {"outage_grace", on_server, duration, "how long they serve on where it cannot be reached"},
    {"ca_file", on_server, absolute_path,
     "CA certificates that the server's certificate must chain to"},
    {"proxy", on_server, proxy_url, "proxy to reach the server by"},
    {"secrets_endpoint", on_server, https_url, "URL in place of https://api.doppler.com"},
    {"client_cert_file", on_server, absolute_path, "client certificate for mutual TLS"},
    {"client_key_file", on_server, absolute_path, "its private key"},
    {"auth", on_mapping, auth_method,
     "how to log in: token, approle, kubernetes, jwt or cert (the server's client certificate)"},
    {"auth_mount", on_mapping, name, "mount point of the auth method, by default its name"},
    {"token", on_mapping, secret_reference, "reference to the token"},
    {"role_id", on_mapping, name, "the AppRole's role id"},
    {"secret_id", on_mapping, secret_reference, "reference to the AppRole's secret id"},
    {"doppler_token", on_mapping, secret_file, "reference to the token for doppler: references"},
    {"role", on_mapping, name, "role to log in as, for kubernetes, jwt and cert"},
    {"jwt", on_mapping, secret_reference,
     "reference to the JSON web token, for kubernetes and jwt"},
};
constexpr const char *kAuthMethods[] = {"token", "approle", "kubernetes", "jwt", "cert"};
constexpr const char *kBroughtMethods[] = {"token", "approle", "kubernetes", "jwt"};

// What OpenBao and Vault say in an error, and what that means. Only these words are repeated to the
// user: an answer's own text could hold anything.
struct Saying {
    const char *words;
    ErrorCode code;
    const char *hint;
};
constexpr Saying kSayings[] = {
    {"namespace is sealed", ErrorCode::denied,
     "Whoever owns the namespace has sealed it. Only its keys open it again."},
    {"API access to this namespace has been locked", ErrorCode::denied,
     "Whoever owns the namespace has locked it. bao namespace unlock opens it again."},
    {"namespace not found", ErrorCode::denied,
     "The namespace was deleted, or the server's option namespace names none."},
    {"too old", ErrorCode::denied,
     "The master key's min_decryption_version excludes this version."},
    {"soft-deleted key", ErrorCode::denied, "The master key was deleted; it can be restored."},
    {"encryption key not found", ErrorCode::denied,
     "Create the master key as a derived transit key, or check the server's option master_key."},
    {"invalid role or secret ID", ErrorCode::denied,
     "Check role_id and the file that secret_id names."},
    {"missing role", ErrorCode::misconfigured, "Set the user mapping's option role."},
    {"could not load configuration", ErrorCode::misconfigured,
     "The auth method is not configured at the KMS."},
    {"fetching keys", ErrorCode::unreachable,
     "The KMS could not fetch the keys of the token's issuer."},
    {"missing 'context'", ErrorCode::misconfigured, ""},
    {"high complexity", ErrorCode::misconfigured, ""},
    {"message authentication failed", ErrorCode::corrupt,
     "The wrapped key was altered, or belongs to another tenant or master key."},
    {"invalid ciphertext", ErrorCode::corrupt, "The wrapped key was altered."},
    {"version is too new", ErrorCode::corrupt,
     "The master key was restored from a backup older than the wrapped key."},
};

// Has `error` say what the KMS said, where that is known. True where it is.
bool explain(Error &error, std::string_view said, const std::string &how) {
    for (const Saying &saying : kSayings) {
        if (said.find(saying.words) == std::string_view::npos) continue;
        error.code = saying.code;
        error.detail = how + ": \"" + saying.words + "\".";
        error.hint = saying.hint;
        return true;
    }
    return false;
}

ErrorCode code_for_status(int status) {
    switch (status) {
        case 403:
            return ErrorCode::denied;
        case 429:
            return ErrorCode::throttled;
        case 412:
        case 472:
        case 473:
            return ErrorCode::unreachable;
        default:
            return is_outage_status(status) ? ErrorCode::unreachable : ErrorCode::misconfigured;
    }
}

const char *hint_for_status(int status) {
    switch (status) {
        case 404:
            return "Check the server's options endpoint and mount.";
        case 429:
            return "A rate limit quota of the KMS is used up; try again later, or raise it.";
        case 503:
            return "The KMS is sealed or in maintenance; unseal it. Keys are not lost.";
        default:
            return "";
    }
}

constexpr std::string_view kService = "OpenBao or Vault";

class Vault final : public Dialect {
public:
    const char *wrapper_name() const override { return "envcrypt_vault"; }
    std::span<const Option> options() const override { return kOptions; }
    std::span<const char *const> auth_methods() const override { return kAuthMethods; }
    std::span<const char *const> brought_methods() const override { return kBroughtMethods; }
    bool rewraps() const override { return true; }

    std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                    const Credential &credential) const override {
        // derived keys want a context even where the article's format has none
        const std::string context = crypto::to_base64(
            as_bytes(ask.context.empty() ? std::string_view("envcrypt-envelope") : ask.context));
        SecretBytes body;
        switch (ask.verb) {
            case Verb::make_data_key:
                body = write_json({{"context", context}});
                break;
            case Verb::wrap: {
                const SecretBytes key = crypto::to_base64_secret(ask.key->expose());
                body = write_json({{"context", context}, {"plaintext", key.expose_text()}});
                break;
            }
            case Verb::rewrap:
            case Verb::unwrap:
                body = write_json({{"context", context}, {"ciphertext", as_text(ask.wrapped)}});
                break;
        }
        return vault_request(server, "POST", path_of(server, ask.verb), &credential.secret,
                             std::move(body));
    }

    Result<Answer> read(const Server &server, const Ask &ask,
                        http::Response response) const override {
        if (response.status != 200) return refusal(server, ask.verb, std::move(response));
        const std::optional<Json> json = Json::parse(response.body.copy());
        if (!is_vault_answer(json))
            return foreign_answer(server, doing(ask.verb), kService, response);

        Answer answer;
        answer.request_id = clean_request_id(json->text({"request_id"}).value_or(""));
        answer.master_key = server.option("master_key");
        if (ask.verb == Verb::unwrap) {
            answer.wrapped.assign(ask.wrapped.begin(), ask.wrapped.end());
        } else {
            const auto ciphertext = json->text({"data", "ciphertext"});
            if (!ciphertext)
                return vault_nonsense(server, doing(ask.verb), "It had no data.ciphertext.");
            answer.wrapped.assign(ciphertext->begin(), ciphertext->end());
        }
        std::optional<std::string> version = key_version(as_text(answer.wrapped));
        if (!version)
            return vault_nonsense(server, doing(ask.verb), "Its ciphertext was not vault:vN:....");
        answer.master_key_version = std::move(*version);
        if (ask.verb == Verb::make_data_key || ask.verb == Verb::unwrap) {
            const auto plaintext = json->text({"data", "plaintext"});
            std::optional<SecretBytes> key;
            if (plaintext) key = crypto::from_base64_secret(*plaintext);
            if (!key)
                return vault_nonsense(server, doing(ask.verb),
                                      "It had no data.plaintext in base64.");
            answer.key = std::move(*key);
        }
        return answer;
    }

    // OpenBao and Vault cap a request at 1,000 strings, which 166 items of three reach.
    std::size_t max_batch() const override { return 128; }

    http::Request ask_batch(const Server &server, std::span<const Ask> asks,
                            const Credential &credential) const override {
        JsonWriter json;
        json.open_array("batch_input");
        for (const Ask &ask : asks) {
            json.open_element().add("context", crypto::to_base64(as_bytes(ask.context)));
            if (ask.verb == Verb::wrap)
                json.add("plaintext", crypto::to_base64_secret(ask.key->expose()).expose_text());
            else
                json.add("ciphertext", as_text(ask.wrapped));
            json.close();
        }
        json.close();
        return vault_request(server, "POST", path_of(server, asks.front().verb), &credential.secret,
                             json.finish());
    }

    Result<std::vector<Result<Answer>>> read_batch(const Server &server, std::span<const Ask> asks,
                                                   http::Response response) const override {
        // 400 says that an item failed, and which is said by the items; a rewrap says 200 even then
        const int status = response.status;
        const Verb verb = asks.front().verb;
        http::Response copy;
        copy.status = status;
        copy.headers = response.headers;
        copy.body = response.body.copy();
        std::optional<Json> json;
        if (status == 200 || status == 400) json = Json::parse(std::move(response.body));
        const Json::Path results = {"data", "batch_results"};
        if (!json || json->length(results) != asks.size()) {
            if (status != 200) return refusal(server, verb, std::move(copy));
            if (!is_vault_answer(json)) return foreign_answer(server, doing(verb), kService, copy);
            return vault_nonsense(server, doing(verb), "It had no data.batch_results.");
        }
        std::vector<Result<Answer>> answers;
        for (std::size_t i = 0; i < asks.size(); ++i) {
            const auto error = json->element_text(results, i, "error");
            if (error && !error->empty()) {
                answers.emplace_back(item_error(server, verb, *error));
                continue;
            }
            Answer answer;
            answer.master_key = server.option("master_key");
            std::string_view wrapped = as_text(asks[i].wrapped);
            if (verb != Verb::unwrap) {
                wrapped = json->element_text(results, i, "ciphertext").value_or("");
            } else {
                const auto plaintext = json->element_text(results, i, "plaintext");
                std::optional<SecretBytes> key;
                if (plaintext && !plaintext->empty()) key = crypto::from_base64_secret(*plaintext);
                if (!key)
                    return vault_nonsense(server, doing(verb),
                                          "An item had no plaintext in base64.");
                answer.key = std::move(*key);
            }
            std::optional<std::string> version = key_version(wrapped);
            if (!version && verb != Verb::unwrap)
                return vault_nonsense(server, doing(verb),
                                      "An item's ciphertext was not vault:vN:....");
            answer.wrapped.assign(wrapped.begin(), wrapped.end());
            answer.master_key_version = version.value_or("");
            answers.emplace_back(std::move(answer));
        }
        return answers;
    }

    bool refuses_credential(const http::Response &response) const override {
        return response.status == 403 && is_vault_error(response);
    }

    Status check_complete(const Server &server) const override {
        for (const char *needed : {"endpoint", "master_key"})
            if (server.option(needed).empty()) return missing_option(server, on_server, needed);
        const std::string_view auth = server.identity_option("auth");
        if (auth.empty()) return missing_option(server, on_mapping, "auth");
        if (auth == "token" && !server.has_identity_option("token"))
            return missing_option(server, on_mapping, "token");
        if (auth == "approle")
            for (const char *needed : {"role_id", "secret_id"})
                if (!server.has_identity_option(needed))
                    return missing_option(server, on_mapping, needed);
        if (auth == "kubernetes" || auth == "jwt")
            for (const char *needed : {"role", "jwt"})
                if (!server.has_identity_option(needed))
                    return missing_option(server, on_mapping, needed);
        if (auth == "cert")
            for (const char *needed : {"client_cert_file", "client_key_file"})
                if (server.option(needed).empty()) return missing_option(server, on_server, needed);
        return Unit{};
    }

private:
    static Error item_error(const Server &server, Verb verb, std::string_view said) {
        Error error{ErrorCode::misconfigured,
                    std::string("could not ") + doing(verb) + " with KMS \"" + server.name + "\"",
                    "The KMS refused an item of a batch.",
                    {}};
        explain(error, said, "The KMS refused an item of a batch");
        return error;
    }

    static std::string path_of(const Server &server, Verb verb) {
        const char *operation = verb == Verb::make_data_key ? "/datakey/plaintext/"
                                : verb == Verb::wrap        ? "/encrypt/"
                                : verb == Verb::rewrap      ? "/rewrap/"
                                                            : "/decrypt/";
        const std::string_view mount = server.option("mount");
        return std::string(mount.empty() ? "transit" : mount) + operation +
               std::string(server.option("master_key"));
    }

    static Error refusal(const Server &server, Verb verb, http::Response response) {
        return vault_error(server, doing(verb), std::move(response),
                           vault_needs(server, "update", path_of(server, verb)));
    }

    // The N of vault:vN:....
    static std::optional<std::string> key_version(std::string_view wrapped) {
        constexpr std::string_view prefix = "vault:v";
        if (!wrapped.starts_with(prefix)) return std::nullopt;
        wrapped.remove_prefix(prefix.size());
        const std::size_t end = wrapped.find(':');
        if (end == 0 || end > 9 || wrapped.find_first_not_of("0123456789") != end)
            return std::nullopt;
        return std::string(wrapped.substr(0, end));
    }
};

}  // namespace

http::Request vault_request(const Server &server, const char *method, std::string_view path,
                            const SecretBytes *token, SecretBytes body) {
    std::string_view endpoint = server.option("endpoint");
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    http::Request request;
    request.method = method;
    request.url = std::string(endpoint) + "/v1/" + std::string(path);
    request.transport = server.transport();
    const std::string_view name_space = server.option("namespace");
    if (!name_space.empty())
        request.headers.push_back({"X-Vault-Namespace", SecretBytes(name_space)});
    if (token != nullptr) request.headers.push_back({"X-Vault-Token", token->copy()});
    if (!body.empty()) request.headers.push_back({"Content-Type", SecretBytes("application/json")});
    request.body = std::move(body);
    return request;
}

std::string vault_needs(const Server &server, const char *capability, const std::string &path) {
    std::string hint = "The policy of whom the user mapping logs in as needs " +
                       std::string(capability) + " on " + path + ".";
    if (server.identity_option("auth") == "token") hint += " Or the token is not valid any more.";
    return hint;
}

bool is_vault_answer(const std::optional<Json> &json) {
    return json && (json->has({"data"}) || json->has({"auth"}) || json->has({"request_id"}));
}

bool is_vault_error(const http::Response &response) {
    const std::optional<Json> json = Json::parse(response.body.copy());
    return json && json->length({"errors"});
}

Error vault_error(const Server &server, std::string_view doing, http::Response response,
                  const std::string &needs) {
    const bool says_enough = code_for_status(response.status) != ErrorCode::denied &&
                             code_for_status(response.status) != ErrorCode::misconfigured;
    if (!says_enough && !is_vault_error(response))
        return foreign_answer(server, doing, kService, response);
    Error error{code_for_status(response.status),
                "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
                "The KMS answered HTTP " + std::to_string(response.status) + ".",
                response.status == 403 ? needs : hint_for_status(response.status)};
    const std::optional<Json> json = Json::parse(std::move(response.body));
    if (json && (response.status == 400 || response.status == 404 || response.status == 503)) {
        const std::string how = "The KMS answered HTTP " + std::to_string(response.status);
        for (const std::string_view said : json->texts({"errors"}))
            if (explain(error, said, how)) break;
    }
    return error;
}

Error vault_nonsense(const Server &server, std::string_view doing, std::string_view what) {
    return {ErrorCode::bad_answer,
            "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
            "The answer was not one of OpenBao or Vault. " + std::string(what),
            "Check that the server's option endpoint names OpenBao or Vault itself."};
}

const Dialect &vault_dialect() {
    static constinit const Vault dialect;
    return dialect;
}

}  // namespace envcrypt::kms
