// See operation.hpp.
#include "keyring/operation.hpp"

#include <algorithm>
#include <functional>

#include "crypto/random.hpp"
#include "keyring/retry.hpp"
#include "kms/time.hpp"

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

// A credential that is not renewed in time serves until it ends; this is how often, and how long,
// renewing is tried meanwhile.
constexpr kms::Clock kRenewalPause{30000};
constexpr kms::Clock kRenewalPatience{1000};

struct Taken {
    identity::Credential credential;
    bool kept;  // rather than new
};

// The credential kept, or a new one. Of one that still serves but should be renewed, a renewal that
// fails or is slow is no failure.
Task<Result<Taken>> take_credential(Operation &operation) {
    Credentials &all = *operation.credentials;
    const IdentityId &id = operation.identity;
    bool serves = false;
    for (;;) {
        const identity::Credential *kept = all.find(id, operation.talk.now());
        serves = kept != nullptr;
        if (serves && (operation.talk.now() < kept->renew_from || all.is_obtaining(id)))
            co_return Taken{kept->copy(), true};
        if (!all.is_obtaining(id)) break;
        co_await operation.talk.wait_for_others();
    }
    const Credentials::Obtaining obtaining(all, id);
    std::optional<Result<identity::Credential>> tried;
    if (serves) {
        const identity::Credential old = all.find(id, operation.talk.now())->copy();
        operation.talk.set_patience(kRenewalPatience);
        tried = co_await identity::renew(operation.talk, operation.server, old);
        operation.talk.set_patience({});
    } else {
        tried = co_await identity::obtain(operation.talk, operation.server);
    }
    Result<identity::Credential> &obtained = *tried;
    if (obtained) {
        Taken taken{obtained->copy(), false};
        all.keep(id, std::move(*obtained), operation.talk.now());
        if (const identity::Credential *now_kept = all.find(id, operation.talk.now()))
            taken.credential.serial = now_kept->serial;
        co_return taken;
    }
    const identity::Credential *kept = all.find(id, operation.talk.now());
    if (kept == nullptr) co_return std::move(obtained.error());
    Taken taken{kept->copy(), true};
    all.postpone_renewal(id, operation.talk.now() + kRenewalPause);
    co_return taken;
}

// Makes the request with a credential, for that time; nothing where the KMS is no service.
using Build = std::function<std::optional<http::Request>(const identity::Credential &credential,
                                                         std::int64_t time)>;

// One request, with a credential that is obtained where there is none, and once more where the KMS
// refuses the one kept.
Task<Result<http::Response>> call(Operation &operation, const Build &build, const char *doing) {
    const kms::Server &server = operation.server;
    Credentials &credentials = *operation.credentials;
    bool corrected = false;
    operation.talk.set_clock_offset(credentials.clock_offset(operation.identity));
    for (;;) {
        Result<Taken> taken = co_await take_credential(operation);
        // a login may have found out
        if (operation.talk.clock_offset() != 0)
            credentials.set_clock_offset(operation.identity, operation.talk.clock_offset());
        if (!taken) co_return std::move(taken.error());
        const std::int64_t time = operation.talk.wall_time();
        std::optional<http::Request> request = build(taken->credential, time);
        if (!request) co_return http::Response{};
        if (operation.gives_up)
            request->timeout = std::max(*operation.gives_up - operation.talk.now(), kms::Clock(1));
        Result<http::Response> response = co_await operation.talk.exchange(std::move(*request));
        if (!response) co_return kms::while_doing(server, doing, std::move(response.error()));
        if (!corrected && server.dialect->refuses_time(*response)) {
            const auto theirs = kms::parse_http_date(response->header("date"));
            if (theirs) {
                operation.talk.set_clock_offset(operation.talk.clock_offset() + *theirs -
                                                operation.talk.wall_time());
                credentials.set_clock_offset(operation.identity, operation.talk.clock_offset());
                corrected = true;
                continue;
            }
        }
        if (server.dialect->refuses_credential(*response)) {
            credentials.forget(operation.identity, taken->credential.serial);
            if (taken->kept) continue;
        }
        co_return response;
    }
}

// One question, in as many requests as it takes.
Task<Result<Answer>> put_once(Operation &operation, Ask ask) {
    const kms::Server &server = operation.server;
    std::optional<Result<Answer>> direct;
    const Build build = [&](const identity::Credential &credential, std::int64_t time) {
        ask.time = time;
        std::variant<http::Request, Result<Answer>> asked =
            server.dialect->ask(server, ask, credential);
        auto *request = std::get_if<http::Request>(&asked);
        if (request == nullptr) direct = std::get<Result<Answer>>(std::move(asked));
        return request == nullptr ? std::nullopt : std::optional(std::move(*request));
    };
    Answer so_far;
    for (;;) {
        Result<http::Response> response = co_await call(operation, build, kms::doing(ask.verb));
        if (!response) co_return std::move(response.error());
        if (direct) co_return std::move(*direct);
        Result<Answer> answer = server.dialect->read(server, ask, std::move(*response));
        if (!answer || !answer->more) co_return answer;
        so_far = std::move(*answer);
        ask.so_far = &so_far;
    }
}

