// What every KMS dialect offers, and the table of them. A dialect builds requests and reads
// answers; it sends nothing, keeps nothing, and takes the credential it is given. Adding a KMS: one
// file here, one line in the table (dialect.cpp), its CREATE FOREIGN DATA WRAPPER in sql/.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "core/bytes.hpp"
#include "core/error.hpp"
#include "core/secret.hpp"
#include "http/message.hpp"

namespace envcrypt::kms {

enum class OptionPlace { server, mapping };
// How the text of an option is checked when it is set.
enum class OptionKind {
    https_url,         // https://host[:port][/path]
    name,              // letters, digits, . _ - and, between them, /
    absolute_path,     // of a file on the database server
    secret_reference,  // file:/absolute/path, never the secret itself
    auth_method,       // one of the dialect's
};

struct Option {
    const char *name;
    OptionPlace place;
    OptionKind kind;
    const char *meaning;
};

// A foreign server, with the user mapping under which it is used: what the catalogs say, checked by
// check_options() when they were set.
using Options = std::map<std::string, std::string, std::less<>>;
struct Server {
    std::string name;
    const class Dialect *dialect = nullptr;
    Options options;   // of the server
    Options identity;  // of the user mapping

    // Empty where the option is not set.
    std::string_view option(std::string_view name) const;
    std::string_view identity_option(std::string_view name) const;
    http::Transport transport() const;
};

enum class Verb { make_data_key, wrap, unwrap };
struct Ask {
    Verb verb = Verb::unwrap;
    std::string context;               // C of the key: see crypto/keys.hpp
    const SecretBytes *key = nullptr;  // to be wrapped
    ByteView wrapped;                  // to be unwrapped
};

// What an error says was being done: "make a data key".
const char *doing(Verb verb);

struct Answer {
    SecretBytes key;         // made or unwrapped
    Bytes wrapped;           // made or wrapped
    std::string master_key;  // as the KMS names it
    std::string master_key_version;
};

class Dialect {
public:
    virtual const char *wrapper_name() const = 0;  // of the foreign data wrapper
    virtual std::span<const Option> options() const = 0;
    virtual std::span<const char *const> auth_methods() const = 0;

    // The request to be sent, or the answer itself from a KMS that is no service.
    virtual std::variant<http::Request, Result<Answer>> ask(
        const Server &server, const Ask &ask, const SecretBytes &credential) const = 0;
    // Reads what came back for `ask`. Errors by the table of error classes in doc/kms.md.
    virtual Result<Answer> read(const Server &server, const Ask &ask,
                                http::Response response) const = 0;
    // Whether this answer means that the credential (rather than the request) was refused, so that
    // a new one may help.
    virtual bool refuses_credential(const http::Response &response) const = 0;
    // Whether all options are there that a use needs: misconfigured, naming what is missing. Reads
    // no file.
    virtual Status check_complete(const Server &server) const = 0;

protected:
    ~Dialect() = default;  // dialects are constants, never destroyed
};

const Dialect &vault_dialect();
const Dialect &local_dialect();

// By the name of the foreign data wrapper; null where it is none of ours.
const Dialect *find_dialect(std::string_view wrapper_name);

// Checks what is being set at one place. misconfigured, naming the option and, where it is unknown,
// the legal ones.
Status check_options(const Dialect &dialect, OptionPlace place, const Options &options);

// Has the server use this master key instead of its own option, as the option would be checked. A
// KMS without such an option finds the master key by itself: nothing changes.
Status name_master_key(Server &server, std::string_view master_key);

// Says of an error on the way to the KMS what was being done there.
Error while_doing(const Server &server, std::string_view doing, Error error);

// For check_complete(): what an option that is not set means.
Error missing_option(const Server &server, OptionPlace place, std::string_view name);

}  // namespace envcrypt::kms
