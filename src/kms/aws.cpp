// AWS KMS. https://docs.aws.amazon.com/kms/latest/APIReference/ The context C goes as the
// EncryptionContext, which KMS authenticates and writes to CloudTrail. How a role proves itself is
// identity/aws.cpp's business.
#include "kms/aws.hpp"

#include <algorithm>
#include <array>

#include "crypto/encoding.hpp"
#include "kms/json.hpp"
#include "kms/sigv4.hpp"

namespace envcrypt::kms {

namespace {

constexpr OptionPlace on_server = OptionPlace::server;
constexpr OptionPlace on_mapping = OptionPlace::mapping;
using enum OptionKind;

constexpr Option kOptions[] = {
    {"region", on_server, name, "AWS region, by default that of an ARN in master_key"},
    {"master_key", on_server, resource,
     "key id, key ARN, alias/NAME or alias ARN of a symmetric KMS key"},
    {"endpoint", on_server, https_url, "URL in place of the region's own, for a VPC endpoint"},
    {"fips", on_server, boolean, "whether to use the FIPS endpoint"},
    {"dual_stack", on_server, boolean, "whether to use the dual-stack endpoint (IPv6)"},
    {"sts_endpoint", on_server, https_url, "URL of STS in place of the region's own"},
    {"secrets_endpoint", on_server, https_url,
     "URL of Secrets Manager in place of the region's own"},
    {"metadata_endpoint", on_server, https_url,
     "URL of instance metadata or container credentials in place of the built-in addresses"},
    {"cache_ttl", on_server, duration, "how long its keys serve before it is asked again"},
    {"outage_grace", on_server, duration, "how long they serve on where it cannot be reached"},
    {"ca_file", on_server, absolute_path,
     "CA certificates that the servers' certificates must chain to"},
    {"proxy", on_server, proxy_url, "proxy to reach the services by"},
    {"client_cert_file", on_server, absolute_path, "client certificate for mutual TLS"},
    {"client_key_file", on_server, absolute_path, "its private key"},
    {"auth", on_mapping, auth_method,
     "where the identity comes from: profile, web_identity, container or instance"},
    {"credentials_file", on_mapping, absolute_path, "shared credentials file, for profile"},
    {"config_file", on_mapping, absolute_path, "shared config file, for profile"},
    {"profile", on_mapping, resource, "its profile, by default default"},
    {"role_arn", on_mapping, resource,
     "role to assume: by web_identity, or with the identity found"},
    {"role_session_name", on_mapping, resource, "name of its sessions, by default envcrypt"},
    {"external_id", on_mapping, resource, "external id that the role asks for"},
    {"web_identity_token_file", on_mapping, absolute_path, "file of the token, for web_identity"},
    {"container_path", on_mapping, resource,
     "path of the container's credentials, by default /v1/credentials"},
    {"container_token_file", on_mapping, absolute_path,
     "file of the token that EKS Pod Identity asks for"},
};
constexpr const char *kAuthMethods[] = {"profile", "web_identity", "container", "instance"};
constexpr const char *kBroughtMethods[] = {"profile", "web_identity"};

struct Meaning {
    const char *code;
    ErrorCode what;
    const char *hint;
};
// What an identity needs, where a right is missing.
const char *needs(Verb verb) {
    switch (verb) {
        case Verb::make_data_key:
            return "The identity needs kms:GenerateDataKey on the master key, in its IAM policy or "
                   "the key's, under conditions that this key meets.";
        case Verb::wrap:
            return "The identity needs kms:Encrypt on the master key, in its IAM policy or the "
                   "key's, under conditions that this key meets.";
        case Verb::rewrap:
            return "The identity needs kms:ReEncryptFrom on the master key that wrapped, and "
                   "kms:ReEncryptTo on the one that the server's option names.";
        case Verb::unwrap:
            break;
    }
    return "The identity needs kms:Decrypt on the master key that wrapped, in its IAM policy or "
           "the key's, under conditions that this key meets.";
}
constexpr const char *kNeeds = nullptr;  // in the table below: what the call needs
constexpr const char *kCredentialHint =
    "Check what the user mapping's options name, and the clock of the database host.";
constexpr const char *kKeyStoreHint =
    "The master key lies in a custom key store: see to its connection, its proxy and its HSMs.";
constexpr Meaning kMeanings[] = {
    {"AccessDeniedException", ErrorCode::denied, kNeeds},
    {"AccessDenied", ErrorCode::denied, kNeeds},
    {"DisabledException", ErrorCode::denied, "The master key is disabled; it can be enabled."},
    {"KMSInvalidStateException", ErrorCode::denied,
     "The master key is pending deletion or import, or its external key is not to be used."},
    {"NotFoundException", ErrorCode::denied,
     "Check the server's options master_key and region: there is no such key."},
    {"UnrecognizedClientException", ErrorCode::denied, kCredentialHint},
    {"InvalidClientTokenId", ErrorCode::denied, kCredentialHint},
    {"InvalidSignatureException", ErrorCode::denied, kCredentialHint},
    {"SignatureDoesNotMatch", ErrorCode::denied, kCredentialHint},
    {"IncompleteSignature", ErrorCode::denied, kCredentialHint},
    {"MissingAuthenticationTokenException", ErrorCode::denied, kCredentialHint},
    {"MissingAuthenticationToken", ErrorCode::denied, kCredentialHint},
    {"ExpiredTokenException", ErrorCode::denied, kCredentialHint},
    {"ExpiredToken", ErrorCode::denied, kCredentialHint},
    {"RequestExpired", ErrorCode::denied, kCredentialHint},
    {"ThrottlingException", ErrorCode::throttled,
     "The account's request quota is used up; AWS raises it on request."},
    {"InvalidIdentityToken", ErrorCode::denied,
     "STS refuses the web identity token: check its issuer, its audience and the role's trust."},
    {"IDPRejectedClaim", ErrorCode::denied,
     "The identity provider refuses the web identity token: it may have ended."},
    {"Throttling", ErrorCode::throttled, ""},
    {"ThrottledException", ErrorCode::throttled, ""},
    {"RequestThrottled", ErrorCode::throttled, ""},
    {"RequestThrottledException", ErrorCode::throttled, ""},
    {"RequestLimitExceeded", ErrorCode::throttled, ""},
    {"SlowDown", ErrorCode::throttled, ""},
    {"IDPCommunicationError", ErrorCode::unreachable, ""},
    {"RequestTimeout", ErrorCode::unreachable, ""},
    {"RequestTimeoutException", ErrorCode::unreachable, ""},
    {"PriorRequestNotComplete", ErrorCode::unreachable, ""},
    {"TooManyRequestsException", ErrorCode::throttled, ""},
    {"LimitExceededException", ErrorCode::throttled, ""},
    {"KMSInternalException", ErrorCode::unreachable, ""},
    {"DependencyTimeoutException", ErrorCode::unreachable, ""},
    {"KeyUnavailableException", ErrorCode::unreachable, ""},
    {"CustomKeyStoreInvalidStateException", ErrorCode::unreachable, kKeyStoreHint},
    {"CloudHsmClusterNotActiveException", ErrorCode::unreachable, kKeyStoreHint},
    {"CloudHsmClusterInvalidConfigurationException", ErrorCode::unreachable, kKeyStoreHint},
    {"XksProxyUriUnreachableException", ErrorCode::unreachable, kKeyStoreHint},
    {"XksProxyInvalidResponseException", ErrorCode::unreachable, kKeyStoreHint},
    {"XksProxyIncorrectAuthenticationCredentialException", ErrorCode::unreachable, kKeyStoreHint},
    {"InternalFailure", ErrorCode::unreachable, ""},
    {"ServiceUnavailable", ErrorCode::unreachable, ""},
    {"InvalidCiphertextException", ErrorCode::corrupt,
     "The wrapped key was altered, or belongs to another tenant."},
    {"IncorrectKeyException", ErrorCode::corrupt,
     "Another master key than the one named wrapped it."},
    {"ValidationException", ErrorCode::misconfigured,
     "Check the server's options master_key and region."},
    {"InvalidArnException", ErrorCode::misconfigured, "Check the server's option master_key."},
    {"InvalidKeyUsageException", ErrorCode::misconfigured,
     "The master key must be a symmetric key for encryption."},
};
// What KMSInvalidStateException means by the words that come with it, of a key in a custom key
// store: all that goes wrong there has this one code.
// https://docs.aws.amazon.com/kms/latest/developerguide/xks-troubleshooting.html
constexpr std::string_view kInvalidState = "KMSInvalidStateException";
constexpr Meaning kStateSayings[] = {
    {"did not respond", ErrorCode::unreachable, kKeyStoreHint},
    {"cannot communicate with the external key store", ErrorCode::unreachable, kKeyStoreHint},
    {"is in an unhealthy state", ErrorCode::unreachable, kKeyStoreHint},
    {"cannot interpret the response from the external key store", ErrorCode::unreachable,
     kKeyStoreHint},
    {"could not authenticate AWS KMS", ErrorCode::unreachable, kKeyStoreHint},
    {"not connected", ErrorCode::unreachable, kKeyStoreHint},
    {"is disconnected", ErrorCode::unreachable, kKeyStoreHint},
    {"is unavailable", ErrorCode::unreachable, kKeyStoreHint},
    {"very high request rate", ErrorCode::throttled, kKeyStoreHint},
    {"is corrupted, missing, or otherwise invalid", ErrorCode::corrupt,
     "The wrapped key was altered, or belongs to another tenant."},
};
constexpr const char *kCredentialCodes[] = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "ExpiredTokenException",
    "MissingAuthenticationTokenException",
    "ExpiredToken",
    "MissingAuthenticationToken",
};

bool is_arn(std::string_view text) {
    return text.starts_with("arn:");
}

// The n-th field of an ARN, from 0: arn:partition:service:region:account:resource.
std::string_view arn_field(std::string_view arn, int n) {
    while (n-- > 0) {
        const std::size_t colon = arn.find(':');
        if (colon == std::string_view::npos) return {};
        arn.remove_prefix(colon + 1);
    }
    return arn.substr(0, arn.find(':'));
}

// The master key as it is called in the server's region: of a multi-region key, a replica opens
// what the primary wrapped, and the ARNs differ in the region alone.
std::string key_for_region(const Server &server, std::string_view named) {
    std::string key(named);
    const std::string_view region = arn_field(key, 3);
    if (!is_arn(key) || !arn_field(key, 5).starts_with("key/mrk-") || region == aws_region(server))
        return key;
    return key.replace(static_cast<std::size_t>(region.data() - key.data()), region.size(),
                       aws_region(server));
}

// The names that doc/kms.md gives to the three parts of C.
void add_context(JsonWriter &json, const char *member, std::string_view context) {
    if (context.empty()) return;
    constexpr const char *names[] = {"envcrypt-purpose", "envcrypt-key", "envcrypt-tenant"};
    json.open(member);
    context.remove_prefix(context.find('\0') + 1);
    for (const char *its_name : names) {
        const std::size_t end = std::min(context.find('\0'), context.size());
        json.add(its_name, context.substr(0, end));
        context.remove_prefix(std::min(end + 1, context.size()));
    }
    json.close();
}

class Aws final : public Dialect {
public:
    const char *wrapper_name() const override { return "envcrypt_aws"; }
    std::span<const Option> options() const override { return kOptions; }
    std::span<const char *const> auth_methods() const override { return kAuthMethods; }
    std::span<const char *const> brought_methods() const override { return kBroughtMethods; }
    bool rewraps() const override { return true; }
    bool rewraps_others() const override { return true; }

