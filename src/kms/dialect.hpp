// What every KMS dialect offers, and the table of them. A dialect builds requests and reads
// answers; it sends nothing, keeps nothing, and takes the credential it is given. Adding a KMS: one
// file here, one line in the table (dialect.cpp), its CREATE FOREIGN DATA WRAPPER in sql/.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/bytes.hpp"
#include "core/error.hpp"
#include "core/secret.hpp"
#include "http/message.hpp"
#include "kms/task.hpp"

namespace envcrypt::kms {

enum class OptionPlace { server, mapping };
// How the text of an option is checked when it is set.
enum class OptionKind {
    https_url,         // https://host[:port][/path]
    proxy_url,         // http://host[:port] or https://
    name,              // letters, digits, . _ - and, between them, /
    resource,          // the same with : = , + @ as well: ARNs, e-mail addresses
    boolean,           // true or false
    absolute_path,     // of a file on the database server
    secret_reference,  // where a secret lies: kms/reference.hpp; never the secret itself
    secret_file,       // file:/absolute/path alone
    auth_method,       // one of the dialect's
    duration,          // a number of s, min, h or d, at most 24 h: parse_duration()
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
    // The servers that secret references in `identity` name, under the same role's mapping.
    std::vector<Server> referenced;
    // What options that name files and secrets stand for, where a session brought that itself
    // instead of `identity`: never a reference, a path or an identity of this host.
    std::shared_ptr<const std::map<std::string, SecretBytes, std::less<>>> brought;

    // Empty where the option is not set.
    std::string_view option(std::string_view name) const;
    std::string_view identity_option(std::string_view name) const;
    // Set, or brought.
    bool has_identity_option(std::string_view name) const;
    bool flag(std::string_view name) const { return option(name) == "true"; }
    // An option that is a duration, or what is meant where it is not set.
    Clock duration(std::string_view name, Clock otherwise) const;
    http::Transport transport() const;
};

// What a role proves itself by: a bearer token, or a key to sign with.
struct Credential {
    SecretBytes secret;
    Clock expires = Clock::max();  // a credential of no known end is kept until it is refused
    // From when on a new one is sought, while this one still serves.
    Clock renew_from = Clock::max();
    std::uint64_t serial = 0;        // of one that is kept
    bool renewable = false;          // Vault: its lease can be lengthened
    std::string id = {};             // AWS: the access key id
    SecretBytes session_token = {};  // AWS: of temporary credentials

    Credential copy() const {
        return {secret.copy(), expires, renew_from, serial, renewable, id, session_token.copy()};
    }
};

struct Answer;
enum class Verb {
    make_data_key,
    wrap,
    unwrap,
    rewrap,  // what is wrapped, under the newest version of the server's master key, inside the KMS
};
struct Ask {
    Verb verb = Verb::unwrap;
    std::string context;               // C of the key: see crypto/keys.hpp
    const SecretBytes *key = nullptr;  // to be wrapped
    ByteView wrapped;                  // to be unwrapped or rewrapped
    ByteView attestation;              // that came with it
    std::string source_key = {};       // rewrap: the master key that wrapped it
    std::int64_t time = 0;             // seconds since 1970, as the KMS sees it
    // What the requests before this one came to, of a KMS that needs several for one verb.
    const Answer *so_far = nullptr;
};

// What an error says was being done: "make a data key".
const char *doing(Verb verb);

struct Answer {
    SecretBytes key;         // made or unwrapped
    Bytes wrapped;           // made, wrapped or rewrapped
    std::string master_key;  // as the KMS names it
    std::string master_key_version;
    Bytes attestation;            // where the wrapping does not bind by itself
    std::string request_id = {};  // by which the KMS's log knows the request, where it says
    bool more = false;            // another request is needed: ask again with this as `so_far`
    int step = 0;                 // how many requests are behind it, where `more`
};

class Dialect {
public:
    virtual const char *wrapper_name() const = 0;  // of the foreign data wrapper
    virtual std::span<const Option> options() const = 0;
    virtual std::span<const char *const> auth_methods() const = 0;
    // The methods by which a session may bring an identity of its own: none that lends it one of
    // this host.
    virtual std::span<const char *const> brought_methods() const = 0;
    // Whether it makes data keys itself; else a key of ours is wrapped.
    virtual bool makes_data_keys() const { return true; }
    // Whether it rewraps, and whether only what the same master key wrapped; else a key is
    // unwrapped and wrapped again.
    virtual bool rewraps() const { return false; }
    virtual bool rewraps_others() const { return false; }

