// What the Google Cloud KMS dialect shares with Secret Manager: bearer requests and the errors of
// Google's services.
#pragma once

#include <string>
#include <string_view>

#include "kms/dialect.hpp"

namespace envcrypt::kms {

// CRC-32C (Castagnoli), as a number, and as Google's JSON writes it.
std::uint32_t crc32c(ByteView data);
std::string crc32c_text(ByteView data);

// A request with the bearer token, and a JSON body where there is one.
http::Request gcp_request(const Server &server, const char *method, std::string url,
                          const Credential &token, SecretBytes body);

// The server's option, or the service's own address; without a slash at the end.
std::string gcp_endpoint(const Server &server, const char *option, std::string_view built_in);

// Whether a refusal is of the form of Google's services: it has an error.status.
bool is_gcp_error(const http::Response &response);

// What an answer other than success means: "could not DOING with KMS …". `needs` is the hint where
// the identity lacks a right. Repeats nothing of the body but known words.
Error gcp_error(const Server &server, std::string_view doing, const http::Response &response,
                const char *needs, bool unwrapping);
Error gcp_nonsense(const Server &server, std::string_view doing, std::string_view what);

}  // namespace envcrypt::kms
