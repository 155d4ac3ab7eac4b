// Identities of AWS: shared credentials and config files, web identity (IRSA), containers (ECS, EKS
// Pod Identity), instance metadata (IMDSv2), and roles assumed with any of them.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

kms::Task<Result<Credential>> obtain_aws_keys(kms::Conversation &talk, const kms::Server &server);
kms::Task<Result<std::string>> describe_aws_keys(kms::Conversation &talk, const kms::Server &server,
                                                 const Credential &keys);

}  // namespace envcrypt::identity
