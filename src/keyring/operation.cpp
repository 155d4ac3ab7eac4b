// See operation.hpp.
#include "keyring/operation.hpp"

#include <algorithm>

namespace envcrypt::keyring {

namespace {

using kms::Answer;
using kms::Ask;
using kms::Task;
using kms::Verb;

Error corrupt_key(const kms::Server &server, const char *detail) {
    return {ErrorCode::corrupt,
            "KMS \"" + server.name + "\" did not return the key it was asked for", detail,
            "Nothing was decrypted with it. Check for a restored or replaced master key, and the "
            "rows of envcrypt.wrapped_key."};
}

// One question, with a credential that is obtained where there is none, and once more where the KMS
// refuses the one kept.
Task<Result<Answer>> put(Operation &operation, Ask ask) {
    const kms::Server &server = operation.server;
    for (;;) {
        const identity::Credential *kept =
            operation.credentials->find(operation.identity, operation.talk.now());
        const bool from_cache = kept != nullptr;
        SecretBytes secret;
        if (from_cache) {
            secret = kept->secret.copy();
        } else {
            Result<identity::Credential> obtained =
                co_await identity::obtain(operation.talk, server);
            if (!obtained) co_return std::move(obtained.error());
            secret = obtained->secret.copy();
            operation.credentials->keep(operation.identity, std::move(*obtained),
                                        operation.talk.now());
        }
        std::variant<http::Request, Result<Answer>> asked =
            server.dialect->ask(server, ask, secret);
        if (auto *answer = std::get_if<Result<Answer>>(&asked)) co_return std::move(*answer);

        Result<http::Response> response =
            co_await operation.talk.exchange(std::move(std::get<http::Request>(asked)));
        if (!response)
            co_return kms::while_doing(server, kms::doing(ask.verb), std::move(response.error()));
        if (server.dialect->refuses_credential(*response)) {
            operation.credentials->forget(operation.identity);
            if (from_cache) continue;
        }
        co_return server.dialect->read(server, ask, std::move(*response));
    }
}

Status check_key(const Operation &operation, const SecretBytes &key) {
    if (key.size() != crypto::kKeySize)
        return corrupt_key(operation.server, "Its length is not 32 bytes.");
    const crypto::Digest expected =
        crypto::commitment(key.expose().first<crypto::kKeySize>(), operation.context);
    if (!equal_constant_time(expected, operation.commitment))
        return corrupt_key(operation.server, "It does not match the commitment kept with it.");
    return Unit{};
}

}  // namespace

const identity::Credential *Credentials::find(const IdentityId &id, kms::Clock now) const {
    const auto found = kept_.find(id);
    return found != kept_.end() && now < found->second.expires ? &found->second : nullptr;
}

void Credentials::keep(const IdentityId &id, identity::Credential credential, kms::Clock now) {
    std::erase_if(kept_, [&](const auto &kept) {
        return kept.second.expires <= now ||
               // an older version of the same mapping and server
               (kept.first[0] == id[0] && kept.first[4] == id[4]);
    });
    if (now < credential.expires) kept_.insert_or_assign(id, std::move(credential));
}

Task<Status> open_key(Operation &operation) {
    Ask ask{Verb::unwrap, operation.context, nullptr, operation.wrapped};
    Result<Answer> answer = co_await put(operation, std::move(ask));
    if (!answer) co_return std::move(answer.error());
    Status checked = check_key(operation, answer->key);
    if (checked) operation.key = std::move(answer->key);
    co_return checked;
}

Task<Status> make_key(Operation &operation) {
    Ask ask{Verb::make_data_key, operation.context, nullptr, {}};
    Result<Answer> answer = co_await put(operation, std::move(ask));
    if (!answer) co_return std::move(answer.error());
    if (answer->key.size() != crypto::kKeySize)
        co_return corrupt_key(operation.server, "Its length is not 32 bytes.");
    operation.key = std::move(answer->key);
    operation.made = std::move(*answer);
    co_return Unit{};
}

Task<Status> verify_key(Operation &operation) {
    Status opened = co_await open_key(operation);
    if (!opened) co_return opened;
    Ask elsewhere{Verb::unwrap, operation.context + "?", nullptr, operation.wrapped};
    Result<Answer> answer = co_await put(operation, std::move(elsewhere));
    if (answer)
        co_return Error{ErrorCode::misconfigured,
                        "master key \"" + answer->master_key + "\" of KMS \"" +
                            operation.server.name + "\" does not bind keys to their tenant",
                        "It unwrapped a key under another context than it was wrapped under.",
                        "Use a derived key: bao write -f transit/keys/NAME derived=true"};
    if (answer.error().code != ErrorCode::corrupt) co_return std::move(answer.error());
    co_return Unit{};
}

Task<Status> check_server(Operation &operation) {
    Status made = co_await make_key(operation);
    if (!made) co_return made;
    operation.wrapped = operation.made.wrapped;
    operation.commitment =
        crypto::commitment(operation.key.expose().first<crypto::kKeySize>(), operation.context);
    Status verified = co_await verify_key(operation);
    operation.key.clear();
    if (!verified) co_return verified;

    Result<identity::Credential> credential =
        co_await identity::obtain(operation.talk, operation.server);
    if (!credential) co_return std::move(credential.error());
    Result<std::string> text =
        co_await identity::describe(operation.talk, operation.server, *credential);
    if (!text) co_return std::move(text.error());
    operation.identity_text = std::move(*text);
    co_return Unit{};
}

}  // namespace envcrypt::keyring
