// See reference.hpp.
#include "kms/reference.hpp"

#include <algorithm>
#include <iterator>

namespace envcrypt::kms {

namespace {

struct Scheme {
    std::string_view prefix;
    SecretStore store;
};
constexpr Scheme kSchemes[] = {
    {"aws-secretsmanager:", SecretStore::aws}, {"gcp-secretmanager:", SecretStore::gcp},
    {"azure-keyvault:", SecretStore::azure},   {"vault-kv:", SecretStore::vault},
    {"doppler:", SecretStore::doppler},
};

bool is_word(std::string_view text, std::string_view more) {
    return !text.empty() && text.find("..") == std::string_view::npos &&
           std::all_of(text.begin(), text.end(), [more](char c) {
               return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '_' || c == '-' || c == '.' || more.find(c) != std::string_view::npos;
           });
}

}  // namespace

std::optional<SecretReference> parse_reference(std::string_view text) {
    constexpr std::string_view file = "file:";
    if (text.starts_with(file)) {
        text.remove_prefix(file.size());
        if (!text.starts_with('/')) return std::nullopt;
        return SecretReference{SecretStore::file, {}, text, {}};
    }
    const auto *const scheme =
        std::find_if(std::begin(kSchemes), std::end(kSchemes),
                     [text](const Scheme &known) { return text.starts_with(known.prefix); });
    if (scheme == std::end(kSchemes)) return std::nullopt;
    text.remove_prefix(scheme->prefix.size());
    SecretReference reference{scheme->store, {}, {}, {}};
    if (reference.store == SecretStore::doppler) {
        if (!is_word(text, "/") || std::count(text.begin(), text.end(), '/') != 2 ||
            text.front() == '/' || text.back() == '/')
            return std::nullopt;
        reference.name = text;
        return reference;
    }
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) return std::nullopt;
    reference.server = text.substr(0, colon);
    text.remove_prefix(colon + 1);
    const std::size_t hash = text.find('#');
    reference.name = text.substr(0, hash);
    if (hash != std::string_view::npos) {
        reference.field = text.substr(hash + 1);
        if (!is_word(reference.field, "")) return std::nullopt;
    }
    const std::string_view more = reference.store == SecretStore::aws ? "/:=,+@" : "/";
    if (!is_word(reference.server, "") || !is_word(reference.name, more)) return std::nullopt;
    if (reference.name.front() == '/' || reference.name.back() == '/') return std::nullopt;
    // a secret of Vault is always a document, and lies below a mount
    if (reference.store == SecretStore::vault &&
        (reference.field.empty() || reference.name.find('/') == std::string_view::npos))
        return std::nullopt;
    return reference;
}

}  // namespace envcrypt::kms
