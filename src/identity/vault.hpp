// Logins of OpenBao and HashiCorp Vault: a token from a file, AppRole.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

kms::Task<Result<Credential>> obtain_vault_token(kms::Conversation &talk,
                                                 const kms::Server &server);
kms::Task<Result<std::string>> describe_vault_token(kms::Conversation &talk,
                                                    const kms::Server &server,
                                                    const Credential &token);

}  // namespace envcrypt::identity