    // The request to be sent, or the answer itself from a KMS that is no service.
    virtual std::variant<http::Request, Result<Answer>> ask(const Server &server, const Ask &ask,
                                                            const Credential &credential) const = 0;
    // Reads what came back for `ask`. Errors by the table of error classes in doc/kms.md.
    virtual Result<Answer> read(const Server &server, const Ask &ask,
                                http::Response response) const = 0;
    // How many keys one request wraps, unwraps or rewraps; the two functions below only where it is
    // more than one. All asks are of one of these verbs and name the same master key. The answers
    // come in the order of the asks, each or its error.
    virtual std::size_t max_batch() const { return 1; }
    virtual http::Request ask_batch(const Server &server, std::span<const Ask> asks,
                                    const Credential &credential) const;
    virtual Result<std::vector<Result<Answer>>> read_batch(const Server &server,
                                                           std::span<const Ask> asks,
                                                           http::Response response) const;
    // Whether this answer means that the credential (rather than the request) was refused, so that
    // a new one may help.
    virtual bool refuses_credential(const http::Response &response) const = 0;
    // Whether this answer means that the request's time was too far from the KMS's.
    virtual bool refuses_time(const http::Response &) const { return false; }
    // Whether all options are there that a use needs: misconfigured, naming what is missing. Reads
    // no file.
    virtual Status check_complete(const Server &server) const = 0;

protected:
    ~Dialect() = default;  // dialects are constants, never destroyed
};

const Dialect &vault_dialect();
const Dialect &aws_dialect();
const Dialect &gcp_dialect();
const Dialect &azure_dialect();
const Dialect &local_dialect();

// What a session brings as its own identity: options of a user mapping, whose secrets and files are
// given by their contents. Splits them; misconfigured as check_options(), and for a method that is
// not among brought_methods().
Status split_brought(const Dialect &dialect,
                     std::map<std::string, SecretBytes, std::less<>> &&given, Options &plain,
                     std::map<std::string, SecretBytes, std::less<>> &contents);

// "90", "90s", "5min", "2h", "1d"; nothing where it is none, or more than 24 hours.
std::optional<Clock> parse_duration(std::string_view text);

// Whether the mapping's option of that name refers to a secret.
bool is_secret_option(const Dialect &dialect, std::string_view name);

// By the name of the foreign data wrapper; null where it is none of ours.
const Dialect *find_dialect(std::string_view wrapper_name);

// Checks what is being set at one place. misconfigured, naming the option and, where it is unknown,
// the legal ones.
Status check_options(const Dialect &dialect, OptionPlace place, const Options &options);

// Has the server use this master key instead of its own option, as the option would be checked. A
// KMS without such an option finds the master key by itself: nothing changes.
Status name_master_key(Server &server, std::string_view master_key);

// The KMS's id of a request, or "" where it is none that could be shown.
std::string clean_request_id(std::string_view said);

// "HTTP status 403, content type text/html": all that an error tells of an answer that is not the
// KMS's. The type is left out where it is none.
std::string describe_answer(const http::Response &response);

// An answer that is not of the form that `service` ("AWS") gives to its own: something in front of
// it spoke, so nothing is known of the KMS. unreachable, or throttled for 429.
Error foreign_answer(const Server &server, std::string_view doing, std::string_view service,
                     const http::Response &response);

// Whether an HTTP status asks for another try, whoever gave it: 408, 425 and 5xx.
bool is_outage_status(int status);

// Says of an error on the way to the KMS what was being done there.
Error while_doing(const Server &server, std::string_view doing, Error error);

// As check_complete(), of a server that secrets are read from: the options of keys may be missing.
Status check_store(const Server &server);

// For check_complete(): what an option that is not set means.
Error missing_option(const Server &server, OptionPlace place, std::string_view name);

}  // namespace envcrypt::kms
