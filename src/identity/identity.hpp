// How a role proves itself to a KMS: from the options of its user mapping to a credential. Reads
// files and talks to the KMS only through the Conversation it is given; keeps nothing.
#pragma once

#include <string>

#include "kms/dialect.hpp"
#include "kms/task.hpp"

namespace envcrypt::identity {

using kms::Credential;

// Obtains a new credential. Errors by the table of error classes in doc/kms.md; `server` outlives
// the task.
kms::Task<Result<Credential>> obtain(kms::Conversation &talk, const kms::Server &server);

// Obtains a new one while `old` still serves, as the KMS prefers it.
kms::Task<Result<Credential>> renew(kms::Conversation &talk, const kms::Server &server,
                                    const Credential &old);

// Who the KMS says the credential is, for people to read.
kms::Task<Result<std::string>> describe(kms::Conversation &talk, const kms::Server &server,
                                        const Credential &credential);

}  // namespace envcrypt::identity
