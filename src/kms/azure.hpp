// What the Azure Key Vault dialect shares with the logins of identity/azure.cpp and with Key Vault
// secrets.
#pragma once

#include <string>
#include <string_view>

#include "kms/dialect.hpp"

namespace envcrypt::kms {

// A call of ENDPOINT/PATH?api-version=…, with a JSON body where there is one.
http::Request azure_request(const Server &server, const char *method, std::string_view path,
                            const Credential &token, SecretBytes body);

// https://vault.azure.net, or what the server's option resource says: whom a token is for.
std::string azure_resource(const Server &server);

// Whether a refusal is of the form of Azure's services: it has an error.code.
bool is_azure_error(const http::Response &response);

// What an answer other than success means: "could not DOING with KMS …". `needs` is the hint where
// the identity lacks a right. Repeats nothing of the body but known codes.
Error azure_error(const Server &server, std::string_view doing, const http::Response &response,
                  const char *needs, bool unwrapping);
Error azure_nonsense(const Server &server, std::string_view doing, std::string_view what);

}  // namespace envcrypt::kms