    std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                    const Credential &credential) const override {
        JsonWriter json;
        const std::string key = key_for_region(server, server.option("master_key"));
        const bool rewraps = ask.verb == Verb::rewrap;
        json.add(rewraps ? "DestinationKeyId" : "KeyId", key);
        add_context(json, rewraps ? "DestinationEncryptionContext" : "EncryptionContext",
                    ask.context);
        const char *target = "TrentService.Decrypt";
        switch (ask.verb) {
            case Verb::make_data_key:
                target = "TrentService.GenerateDataKey";
                json.add("KeySpec", "AES_256");
                break;
            case Verb::wrap:
                target = "TrentService.Encrypt";
                json.add("Plaintext", crypto::to_base64_secret(ask.key->expose()).expose_text());
                break;
            case Verb::unwrap:
                json.add("CiphertextBlob", crypto::to_base64(ask.wrapped));
                break;
            case Verb::rewrap:
                target = "TrentService.ReEncrypt";
                json.add("CiphertextBlob", crypto::to_base64(ask.wrapped));
                json.add("SourceKeyId", key_for_region(server, ask.source_key));
                add_context(json, "SourceEncryptionContext", ask.context);
                break;
        }
        return aws_request(server, "kms", "endpoint", target, json.finish(), credential, ask.time);
    }

