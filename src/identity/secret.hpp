// Secrets that options refer to, never hold.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

// What the user mapping's option refers to.
kms::Task<Result<SecretBytes>> read_secret(kms::Conversation &talk, const kms::Server &server,
                                           std::string option);

}  // namespace envcrypt::identity
