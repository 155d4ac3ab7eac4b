// Google Cloud KMS by REST. https://cloud.google.com/kms/docs/reference/rest The context C goes as
// additionalAuthenticatedData, and CRC-32C guards what travels, both ways. How a role proves itself
// is identity/gcp.cpp's business.
#include "kms/gcp.hpp"

#include <array>

#include "crypto/encoding.hpp"
#include "kms/json.hpp"

namespace envcrypt::kms {

namespace {

constexpr OptionPlace on_server = OptionPlace::server;
constexpr OptionPlace on_mapping = OptionPlace::mapping;
using enum OptionKind;

constexpr Option kOptions[] = {
    {"master_key", on_server, resource,
     "projects/P/locations/L/keyRings/R/cryptoKeys/K, a symmetric key"},
    {"endpoint", on_server, https_url, "URL in place of https://cloudkms.googleapis.com"},
    {"token_endpoint", on_server, https_url,
     "URL in place of the token_uri of a service account's file"},
    {"sts_endpoint", on_server, https_url, "URL in place of https://sts.googleapis.com"},
    {"secrets_endpoint", on_server, https_url,
     "URL in place of https://secretmanager.googleapis.com"},
    {"metadata_endpoint", on_server, https_url, "URL in place of the metadata server"},
    {"cache_ttl", on_server, duration, "how long its keys serve before it is asked again"},
    {"outage_grace", on_server, duration, "how long they serve on where it cannot be reached"},
    {"ca_file", on_server, absolute_path,
     "CA certificates that the servers' certificates must chain to"},
    {"proxy", on_server, proxy_url, "proxy to reach the services by"},
    {"client_cert_file", on_server, absolute_path, "client certificate for mutual TLS"},
    {"client_key_file", on_server, absolute_path, "its private key"},
    {"auth", on_mapping, auth_method,
     "where the identity comes from: metadata, service_account or external_account"},
    {"credentials_file", on_mapping, absolute_path,
     "JSON file of the service account, or of the workload identity federation"},
};
constexpr const char *kAuthMethods[] = {"metadata", "service_account", "external_account"};
constexpr const char *kBroughtMethods[] = {"service_account"};

constexpr std::string_view kVersions = "/cryptoKeyVersions/";

constexpr auto kCrcTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < table.size(); ++i) {
        std::uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
        table[i] = crc;
    }
    return table;
}();

// A transmission error, which the next attempt may not meet.
Error damaged(const Server &server, Verb verb, const char *what) {
    return {ErrorCode::damaged,
            std::string("could not ") + doing(verb) + " with KMS \"" + server.name + "\"",
            std::string("The checksum of ") + what + " was wrong: it was damaged on the way.",
            {}};
}

bool is_key_name(std::string_view name) {
    constexpr const char *parts[] = {"projects/", "/locations/", "/keyRings/", "/cryptoKeys/"};
    for (const char *part : parts) {
        const std::size_t at = name.find(part);
        if (at == std::string_view::npos || (part == parts[0] && at != 0)) return false;
        name.remove_prefix(at + std::string_view(part).size());
        if (name.empty() || name.front() == '/') return false;
    }
    return name.find('/') == std::string_view::npos;
}

// What an identity needs, where a right is missing.
const char *needs(Verb verb) {
    if (verb == Verb::unwrap)
        return "The identity needs the role roles/cloudkms.cryptoKeyDecrypter on the master key "
               "that wrapped.";
    return "The identity needs the role roles/cloudkms.cryptoKeyEncrypterDecrypter on the master "
           "key.";
}

// Google's reasons for a 403 that no role mends.
// https://cloud.google.com/apis/design/errors#error_info
struct Reason {
    const char *name;
    const char *hint;
};
constexpr Reason kReasons[] = {
    {"ACCESS_TOKEN_SCOPE_INSUFFICIENT",
     "The host's access scopes must include cloudkms or cloud-platform."},
    {"SERVICE_DISABLED", "The service is not enabled in the project of the identity."},
    {"BILLING_DISABLED", "The project has no billing account."},
};

// What Cloud EKM calls an external key manager that it did not reach, in a precondition that
// failed. https://cloud.google.com/kms/docs/reference/ekm_errors
constexpr std::string_view kUnreachedWords[] = {"UNREACHABLE", "UNAVAILABLE", "TIMEOUT",
                                                "TIMED_OUT",   "DEADLINE",    "CONNECTION"};