// Waits as the retry policy says. False where another attempt is not due.
Task<bool> wait_to_retry(Operation &operation, const Error &error, int attempt) {
    kms::Conversation &talk = operation.talk;
    if (operation.patience != kms::Clock{} && !operation.gives_up)
        operation.gives_up = talk.now() + operation.patience;
    const kms::Clock end = std::min(talk.deadline(), operation.gives_up.value_or(talk.deadline()));
    std::uint8_t byte;
    crypto::random_bytes({&byte, 1});
    const auto delay = retry_delay(error.code, attempt, parse_retry_after(talk.retry_after()),
                                   end - talk.now(), byte / 256.0, error.passes_soon);
    if (!delay) co_return false;
    co_await talk.sleep_until(talk.now() + *delay);
    co_return true;
}

// The same, tried again by the policy of retry.hpp.
Task<Result<Answer>> put(Operation &operation, Ask ask) {
    for (int attempt = 1;; ++attempt) {
        Result<Answer> answer = co_await put_once(operation, ask);
        if (answer) co_return answer;
        const bool again = co_await wait_to_retry(operation, answer.error(), attempt);
        if (again) continue;
        if (answer.error().code == ErrorCode::damaged) answer.error().code = ErrorCode::corrupt;
        co_return answer;
    }
}

// In the order of the asks; nothing where one was not put because another had failed.
using Answers = std::vector<std::optional<Result<Answer>>>;

bool is_retried(ErrorCode code) {
    return code == ErrorCode::unreachable || code == ErrorCode::throttled;
}

// Puts some of the asks in one request, once. The error is of the request as a whole.
Task<Status> put_batch_once(Operation &operation, const std::vector<Ask> &asks,
                            const std::vector<std::size_t> &which, Answers &answers) {
    const kms::Server &server = operation.server;
    std::vector<Ask> some;
    some.reserve(which.size());
    for (const std::size_t i : which) some.push_back(asks[i]);
    const Build build = [&](const identity::Credential &credential, std::int64_t) {
        return std::optional(server.dialect->ask_batch(server, some, credential));
    };
    Result<http::Response> response =
        co_await call(operation, build, kms::doing(some.front().verb));
    if (!response) co_return std::move(response.error());
    auto read = server.dialect->read_batch(server, some, std::move(*response));
    if (!read) co_return std::move(read.error());
    for (std::size_t i = 0; i < which.size(); ++i) answers[which[i]] = std::move((*read)[i]);
    co_return Unit{};
}

// Puts many asks of one verb, in as few requests as the KMS takes, and again what was unreachable
// or throttled, by the policy of retry.hpp. A batch that is refused as a whole is put in halves,
// and in the end singly: it may be too much for one request, or a policy lets single contexts
// through and no batch, which is no denial of a key. Singly, each is an operation with a time of
// its own, and the first that fails is the last.
Task<Answers> put_all(Operation &operation, const std::vector<Ask> &asks) {
    Answers answers(asks.size());
    std::size_t size = operation.server.dialect->max_batch();
    std::vector<std::size_t> left;
    for (std::size_t i = 0; i < asks.size(); ++i) left.push_back(i);
    for (int attempt = 1; !left.empty(); ++attempt) {
        std::vector<std::size_t> again;
        for (std::size_t begin = 0; begin < left.size();) {
            const std::size_t count = std::min(size, left.size() - begin);
            const auto from = left.begin() + static_cast<std::ptrdiff_t>(begin);
            const std::vector<std::size_t> part(from, from + static_cast<std::ptrdiff_t>(count));
            if (count == 1) {
                std::optional<Result<Answer>> &answer = answers[part[0]];
                answer = co_await put(operation, asks[part[0]]);
                if (!*answer) co_return answers;
                operation.talk.begin_anew();
                ++begin;
                continue;
            }
            Status put = co_await put_batch_once(operation, asks, part, answers);
            if (!put && (put.error().code == ErrorCode::denied ||
                         put.error().code == ErrorCode::misconfigured)) {
                size = put.error().code == ErrorCode::denied ? 1 : count / 2;
                continue;
            }
            for (const std::size_t i : part) {
                if (!put) answers[i] = Result<Answer>(Error(put.error()));
                if (!*answers[i] && is_retried(answers[i]->error().code)) again.push_back(i);
            }
            begin += count;
        }
        left = std::move(again);
        if (left.empty()) break;
        const bool due = co_await wait_to_retry(operation, answers[left.front()]->error(), attempt);
        if (!due) break;
    }
    co_return answers;
}

