// See aws.hpp. https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html and
// https://docs.aws.amazon.com/STS/latest/APIReference/
#include "identity/aws.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

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

// One setting of a section. Its value lies in the file's text.
struct Setting {
    std::string name;  // in lower case
    std::string_view value;
    bool has_more_lines = false;  // a nested section, or a value that goes on
};
struct Section {
    std::string name;  // as it stands between the brackets
    std::vector<Setting> settings;

    const Setting *find(std::string_view key) const {
        const auto found = std::find_if(settings.begin(), settings.end(),
                                        [&](const Setting &one) { return one.name == key; });
        return found == settings.end() ? nullptr : &*found;
    }
};

std::string lower(std::string_view text) {
    std::string result(text);
    for (char &c : result)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return result;
}

// Reads a file as AWS's own clients do, which read it by Python's configparser: a line that is
// indented deeper than the one of the setting before it goes on with its value, whatever it looks
// like; = and : end a name; a comment is a line of its own; nothing may stand there twice. What
// those clients refuse is refused: the number of the line, or 0.
std::size_t read_sections(std::string_view file, std::vector<Section> &sections) {
    std::size_t indent = 0;  // of the line that the setting at hand, or the header, began
    bool in_setting = false;
    for (std::size_t number = 1; !file.empty(); ++number) {
        const std::size_t end = std::min(file.find_first_of("\r\n"), file.size());
        const std::string_view line = file.substr(0, end);
        file.remove_prefix(
            std::min(end + (file.substr(end).starts_with("\r\n") ? 2 : 1), file.size()));
        const std::string_view text = trim(line);
        if (text.empty() || text.front() == '#' || text.front() == ';') continue;
        // Python takes some of them for blanks or line ends, in places that no eye finds
        if (std::any_of(text.begin(), text.end(),
                        [](char c) { return static_cast<unsigned char>(c) < ' ' && c != '\t'; }))
            return number;
        const auto its_indent = static_cast<std::size_t>(text.data() - line.data());
        if (in_setting && its_indent > indent) {
            sections.back().settings.back().has_more_lines = true;
            continue;
        }
        indent = its_indent;
        if (const std::size_t close = text.rfind(']');
            text.front() == '[' && close != std::string_view::npos && close > 1) {
            const std::string_view name = text.substr(1, close - 1);
            if (std::any_of(sections.begin(), sections.end(),
                            [&](const Section &one) { return one.name == name; }))
                return number;
            sections.push_back({std::string(name), {}});
            in_setting = false;
            continue;
        }
        const std::size_t delimiter = text.find_first_of("=:");
        if (sections.empty() || delimiter == std::string_view::npos || delimiter == 0)
            return number;
        const std::string name = lower(trim(text.substr(0, delimiter)));
        if (sections.back().find(name) != nullptr ||
            std::any_of(name.begin(), name.end(), [](char c) { return c < ' ' || c > '~'; }))
            return number;
        sections.back().settings.push_back({name, trim(text.substr(delimiter + 1)), false});
        in_setting = true;
    }
    return 0;
}

// The words of a section's name, as a shell splits them: [profile "with blank"]. None where a
// quotation does not end.
std::vector<std::string> split_words(std::string_view text) {
    std::vector<std::string> words;
    bool in_word = false;
    char quote = '\0';
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quote == '\0' && (c == ' ' || c == '\t')) {
            in_word = false;
            continue;
        }
        if (!in_word) words.emplace_back();
        in_word = true;
        const bool escapes =
            c == '\\' && i + 1 < text.size() &&
            (quote == '\0' || (quote == '"' && (text[i + 1] == '"' || text[i + 1] == '\\')));
        if (escapes)
            words.back() += text[++i];
        else if (quote == '\0' && (c == '"' || c == '\''))
            quote = c;
        else if (quote != '\0' && c == quote)
            quote = '\0';
        else
            words.back() += c;
    }
    return quote == '\0' ? words : std::vector<std::string>();
}

