// Operations of the keyring and the logins below them, driven by a script instead of a network:
// what they ask for, in which order, and what they make of the answers.
#include "keyring/operation.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <variant>
#include <vector>

#include "crypto/encoding.hpp"
#include "crypto/random.hpp"

namespace envcrypt::keyring {
namespace {

using http::Request;
using http::Response;

constexpr const char *kKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
constexpr const char *kOther = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

Response reply(int status, std::string_view body) {
    Response response;
    response.status = status;
    response.body = SecretBytes(body);
    return response;
}

Response key_reply(const char *key) {
    return reply(200,
                 std::string(R"({"data":{"ciphertext":"vault:v1:w","plaintext":")") + key + "\"}}");
}

Response login_reply(const char *token, int seconds = 3600) {
    return reply(200, std::string(R"({"auth":{"client_token":")") + token +
                          R"(","lease_duration":)" + std::to_string(seconds) + "}}");
}

Response forbidden() {
    return reply(403, R"({"errors":["permission denied"]})");
}
Response mismatch() {
    return reply(400, R"({"errors":["cipher: message authentication failed"]})");
}

Error unreachable() {
    return {ErrorCode::unreachable, "no route", {}, {}};
}

// Answers in order; says afterwards what was asked: "file PATH", or the URL's path with the token.
struct Script {
    std::deque<std::variant<Response, std::string, Error>> answers;
    std::vector<std::string> asked;
    kms::Clock now{1000};

    Status run(Operation &operation) {
        operation.talk.set_now(now);
        operation.work.start();
        while (!operation.work.done()) {
            if (const auto until = operation.talk.sleeps_until()) {
                now = *until;
                operation.talk.set_now(now);
                asked.emplace_back("sleep");
                operation.talk.wake();
                continue;
            }
            EXPECT_FALSE(answers.empty()) << "more is asked than was expected";
            if (answers.empty()) return Error{};
            auto answer = std::move(answers.front());
            answers.pop_front();
            if (operation.talk.needs_file()) {
                const kms::FileRequest file = operation.talk.take_file();
                asked.push_back("file " + file.path + (file.private_to_owner ? " (private)" : ""));
                if (auto *error = std::get_if<Error>(&answer))
                    operation.talk.answer(Result<SecretBytes>(std::move(*error)));
                else
                    operation.talk.answer(
                        Result<SecretBytes>(SecretBytes(std::get<std::string>(answer))));
            } else {
                const Request request = operation.talk.take_request();
                std::string line = request.url.substr(request.url.find("/v1/") + 4);
                for (const http::Header &header : request.headers)
                    if (header.name == "X-Vault-Token")
                        line += " as " + std::string(header.value.expose_text());
                asked.push_back(line);
                if (auto *error = std::get_if<Error>(&answer))
                    operation.talk.answer(Result<Response>(std::move(*error)));
                else
                    operation.talk.answer(Result<Response>(std::move(std::get<Response>(answer))));
            }
        }
        EXPECT_TRUE(answers.empty()) << "less is asked than was expected";
        return operation.work.take();
    }
};

class OperationTest : public testing::Test {
protected:
    OperationTest() {
        const auto key = *crypto::from_base64_secret(kKey);
        commitment_ = crypto::commitment(key.expose().first<32>(), kContext);
    }

    std::unique_ptr<Operation> operation(bool approle = true) {
        auto made = std::make_unique<Operation>();
        made->server.name = "kms";
        made->server.dialect = &kms::vault_dialect();
        made->server.options = {{"endpoint", "https://kms"}, {"master_key", "app"}};
        if (approle)
            made->server.identity = {
                {"auth", "approle"}, {"role_id", "r"}, {"secret_id", "file:/s"}};
        else
            made->server.identity = {{"auth", "token"}, {"token", "file:/t"}};
        made->identity = {1, 2, 2, 2, 3, 4, 4, 4};
        made->context = kContext;
        made->credentials = &credentials_;
        made->commitment = commitment_;
        const std::string wrapped = "vault:v1:w";
        made->wrapped.assign(wrapped.begin(), wrapped.end());
        return made;
    }

