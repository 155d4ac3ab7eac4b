// References to secrets, as options hold them instead of the secrets: file:/path,
// SCHEME:SERVER:NAME[#FIELD] and doppler:PROJECT/CONFIG/NAME. What they lead to is fetched by
// identity/secret.cpp.
#pragma once

#include <optional>
#include <string_view>

namespace envcrypt::kms {

enum class SecretStore { file, aws, gcp, azure, vault, doppler };

struct SecretReference {
    SecretStore store = SecretStore::file;
    std::string_view server;  // the foreign server that is asked; empty for file and doppler
    std::string_view name;    // the path, or the name of the secret there
    std::string_view field;   // of the JSON document that the secret is; empty: all of it
};

// Nothing where it is not one. The parts lie in `text`.
std::optional<SecretReference> parse_reference(std::string_view text);

}  // namespace envcrypt::kms