Ask unwrap(const Operation &operation, std::string context) {
    Ask ask;
    ask.verb = Verb::unwrap;
    ask.context = std::move(context);
    ask.wrapped = operation.wrapped;
    ask.attestation = operation.attestation;
    return ask;
}

Status check_key(const kms::Server &server, const std::string &context,
                 const crypto::Digest &commitment, const SecretBytes &key) {
    if (key.size() != crypto::kKeySize) return corrupt_key(server, "Its length is not 32 bytes.");
    const crypto::Digest expected =
        crypto::commitment(key.expose().first<crypto::kKeySize>(), context);
    if (!equal_constant_time(expected, commitment))
        return corrupt_key(server, "It does not match the commitment kept with it.");
    return Unit{};
}

Ask unwrap(const KeyToOpen &key) {
    Ask ask;
    ask.verb = Verb::unwrap;
    ask.context = key.context;
    ask.wrapped = key.wrapped;
    ask.attestation = key.attestation;
    return ask;
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
               (kept.first[0] == id[0] && kept.first[4] == id[4] && kept.first[4] != kNoMapping);
    });
    credential.serial = ++last_serial_;
    if (now < credential.expires) kept_.insert_or_assign(id, std::move(credential));
}

void Credentials::forget(const IdentityId &id, std::uint64_t serial) {
    const auto found = kept_.find(id);
    if (found != kept_.end() && found->second.serial == serial) kept_.erase(found);
}

void Credentials::forget_mapping(std::uint32_t mapping, std::uint32_t version) {
    const auto names_it = [&](const auto &kept) {
        return kept.first[4] == mapping && kept.first[5] == version;
    };
    std::erase_if(kept_, names_it);
    std::erase_if(clock_offsets_, names_it);
}

void Credentials::postpone_renewal(const IdentityId &id, kms::Clock until) {
    const auto found = kept_.find(id);
    if (found != kept_.end()) found->second.renew_from = until;
}

void Credentials::set_clock_offset(const IdentityId &id, std::int64_t seconds) {
    // of an older version of the same mapping and server
    std::erase_if(clock_offsets_, [&](const auto &kept) {
        return kept.first[0] == id[0] && kept.first[4] == id[4] && kept.first[4] != kNoMapping;
    });
    clock_offsets_.insert_or_assign(id, seconds);
}

std::int64_t Credentials::clock_offset(const IdentityId &id) const {
    const auto found = clock_offsets_.find(id);
    return found == clock_offsets_.end() ? 0 : found->second;
}

Task<Status> open_key(Operation &operation) {
    Ask ask = unwrap(operation, operation.context);
    Result<Answer> answer = co_await put(operation, std::move(ask));
    if (!answer) co_return std::move(answer.error());
    Status checked =
        check_key(operation.server, operation.context, operation.commitment, answer->key);
    if (checked) operation.key = std::move(answer->key);
    co_return checked;
}

Task<Status> unwrap_key(Operation &operation) {
    Ask ask = unwrap(operation, operation.context);
    Result<Answer> answer = co_await put(operation, std::move(ask));
    if (!answer) co_return std::move(answer.error());
    if (answer->key.size() != crypto::kKeySize)
        co_return corrupt_key(operation.server, "Its length is not 32 bytes.");
    operation.key = std::move(answer->key);
    co_return Unit{};
}

Task<Status> open_keys(Operation &operation) {
    std::vector<KeyToOpen> &keys = operation.keys;
    std::vector<Ask> asks;
    asks.reserve(keys.size());
    for (const KeyToOpen &key : keys) asks.push_back(unwrap(key));
    Answers answers = co_await put_all(operation, asks);
    Status outcome = Unit{};
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (!answers[i]) continue;
        Status opened = Unit{};
        if (!*answers[i])
            opened = std::move(answers[i]->error());
        else
            opened = check_key(operation.server, keys[i].context, keys[i].commitment,
                               (*answers[i])->key);
        if (opened) {
            keys[i].key = std::move((*answers[i])->key);
            continue;
        }
        keys[i].failed = opened.error().code;
        if (outcome ||
            (opened.error().code == ErrorCode::denied && outcome.error().code != ErrorCode::denied))
            outcome = std::move(opened);
    }
    co_return outcome;
}