    Script opened_with_login() {
        Script script;
        script.answers.emplace_back(std::string("the-secret"));
        script.answers.emplace_back(login_reply("t1"));
        script.answers.emplace_back(key_reply(kKey));
        return script;
    }

    static constexpr const char *kContext = "C";
    crypto::Digest commitment_;
    Credentials credentials_;
};

using Asked = std::vector<std::string>;

TEST_F(OperationTest, OpensAKeyAfterALogin) {
    auto op = operation();
    op->work = open_key(*op);
    Script script = opened_with_login();
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked, (Asked{"file /s", "auth/approle/login", "transit/decrypt/app as t1"}));
    EXPECT_EQ(crypto::to_base64(op->key.expose()), kKey);
}

TEST_F(OperationTest, KeepsTheCredentialForTheSameIdentityOnly) {
    auto first = operation();
    first->work = open_key(*first);
    Script script = opened_with_login();
    ASSERT_TRUE(script.run(*first));

    auto second = operation();
    second->work = open_key(*second);
    Script again;
    again.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(again.run(*second));
    EXPECT_EQ(again.asked, (Asked{"transit/decrypt/app as t1"}));

    auto changed = operation();
    changed->identity[7] = 99;  // the mapping was altered
    changed->work = open_key(*changed);
    Script anew = opened_with_login();
    ASSERT_TRUE(anew.run(*changed));
    EXPECT_EQ(credentials_.find({1, 2, 2, 2, 3, 4, 4, 4}, kms::Clock(1000)), nullptr);
}

TEST_F(OperationTest, LogsInAgainBeforeTheTokenExpires) {
    auto first = operation();
    first->work = open_key(*first);
    Script script = opened_with_login();
    ASSERT_TRUE(script.run(*first));
    EXPECT_NE(credentials_.find({1, 2, 2, 2, 3, 4, 4, 4}, kms::Clock(1000 + 3600 * 900 - 1)),
              nullptr);
    EXPECT_EQ(credentials_.find({1, 2, 2, 2, 3, 4, 4, 4}, kms::Clock(1000 + 3600 * 900)), nullptr);
}

TEST_F(OperationTest, ARefusedKeptCredentialIsObtainedOnceMore) {
    auto first = operation();
    first->work = open_key(*first);
    Script script = opened_with_login();
    ASSERT_TRUE(script.run(*first));

    auto second = operation();
    second->work = open_key(*second);
    Script again;
    again.answers.emplace_back(forbidden());
    again.answers.emplace_back(std::string("the-rotated-secret"));
    again.answers.emplace_back(login_reply("t2"));
    again.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(again.run(*second));
    EXPECT_EQ(again.asked, (Asked{"transit/decrypt/app as t1", "file /s", "auth/approle/login",
                                  "transit/decrypt/app as t2"}));
}

TEST_F(OperationTest, ARefusedFreshCredentialIsADenial) {
    auto op = operation();
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(std::string("the-secret"));
    script.answers.emplace_back(login_reply("t1"));
    script.answers.emplace_back(forbidden());
    const Status status = script.run(*op);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::denied);
    EXPECT_EQ(credentials_.find(op->identity, kms::Clock(1000)), nullptr);
}

TEST_F(OperationTest, ATokenComesFromItsFile) {
    auto op = operation(false);
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked, (Asked{"file /t", "transit/decrypt/app as token"}));
}

TEST_F(OperationTest, FailuresOfTheLoginAreItsOwn) {
    struct Case {
        int status;
        const char *body;
        ErrorCode code;
    };
    const Case cases[] = {
        {400, R"({"errors":["invalid role or secret ID"]})", ErrorCode::denied},
        {503, "", ErrorCode::unreachable},
        {200, "{}", ErrorCode::unreachable},
        {403, "RBAC: access denied", ErrorCode::unreachable},
        {404, "<html>", ErrorCode::unreachable},
        {200, R"({"auth":{"client_token":"","lease_duration":1}})", ErrorCode::bad_answer},
        {200, R"({"auth":{"client_token":"t","lease_duration":-1}})", ErrorCode::bad_answer},
    };
    for (const Case &given : cases) {
        auto op = operation();
        op->work = open_key(*op);
        Script script;
        const int attempts = given.code == ErrorCode::unreachable ? 3 : 1;
        for (int i = 0; i < attempts; ++i) {
            script.answers.emplace_back(std::string("the-secret"));
            script.answers.emplace_back(reply(given.status, given.body));
        }
        const Status status = script.run(*op);
        ASSERT_FALSE(status);
        EXPECT_EQ(status.error().code, given.code);
    }
}

