// Logins of OpenBao and HashiCorp Vault: a token from a file, AppRole, Kubernetes, JWT, TLS client
// certificate.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

kms::Task<Result<Credential>> obtain_vault_token(kms::Conversation &talk,
                                                 const kms::Server &server);
// Lengthens the token's lease where it can be, else logs in again.
kms::Task<Result<Credential>> renew_vault_token(kms::Conversation &talk, const kms::Server &server,
                                                const Credential &token);
kms::Task<Result<std::string>> describe_vault_token(kms::Conversation &talk,
                                                    const kms::Server &server,
                                                    const Credential &token);

}  // namespace envcrypt::identity
