// The table of dialects, and the checks of their options. See dialect.hpp.
#include "kms/dialect.hpp"

#include <algorithm>
#include <charconv>

#include "kms/reference.hpp"

namespace envcrypt::kms {

namespace {

const Dialect &dialect_at(std::size_t i) {
    const Dialect *const all[] = {&vault_dialect(), &aws_dialect(), &gcp_dialect(),
                                  &azure_dialect(), &local_dialect()};
    return *all[i];
}
constexpr std::size_t kDialects = 5;

bool is_name_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

bool is_name(std::string_view text) {
    // every part between slashes is a name, and none climbs
    for (;;) {
        const std::size_t end = std::min(text.find('/'), text.size());
        const std::string_view part = text.substr(0, end);
        if (part.empty() || part == "." || part == ".." ||
            !std::all_of(part.begin(), part.end(), is_name_letter))
            return false;
        if (end == text.size()) return true;
        text.remove_prefix(end + 1);
    }
}

bool is_resource(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
        return is_name_letter(c) || std::string_view("/:=,+@").find(c) != std::string_view::npos;
    }) && text.find("..") == std::string_view::npos;
}

bool is_https_url(std::string_view text) {
    if (!text.starts_with("https://")) return false;
    text.remove_prefix(8);
    // no user, query or fragment, and nothing that would end the URL
    return !text.empty() && text.front() != '/' && text.front() != ':' &&
           std::all_of(text.begin(), text.end(), [](char c) {
               return is_name_letter(c) || c == ':' || c == '/' || c == '[' || c == ']';
           });
}

const char *expectation(OptionKind kind) {
    switch (kind) {
        case OptionKind::https_url:
            return "It must be a URL such as https://kms.internal:8200; only https is spoken.";
        case OptionKind::proxy_url:
            return "It must be a URL such as http://proxy.internal:3128, without user name.";
        case OptionKind::resource:
            return "It must be an identifier of letters, digits and . _ - / : = , + @.";
        case OptionKind::boolean:
            return "It must be true or false.";
        case OptionKind::name:
            return "It must be a name of letters, digits, dots, underscores and hyphens, with "
                   "slashes between its parts.";
        case OptionKind::absolute_path:
            return "It must be the absolute path of a file on the database server.";
        case OptionKind::secret_reference:
            return "It must say where the secret lies, as file:/absolute/path, "
                   "SCHEME:SERVER:NAME or SCHEME:SERVER:NAME#FIELD with aws-secretsmanager, "
                   "gcp-secretmanager, azure-keyvault or vault-kv, or "
                   "doppler:PROJECT/CONFIG/NAME, and never be the secret itself: options are "
                   "stored in the catalogs and dumped.";
        case OptionKind::secret_file:
            return "It must say where the secret lies, as file:/absolute/path, and never be the "
                   "secret itself: options are stored in the catalogs and dumped.";
        case OptionKind::duration:
            return "It must be a duration of at most 24 hours, such as 90s, 5min or 2h.";
        case OptionKind::auth_method:
            break;
    }
    return "";
}

bool is_valid(const Dialect &dialect, OptionKind kind, std::string_view value) {
    switch (kind) {
        case OptionKind::https_url:
            return is_https_url(value);
        case OptionKind::proxy_url:
            return is_https_url(value) || (value.starts_with("http://") &&
                                           is_https_url("https" + std::string(value.substr(4))));
        case OptionKind::resource:
            return is_resource(value);
        case OptionKind::boolean:
            return value == "true" || value == "false";
        case OptionKind::name:
            return is_name(value);
        case OptionKind::absolute_path:
            return value.starts_with("/");
        case OptionKind::secret_reference:
            return parse_reference(value).has_value();
        case OptionKind::secret_file:
            return value.starts_with("file:/");
        case OptionKind::duration:
            return parse_duration(value).has_value();
        case OptionKind::auth_method:
            break;
    }
    const auto methods = dialect.auth_methods();
    return std::find(methods.begin(), methods.end(), value) != methods.end();
}

std::string list_options(const Dialect &dialect, OptionPlace place) {
    std::string list;
    for (const Option &option : dialect.options()) {
        if (option.place != place) continue;
        list += (list.empty() ? "" : "; ");
        list += std::string(option.name) + " (" + option.meaning + ")";
    }
    return list;
}

