// AWS Signature Version 4 for the requests that are sent here: path "/", no query, a body. Spares
// libcurl's own, which signs wrongly on stock systems.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
#pragma once

#include <cstdint>
#include <string_view>

#include "http/message.hpp"
#include "kms/dialect.hpp"

namespace envcrypt::kms {

// Adds X-Amz-Date, X-Amz-Security-Token where the credential has one, and Authorization: every
// header present is signed, and Host. `time` in seconds since 1970.
void sign_v4(http::Request &request, const Credential &credential, std::string_view region,
             std::string_view service, std::int64_t time);

}  // namespace envcrypt::kms