TEST_F(OperationTest, TransportErrorsAndMissingFilesAreHandedOn) {
    auto op = operation();
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(Error{ErrorCode::denied, "no file", {}, {}});
    Status status = script.run(*op);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::denied);

    op = operation();
    op->work = open_key(*op);
    Script cut = opened_with_login();
    cut.answers.back() = unreachable();
    cut.answers.emplace_back(unreachable());
    cut.answers.emplace_back(unreachable());
    status = cut.run(*op);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::unreachable);
}

TEST_F(OperationTest, AnOutageThatEndsIsWaitedFor) {
    auto op = operation(false);
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(unreachable());
    script.answers.emplace_back(reply(503, ""));
    script.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked,
              (Asked{"file /t", "transit/decrypt/app as token", "sleep",
                     "transit/decrypt/app as token", "sleep", "transit/decrypt/app as token"}));
}

TEST_F(OperationTest, NothingIsTriedAgainThatWouldEndTooLate) {
    auto op = operation(false);
    op->talk.set_deadline(kms::Clock(1000 + 15));
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(unreachable());
    EXPECT_FALSE(script.run(*op));
}

TEST_F(OperationTest, ACredentialIsRenewedBeforeItEnds) {
    const auto keep = [&](kms::Clock renew_from) {
        identity::Credential old{SecretBytes("old")};
        old.renew_from = renew_from;
        old.expires = kms::Clock(100000);
        credentials_.keep({1, 2, 2, 2, 3, 4, 4, 4}, std::move(old), kms::Clock(1000));
    };
    keep(kms::Clock(5000));
    auto early = operation();
    early->work = open_key(*early);
    Script uses;
    uses.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(uses.run(*early));
    EXPECT_EQ(uses.asked, (Asked{"transit/decrypt/app as old"}));

    keep(kms::Clock(500));
    auto late = operation();
    late->work = open_key(*late);
    Script renews = opened_with_login();
    ASSERT_TRUE(renews.run(*late));
    EXPECT_EQ(renews.asked.back(), "transit/decrypt/app as t1");

    // a renewal that fails leaves the old one in use, and is not tried at each turn
    keep(kms::Clock(500));
    auto down = operation();
    down->work = open_key(*down);
    Script fails;
    fails.answers.emplace_back(std::string("the-secret"));
    fails.answers.emplace_back(reply(503, ""));
    fails.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(fails.run(*down));
    EXPECT_EQ(fails.asked.back(), "transit/decrypt/app as old");
    auto again = operation();
    again->work = open_key(*again);
    Script no_more;
    no_more.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(no_more.run(*again));
}

TEST_F(OperationTest, OneOfManyLogsInForAll) {
    auto first = operation();
    auto second = operation();
    first->work = open_key(*first);
    second->work = open_key(*second);
    first->work.start();
    second->work.start();
    EXPECT_TRUE(first->talk.needs_file());
    EXPECT_TRUE(second->talk.needs_others());
    second->talk.wake();
    EXPECT_TRUE(second->talk.needs_others());
    (void)first->talk.take_file();
    first->talk.answer(Result<SecretBytes>(SecretBytes("the-secret")));
    (void)first->talk.take_request();
    first->talk.answer(Result<Response>(login_reply("t1")));
    second->talk.wake();
    ASSERT_TRUE(second->talk.needs_exchange());
    const Request request = second->talk.take_request();
    EXPECT_EQ(request.headers[0].value.expose_text(), "t1");

    // and where the one is dropped, the others go on
    credentials_.clear();
    auto third = operation();
    auto fourth = operation();
    third->work = open_key(*third);
    fourth->work = open_key(*fourth);
    third->work.start();
    fourth->work.start();
    third.reset();
    fourth->talk.wake();
    EXPECT_TRUE(fourth->talk.needs_file());
}