    Result<Answer> read(const Server &server, const Ask &ask,
                        http::Response response) const override {
        if (response.status != 200)
            return aws_error(server, doing(ask.verb), response, needs(ask.verb));
        const std::optional<Json> json = Json::parse(response.body.copy());
        if (!json ||
            (!json->has({"KeyId"}) && !json->has({"CiphertextBlob"}) && !json->has({"Plaintext"})))
            return foreign_answer(server, doing(ask.verb), "AWS", response);
        Answer answer;
        answer.request_id = clean_request_id(response.header("x-amzn-requestid"));
        const auto key_id = json->text({"KeyId"});
        if (!key_id || key_id->empty())
            return aws_nonsense(server, doing(ask.verb), "It had no KeyId.");
        answer.master_key = *key_id;
        // recorded where sent: older endpoints do not
        if (const auto material = json->text(
                {ask.verb == Verb::rewrap ? "DestinationKeyMaterialId" : "KeyMaterialId"}))
            answer.master_key_version = *material;
        if (ask.verb == Verb::unwrap) {
            answer.wrapped.assign(ask.wrapped.begin(), ask.wrapped.end());
        } else {
            const auto blob = json->text({"CiphertextBlob"});
            std::optional<SecretBytes> wrapped;
            if (blob) wrapped = crypto::from_base64_secret(*blob);
            if (!wrapped || wrapped->empty())
                return aws_nonsense(server, doing(ask.verb), "It had no CiphertextBlob in base64.");
            answer.wrapped.assign(wrapped->expose().begin(), wrapped->expose().end());
        }
        if (ask.verb == Verb::make_data_key || ask.verb == Verb::unwrap) {
            const auto plaintext = json->text({"Plaintext"});
            std::optional<SecretBytes> key;
            if (plaintext) key = crypto::from_base64_secret(*plaintext);
            if (!key)
                return aws_nonsense(server, doing(ask.verb), "It had no Plaintext in base64.");
            answer.key = std::move(*key);
        }
        return answer;
    }

