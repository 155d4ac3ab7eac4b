// See form.hpp.
#include "identity/form.hpp"

#include <algorithm>

#include "kms/json.hpp"

namespace envcrypt::identity {

namespace {

void append_encoded(SecretBytes &to, std::string_view text) {
    constexpr char digits[] = "0123456789ABCDEF";
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                           (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
        const auto byte = static_cast<unsigned char>(c);
        const char coded[] = {'%', digits[byte >> 4], digits[byte & 15]};
        to.append(as_bytes(plain ? std::string_view(&c, 1) : std::string_view(coded, 3)));
    }
}

}  // namespace

SecretBytes write_form(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members) {
    SecretBytes form;
    for (const auto &[name, value] : members) {
        if (value.empty()) continue;
        if (!form.empty()) form.append(as_bytes("&"));
        append_encoded(form, name);
        form.append(as_bytes("="));
        append_encoded(form, value);
    }
    return form;
}

http::Request form_request(const kms::Server &server, std::string url, SecretBytes form) {
    http::Request request;
    request.url = std::move(url);
    request.transport = server.transport();
    request.headers.push_back({"Content-Type", SecretBytes("application/x-www-form-urlencoded")});
    request.body = std::move(form);
    return request;
}

http::Request token_request(const kms::Server &server, std::string url, SecretBytes form) {
    http::Request request = form_request(server, std::move(url), std::move(form));
    request.headers.push_back({"Accept", SecretBytes("application/json")});
    return request;
}

bool is_visible_ascii(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

void set_lifetime(Credential &credential, kms::Clock now, std::int64_t seconds) {
    constexpr std::int64_t forever = 10LL * 365 * 24 * 3600;
    if (seconds <= 0 || seconds >= forever) return;
    credential.expires = now + kms::Clock(seconds * 900);
    credential.renew_from = now + kms::Clock(seconds * 750);
}

bool is_oauth_error(const http::Response &response) {
    const std::optional<kms::Json> json = kms::Json::parse(response.body.copy());
    return json && json->text({"error"});
}

bool is_oauth_outage(const http::Response &response) {
    const std::optional<kms::Json> json = kms::Json::parse(response.body.copy());
    if (!json) return false;
    const auto error = json->text({"error"});
    return error == "temporarily_unavailable" || error == "server_error";
}

Error metadata_error(const kms::Server &server, std::string_view service,
                     const http::Response &response, std::string hint) {
    Error error{response.status == 429 ? ErrorCode::throttled : ErrorCode::unreachable,
                "could not log in with KMS \"" + server.name + "\"",
                "No credential came from " + std::string(service) + ": " +
                    kms::describe_answer(response) + ".",
                std::move(hint)};
    error.passes_soon = true;
    return error;
}

Error metadata_unreached(const kms::Server &server, std::string_view service, Error error) {
    error = kms::while_doing(server, "log in", std::move(error));
    if (error.code != ErrorCode::unreachable) return error;
    error.passes_soon = true;
    error.hint = "It is " + std::string(service) + " that did not answer. " + error.hint;
    return error;
}

Error login_nonsense(const kms::Server &server, std::string_view service, std::string_view what) {
    return {ErrorCode::bad_answer, "could not log in with KMS \"" + server.name + "\"",
            "The answer was not one of " + std::string(service) + ". " + std::string(what),
            "Check the endpoints among the server's options."};
}

}  // namespace envcrypt::identity
