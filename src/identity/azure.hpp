// Identities of Azure: managed identity, an application's client secret, a federated token.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

kms::Task<Result<Credential>> obtain_azure_token(kms::Conversation &talk,
                                                 const kms::Server &server);
std::string describe_azure(const kms::Server &server);

}  // namespace envcrypt::identity
