// Identities of AWS: shared credentials and config files, web identity (IRSA), containers (ECS, EKS
// Pod Identity), instance metadata (IMDSv2), and roles assumed with any of them.
#pragma once

#include <functional>

#include "identity/identity.hpp"

namespace envcrypt::identity {

// Sends what `sign` makes for the time it is given, and once more by AWS's own clock where that
// finds the time too far off.
kms::Task<Result<http::Response>> exchange_signed(
    kms::Conversation &talk, std::function<http::Request(std::int64_t time)> sign);

kms::Task<Result<Credential>> obtain_aws_keys(kms::Conversation &talk, const kms::Server &server);
kms::Task<Result<std::string>> describe_aws_keys(kms::Conversation &talk, const kms::Server &server,
                                                 const Credential &keys);

}  // namespace envcrypt::identity
