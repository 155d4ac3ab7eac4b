// See aws.hpp. https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html and
// https://docs.aws.amazon.com/STS/latest/APIReference/
#include "identity/aws.hpp"

#include <algorithm>
#include <optional>
#include <string>

#include "identity/form.hpp"
#include "identity/secret.hpp"
#include "kms/aws.hpp"
#include "kms/json.hpp"
#include "kms/sigv4.hpp"
#include "kms/time.hpp"

namespace envcrypt::identity {

namespace {

using kms::Json;

constexpr std::string_view kLogIn = "log in";
constexpr std::string_view kStsVersion = "2011-06-15";
// A profile may name another as its source, and so on.
constexpr int kMaxSources = 5;
// Metadata services are next door, or not there at all.
constexpr kms::Clock kMetadataPatience{2000};

Error login_error(const kms::Server &server, ErrorCode code, std::string detail, std::string hint) {
    return {code, "could not log in with KMS \"" + server.name + "\"", std::move(detail),
            std::move(hint)};
}

// --- the files, https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html

std::string_view trim(std::string_view text) {
    const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
    while (!text.empty() && blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && blank(text.back())) text.remove_suffix(1);
    return text;
}

// The value of `key` in a section. Nested settings, which are indented, are passed over.
std::string_view file_value(std::string_view file, std::string_view section, std::string_view key) {
    std::string_view found;
    bool inside = false;
    while (!file.empty()) {
        const std::size_t end = std::min(file.find('\n'), file.size());
        std::string_view line = file.substr(0, end);
        file.remove_prefix(std::min(end + 1, file.size()));
        const bool indented = line.starts_with(' ') || line.starts_with('\t');
        line = trim(line);
        if (line.empty() || line.front() == '#' || line.front() == ';') continue;
        if (line.front() == '[') {
            const std::size_t close = line.find(']');
            inside = close != std::string_view::npos && trim(line.substr(1, close - 1)) == section;
            continue;
        }
        const std::size_t equals = line.find('=');
        if (!inside || indented || equals == std::string_view::npos) continue;
        if (trim(line.substr(0, equals)) == key) found = trim(line.substr(equals + 1));
    }
    return found;
}

struct Files {
    SecretBytes credentials;
    SecretBytes config;