    bool refuses_credential(const http::Response &response) const override {
        return aws_refuses_credential(response);
    }
    bool refuses_time(const http::Response &response) const override {
        return aws_refuses_time(response);
    }

    Status check_complete(const Server &server) const override {
        if (server.option("master_key").empty())
            return missing_option(server, on_server, "master_key");
        // what is signed is the path /
        for (const char *endpoint : {"endpoint", "sts_endpoint", "secrets_endpoint"}) {
            const std::string_view url = server.option(endpoint);
            const std::size_t slash = url.find('/', std::string_view("https://").size());
            if (!url.empty() && slash != std::string_view::npos && slash + 1 < url.size())
                return Error{
                    ErrorCode::misconfigured,
                    std::string(endpoint) + " of KMS \"" + server.name + "\" cannot be used",
                    {},
                    "AWS's endpoints have no path: https://host or https://host:port."};
        }
        if (aws_region(server).empty()) return missing_option(server, on_server, "region");
        const std::string_view auth = server.identity_option("auth");
        if (auth.empty()) return missing_option(server, on_mapping, "auth");
        if (auth == "profile" && !server.has_identity_option("credentials_file") &&
            !server.has_identity_option("config_file"))
            return missing_option(server, on_mapping, "credentials_file");
        if (auth == "web_identity")
            for (const char *needed : {"role_arn", "web_identity_token_file"})
                if (!server.has_identity_option(needed))
                    return missing_option(server, on_mapping, needed);
        return Unit{};
    }
};

}  // namespace

std::string_view aws_region(const Server &server) {
    const std::string_view region = server.option("region");
    if (!region.empty()) return region;
    const std::string_view key = server.option("master_key");
    return is_arn(key) ? arn_field(key, 3) : std::string_view();
}

std::string aws_endpoint(const Server &server, const char *service, const char *endpoint_option) {
    std::string_view given = server.option(endpoint_option);
    if (!given.empty()) {
        while (given.ends_with('/')) given.remove_suffix(1);
        return std::string(given) + "/";
    }
    const std::string region(aws_region(server));
    std::string host = service;
    if (server.flag("fips")) host += "-fips";
    host += "." + region;
    const bool china = region.starts_with("cn-");
    if (server.flag("dual_stack"))
        host += china ? ".api.amazonwebservices.com.cn" : ".api.aws";
    else
        host += china ? ".amazonaws.com.cn" : ".amazonaws.com";
    return "https://" + host + "/";
}