namespace {

// Puts the asks and, once all are answered, unwraps and checks what was made.
Task<Status> make_and_check(Operation &operation, std::vector<Ask> asks) {
    std::vector<KeyToOpen> &keys = operation.keys;
    Answers made = co_await put_all(operation, asks);
    for (const auto &answer : made)
        if (answer && !*answer) co_return Error(answer->error());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        keys[i].made = std::move(**made[i]);
        asks[i] = unwrap(keys[i]);
        asks[i].wrapped = keys[i].made.wrapped;
        asks[i].attestation = keys[i].made.attestation;
    }
    operation.talk.begin_anew();
    const Answers opened = co_await put_all(operation, asks);
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (!opened[i]) continue;
        if (!*opened[i]) co_return Error(opened[i]->error());
        Status checked =
            check_key(operation.server, keys[i].context, keys[i].commitment, (*opened[i])->key);
        if (!checked) co_return checked;
    }
    co_return Unit{};
}

}  // namespace

Task<Status> wrap_keys(Operation &operation) {
    std::vector<Ask> asks;
    asks.reserve(operation.keys.size());
    for (const KeyToOpen &key : operation.keys) {
        Ask &ask = asks.emplace_back();
        ask.verb = Verb::wrap;
        ask.context = key.context;
        ask.key = &key.key;
    }
    return make_and_check(operation, std::move(asks));
}

Task<Status> rewrap_keys(Operation &operation) {
    std::vector<Ask> asks;
    asks.reserve(operation.keys.size());
    for (const KeyToOpen &key : operation.keys) {
        asks.push_back(unwrap(key));
        asks.back().verb = Verb::rewrap;
        asks.back().source_key = key.master_key;
    }
    return make_and_check(operation, std::move(asks));
}

Status open_by_group(const SecretBytes &group_key, const std::string &group, KeyToOpen &key) {
    const auto corrupt = [&](const char *detail) {
        return Error{ErrorCode::corrupt,
                     "group key \"" + group + "\" does not open a key that it wraps", detail,
                     "Nothing was decrypted with it. Check the rows of envcrypt.wrapped_key."};
    };
    std::optional<SecretBytes> opened = crypto::group_unwrap(
        group_key.expose().first<crypto::kKeySize>(), key.wrapped, key.context);
    if (!opened) return corrupt("It was altered, or is another key's.");
    const crypto::Digest expected =
        crypto::commitment(opened->expose().first<crypto::kKeySize>(), key.context);
    if (!equal_constant_time(expected, key.commitment))
        return corrupt("It does not match the commitment kept with it.");
    key.key = std::move(*opened);
    return Unit{};
}

Status wrap_by_group(const SecretBytes &group_key, const std::string &group, KeyToOpen &key) {
    std::array<std::uint8_t, crypto::kWrapSaltSize> salt;
    crypto::random_bytes(salt);
    key.made.wrapped = crypto::group_wrap(group_key.expose().first<crypto::kKeySize>(), salt,
                                          key.context, key.key.expose().first<crypto::kKeySize>());
    KeyToOpen proof;
    proof.context = key.context;
    proof.commitment = key.commitment;
    proof.wrapped = key.made.wrapped;
    return open_by_group(group_key, group, proof);
}

Task<Status> make_key(Operation &operation) {
    Ask ask;
    ask.verb = Verb::make_data_key;
    ask.context = operation.context;
    SecretBytes own;
    if (!operation.server.dialect->makes_data_keys()) {
        own = SecretBytes(crypto::kKeySize);
        crypto::random_bytes(own.expose());
        ask.verb = Verb::wrap;
        ask.key = &own;
    }
    Result<Answer> answer = co_await put(operation, std::move(ask));
    if (!answer) co_return std::move(answer.error());
    if (!own.empty()) answer->key = std::move(own);
    if (answer->key.size() != crypto::kKeySize)
        co_return corrupt_key(operation.server, "Its length is not 32 bytes.");
    operation.key = std::move(answer->key);
    operation.made = std::move(*answer);
    co_return Unit{};
}

Task<Status> verify_key(Operation &operation) {
    Status opened = co_await open_key(operation);
    if (!opened) co_return opened;
    Ask elsewhere = unwrap(operation, crypto::wrong_context(operation.context));
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
    operation.attestation = operation.made.attestation;
    operation.commitment =
        crypto::commitment(operation.key.expose().first<crypto::kKeySize>(), operation.context);
    Status verified = co_await verify_key(operation);
    operation.key.clear();
    if (!verified) co_return verified;

    const Result<Taken> taken = co_await take_credential(operation);
    if (!taken) co_return Error(taken.error());
    Result<std::string> text =
        co_await identity::describe(operation.talk, operation.server, taken->credential);
    if (!text) co_return std::move(text.error());
    operation.identity_text = std::move(*text);
    co_return Unit{};
}

}  // namespace envcrypt::keyring