std::string_view find_option(const Options &options, std::string_view name) {
    const auto found = options.find(name);
    return found == options.end() ? std::string_view() : std::string_view(found->second);
}

}  // namespace

std::string_view Server::option(std::string_view option_name) const {
    return find_option(options, option_name);
}

std::string_view Server::identity_option(std::string_view option_name) const {
    return find_option(identity, option_name);
}

bool Server::has_identity_option(std::string_view option_name) const {
    return !identity_option(option_name).empty() || (brought && brought->contains(option_name));
}

Clock Server::duration(std::string_view option_name, Clock otherwise) const {
    return parse_duration(option(option_name)).value_or(otherwise);
}

http::Transport Server::transport() const {
    return {std::string(option("ca_file")), std::string(option("client_cert_file")),
            std::string(option("client_key_file")), std::string(option("proxy"))};
}

http::Request Dialect::ask_batch(const Server &, std::span<const Ask>, const Credential &) const {
    return {};
}

Result<std::vector<Result<Answer>>> Dialect::read_batch(const Server &, std::span<const Ask>,
                                                        http::Response) const {
    return Error{ErrorCode::internal, "this KMS takes no batches", {}, {}};
}

const char *doing(Verb verb) {
    switch (verb) {
        case Verb::make_data_key:
            return "make a data key";
        case Verb::wrap:
            return "wrap a key";
        case Verb::rewrap:
            return "rewrap a key";
        case Verb::unwrap:
            break;
    }
    return "unwrap a key";
}

std::string describe_answer(const http::Response &response) {
    std::string text = "HTTP status " + std::to_string(response.status);
    std::string_view type = response.header("content-type");
    type = type.substr(0, type.find_first_of("; \t"));
    constexpr std::string_view legal =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+./";
    constexpr std::size_t longest = 64;
    if (!type.empty() && type.size() <= longest &&
        type.find_first_not_of(legal) == std::string_view::npos)
        text += ", content type " + std::string(type);
    if (response.body.empty()) text += ", no body";
    return text;
}

Error foreign_answer(const Server &server, std::string_view doing, std::string_view service,
                     const http::Response &response) {
    return {
        response.status == 429 ? ErrorCode::throttled : ErrorCode::unreachable,
        "could not " + std::string(doing) + " with KMS \"" + server.name +
            "\": something in front of it answered",
        "The answer is not one of " + std::string(service) + ": " + describe_answer(response) + ".",
        "Look for a proxy, load balancer or service mesh between the database host and the "
        "service, and check the endpoints among the server's options."};
}

bool is_outage_status(int status) {
    return status == 408 || status == 425 || status >= 500;
}

Error while_doing(const Server &server, std::string_view doing, Error error) {
    error.message =
        "could not " + std::string(doing) + " with KMS \"" + server.name + "\": " + error.message;
    return error;
}

Status split_brought(const Dialect &dialect,
                     std::map<std::string, SecretBytes, std::less<>> &&given, Options &plain,
                     std::map<std::string, SecretBytes, std::less<>> &contents) {
    for (auto &member : given) {
        const std::string &name = member.first;
        SecretBytes &value = member.second;
        // with another mount, the server's own client certificate could be what logs in
        if (name == "auth_mount")
            return Error{ErrorCode::misconfigured,
                         "a session cannot choose the mount that it logs in at",
                         {},
                         "Leave auth_mount out: it is the name of the method."};
        const auto known = dialect.options();
        const auto option = std::find_if(known.begin(), known.end(), [&](const Option &o) {
            return o.place == OptionPlace::mapping && o.name == name;
        });
        const bool is_content =
            option != known.end() &&
            (option->kind == OptionKind::secret_reference ||
             option->kind == OptionKind::secret_file || option->kind == OptionKind::absolute_path);
        if (is_content && !value.empty()) {
            contents.insert_or_assign(name, std::move(value));
            continue;
        }
        Options one{{name, std::string(value.expose_text())}};
        if (Status legal = check_options(dialect, OptionPlace::mapping, one); !legal) return legal;
        plain.merge(one);
    }
    const auto methods = dialect.brought_methods();
    const std::string_view auth = find_option(plain, "auth");
    if (std::find(methods.begin(), methods.end(), auth) != methods.end()) return Unit{};
    std::string legal;
    for (const char *method : methods) legal += std::string(" ") + method;
    return Error{
        ErrorCode::misconfigured,
        std::string("a session cannot bring this identity for ") + dialect.wrapper_name(),
        {},
        legal.empty() ? "This KMS knows no identities." : "Its auth must be one of:" + legal + "."};
}