class BatchTest : public OperationTest {
protected:
    std::unique_ptr<Operation> batch(int keys) {
        auto made = operation(false);
        for (int i = 0; i < keys; ++i) {
            KeyToOpen &key = made->keys.emplace_back();
            key.context = kContext;
            const std::string wrapped = "vault:v1:w" + std::to_string(i);
            key.wrapped.assign(wrapped.begin(), wrapped.end());
            key.commitment = commitment_;
        }
        made->work = open_keys(*made);
        return made;
    }
    static std::string item(const char *key) {
        return std::string(R"({"plaintext":")") + key + "\"}";
    }
    static Response results(int status, const std::string &items) {
        return reply(status, R"({"data":{"batch_results":[)" + items + "]}}");
    }
};

TEST_F(BatchTest, OpensManyKeysInOneRequest) {
    auto op = batch(3);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kKey) + "," + item(kKey)));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked, (Asked{"file /t", "transit/decrypt/app as token"}));
    for (const KeyToOpen &key : op->keys) EXPECT_EQ(crypto::to_base64(key.key.expose()), kKey);
}

TEST_F(BatchTest, AnItemThatFailedIsTheErrorWhateverTheStatus) {
    for (const int status : {200, 400}) {
        auto op = batch(2);
        Script script;
        script.answers.emplace_back(std::string("token"));
        script.answers.emplace_back(results(
            status,
            item(kKey) + R"(,{"plaintext":"","error":"cipher: message authentication failed"})"));
        const Status outcome = script.run(*op);
        ASSERT_FALSE(outcome);
        EXPECT_EQ(outcome.error().code, ErrorCode::corrupt);
        credentials_.clear();
    }
}

TEST_F(BatchTest, TooFewOrEmptyResultsAreNoAnswer) {
    for (const std::string &items : {item(kKey), item(kKey) + "," + item(""), std::string()}) {
        auto op = batch(2);
        Script script;
        script.answers.emplace_back(std::string("token"));
        script.answers.emplace_back(results(200, items));
        const Status outcome = script.run(*op);
        ASSERT_FALSE(outcome) << items;
        EXPECT_EQ(outcome.error().code, ErrorCode::bad_answer);
        credentials_.clear();
    }
}

TEST_F(BatchTest, ARefusedBatchIsTriedSinglyEachWithATimeOfItsOwn) {
    auto op = batch(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(forbidden());
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(key_reply(kKey));
    EXPECT_TRUE(script.run(*op));
    EXPECT_TRUE(op->talk.takes_beginning());
}

TEST_F(BatchTest, ABatchThatIsTooMuchIsHalved) {
    auto op = batch(4);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(reply(400, R"({"errors":["request has a high complexity"]})"));
    for (int i = 0; i < 2; ++i)
        script.answers.emplace_back(results(200, item(kKey) + "," + item(kKey)));
    ASSERT_TRUE(script.run(*op));
    for (const KeyToOpen &key : op->keys) EXPECT_EQ(key.key.size(), 32u);
}

TEST_F(BatchTest, WhatIsDeniedSinglyEndsIt) {
    auto op = batch(3);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(forbidden());
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(forbidden());
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(forbidden());
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::denied);
}

TEST_F(BatchTest, TheGoodItemsOfABatchAreOpened) {
    auto op = batch(3);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(results(
        400, item(kKey) + R"(,{"plaintext":"","error":"cipher: message authentication failed"},)" +
                 item(kKey)));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::corrupt);
    EXPECT_EQ(op->keys[0].key.size(), 32u);
    EXPECT_TRUE(op->keys[1].key.empty());
    EXPECT_EQ(op->keys[2].key.size(), 32u);
}

TEST_F(BatchTest, AnOutageOfABatchIsWaitedFor) {
    auto op = batch(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(reply(503, ""));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kKey)));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked[2], "sleep");
}

