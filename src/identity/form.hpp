// What logins over HTTP have in common: form bodies, bearer headers, and how long a credential is
// good for.
#pragma once

#include <initializer_list>
#include <string_view>
#include <utility>

#include "identity/identity.hpp"

namespace envcrypt::identity {

// application/x-www-form-urlencoded, without the members whose value is empty.
SecretBytes write_form(
    std::initializer_list<std::pair<std::string_view, std::string_view>> members);

// A request that carries such a form. AWS's STS answers it in XML.
http::Request form_request(const kms::Server &server, std::string url, SecretBytes form);
// The same to an OAuth token endpoint, which is asked for JSON.
http::Request token_request(const kms::Server &server, std::string url, SecretBytes form);

// Visible ASCII, as tokens and header values are. What could not be sent must not be kept: nothing
// would refuse it.
bool is_visible_ascii(std::string_view text);

// Lets a credential that the issuer gave for so many seconds serve for nine tenths of them, and be
// renewed after three quarters. Without a known end for 0.
void set_lifetime(Credential &credential, kms::Clock now, std::int64_t seconds);

// Whether a refusal is of the form of an OAuth token endpoint (RFC 6749 section 5.2), and whether
// it says that the endpoint itself is out of order.
bool is_oauth_error(const http::Response &response);
bool is_oauth_outage(const http::Response &response);

// What it means that a metadata service, which has no words of its own to refuse with, does not
// give a credential. It may be starting, or not know yet what the host is: it is tried for as long
// as there is time. `hint` says what to check where that does not help.
Error metadata_error(const kms::Server &server, std::string_view service,
                     const http::Response &response, std::string hint);
// The same where it cannot be reached.
Error metadata_unreached(const kms::Server &server, std::string_view service, Error error);

// "could not log in with KMS …", for an answer that is not one of the service.
Error login_nonsense(const kms::Server &server, std::string_view service, std::string_view what);

}  // namespace envcrypt::identity
