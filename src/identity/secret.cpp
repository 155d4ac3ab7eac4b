// See secret.hpp.
#include "identity/secret.hpp"

namespace envcrypt::identity {

kms::Task<Result<SecretBytes>> read_secret(kms::Conversation &talk, const kms::Server &server,
                                           std::string option) {
    constexpr std::string_view scheme = "file:";
    // check_options() let only file: references in
    kms::FileRequest file{std::string(server.identity_option(option).substr(scheme.size())), false};
    co_return co_await talk.read_file(std::move(file));
}

}  // namespace envcrypt::identity