TEST_F(BatchTest, EveryKeyIsCheckedAgainstItsCommitment) {
    auto op = batch(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kOther)));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::corrupt);
}

class RewrapTest : public BatchTest {
protected:
    std::unique_ptr<Operation> rewrap(int count) {
        auto made = batch(count);
        made->work = rewrap_keys(*made);
        return made;
    }
    static std::string rewrapped(const char *ciphertext) {
        return std::string(R"({"ciphertext":")") + ciphertext + "\"}";
    }
};

TEST_F(RewrapTest, RewrapsInOneRequestAndOpensWhatCameOfIt) {
    auto op = rewrap(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(
        results(200, rewrapped("vault:v7:a") + "," + rewrapped("vault:v7:b")));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kKey)));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked,
              (Asked{"file /t", "transit/rewrap/app as token", "transit/decrypt/app as token"}));
    EXPECT_EQ(as_text(op->keys[0].made.wrapped), "vault:v7:a");
    EXPECT_EQ(as_text(op->keys[1].made.wrapped), "vault:v7:b");
    EXPECT_EQ(op->keys[1].made.master_key_version, "7");
}

TEST_F(RewrapTest, OneKeyAlone) {
    auto op = rewrap(1);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(
        reply(200, R"({"data":{"ciphertext":"vault:v7:a","key_version":7}})"));
    script.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(as_text(op->keys[0].made.wrapped), "vault:v7:a");
}

TEST_F(RewrapTest, AnItemThatFailedFailsItThoughTheAnswerSays200) {
    auto op = rewrap(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    const std::string too_old = "ciphertext version is disallowed by policy (too old)";
    script.answers.emplace_back(
        results(200, rewrapped("vault:v7:a") + R"(,{"error":")" + too_old + "\"}"));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::denied);
}

TEST_F(RewrapTest, ACiphertextThatIsNoneIsNoAnswer) {
    for (const char *ciphertext : {"", "vault:v:x", "AAAA"}) {
        auto op = rewrap(2);
        Script script;
        script.answers.emplace_back(std::string("token"));
        script.answers.emplace_back(
            results(200, rewrapped("vault:v7:a") + "," + rewrapped(ciphertext)));
        const Status outcome = script.run(*op);
        ASSERT_FALSE(outcome) << ciphertext;
        EXPECT_EQ(outcome.error().code, ErrorCode::bad_answer);
        credentials_.clear();
    }
}

TEST_F(RewrapTest, AnotherKeyThanWasRewrappedIsCorrupt) {
    auto op = rewrap(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(
        results(200, rewrapped("vault:v7:a") + "," + rewrapped("vault:v7:b")));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kOther)));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::corrupt);
}

TEST_F(RewrapTest, WrapsInOneRequestAndOpensWhatCameOfIt) {
    auto op = batch(2);
    for (KeyToOpen &key : op->keys) key.key = std::move(*crypto::from_base64_secret(kKey));
    op->work = wrap_keys(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(
        results(200, rewrapped("vault:v7:a") + "," + rewrapped("vault:v7:b")));
    script.answers.emplace_back(results(200, item(kKey) + "," + item(kKey)));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked,
              (Asked{"file /t", "transit/encrypt/app as token", "transit/decrypt/app as token"}));
    EXPECT_EQ(as_text(op->keys[1].made.wrapped), "vault:v7:b");

    for (KeyToOpen &key : op->keys) key.commitment[0] ^= 1;
    op->work = wrap_keys(*op);
    Script wrong;
    wrong.answers.emplace_back(
        results(200, rewrapped("vault:v7:a") + "," + rewrapped("vault:v7:b")));
    wrong.answers.emplace_back(results(200, item(kKey) + "," + item(kKey)));
    const Status outcome = wrong.run(*op);
    ASSERT_FALSE(outcome) << "what is not the key that it was is not kept";
    EXPECT_EQ(outcome.error().code, ErrorCode::corrupt);
}