struct Files {
    SecretBytes credentials_text;
    SecretBytes config_text;
    std::vector<Section> credentials;
    std::vector<Section> config;

    const Section *in_credentials(std::string_view profile) const {
        for (const Section &section : credentials)
            if (section.name == profile) return &section;
        return nullptr;
    }
    // The config file names its sections [default] and [profile NAME]; of two names for one profile
    // the later section counts.
    const Section *in_config(std::string_view profile) const {
        const Section *found = nullptr;
        for (const Section &section : config) {
            if (section.name.starts_with("profile")) {
                const std::vector<std::string> words = split_words(section.name);
                if (words.size() == 2 && words[1] == profile) found = &section;
            } else if (section.name == "default" && profile == "default") {
                found = &section;
            }
        }
        return found;
    }
    // The credentials file goes before the config file.
    const Setting *find(std::string_view profile, std::string_view key) const {
        for (const Section *section : {in_credentials(profile), in_config(profile)})
            if (section != nullptr)
                if (const Setting *setting = section->find(key)) return setting;
        return nullptr;
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
    if (xml.find("<Credentials>") == std::string_view::npos)
        return kms::foreign_answer(server, kLogIn, "STS", response);
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

constexpr std::string_view kContainer = "the container's credential service";
constexpr std::string_view kInstance = "instance metadata";

Result<Credential> read_metadata(const kms::Server &server, const kms::Conversation &talk,
                                 std::string_view service, const std::optional<Json> &json) {
    const auto id = json->text({"AccessKeyId"});
    const auto secret = json->text({"SecretAccessKey"});
    const auto token = json->text({"Token"});
    const auto expiration = json->text({"Expiration"});
    if (!id || !secret || !token || !expiration)
        return login_nonsense(server, service, "It had no complete credentials.");
    return read_keys(server, talk, service, *id, *secret, *token, *expiration);
}

kms::Task<Result<Credential>> from_container(kms::Conversation &talk, const kms::Server &server) {
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
    if (!response) co_return metadata_unreached(server, kContainer, std::move(response.error()));
    const std::optional<Json> json = Json::parse(response->body.copy());
    if (response->status == 200 && json) co_return read_metadata(server, talk, kContainer, json);
    Error error = metadata_error(
        server, kContainer, *response,
        "The credential service of ECS, or the Pod Identity agent of EKS, answers so while it "
        "starts or is asked too often. Check that a role is attached to where the database server "
        "runs, and the user mapping's option container_path.");
    // it refuses in JSON; a mesh in front of it does not
    if ((response->status == 401 || response->status == 403) && json) {
        error.code = ErrorCode::denied;
        error.hint = "Check the role, and the file that container_token_file names.";
    }
    co_return error;
}

kms::Task<Result<Credential>> from_instance(kms::Conversation &talk, const kms::Server &server) {
    constexpr const char *address = "http://169.254.169.254";
    constexpr std::string_view keys_path = "/latest/meta-data/iam/security-credentials/";
    http::Request ask_token = metadata_request(server, address, "PUT", "/latest/api/token");
    ask_token.headers.push_back({"X-aws-ec2-metadata-token-ttl-seconds", SecretBytes("60")});
    Result<http::Response> token = co_await talk.exchange(std::move(ask_token));
    if (!token) co_return metadata_unreached(server, kInstance, std::move(token.error()));
    if (token->status != 200 || !is_visible_ascii(token->body.expose_text())) {
        Error error = metadata_error(server, kInstance, *token,
                                     "Check that instance metadata (IMDSv2) is enabled, its hop "
                                     "limit, and that no firewall or mesh keeps it away.");
        error.detail += " It gave no session token.";
        co_return error;
    }

    http::Request ask_role = metadata_request(server, address, "GET", keys_path);
    ask_role.headers.push_back({"X-aws-ec2-metadata-token", token->body.copy()});
    Result<http::Response> role = co_await talk.exchange(std::move(ask_role));
    if (!role) co_return metadata_unreached(server, kInstance, std::move(role.error()));
    const std::string name(trim(role->body.expose_text().substr(
        0, std::min(role->body.expose_text().find('\n'), role->body.size()))));
    if (role->status != 200 || !is_visible_ascii(name) ||
        name.find_first_of("/?#%<>") != std::string::npos) {
        Error error = metadata_error(server, kInstance, *role,
                                     "Attach an instance profile with a role to the instance. One "
                                     "that was just attached takes some seconds to appear in "
                                     "instance metadata.");
        error.detail += " It named no role.";
        co_return error;
    }

    http::Request ask_keys =
        metadata_request(server, address, "GET", std::string(keys_path) + name);
    ask_keys.headers.push_back({"X-aws-ec2-metadata-token", token->body.copy()});
    Result<http::Response> keys = co_await talk.exchange(std::move(ask_keys));
    if (!keys) co_return metadata_unreached(server, kInstance, std::move(keys.error()));
    const std::optional<Json> json = Json::parse(keys->body.copy());
    if (keys->status == 200 && json) co_return read_metadata(server, talk, kInstance, json);
    co_return metadata_error(
        server, kInstance, *keys,
        "Check that the role of the instance profile exists, and may be "
        "assumed by EC2. Instance metadata answers so, too, while it starts or "
        "is asked too often.");
}

// --- profiles

Role role_of(const kms::Server &server, std::string arn, std::string_view session_name,
             std::string_view external_id) {
    if (session_name.empty()) session_name = server.identity_option("role_session_name");
    if (external_id.empty()) external_id = server.identity_option("external_id");
    return {std::move(arn), std::string(session_name.empty() ? "envcrypt" : session_name),
            std::string(external_id)};
}

Error profile_error(const kms::Server &server, const std::string &profile, const std::string &what,
                    std::string hint) {
    return login_error(server, ErrorCode::misconfigured, "Profile \"" + profile + "\" " + what,
                       std::move(hint));
}

// What of a profile is read, and what AWS's own clients would go by and this one cannot. A setting
// of the first kind must be whole, in one line.
constexpr const char *kRead[] = {
    "role_arn",          "source_profile",          "credential_source", "role_session_name",
    "external_id",       "web_identity_token_file", "aws_access_key_id", "aws_secret_access_key",
    "aws_session_token", "aws_security_token"};
constexpr const char *kNotKnown[] = {"sso_session",   "sso_start_url",      "sso_account_id",
                                     "sso_role_name", "credential_process", "login_session"};
constexpr const char *kKeys[] = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token",
                                 "aws_security_token"};

// Whether the profile can be used as AWS's own clients use it; never silently otherwise.
Status check_profile(const kms::Server &server, const Files &files, const std::string &profile) {
    const Section *credentials = files.in_credentials(profile);
    const Section *config = files.in_config(profile);
    for (const Section *section : {credentials, config}) {
        if (section == nullptr) continue;
        for (const char *name : kRead) {
            const Setting *setting = section->find(name);
            if (setting == nullptr) continue;
            if (setting->has_more_lines)
                return profile_error(
                    server, profile, std::string("has a setting ") + name + " of several lines.",
                    "An indented line goes on with the setting before it. Let each setting begin "
                    "in the first column.");
            if (setting->value.empty())
                return profile_error(server, profile, std::string("has an empty ") + name + ".",
                                     "Give it a value, or leave the setting out.");
        }
        for (const char *name : kNotKnown)
            if (section->find(name) != nullptr)
                return profile_error(
                    server, profile,
                    std::string("has the setting ") + name + ", which envcrypt does not know.",
                    "Use another way to log in, or a profile without it.");
    }
    // of two files, AWS's own clients put keys together in more than one way
    if (credentials != nullptr && config != nullptr) {
        const auto has_key = [](const Section &section) {
            return std::any_of(std::begin(kKeys), std::end(kKeys),
                               [&](const char *name) { return section.find(name) != nullptr; });
        };
        if (has_key(*credentials) && has_key(*config))
            return profile_error(server, profile, "has keys in both files.",
                                 "Let the keys of a profile stand in one file.");
    }
    if (files.find(profile, "role_arn") == nullptr) {
        for (const char *name : {"web_identity_token_file", "source_profile", "credential_source"})
            if (files.find(profile, name) != nullptr)
                return profile_error(server, profile,
                                     std::string("has ") + name + " and no role_arn.",
                                     "Name the role, or leave the setting out.");
    } else if (files.find(profile, "source_profile") != nullptr &&
               files.find(profile, "credential_source") != nullptr) {
        return profile_error(server, profile, "has source_profile and credential_source.",
                             "Give it one of them.");
    }
    return Unit{};
}

kms::Task<Result<Credential>> from_profile(kms::Conversation &talk, const kms::Server &server,
                                           const Files &files, std::string profile, int sources) {
    if (Status usable = check_profile(server, files, profile); !usable)
        co_return std::move(usable.error());
    const auto value = [&](std::string_view key) {
        const Setting *setting = files.find(profile, key);
        return setting == nullptr ? std::string_view() : setting->value;
    };
    const std::string role_arn(value("role_arn"));
    const std::string_view id = value("aws_access_key_id");
    const std::string_view secret = value("aws_secret_access_key");
    const std::string source(value("source_profile"));
    const std::string token_file(value("web_identity_token_file"));
    const auto keys_of_its_own = [&]() -> Result<Credential> {
        if (!is_visible_ascii(id) || !is_visible_ascii(secret))
            return profile_error(
                server, profile, "has no aws_access_key_id and aws_secret_access_key.",
                "Check the user mapping's options profile, credentials_file and config_file.");
        std::string_view token = value("aws_security_token");
        if (token.empty()) token = value("aws_session_token");
        if (!token.empty() && !is_visible_ascii(token))
            return profile_error(server, profile, "has a session token that cannot be sent.",
                                 "A comment must be a line of its own.");
        Credential keys{SecretBytes(secret)};
        keys.id = id;
        keys.session_token = SecretBytes(token);
        return keys;
    };
    // the keys of a profile that another names as its source go before its role
    const bool has_keys = !id.empty() || !secret.empty();
    if (role_arn.empty() || (sources > 0 && has_keys && token_file.empty()))
        co_return keys_of_its_own();

    if (!is_visible_ascii(role_arn))
        co_return profile_error(server, profile, "has a role_arn that is none.",
                                "A comment must be a line of its own.");
    Role role = role_of(server, role_arn, value("role_session_name"), value("external_id"));
    const std::string_view credential_source = value("credential_source");
    if (server.brought && (!token_file.empty() || !credential_source.empty()))
        co_return login_error(server, ErrorCode::denied,
                              "A profile that a session brings may use neither files nor "
                              "identities of the database host.",
                              "Give it source_profile, or keys of its own.");
    if (!token_file.empty()) {
        kms::FileRequest file{token_file, false};
        Result<SecretBytes> token = co_await talk.read_file(std::move(file));
        co_return co_await assume_role_by_token(talk, server, std::move(role), std::move(token));
    }
    Result<Credential> keys = profile_error(
        server, profile, "has a role_arn and no usable source of credentials.",
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

kms::Task<Result<Credential>> from_files(kms::Conversation &talk, const kms::Server &server) {
    Files files;
    for (const char *option : {"credentials_file", "config_file"}) {
        if (!server.has_identity_option(option)) continue;
        Result<SecretBytes> contents = co_await read_option_file(talk, server, option);
        if (!contents) co_return std::move(contents.error());
        const bool is_config = std::string_view(option) == "config_file";
        SecretBytes &text = is_config ? files.config_text : files.credentials_text;
        text = std::move(*contents);
        if (const std::size_t line =
                read_sections(text.expose_text(), is_config ? files.config : files.credentials))
            co_return login_error(
                server, ErrorCode::misconfigured,
                "Line " + std::to_string(line) + " of the file that " + option +
                    " names is not of the form of AWS's files, or repeats a section or setting.",
                "AWS's own clients refuse the file as well.");
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