    // The credentials file goes before the config file, which names sections otherwise.
    std::string_view value(std::string_view profile, std::string_view key) const {
        const std::string_view first = file_value(credentials.expose_text(), profile, key);
        if (!first.empty()) return first;
        const std::string section =
            profile == "default" ? "default" : "profile " + std::string(profile);
        return file_value(config.expose_text(), section, key);
    }
};

// --- STS

// The text of the only element of that name.
std::string_view element_text(std::string_view xml, const std::string &name) {
    const std::string open = "<" + name + ">";
    const std::string close = "</" + name + ">";
    const std::size_t at = xml.find(open);
    if (at == std::string_view::npos || xml.find(open, at + 1) != std::string_view::npos) return {};
    xml.remove_prefix(at + open.size());
    const std::size_t end = xml.find(close);
    if (end == std::string_view::npos) return {};
    const std::string_view text = xml.substr(0, end);
    return is_visible_ascii(text) && text.find_first_of("<&") == std::string_view::npos
               ? text
               : std::string_view();
}

Result<Credential> read_keys(const kms::Server &server, const kms::Conversation &talk,
                             std::string_view service, std::string_view id, std::string_view secret,
                             std::string_view token, std::string_view expiration) {
    const auto end = kms::parse_utc_time(expiration);
    if (!is_visible_ascii(id) || !is_visible_ascii(secret) || !is_visible_ascii(token) || !end)
        return login_nonsense(server, service, "It had no complete credentials.");
    Credential keys{SecretBytes(secret)};
    keys.id = id;
    keys.session_token = SecretBytes(token);
    const std::int64_t left = *end - talk.wall_time();
    if (left <= 0)
        return login_error(server, ErrorCode::unreachable,
                           "The credentials that " + std::string(service) + " gave have expired.",
                           "Check the clock of the database host.");
    set_lifetime(keys, talk.now(), left);
    return keys;
}

Result<Credential> read_sts(const kms::Server &server, const kms::Conversation &talk,
                            const http::Response &response) {
    if (response.status != 200)
        return kms::aws_error(server, kLogIn, response,
                              "The role's trust policy must let the identity assume it, and the "
                              "identity's own policy sts:AssumeRole on the role, with the external "
                              "id that the role asks for.");
    const std::string_view xml = response.body.expose_text();
    return read_keys(server, talk, "STS", element_text(xml, "AccessKeyId"),
                     element_text(xml, "SecretAccessKey"), element_text(xml, "SessionToken"),
                     element_text(xml, "Expiration"));
}

struct Role {
    std::string arn;
    std::string session_name;
    std::string external_id;
};

kms::Task<Result<Credential>> assume_role(kms::Conversation &talk, const kms::Server &server,
                                          const Credential &keys, Role role) {
    const std::function<http::Request(std::int64_t)> sign = [&](std::int64_t time) {
        http::Request request =
            form_request(server, kms::aws_endpoint(server, "sts", "sts_endpoint"),
                         write_form({{"Action", "AssumeRole"},
                                     {"Version", kStsVersion},
                                     {"RoleArn", role.arn},
                                     {"RoleSessionName", role.session_name},
                                     {"ExternalId", role.external_id}}));
        kms::sign_v4(request, keys, kms::aws_region(server), "sts", time);
        return request;
    };
    Result<http::Response> response = co_await exchange_signed(talk, sign);
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_sts(server, talk, *response);
}

// The token file is read each time: Kubernetes replaces it.
kms::Task<Result<Credential>> assume_role_by_token(kms::Conversation &talk,
                                                   const kms::Server &server, Role role,
                                                   Result<SecretBytes> token) {
    if (!token) co_return std::move(token.error());
    http::Request request = form_request(server, kms::aws_endpoint(server, "sts", "sts_endpoint"),
                                         write_form({{"Action", "AssumeRoleWithWebIdentity"},
                                                     {"Version", kStsVersion},
                                                     {"RoleArn", role.arn},
                                                     {"RoleSessionName", role.session_name},
                                                     {"WebIdentityToken", token->expose_text()}}));
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_sts(server, talk, *response);
}

// --- metadata services

http::Request metadata_request(const kms::Server &server, const char *built_in, const char *method,
                               std::string_view path) {
    std::string_view endpoint = server.option("metadata_endpoint");
    if (endpoint.empty()) endpoint = built_in;
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    http::Request request;
    request.method = method;
    request.url = std::string(endpoint) + std::string(path);
    request.transport = server.transport();
    request.transport.proxy.clear();  // they are on this host
    request.timeout = kMetadataPatience;
    return request;
}

Result<Credential> read_metadata(const kms::Server &server, const kms::Conversation &talk,
                                 std::string_view service, http::Response response) {
    if (response.status != 200)
        return login_error(
            server, response.status >= 500 ? ErrorCode::unreachable : ErrorCode::denied,
            std::string(service) + " answered HTTP " + std::to_string(response.status) + ".",
            "Check that a role is attached to where the database server runs.");
    const std::optional<Json> json = Json::parse(std::move(response.body));
    if (!json) return login_nonsense(server, service, "It was not JSON as expected.");
    const auto id = json->text({"AccessKeyId"});
    const auto secret = json->text({"SecretAccessKey"});
    const auto token = json->text({"Token"});
    const auto expiration = json->text({"Expiration"});
    if (!id || !secret || !token || !expiration)
        return login_nonsense(server, service, "It had no complete credentials.");
    return read_keys(server, talk, service, *id, *secret, *token, *expiration);
}

kms::Task<Result<Credential>> from_container(kms::Conversation &talk, const kms::Server &server) {
    constexpr std::string_view service = "the container's credential service";
    const std::string token_file(server.identity_option("container_token_file"));
    std::string path(server.identity_option("container_path"));
    if (path.empty()) path = "/v1/credentials";
    http::Request request = metadata_request(
        server, token_file.empty() ? "http://169.254.170.2" : "http://169.254.170.23", "GET", path);
    if (!token_file.empty()) {
        kms::FileRequest file{token_file, false};
        Result<SecretBytes> token = co_await talk.read_file(std::move(file));
        if (!token) co_return std::move(token.error());
        if (!is_visible_ascii(token->expose_text()))
            co_return login_error(server, ErrorCode::misconfigured,
                                  "The container's token cannot be sent.",
                                  "Check the file that container_token_file names.");
        request.headers.push_back({"Authorization", std::move(*token)});
    }
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    if (!response) co_return kms::while_doing(server, kLogIn, std::move(response.error()));
    co_return read_metadata(server, talk, service, std::move(*response));
}

kms::Task<Result<Credential>> from_instance(kms::Conversation &talk, const kms::Server &server) {
    constexpr std::string_view service = "instance metadata";
    constexpr const char *address = "http://169.254.169.254";
    constexpr std::string_view keys_path = "/latest/meta-data/iam/security-credentials/";
    http::Request ask_token = metadata_request(server, address, "PUT", "/latest/api/token");
    ask_token.headers.push_back({"X-aws-ec2-metadata-token-ttl-seconds", SecretBytes("60")});
    Result<http::Response> token = co_await talk.exchange(std::move(ask_token));
    if (!token) co_return kms::while_doing(server, kLogIn, std::move(token.error()));
    if (token->status != 200 || !is_visible_ascii(token->body.expose_text()))
        co_return login_error(
            server, token->status >= 500 ? ErrorCode::unreachable : ErrorCode::denied,
            "Instance metadata gave no token, HTTP " + std::to_string(token->status) + ".",
            "Check that IMDSv2 is enabled, and its hop limit.");

    http::Request ask_role = metadata_request(server, address, "GET", keys_path);
    ask_role.headers.push_back({"X-aws-ec2-metadata-token", token->body.copy()});
    Result<http::Response> role = co_await talk.exchange(std::move(ask_role));
    if (!role) co_return kms::while_doing(server, kLogIn, std::move(role.error()));
    const std::string name(trim(role->body.expose_text().substr(
        0, std::min(role->body.expose_text().find('\n'), role->body.size()))));
    if (role->status != 200 || !is_visible_ascii(name) ||
        name.find_first_of("/?#%") != std::string::npos)
        co_return login_error(
            server, role->status >= 500 ? ErrorCode::unreachable : ErrorCode::denied,
            "Instance metadata named no role, HTTP " + std::to_string(role->status) + ".",
            "Attach an instance profile with a role to the instance.");

    http::Request ask_keys =
        metadata_request(server, address, "GET", std::string(keys_path) + name);
    ask_keys.headers.push_back({"X-aws-ec2-metadata-token", token->body.copy()});
    Result<http::Response> keys = co_await talk.exchange(std::move(ask_keys));
    if (!keys) co_return kms::while_doing(server, kLogIn, std::move(keys.error()));
    co_return read_metadata(server, talk, service, std::move(*keys));
}

// --- profiles

Role role_of(const kms::Server &server, std::string arn, std::string_view session_name,
             std::string_view external_id) {
    if (session_name.empty()) session_name = server.identity_option("role_session_name");
    if (external_id.empty()) external_id = server.identity_option("external_id");
    return {std::move(arn), std::string(session_name.empty() ? "envcrypt" : session_name),
            std::string(external_id)};
}

kms::Task<Result<Credential>> from_profile(kms::Conversation &talk, const kms::Server &server,
                                           const Files &files, std::string profile, int sources) {
    const auto value = [&](std::string_view key) { return files.value(profile, key); };
    const std::string role_arn(value("role_arn"));
    const std::string_view id = value("aws_access_key_id");
    const std::string_view secret = value("aws_secret_access_key");
    const std::string source(value("source_profile"));
    const auto keys_of_its_own = [&]() -> Result<Credential> {
        if (!is_visible_ascii(id) || !is_visible_ascii(secret))
            return login_error(
                server, ErrorCode::misconfigured,
                "Profile \"" + profile + "\" has no aws_access_key_id and aws_secret_access_key.",
                "Check the user mapping's options profile, credentials_file and config_file.");
        Credential keys{SecretBytes(secret)};
        keys.id = id;
        keys.session_token = SecretBytes(value("aws_session_token"));
        return keys;
    };
    if (!role_arn.empty()) {
        Role role = role_of(server, role_arn, value("role_session_name"), value("external_id"));
        const std::string token_file(value("web_identity_token_file"));
        std::string_view credential_source = value("credential_source");
        if (server.brought && (!token_file.empty() || !credential_source.empty()))
            co_return login_error(server, ErrorCode::denied,
                                  "A profile that a session brings may use neither files nor "
                                  "identities of the database host.",
                                  "Give it source_profile, or keys of its own.");
        if (!token_file.empty()) {
            kms::FileRequest file{token_file, false};
            Result<SecretBytes> token = co_await talk.read_file(std::move(file));
            co_return co_await assume_role_by_token(talk, server, std::move(role),
                                                    std::move(token));
        }
        Result<Credential> keys = login_error(
            server, ErrorCode::misconfigured,
            "Profile \"" + profile + "\" has a role_arn and no usable source of credentials.",
            "Give it source_profile, web_identity_token_file, or credential_source EcsContainer or "
            "Ec2InstanceMetadata.");
        if (credential_source == "EcsContainer") {
            keys = co_await from_container(talk, server);
        } else if (credential_source == "Ec2InstanceMetadata") {
            keys = co_await from_instance(talk, server);
        } else if (source == profile) {
            keys = keys_of_its_own();
        } else if (!source.empty() && sources < kMaxSources) {
            keys = co_await from_profile(talk, server, files, source, sources + 1);
        }
        if (!keys) co_return keys;
        co_return co_await assume_role(talk, server, *keys, std::move(role));
    }
    co_return keys_of_its_own();
}

kms::Task<Result<Credential>> from_files(kms::Conversation &talk, const kms::Server &server) {
    Files files;
    if (server.has_identity_option("credentials_file")) {
        Result<SecretBytes> contents = co_await read_option_file(talk, server, "credentials_file");
        if (!contents) co_return std::move(contents.error());
        files.credentials = std::move(*contents);
    }
    if (server.has_identity_option("config_file")) {
        Result<SecretBytes> contents = co_await read_option_file(talk, server, "config_file");
        if (!contents) co_return std::move(contents.error());
        files.config = std::move(*contents);
    }
    std::string profile(server.identity_option("profile"));
    if (profile.empty()) profile = "default";
    co_return co_await from_profile(talk, server, files, std::move(profile), 0);
}

}  // namespace

kms::Task<Result<http::Response>> exchange_signed(
    kms::Conversation &talk, std::function<http::Request(std::int64_t time)> sign) {
    for (bool corrected = false;; corrected = true) {
        http::Request request = sign(talk.wall_time());
        Result<http::Response> response = co_await talk.exchange(std::move(request));
        if (!response || corrected || !kms::aws_refuses_time(*response)) co_return response;
        const auto theirs = kms::parse_http_date(response->header("date"));
        if (!theirs) co_return response;
        talk.set_clock_offset(talk.clock_offset() + *theirs - talk.wall_time());
    }
}

kms::Task<Result<Credential>> obtain_aws_keys(kms::Conversation &talk, const kms::Server &server) {
    const std::string_view auth = server.identity_option("auth");
    const std::string role_arn(server.identity_option("role_arn"));
    if (auth == "web_identity") {
        Result<SecretBytes> token =
            co_await read_option_file(talk, server, "web_identity_token_file");
        Role role = role_of(server, role_arn, {}, {});
        co_return co_await assume_role_by_token(talk, server, std::move(role), std::move(token));
    }
    Result<Credential> keys = login_nonsense(server, "AWS", {});
    if (auth == "container") {
        keys = co_await from_container(talk, server);
    } else if (auth == "instance") {
        keys = co_await from_instance(talk, server);
    } else {
        keys = co_await from_files(talk, server);
    }
    if (!keys || role_arn.empty()) co_return keys;
    co_return co_await assume_role(talk, server, *keys, role_of(server, role_arn, {}, {}));
}

kms::Task<Result<std::string>> describe_aws_keys(kms::Conversation &talk, const kms::Server &server,
                                                 const Credential &keys) {
    http::Request request =
        form_request(server, kms::aws_endpoint(server, "sts", "sts_endpoint"),
                     write_form({{"Action", "GetCallerIdentity"}, {"Version", kStsVersion}}));
    kms::sign_v4(request, keys, kms::aws_region(server), "sts", talk.wall_time());
    request.timeout = kMetadataPatience;
    Result<http::Response> response = co_await talk.exchange(std::move(request));
    // a network may let KMS through and STS not: the keys have proven themselves there
    std::string_view arn;
    if (response && response->status == 200)
        arn = element_text(response->body.expose_text(), "Arn");
    co_return arn.empty() ? "access key " + keys.id : std::string(arn);
}

}  // namespace envcrypt::identity