TEST_F(BatchTest, ADenialComesBeforeOtherFailures) {
    auto op = batch(2);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(
        results(400, R"x({"error":"cipher: message authentication failed"},)x"
                     R"x({"error":"ciphertext version is disallowed by policy (too old)"})x"));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::denied);
    EXPECT_EQ(op->keys[0].failed, ErrorCode::corrupt);
    EXPECT_EQ(op->keys[1].failed, ErrorCode::denied);
}

TEST(Group, OpensWhatItWrappedAndNothingElse) {
    SecretBytes group(32);
    crypto::random_bytes(group.expose());
    KeyToOpen key;
    key.context = crypto::wrap_context(crypto::Purpose::data, 7, "acme");
    key.key = SecretBytes(32);
    crypto::random_bytes(key.key.expose());
    const SecretBytes original = key.key.copy();
    key.commitment = crypto::commitment(key.key.expose().first<32>(), key.context);
    ASSERT_TRUE(wrap_by_group(group, "g", key));
    key.wrapped = key.made.wrapped;
    key.key.clear();
    ASSERT_TRUE(open_by_group(group, "g", key));
    EXPECT_TRUE(equal_constant_time(key.key.expose(), original.expose()));

    KeyToOpen wrong;
    wrong.context = key.context;
    wrong.key = original.copy();
    const Status wrapped = wrap_by_group(group, "g", wrong);
    ASSERT_FALSE(wrapped) << "what does not open again is not wrapped";
    EXPECT_EQ(wrapped.error().code, ErrorCode::corrupt);

    KeyToOpen other;
    other.wrapped = key.wrapped;
    other.context = crypto::wrap_context(crypto::Purpose::data, 7, "other");
    other.commitment = key.commitment;
    Status opened = open_by_group(group, "g", other);
    ASSERT_FALSE(opened) << "bound to the tenant";
    EXPECT_EQ(opened.error().code, ErrorCode::corrupt);
    other.context = key.context;
    other.commitment[0] ^= 1;
    opened = open_by_group(group, "g", other);
    ASSERT_FALSE(opened) << "the commitment";
    EXPECT_EQ(opened.error().code, ErrorCode::corrupt);
    EXPECT_TRUE(other.key.empty());
}

TEST_F(OperationTest, WhatALoginSaysAboutTryingAgainIsHeeded) {
    auto op = operation();
    op->talk.set_deadline(kms::Clock(60000));
    op->work = open_key(*op);
    Script script;
    script.answers.emplace_back(std::string("the-secret"));
    Response busy = reply(429, "");
    busy.headers.push_back({"retry-after", "7"});
    script.answers.emplace_back(std::move(busy));
    script.answers.emplace_back(std::string("the-secret"));
    script.answers.emplace_back(login_reply("t1"));
    script.answers.emplace_back(key_reply(kKey));
    ASSERT_TRUE(script.run(*op));
    EXPECT_GE(script.now, kms::Clock(1000 + 7000));
}

TEST_F(OperationTest, AnInstanceMetadataServiceThatIsBeingUpdatedIsWaitedFor) {
    auto op = operation();
    op->server.dialect = &kms::azure_dialect();
    op->server.options = {{"endpoint", "https://v/v1/"},
                          {"master_key", "app"},
                          {"metadata_endpoint", "https://m/v1/"},
                          {"algorithm", "A256KW"}};
    op->server.identity = {{"auth", "managed_identity"}};
    op->work = make_key(*op);
    Script script;
    script.answers.emplace_back(reply(410, ""));
    script.answers.emplace_back(reply(404, ""));
    script.answers.emplace_back(reply(200, R"({"access_token":"t","expires_in":"3600"})"));
    script.answers.emplace_back(reply(403, R"({"error":{"code":"Forbidden"}})"));
    const Status outcome = script.run(*op);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::denied);
}

TEST_F(OperationTest, AWrongOrShortKeyIsCorrupt) {
    for (const char *key : {kOther, "AAEC", ""}) {
        credentials_.clear();
        auto op = operation();
        op->work = open_key(*op);
        Script script = opened_with_login();
        script.answers.back() = key_reply(key);
        const Status status = script.run(*op);
        ASSERT_FALSE(status);
        EXPECT_EQ(status.error().code, ErrorCode::corrupt);
        EXPECT_TRUE(op->key.empty());
    }
}