http::Request aws_request(const Server &server, const char *service, const char *endpoint_option,
                          std::string_view target, SecretBytes body, const Credential &credential,
                          std::int64_t time) {
    http::Request request;
    request.url = aws_endpoint(server, service, endpoint_option);
    request.transport = server.transport();
    request.headers.push_back({"Content-Type", SecretBytes("application/x-amz-json-1.1")});
    request.headers.push_back({"X-Amz-Target", SecretBytes(target)});
    request.body = std::move(body);
    sign_v4(request, credential, aws_region(server), service, time);
    return request;
}

std::string aws_error_code(const http::Response &response) {
    const std::optional<Json> json = Json::parse(response.body.copy());
    std::string_view code;
    if (json) code = json->text({"__type"}).value_or(json->text({"Error", "Code"}).value_or(""));
    // the services that speak XML, and moto's signature check
    constexpr std::string_view open = "<Code>";
    const std::string_view body = response.body.expose_text();
    const std::size_t error = body.find("<Error>");
    const std::size_t at = error == std::string_view::npos ? error : body.find(open, error);
    if (!json && at != std::string_view::npos) {
        code = body.substr(at + open.size());
        code = code.substr(0, code.find('<'));
    }
    if (code.empty()) code = response.header("x-amzn-errortype");
    if (const std::size_t hash = code.find('#'); hash != std::string_view::npos)
        code.remove_prefix(hash + 1);
    return std::string(code.substr(0, code.find(':')));
}

Error aws_error(const Server &server, std::string_view doing, const http::Response &response,
                const char *needs) {
    Error error{ErrorCode::misconfigured,
                "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
                "AWS answered HTTP " + std::to_string(response.status) + ".",
                {}};
    const std::string code = aws_error_code(response);
    if (code == kInvalidState) {
        const std::optional<Json> json = Json::parse(response.body.copy());
        std::string_view said;
        if (json) said = json->text({"message"}).value_or(json->text({"Message"}).value_or(""));
        for (const Meaning &meaning : kStateSayings) {
            if (said.find(meaning.code) == std::string_view::npos) continue;
            error.code = meaning.what;
            error.detail = "AWS answered HTTP " + std::to_string(response.status) + ", " + code +
                           ": \"" + meaning.code + "\".";
            error.hint = meaning.hint;
            return error;
        }
    }
    for (const Meaning &meaning : kMeanings) {
        if (code != meaning.code) continue;
        error.code = meaning.what;
        error.detail = "AWS answered HTTP " + std::to_string(response.status) + ", " + code + ".";
        error.hint = meaning.hint == kNeeds ? needs : meaning.hint;
        return error;
    }
    if (response.status == 429) {
        error.code = ErrorCode::throttled;
    } else if (response.status >= 500) {
        error.code = ErrorCode::unreachable;
    } else if (code.empty()) {
        return foreign_answer(server, doing, "AWS", response);
    } else if (response.status == 403) {
        error.code = ErrorCode::denied;
        error.hint = needs;
    } else {
        error.hint = "Check the server's options endpoint, master_key and region.";
    }
    return error;
}

Error aws_nonsense(const Server &server, std::string_view doing, std::string_view what) {
    return {ErrorCode::bad_answer,
            "could not " + std::string(doing) + " with KMS \"" + server.name + "\"",
            "The answer was not one of AWS. " + std::string(what),
            "Check that the server's option endpoint names AWS itself."};
}

bool aws_refuses_credential(const http::Response &response) {
    if (response.status != 400 && response.status != 401 && response.status != 403) return false;
    const std::string code = aws_error_code(response);
    return std::find(std::begin(kCredentialCodes), std::end(kCredentialCodes), code) !=
           std::end(kCredentialCodes);
}

bool aws_refuses_time(const http::Response &response) {
    if (response.status != 400 && response.status != 403) return false;
    const std::string code = aws_error_code(response);
    if (code == "RequestExpired" || code == "RequestTimeTooSkewed") return true;
    if (code != "InvalidSignatureException" && code != "SignatureDoesNotMatch") return false;
    const std::string_view body = response.body.expose_text();
    return body.find("Signature expired") != std::string_view::npos ||
           body.find("Signature not yet current") != std::string_view::npos;
}

const Dialect &aws_dialect() {
    static constinit const Aws dialect;
    return dialect;
}

}  // namespace envcrypt::kms
