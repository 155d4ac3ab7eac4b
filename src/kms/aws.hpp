// What the AWS KMS dialect shares with the identities of identity/aws.cpp and with Secrets Manager:
// signed JSON requests and the errors of AWS services.
#pragma once

#include <string>
#include <string_view>

#include "kms/dialect.hpp"

namespace envcrypt::kms {

// The region of the server: its option, or that of an ARN that master_key is. Empty where neither
// says.
std::string_view aws_region(const Server &server);

// https://SERVICE.REGION.amazonaws.com/, by partition, dual-stack and FIPS as the server's options
// say; or what its option `endpoint_option` says.
std::string aws_endpoint(const Server &server, const char *service, const char *endpoint_option);

// A signed call of `target` ("TrentService.Decrypt") of the service.
http::Request aws_request(const Server &server, const char *service, const char *endpoint_option,
                          std::string_view target, SecretBytes body, const Credential &credential,
                          std::int64_t time);

// The code of an error answer, "" where there is none: "AccessDeniedException".
std::string aws_error_code(const http::Response &response);
// What an answer other than success means: "could not DOING with KMS …". `needs` is the hint where
// the identity lacks a right. Repeats nothing of the body but known codes.
Error aws_error(const Server &server, std::string_view doing, const http::Response &response,
                const char *needs);
Error aws_nonsense(const Server &server, std::string_view doing, std::string_view what);
// Whether it says that the credential (not the right) was refused, or the time.
bool aws_refuses_credential(const http::Response &response);
bool aws_refuses_time(const http::Response &response);

}  // namespace envcrypt::kms