TEST_F(OperationTest, MakesAKey) {
    auto op = operation();
    op->work = make_key(*op);
    Script script = opened_with_login();
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked.back(), "transit/datakey/plaintext/app as t1");
    EXPECT_EQ(op->key.size(), 32u);
    EXPECT_EQ(as_text(op->made.wrapped), "vault:v1:w");
    EXPECT_EQ(op->made.master_key_version, "1");

    auto short_key = operation();
    short_key->work = make_key(*short_key);
    Script short_script;
    short_script.answers.emplace_back(key_reply("AAEC"));
    const Status status = short_script.run(*short_key);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::corrupt);
}

TEST_F(OperationTest, VerifyingProvesThatTheContextIsBound) {
    auto op = operation();
    op->work = verify_key(*op);
    Script script = opened_with_login();
    script.answers.emplace_back(mismatch());
    ASSERT_TRUE(script.run(*op));

    auto unbound = operation();
    unbound->work = verify_key(*unbound);
    Script opens_anything;
    opens_anything.answers.emplace_back(key_reply(kKey));
    opens_anything.answers.emplace_back(key_reply(kKey));
    Status status = opens_anything.run(*unbound);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::misconfigured);

    auto cut = operation();
    cut->work = verify_key(*cut);
    Script gone;
    gone.answers.emplace_back(key_reply(kKey));
    for (int i = 0; i < 3; ++i) gone.answers.emplace_back(unreachable());
    status = gone.run(*cut);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::unreachable);
}

TEST_F(OperationTest, CheckingAServerLeavesNoKey) {
    auto op = operation(false);
    op->work = check_server(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(mismatch());
    script.answers.emplace_back(
        reply(200, R"({"data":{"display_name":"token-app","policies":["default","app"]}})"));
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(op->identity_text, "token-app (policies: default app)");
    EXPECT_TRUE(op->key.empty());
}

TEST_F(OperationTest, ATokenThatMayNotLookItselfUpChecksTheServerAllTheSame) {
    auto op = operation(false);
    op->work = check_server(*op);
    Script script;
    script.answers.emplace_back(std::string("token"));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(key_reply(kKey));
    script.answers.emplace_back(mismatch());
    script.answers.emplace_back(forbidden());
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(op->identity_text, "a token that may not look itself up");
}

TEST_F(OperationTest, CanBeDroppedWhereverItWaits) {
    const SecretMemory before = secret_memory();
    for (std::size_t stop = 0; stop < 3; ++stop) {
        Credentials none;
        auto op = operation();
        op->credentials = &none;
        op->work = open_key(*op);
        op->work.start();
        Script script = opened_with_login();
        for (std::size_t i = 0; i < stop; ++i) {
            if (op->talk.needs_file()) {
                (void)op->talk.take_file();
                op->talk.answer(
                    Result<SecretBytes>(SecretBytes(std::get<std::string>(script.answers[i]))));
            } else {
                (void)op->talk.take_request();
                op->talk.answer(Result<Response>(std::move(std::get<Response>(script.answers[i]))));
            }
        }
        EXPECT_FALSE(op->work.done());
    }
    EXPECT_EQ(secret_memory().in_use, before.in_use);
}

TEST_F(OperationTest, TheLocalKeyFileIsReadForEachUseAndMustBePrivate) {
    const std::string file(64, 'a');
    auto op = operation();
    op->server.dialect = &kms::local_dialect();
    op->server.options = {{"key_file", "/k"}};
    op->work = make_key(*op);
    Script script;
    script.answers.emplace_back(file);
    ASSERT_TRUE(script.run(*op));
    EXPECT_EQ(script.asked, (Asked{"file /k (private)"}));
    op->wrapped = op->made.wrapped;
    op->commitment = crypto::commitment(op->key.expose().first<32>(), op->context);
    op->work = verify_key(*op);
    Script verify;
    verify.answers.emplace_back(file);
    verify.answers.emplace_back(file);
    EXPECT_TRUE(verify.run(*op));
}

}  // namespace
}  // namespace envcrypt::keyring
