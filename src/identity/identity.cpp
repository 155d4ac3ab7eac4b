// Which login belongs to which dialect. See identity.hpp.
#include "identity/identity.hpp"

#include "identity/aws.hpp"
#include "identity/azure.hpp"
#include "identity/gcp.hpp"
#include "identity/vault.hpp"

namespace envcrypt::identity {

namespace {

// The master keys of a local KMS are read anew for each use and not kept.
kms::Task<Result<Credential>> read_key_file(kms::Conversation &talk, const kms::Server &server) {
    kms::FileRequest file{std::string(server.option("key_file")), true};
    Result<SecretBytes> contents = co_await talk.read_file(std::move(file));
    if (!contents) co_return std::move(contents.error());
    co_return Credential{std::move(*contents), talk.now()};
}

}  // namespace

kms::Task<Result<Credential>> obtain(kms::Conversation &talk, const kms::Server &server) {
    if (server.dialect == &kms::local_dialect()) return read_key_file(talk, server);
    // a server that secrets are read from is not checked to be complete
    if (server.identity_option("auth").empty())
        return [](Error error) -> kms::Task<Result<Credential>> {
            co_return error;
        }(kms::missing_option(server, kms::OptionPlace::mapping, "auth"));
    if (server.dialect == &kms::aws_dialect()) return obtain_aws_keys(talk, server);
    if (server.dialect == &kms::gcp_dialect()) return obtain_gcp_token(talk, server, GcpScope::kms);
    if (server.dialect == &kms::azure_dialect()) return obtain_azure_token(talk, server);
    return obtain_vault_token(talk, server);
}

kms::Task<Result<Credential>> renew(kms::Conversation &talk, const kms::Server &server,
                                    const Credential &old) {
    if (server.dialect == &kms::vault_dialect()) return renew_vault_token(talk, server, old);
    return obtain(talk, server);
}

kms::Task<Result<std::string>> describe(kms::Conversation &talk, const kms::Server &server,
                                        const Credential &credential) {
    if (server.dialect == &kms::vault_dialect())
        return describe_vault_token(talk, server, credential);
    if (server.dialect == &kms::aws_dialect()) return describe_aws_keys(talk, server, credential);
    // those that tell nobody who they are
    return [](std::string text) -> kms::Task<Result<std::string>> {
        co_return text;
    }(server.dialect == &kms::gcp_dialect()                               ? describe_gcp(server)
                                : server.dialect == &kms::azure_dialect() ? describe_azure(server)
                                                                          : "key file");
}

}  // namespace envcrypt::identity
