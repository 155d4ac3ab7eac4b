// Secrets that options refer to, never hold: fetched from files and secrets managers when a login
// needs them, and not kept.
#pragma once

#include <string>

#include "identity/identity.hpp"

namespace envcrypt::identity {

// What the user mapping's option refers to. misconfigured: not set, no such field, a reference that
// leads to another; else as the secrets manager says.
kms::Task<Result<SecretBytes>> read_secret(kms::Conversation &talk, const kms::Server &server,
                                           std::string option);

// The contents of the file that the option names.
kms::Task<Result<SecretBytes>> read_option_file(kms::Conversation &talk, const kms::Server &server,
                                                std::string option);

}  // namespace envcrypt::identity
