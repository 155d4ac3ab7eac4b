// One HTTPS request and its answer, as values. How they travel is http/engine's business, what they
// mean the dialects'.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/secret.hpp"

namespace envcrypt::http {

struct Header {
    std::string name;
    SecretBytes value;  // a header may hold a token
};

// Where a server's trust comes from. Verification cannot be switched off.
struct Transport {
    std::string ca_file;           // PEM; empty: the system's
    std::string client_cert_file;  // PEM; empty: no client certificate
    std::string client_key_file;   // PEM
    std::string proxy;             // empty: none, whatever the environment says

    bool operator==(const Transport &) const = default;
};

struct Request {
    const char *method = "POST";
    std::string url;
    std::vector<Header> headers;
    SecretBytes body;
    Transport transport;
    std::chrono::milliseconds timeout{};  // 0: whatever time the operation has left
};

struct Response {
    int status = 0;
    std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
    SecretBytes body;

    // The first header of that name (in lower case), or nothing.
    std::string_view header(std::string_view name) const {
        for (const auto &[its_name, value] : headers)
            if (its_name == name) return value;
        return {};
    }
};

// A body longer than this is refused: the longest honest KMS answer (a batch of 128 keys) is 40
// KiB.
inline constexpr std::size_t kMaxBody = 256 * 1024;

}  // namespace envcrypt::http