std::optional<Clock> parse_duration(std::string_view text) {
    std::int64_t number = 0;
    const char *end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number);
    if (read.ec != std::errc() || number < 0) return std::nullopt;
    constexpr std::int64_t most = 86400;
    constexpr std::pair<std::string_view, std::int64_t> units[] = {
        {"", 1}, {"s", 1}, {"min", 60}, {"h", 3600}, {"d", 86400}};
    for (const auto &[unit, seconds] : units)
        if (std::string_view(read.ptr, static_cast<std::size_t>(end - read.ptr)) == unit &&
            number <= most / seconds)
            return Clock(number * seconds * 1000);
    return std::nullopt;
}

bool is_secret_option(const Dialect &dialect, std::string_view name) {
    const auto known = dialect.options();
    return std::any_of(known.begin(), known.end(), [&](const Option &option) {
        return option.place == OptionPlace::mapping && option.name == name &&
               (option.kind == OptionKind::secret_reference ||
                option.kind == OptionKind::secret_file);
    });
}

const Dialect *find_dialect(std::string_view wrapper_name) {
    for (std::size_t i = 0; i < kDialects; ++i)
        if (dialect_at(i).wrapper_name() == wrapper_name) return &dialect_at(i);
    return nullptr;
}

Status check_options(const Dialect &dialect, OptionPlace place, const Options &options) {
    for (const auto &set : options) {
        const std::string &name = set.first;
        const std::string &value = set.second;
        const auto known = dialect.options();
        const auto option = std::find_if(known.begin(), known.end(), [&](const Option &o) {
            return o.place == place && o.name == name;
        });
        if (option == known.end()) {
            const std::string legal = list_options(dialect, place);
            const char *what = place == OptionPlace::server ? "server" : "user mapping";
            return Error{ErrorCode::misconfigured,
                         std::string("invalid ") + what + " option \"" + name + "\" for " +
                             dialect.wrapper_name(),
                         {},
                         legal.empty() ? "There are no options in this place."
                                       : "Options in this place: " + legal + "."};
        }
        if (!is_valid(dialect, option->kind, value)) {
            std::string expected = expectation(option->kind);
            if (option->kind == OptionKind::auth_method) {
                expected = "It must be one of:";
                for (const char *method : dialect.auth_methods())
                    expected += std::string(" ") + method;
                expected += ".";
            }
            return Error{ErrorCode::misconfigured,
                         "invalid value for option \"" + name + "\"",
                         {},
                         expected};
        }
    }
    return Unit{};
}

Status name_master_key(Server &server, std::string_view master_key) {
    const auto known = server.dialect->options();
    if (std::none_of(known.begin(), known.end(), [](const Option &option) {
            return std::string_view(option.name) == "master_key";
        }))
        return Unit{};
    Status legal = check_options(*server.dialect, OptionPlace::server,
                                 {{"master_key", std::string(master_key)}});
    if (legal) server.options.insert_or_assign("master_key", std::string(master_key));
    return legal;
}

Status check_store(const Server &server) {
    Server with_keys = server;
    // one that every KMS takes for a name
    for (const char *name : {"master_key", "attestation_key"})
        with_keys.options.try_emplace(name, "projects/-/locations/-/keyRings/-/cryptoKeys/-");
    return server.dialect->check_complete(with_keys);
}

Error missing_option(const Server &server, OptionPlace place, std::string_view name) {
    const bool of_server = place == OptionPlace::server;
    return {ErrorCode::misconfigured,
            std::string(of_server ? "server" : "user mapping for server") + " \"" + server.name +
                "\" lacks the option \"" + std::string(name) + "\"",
            {},
            std::string("A superuser sets it by ") +
                (of_server ? "ALTER SERVER ... OPTIONS (ADD ...)."
                           : "ALTER USER MAPPING FOR ... SERVER ... OPTIONS (ADD ...).")};
}

std::string clean_request_id(std::string_view said) {
    constexpr std::string_view legal =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:/=";
    if (said.size() > 128 || said.find_first_not_of(legal) != std::string_view::npos) return {};
    return std::string(said);
}

}  // namespace envcrypt::kms
