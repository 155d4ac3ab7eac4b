// Identities of Google Cloud: the metadata server, service-account files (RS256), workload identity
// federation.
#pragma once

#include "identity/identity.hpp"

namespace envcrypt::identity {

// What the token is for: only as much is asked.
enum class GcpScope { kms, secrets };

kms::Task<Result<Credential>> obtain_gcp_token(kms::Conversation &talk, const kms::Server &server,
                                               GcpScope scope);
std::string describe_gcp(const kms::Server &server);

}  // namespace envcrypt::identity
