// A master key in a file that only the database server's user can read: for development and tests.
// The "credential" of this dialect is the file's contents: 64 hex digits a line, the last line the
// newest key; older lines unwrap only.
#include <algorithm>
#include <array>
#include <vector>

#include "crypto/encoding.hpp"
#include "crypto/keys.hpp"
#include "crypto/random.hpp"
#include "kms/dialect.hpp"

namespace envcrypt::kms {

namespace {

constexpr Option kOptions[] = {
    {"key_file", OptionPlace::server, OptionKind::absolute_path,
     "file of master keys, 64 hex digits a line, readable by the database server's user alone"},
};

class Local final : public Dialect {
public:
    const char *wrapper_name() const override { return "envcrypt_local"; }
    std::span<const Option> options() const override { return kOptions; }
    std::span<const char *const> auth_methods() const override { return {}; }
    std::span<const char *const> brought_methods() const override { return {}; }

    std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                    const Credential &credential) const override {
        return answer(server, ask, credential.secret);
    }

    Result<Answer> read(const Server &, const Ask &, http::Response) const override {
        return Error{ErrorCode::internal, "the local KMS sends no requests", {}, {}};
    }

    bool refuses_credential(const http::Response &) const override { return false; }

    Status check_complete(const Server &server) const override {
        if (server.option("key_file").empty())
            return missing_option(server, OptionPlace::server, "key_file");
        return Unit{};
    }

private:
    static Result<Answer> answer(const Server &server, const Ask &ask,
                                 const SecretBytes &key_file) {
        Result<std::vector<SecretBytes>> masters = read_masters(server, key_file.expose_text());
        if (!masters) return std::move(masters.error());
        Answer answer;
        if (ask.verb == Verb::unwrap) {
            const auto id = crypto::local_wrapped_by(ask.wrapped);
            const SecretBytes *master = id ? find_master(*masters, *id) : nullptr;
            if (master == nullptr)
                return Error{ErrorCode::corrupt,
                             "could not unwrap a key with KMS \"" + server.name + "\"",
                             "It was wrapped by a master key that is not in the key file.",
                             "Put the line of the older master key back into the key file."};
            auto key = crypto::local_unwrap(as_key(*master), ask.wrapped, ask.context);
            if (!key)
                return Error{ErrorCode::corrupt,
                             "could not unwrap a key with KMS \"" + server.name + "\"",
                             "The wrapped key was altered, or belongs to another tenant.",
                             {}};
            answer.key = std::move(*key);
            answer.wrapped.assign(ask.wrapped.begin(), ask.wrapped.end());
            answer.master_key_version = crypto::to_hex(*id);
        } else {
            const SecretBytes &master = masters->back();
            std::array<std::uint8_t, crypto::kWrapSaltSize> salt;
            crypto::random_bytes(salt);
            if (ask.verb == Verb::make_data_key) {
                answer.key = SecretBytes(crypto::kKeySize);
                crypto::random_bytes(answer.key.expose());
            } else {
                answer.key = ask.key->copy();
            }
            answer.wrapped =
                crypto::local_wrap(as_key(master), salt, ask.context, as_key(answer.key));
            answer.master_key_version = crypto::to_hex(crypto::local_id(as_key(master)));
        }
        answer.master_key = "local";
        return answer;
    }

    static crypto::Key as_key(const SecretBytes &key) {
        return key.expose().first<crypto::kKeySize>();
    }

    static const SecretBytes *find_master(const std::vector<SecretBytes> &masters,
                                          const crypto::LocalId &id) {
        for (const SecretBytes &master : masters)
            if (crypto::local_id(as_key(master)) == id) return &master;
        return nullptr;
    }

    static Result<std::vector<SecretBytes>> read_masters(const Server &server,
                                                         std::string_view lines) {
        std::vector<SecretBytes> masters;
        while (!lines.empty()) {
            const std::size_t end = std::min(lines.find('\n'), lines.size());
            auto master = crypto::from_hex_secret(lines.substr(0, end));
            if (!master || master->size() != crypto::kKeySize) {
                masters.clear();
                break;
            }
            masters.push_back(std::move(*master));
            lines.remove_prefix(std::min(end + 1, lines.size()));
        }
        if (masters.empty())
            return Error{ErrorCode::misconfigured,
                         "could not read the key file of KMS \"" + server.name + "\"",
                         "Every line must be a master key of 64 hexadecimal digits.",
                         "A new line is made by: openssl rand -hex 32. Keep the old ones: keys are "
                         "wrapped by them."};
        return masters;
    }
};

}  // namespace

const Dialect &local_dialect() {
    static constinit const Local dialect;
    return dialect;
}

}  // namespace envcrypt::kms
