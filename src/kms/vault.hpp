// What the transit dialect shares with the logins of identity/vault.cpp: requests and errors of
// OpenBao and Vault.
#pragma once

#include <string>
#include <string_view>

#include "kms/dialect.hpp"
#include "kms/json.hpp"

namespace envcrypt::kms {

// A request to ENDPOINT/v1/PATH, with the token where there is one.
http::Request vault_request(const Server &server, const char *method, std::string_view path,
                            const SecretBytes *token, SecretBytes body);

// Whether it is of the form that OpenBao and Vault give to what they answer: a success, or a
// refusal.
bool is_vault_answer(const std::optional<Json> &json);
bool is_vault_error(const http::Response &response);

// What an answer other than success means: "could not DOING with KMS …". `needs` is the hint where
// the identity lacks a right. Repeats nothing of the body but known words.
Error vault_error(const Server &server, std::string_view doing, http::Response response,
                  const std::string &needs);

// The hint for a right that the policy lacks: "read" or "update" on PATH.
std::string vault_needs(const Server &server, const char *capability, const std::string &path);

// A success that is none.
Error vault_nonsense(const Server &server, std::string_view doing, std::string_view what);

}  // namespace envcrypt::kms