bool is_outage_behind(const Json &json) {
    for (const std::string_view type :
         json.nested_texts({"error", "details"}, "violations", "type"))
        for (const std::string_view word : kUnreachedWords)
            if (type.find(word) != std::string_view::npos) return true;
    return false;
}

class Gcp final : public Dialect {
public:
    const char *wrapper_name() const override { return "envcrypt_gcp"; }
    std::span<const Option> options() const override { return kOptions; }
    std::span<const char *const> auth_methods() const override { return kAuthMethods; }
    std::span<const char *const> brought_methods() const override { return kBroughtMethods; }
    bool makes_data_keys() const override { return false; }

    std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                    const Credential &credential) const override {
        const bool unwraps = ask.verb == Verb::unwrap;
        JsonWriter json;
        if (unwraps) {
            json.add("ciphertext", crypto::to_base64(ask.wrapped));
            json.add("ciphertextCrc32c", crc32c_text(ask.wrapped));
        } else {
            json.add("plaintext", crypto::to_base64_secret(ask.key->expose()).expose_text());
            json.add("plaintextCrc32c", crc32c_text(ask.key->expose()));
        }
        if (!ask.context.empty()) {
            json.add("additionalAuthenticatedData", crypto::to_base64(as_bytes(ask.context)));
            json.add("additionalAuthenticatedDataCrc32c", crc32c_text(as_bytes(ask.context)));
        }
        std::string url = gcp_endpoint(server, "endpoint", "https://cloudkms.googleapis.com") +
                          "/v1/" + std::string(server.option("master_key")) +
                          (unwraps ? ":decrypt" : ":encrypt");
        return gcp_request(server, "POST", std::move(url), credential, json.finish());
    }

    Result<Answer> read(const Server &server, const Ask &ask,
                        http::Response response) const override {
        const bool unwraps = ask.verb == Verb::unwrap;
        if (response.status != 200)
            return gcp_error(server, doing(ask.verb), response, needs(ask.verb), unwraps);
        const std::optional<Json> json = Json::parse(response.body.copy());
        if (!json ||
            (!json->has({"plaintext"}) && !json->has({"ciphertext"}) && !json->has({"name"})))
            return foreign_answer(server, doing(ask.verb), "Google", response);
        Answer answer;
        answer.master_key = server.option("master_key");
        if (unwraps) {
            const auto plaintext = json->text({"plaintext"});
            std::optional<SecretBytes> key;
            if (plaintext) key = crypto::from_base64_secret(*plaintext);
            if (!key)
                return gcp_nonsense(server, doing(ask.verb), "It had no plaintext in base64.");
            if (json->text({"plaintextCrc32c"}) != crc32c_text(key->expose()))
                return damaged(server, ask.verb, "the answer");
            answer.key = std::move(*key);
            answer.wrapped.assign(ask.wrapped.begin(), ask.wrapped.end());
            return answer;
        }
        const auto ciphertext = json->text({"ciphertext"});
        std::optional<SecretBytes> wrapped;
        if (ciphertext) wrapped = crypto::from_base64_secret(*ciphertext);
        if (!wrapped || wrapped->empty())
            return gcp_nonsense(server, doing(ask.verb), "It had no ciphertext in base64.");
        if (json->text({"ciphertextCrc32c"}) != crc32c_text(wrapped->expose()))
            return damaged(server, ask.verb, "the answer");
        if (json->boolean({"verifiedPlaintextCrc32c"}) != true ||
            (!ask.context.empty() &&
             json->boolean({"verifiedAdditionalAuthenticatedDataCrc32c"}) != true))
            return damaged(server, ask.verb, "the request");
        std::string_view version = json->text({"name"}).value_or("");
        const std::string prefix = answer.master_key + std::string(kVersions);
        if (!version.starts_with(prefix) || version.size() == prefix.size())
            return gcp_nonsense(server, doing(ask.verb), "It named another key.");
        answer.master_key_version = version.substr(prefix.size());
        answer.wrapped.assign(wrapped->expose().begin(), wrapped->expose().end());
        return answer;
    }

    bool refuses_credential(const http::Response &response) const override {
        return response.status == 401 && is_gcp_error(response);
    }

    Status check_complete(const Server &server) const override {
        const std::string_view key = server.option("master_key");
        if (key.empty()) return missing_option(server, on_server, "master_key");
        if (!is_key_name(key))
            return Error{ErrorCode::misconfigured,
                         "master key of KMS \"" + server.name + "\" cannot be used",
                         {},
                         "Name it as projects/P/locations/L/keyRings/R/cryptoKeys/K."};
        const std::string_view auth = server.identity_option("auth");
        if (auth.empty()) return missing_option(server, on_mapping, "auth");
        if (auth != "metadata" && !server.has_identity_option("credentials_file"))
            return missing_option(server, on_mapping, "credentials_file");
        return Unit{};
    }
};

}  // namespace

std::uint32_t crc32c(ByteView data) {
    std::uint32_t crc = 0xffffffff;
    for (const std::uint8_t byte : data) crc = crc >> 8 ^ kCrcTable[(crc ^ byte) & 0xff];
    return ~crc;
}

std::string crc32c_text(ByteView data) {
    return std::to_string(crc32c(data));
}

http::Request gcp_request(const Server &server, const char *method, std::string url,
                          const Credential &token, SecretBytes body) {
    http::Request request;
    request.method = method;
    request.url = std::move(url);
    request.transport = server.transport();
    SecretBytes bearer("Bearer ");
    bearer.append(token.secret.expose());
    request.headers.push_back({"Authorization", std::move(bearer)});
    if (!body.empty()) request.headers.push_back({"Content-Type", SecretBytes("application/json")});
    request.body = std::move(body);
    return request;
}

std::string gcp_endpoint(const Server &server, const char *option, std::string_view built_in) {
    std::string_view endpoint = server.option(option);
    if (endpoint.empty()) endpoint = built_in;
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    return std::string(endpoint);
}

bool is_gcp_error(const http::Response &response) {
    const std::optional<Json> json = Json::parse(response.body.copy());
    return json && json->text({"error", "status"});
}

Error gcp_error(const Server &server, std::string_view doing, const http::Response &response,
                const char *needs, bool unwrapping) {
    Error error{ErrorCode::misconfigured,
                "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
                "Google answered HTTP " + std::to_string(response.status) + ".",
                {}};
    const int status = response.status;
    const std::optional<Json> json = Json::parse(response.body.copy());
    std::string_view said;
    std::string_view text;
    if (json) {
        said = json->text({"error", "status"}).value_or("");
        text = json->text({"error", "message"}).value_or("");
    }
    const auto say = [&](ErrorCode code, const char *word, const char *hint) {
        error.code = code;
        if (word[0] != '\0') error.detail.insert(error.detail.size() - 1, std::string(", ") + word);
        error.hint = hint;
        return error;
    };
    if (status == 429) return say(ErrorCode::throttled, "", "A quota of the project is used up.");
    if (status >= 500) return say(ErrorCode::unreachable, "", "");
    if (said.empty()) return foreign_answer(server, doing, "Google", response);
    if (status == 401)
        return say(ErrorCode::denied, "",
                   "Google refuses the identity: check what the user mapping's options name, and "
                   "the clock of the database host.");
    if (status == 403) {
        const Json::Path details = {"error", "details"};
        const std::size_t count = json ? json->length(details).value_or(0) : 0;
        for (std::size_t i = 0; i < count; ++i)
            for (const Reason &reason : kReasons)
                if (json->element_text(details, i, "reason") == reason.name)
                    return say(ErrorCode::denied, reason.name, reason.hint);
        return say(ErrorCode::denied, "", needs);
    }
    if (status == 404)
        return say(ErrorCode::denied, "",
                   "Check the server's option master_key: there is no such key.");
    if (said == "FAILED_PRECONDITION" && is_outage_behind(*json))
        return say(ErrorCode::unreachable, "FAILED_PRECONDITION",
                   "Google did not reach the external key manager that holds the master key.");
    if (said == "FAILED_PRECONDITION")
        return say(ErrorCode::denied, "FAILED_PRECONDITION",
                   "The version of the master key is disabled or destroyed.");
    if (said == "INVALID_ARGUMENT" && text.find("_crc32c did not match") != std::string_view::npos)
        return say(ErrorCode::damaged, "a checksum did not match", "");
    if (said == "INVALID_ARGUMENT" && unwrapping)
        return say(ErrorCode::corrupt, "INVALID_ARGUMENT",
                   "The wrapped key was altered, or belongs to another tenant or master key.");
    return say(ErrorCode::misconfigured, "", "Check the server's options endpoint and master_key.");
}

Error gcp_nonsense(const Server &server, std::string_view doing, std::string_view what) {
    return {ErrorCode::bad_answer,
            "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
            "The answer was not one of Google. " + std::string(what),
            "Check that the server's option endpoint names Google itself."};
}

const Dialect &gcp_dialect() {
    static constinit const Gcp dialect;
    return dialect;
}

}  // namespace envcrypt::kms
