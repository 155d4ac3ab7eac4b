// AWS KMS, Google Cloud KMS and Azure Key Vault: requests to the letter, what each answer means,
// and references to secrets. What the services themselves do is tested in test/t.
#include <gtest/gtest.h>

#include <string>

#include "crypto/digest.hpp"
#include "crypto/encoding.hpp"
#include "crypto/keys.hpp"
#include "kms/aws.hpp"
#include "kms/azure.hpp"
#include "kms/gcp.hpp"
#include "kms/json.hpp"
#include "kms/reference.hpp"

namespace envcrypt::kms {
namespace {

constexpr const char *kKeyBase64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const std::string kContext = crypto::wrap_context(crypto::Purpose::data, 0x1234, "acme");

http::Response response(int status, std::string_view body) {
    http::Response answer;
    answer.status = status;
    answer.body = SecretBytes(body);
    return answer;
}

std::string header(const http::Request &request, std::string_view name) {
    for (const http::Header &header : request.headers)
        if (header.name == name) return std::string(header.value.expose_text());
    return {};
}

Json body_of(const http::Request &request) {
    return *Json::parse(request.body.copy());
}

Server aws() {
    Server server;
    server.name = "kms";
    server.dialect = &aws_dialect();
    server.options = {{"region", "eu-central-1"}, {"master_key", "alias/app"}};
    server.identity = {{"auth", "instance"}};
    return server;
}

Server gcp() {
    Server server;
    server.name = "kms";
    server.dialect = &gcp_dialect();
    server.options = {{"master_key", "projects/p/locations/l/keyRings/r/cryptoKeys/k"}};
    server.identity = {{"auth", "metadata"}};
    return server;
}

Server azure() {
    Server server;
    server.name = "kms";
    server.dialect = &azure_dialect();
    server.options = {{"endpoint", "https://v.vault.azure.net/"},
                      {"master_key", "app"},
                      {"attestation_key", "attest"}};
    server.identity = {{"auth", "managed_identity"}};
    return server;
}

http::Request request_for(const Server &server, const Ask &ask) {
    Credential credential{SecretBytes("secret")};
    credential.id = "AKID";
    auto asked = server.dialect->ask(server, ask, credential);
    return std::move(std::get<http::Request>(asked));
}

ErrorCode code_of(const Server &server, const Ask &ask, int status, std::string_view body) {
    const Result<Answer> answer = server.dialect->read(server, ask, response(status, body));
    EXPECT_FALSE(answer) << body;
    return answer ? ErrorCode::internal : answer.error().code;
}

std::string hint_of(const Server &server, const Ask &ask, int status, std::string_view body) {
    const Result<Answer> answer = server.dialect->read(server, ask, response(status, body));
    EXPECT_FALSE(answer) << body;
    return answer ? "" : answer.error().hint;
}

Ask unwrap(std::string_view wrapped = "wrapped") {
    Ask ask;
    ask.verb = Verb::unwrap;
    ask.context = kContext;
    ask.wrapped = as_bytes(wrapped);
    return ask;
}

Ask wrap(const SecretBytes &key) {
    Ask ask;
    ask.verb = Verb::wrap;
    ask.context = kContext;
    ask.key = &key;
    return ask;
}

// --- AWS

TEST(Aws, AsksForADataKeyUnderAnEncryptionContext) {
    Ask ask;
    ask.verb = Verb::make_data_key;
    ask.context = kContext;
    ask.time = 1795548511;
    const http::Request request = request_for(aws(), ask);
    EXPECT_EQ(request.url, "https://kms.eu-central-1.amazonaws.com/");
    EXPECT_EQ(header(request, "X-Amz-Target"), "TrentService.GenerateDataKey");
    EXPECT_EQ(header(request, "Content-Type"), "application/x-amz-json-1.1");
    EXPECT_EQ(header(request, "X-Amz-Date"), "20261124T192831Z");
    EXPECT_TRUE(header(request, "Authorization")
                    .starts_with("AWS4-HMAC-SHA256 Credential=AKID/20261124/eu-central-1/kms/"
                                 "aws4_request, SignedHeaders=content-type;host;x-amz-date;"
                                 "x-amz-target, Signature="));
    EXPECT_EQ(
        request.body.expose_text(),
        R"({"KeyId":"alias/app","EncryptionContext":{"envcrypt-purpose":"data",)"
        R"("envcrypt-key":"0000000000001234","envcrypt-tenant":"acme"},"KeySpec":"AES_256"})");
}

TEST(Aws, SendsNoContextWhereThereIsNone) {
    Ask ask = unwrap();
    ask.context.clear();
    EXPECT_EQ(request_for(aws(), ask).body.expose_text(),
              R"({"KeyId":"alias/app","CiphertextBlob":"d3JhcHBlZA=="})");
}

TEST(Aws, GoesWhereTheOptionsSay) {
    const auto url = [](Options options) {
        Server server = aws();
        for (const auto &[name, value] : options) server.options.insert_or_assign(name, value);
        return request_for(server, unwrap()).url;
    };
    EXPECT_EQ(url({{"fips", "true"}}), "https://kms-fips.eu-central-1.amazonaws.com/");
    EXPECT_EQ(url({{"dual_stack", "true"}}), "https://kms.eu-central-1.api.aws/");
    EXPECT_EQ(url({{"region", "cn-north-1"}}), "https://kms.cn-north-1.amazonaws.com.cn/");
    EXPECT_EQ(url({{"endpoint", "https://vpce.test:8443/"}}), "https://vpce.test:8443/");
}

TEST(Aws, TheRegionMayComeFromTheKey) {
    Server server = aws();
    server.options = {{"master_key", "arn:aws:kms:us-west-2:111122223333:key/k"}};
    EXPECT_TRUE(server.dialect->check_complete(server));
    EXPECT_EQ(request_for(server, unwrap()).url, "https://kms.us-west-2.amazonaws.com/");
    server.options = {{"master_key", "alias/app"}};
    EXPECT_FALSE(server.dialect->check_complete(server));
}

TEST(Aws, AReplicaOpensWhatThePrimaryOfAMultiRegionKeyWrapped) {
    Server server = aws();
    server.options["master_key"] = "arn:aws:kms:us-west-2:111122223333:key/mrk-1";
    EXPECT_EQ(body_of(request_for(server, unwrap())).text({"KeyId"}),
              "arn:aws:kms:eu-central-1:111122223333:key/mrk-1");
    server.options["master_key"] = "arn:aws:kms:us-west-2:111122223333:key/1";
    EXPECT_EQ(body_of(request_for(server, unwrap())).text({"KeyId"}),
              "arn:aws:kms:us-west-2:111122223333:key/1");
}

TEST(Aws, RewrapsInsideTheKms) {
    Server server = aws();
    server.options["master_key"] = "alias/new";
    Ask ask = unwrap("old");
    ask.verb = Verb::rewrap;
    ask.source_key = "arn:aws:kms:eu-west-1:1:key/mrk-1";
    const http::Request request = request_for(server, ask);
    EXPECT_EQ(header(request, "X-Amz-Target"), "TrentService.ReEncrypt");
    const std::string context =
        R"({"envcrypt-purpose":"data","envcrypt-key":"0000000000001234","envcrypt-tenant":"acme"})";
    EXPECT_EQ(
        request.body.expose_text(),
        R"({"DestinationKeyId":"alias/new","DestinationEncryptionContext":)" + context +
            R"(,"CiphertextBlob":"b2xk","SourceKeyId":"arn:aws:kms:eu-central-1:1:key/mrk-1","SourceEncryptionContext":)" +
            context + "}");
    const Result<Answer> answer = server.dialect->read(
        server, ask,
        response(200, R"({"CiphertextBlob":"bmV3","KeyId":"arn:new","SourceKeyId":"arn:old",)"
                      R"("SourceKeyMaterialId":"m1","DestinationKeyMaterialId":"m2"})"));
    ASSERT_TRUE(answer);
    EXPECT_EQ(as_text(answer->wrapped), "new");
    EXPECT_EQ(answer->master_key, "arn:new");
    EXPECT_EQ(answer->master_key_version, "m2");
    EXPECT_TRUE(answer->key.empty());
    EXPECT_EQ(code_of(server, ask, 200, R"({"KeyId":"arn:new"})"), ErrorCode::bad_answer);
}

TEST(Aws, ReadsAnswers) {
    const auto answer =
        aws_dialect().read(aws(), unwrap(),
                           response(200, std::string(R"({"KeyId":"arn:k","Plaintext":")") +
                                             kKeyBase64 + R"(","KeyMaterialId":"m"})"));
    ASSERT_TRUE(answer);
    EXPECT_EQ(crypto::to_base64(answer->key.expose()), kKeyBase64);
    EXPECT_EQ(answer->master_key, "arn:k");
    EXPECT_EQ(answer->master_key_version, "m");
    for (const char *bad :
         {R"({"KeyId":"k"})", R"({"KeyId":"k","Plaintext":"*"})",
          R"({"KeyId":"","Plaintext":"AAEC"})", R"({"KeyId":1,"Plaintext":"AAEC"})"})
        EXPECT_EQ(code_of(aws(), unwrap(), 200, bad), ErrorCode::bad_answer) << bad;
    for (const char *foreign : {"", "{}", "[]", "<html>", R"({"status":"ok"})",
                                R"({"KeyId":"k","KeyId":"k","Plaintext":"AAEC"})"})
        EXPECT_EQ(code_of(aws(), unwrap(), 200, foreign), ErrorCode::unreachable) << foreign;
}

TEST(Aws, AnOutageOfACustomKeyStoreIsNoDenial) {
    const std::pair<const char *, ErrorCode> cases[] = {
        {"AWS KMS rejected the request because the external key store proxy did not respond in "
         "time. Retry the request.",
         ErrorCode::unreachable},
        {"AWS KMS cannot communicate with the external key store proxy. This might be a transient "
         "network issue.",
         ErrorCode::unreachable},
        {"The external key store proxy is in an unhealthy state.", ErrorCode::unreachable},
        {"AWS KMS cannot interpret the response from the external key store proxy.",
         ErrorCode::unreachable},
        {"The custom key store is not connected.", ErrorCode::unreachable},
        {"arn:aws:kms:eu-central-1:1:key/1 is unavailable.", ErrorCode::unreachable},
        {"The request was rejected due to a very high request rate.", ErrorCode::throttled},
        {"The external key store proxy rejected the request because the specified ciphertext or "
         "additional authenticated data is corrupted, missing, or otherwise invalid.",
         ErrorCode::corrupt},
        {"arn:aws:kms:eu-central-1:1:key/1 is pending deletion.", ErrorCode::denied},
        {"arn:aws:kms:eu-central-1:1:key/1 is pending import.", ErrorCode::denied},
        {"The external key store proxy denied access to the operation.", ErrorCode::denied},
        {"The external key store proxy rejected the request because the external key is not "
         "enabled "
         "in the external key manager.",
         ErrorCode::denied},
        {"", ErrorCode::denied},
    };
    for (const auto &[message, code] : cases)
        for (const char *member : {"message", "Message"})
            EXPECT_EQ(code_of(aws(), unwrap(), 400,
                              std::string(R"({"__type":"KMSInvalidStateException",")") + member +
                                  "\":\"" + message + "\"}"),
                      code)
                << message;
    for (const char *code :
         {"XksProxyUriUnreachableException", "XksProxyInvalidResponseException",
          "CloudHsmClusterNotActiveException", "CloudHsmClusterInvalidConfigurationException",
          "CustomKeyStoreInvalidStateException"})
        EXPECT_EQ(code_of(aws(), unwrap(), 400, std::string(R"({"__type":")") + code + "\"}"),
                  ErrorCode::unreachable)
            << code;
}

TEST(Aws, ErrorsByTheirCodes) {
    const std::pair<const char *, ErrorCode> cases[] = {
        {"AccessDeniedException", ErrorCode::denied},
        {"DisabledException", ErrorCode::denied},
        {"KMSInvalidStateException", ErrorCode::denied},
        {"NotFoundException", ErrorCode::denied},
        {"ExpiredTokenException", ErrorCode::denied},
        {"ThrottlingException", ErrorCode::throttled},
        {"LimitExceededException", ErrorCode::throttled},
        {"KMSInternalException", ErrorCode::unreachable},
        {"DependencyTimeoutException", ErrorCode::unreachable},
        {"KeyUnavailableException", ErrorCode::unreachable},
        {"ValidationException", ErrorCode::misconfigured},
        {"InvalidArnException", ErrorCode::misconfigured},
        {"InvalidKeyUsageException", ErrorCode::misconfigured},
        {"InvalidCiphertextException", ErrorCode::corrupt},
        {"IncorrectKeyException", ErrorCode::corrupt},
        {"SomethingNewException", ErrorCode::misconfigured},
    };
    for (const auto &[name, code] : cases) {
        for (const char *space : {"", "com.amazonaws.kms#"})
            EXPECT_EQ(code_of(aws(), unwrap(), 400,
                              std::string(R"({"__type":")") + space + name +
                                  R"(","message":"a-secret"})"),
                      code)
                << name;
        http::Response other = response(400, "");
        other.headers = {{"x-amzn-errortype", std::string(name) + ":http://internal/"}};
        const Error error = aws_error(aws(), "unwrap a key", other, "a right");
        EXPECT_EQ(error.code, code) << name;
        EXPECT_EQ(error.detail.find("a-secret"), std::string::npos);
    }
    EXPECT_EQ(code_of(aws(), unwrap(), 500, "<html>"), ErrorCode::unreachable);
    for (const int status : {400, 401, 403, 404, 408, 425})
        for (const char *foreign : {"<html>", "RBAC: access denied", "", R"({"message":"no"})",
                                    "<Response><Code>AccessDenied</Code></Response>"})
            EXPECT_EQ(code_of(aws(), unwrap(), status, foreign), ErrorCode::unreachable)
                << status << foreign;
    EXPECT_EQ(code_of(aws(), unwrap(), 403,
                      "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"),
              ErrorCode::denied);
    EXPECT_EQ(code_of(aws(), unwrap(), 429, ""), ErrorCode::throttled);
}

TEST(Aws, NamesTheRightThatTheCallNeeds) {
    const std::pair<Verb, const char *> rights[] = {{Verb::make_data_key, "kms:GenerateDataKey "},
                                                    {Verb::wrap, "kms:Encrypt "},
                                                    {Verb::unwrap, "kms:Decrypt "},
                                                    {Verb::rewrap, "kms:ReEncryptFrom "}};
    for (const auto &[verb, right] : rights) {
        Ask ask = unwrap();
        ask.verb = verb;
        const std::string hint = hint_of(aws(), ask, 400, R"({"__type":"AccessDeniedException"})");
        for (const auto &[other, name] : rights)
            EXPECT_EQ(hint.find(name) != std::string::npos, other == verb) << hint;
        EXPECT_EQ(hint_of(aws(), ask, 403, R"({"__type":"AccessDeniedException"})"), hint);
    }
}

TEST(Aws, TellsACredentialAndAClockFromARight) {
    const auto said = [](const char *code, const char *message) {
        return response(
            400, std::string(R"({"__type":")") + code + R"(","message":")" + message + "\"}");
    };
    EXPECT_TRUE(aws_dialect().refuses_credential(said("ExpiredTokenException", "")));
    EXPECT_TRUE(aws_dialect().refuses_credential(said("UnrecognizedClientException", "")));
    EXPECT_FALSE(aws_dialect().refuses_credential(said("AccessDeniedException", "")));
    EXPECT_FALSE(aws_dialect().refuses_credential(said("ThrottlingException", "")));
    EXPECT_TRUE(aws_dialect().refuses_time(
        said("InvalidSignatureException", "Signature expired: 20261124T192831Z is now earlier")));
    EXPECT_FALSE(aws_dialect().refuses_time(said("InvalidSignatureException", "does not match")));
    EXPECT_FALSE(aws_dialect().refuses_time(said("AccessDeniedException", "Signature expired")));
}

// --- Google

TEST(Gcp, Crc32c) {
    EXPECT_EQ(crc32c(as_bytes("123456789")), 0xe3069283u);  // RFC 3720, appendix B.4's polynomial
    EXPECT_EQ(crc32c({}), 0u);
    const Bytes zeros(32, 0);
    EXPECT_EQ(crc32c(zeros), 0x8a9136aau);  // RFC 3720, appendix B.4
    const Bytes ones(32, 0xff);
    EXPECT_EQ(crc32c(ones), 0x62a8ab43u);
}

TEST(Gcp, WrapsUnderAssociatedDataWithChecksums) {
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    const http::Request request = request_for(gcp(), wrap(key));
    EXPECT_EQ(request.url,
              "https://cloudkms.googleapis.com/v1/projects/p/locations/l/keyRings/r/cryptoKeys/"
              "k:encrypt");
    EXPECT_EQ(header(request, "Authorization"), "Bearer secret");
    EXPECT_EQ(header(request, "Content-Type"), "application/json");
    const Json body = body_of(request);
    EXPECT_EQ(body.text({"plaintext"}), kKeyBase64);
    EXPECT_EQ(body.text({"plaintextCrc32c"}), std::to_string(crc32c(key.expose())));
    EXPECT_EQ(body.text({"additionalAuthenticatedData"}), crypto::to_base64(as_bytes(kContext)));
    EXPECT_EQ(body.text({"additionalAuthenticatedDataCrc32c"}),
              std::to_string(crc32c(as_bytes(kContext))));
    Ask bare = unwrap();
    bare.context.clear();
    EXPECT_FALSE(body_of(request_for(gcp(), bare)).text({"additionalAuthenticatedData"}));
}

TEST(Gcp, ReadsWhatWasWrapped) {
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    const std::string name = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/7";
    const auto body = [&](const std::string &its_name, const char *crc, const char *verified) {
        return R"({"name":")" + its_name + R"(","ciphertext":"d3JhcHBlZA==","ciphertextCrc32c":")" +
               crc + "\"" + verified + "}";
    };
    const std::string crc = crc32c_text(as_bytes("wrapped"));
    const char *both =
        R"(,"verifiedPlaintextCrc32c":true,"verifiedAdditionalAuthenticatedDataCrc32c":true)";
    const auto good =
        gcp_dialect().read(gcp(), wrap(key), response(200, body(name, crc.c_str(), both)));
    ASSERT_TRUE(good);
    EXPECT_EQ(as_text(good->wrapped), "wrapped");
    EXPECT_EQ(good->master_key_version, "7");
    EXPECT_EQ(code_of(gcp(), wrap(key), 200, body(name, "1", both)), ErrorCode::damaged);
    EXPECT_EQ(code_of(gcp(), wrap(key), 200, body(name, crc.c_str(), "")), ErrorCode::damaged);
    EXPECT_EQ(code_of(gcp(), wrap(key), 200,
                      body(name, crc.c_str(), R"(,"verifiedPlaintextCrc32c":true)")),
              ErrorCode::damaged);
    for (const char *other :
         {"", "projects/p/locations/l/keyRings/r/cryptoKeys/k",
          "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/",
          "projects/p/locations/l/keyRings/r/cryptoKeys/kk/cryptoKeyVersions/7"})
        EXPECT_EQ(code_of(gcp(), wrap(key), 200, body(other, crc.c_str(), both)),
                  ErrorCode::bad_answer)
            << other;
}

TEST(Gcp, ChecksWhatWasUnwrapped) {
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    const auto body = [&](const std::string &crc) {
        return std::string(R"({"plaintext":")") + kKeyBase64 + R"(","plaintextCrc32c":")" + crc +
               "\"}";
    };
    EXPECT_TRUE(
        gcp_dialect().read(gcp(), unwrap(), response(200, body(crc32c_text(key.expose())))));
    EXPECT_EQ(code_of(gcp(), unwrap(), 200, body("1")), ErrorCode::damaged);
    EXPECT_EQ(code_of(gcp(), unwrap(), 200, std::string(R"({"plaintext":")") + kKeyBase64 + "\"}"),
              ErrorCode::damaged);
    EXPECT_EQ(code_of(gcp(), unwrap(), 200, R"({"plaintext":7})"), ErrorCode::bad_answer);
    for (const char *foreign : {"", "{}", "<html>", R"({"status":"ok"})"})
        EXPECT_EQ(code_of(gcp(), unwrap(), 200, foreign), ErrorCode::unreachable) << foreign;
}

TEST(Gcp, Errors) {
    const auto said = [](const char *status, const char *message = "") {
        return std::string(R"({"error":{"code":400,"status":")") + status + R"(","message":")" +
               message + "\"}}";
    };
    const SecretBytes key(std::string_view("k"));
    EXPECT_EQ(code_of(gcp(), unwrap(), 400, said("INVALID_ARGUMENT")), ErrorCode::corrupt);
    EXPECT_EQ(code_of(gcp(), wrap(key), 400, said("INVALID_ARGUMENT")), ErrorCode::misconfigured);
    EXPECT_EQ(code_of(gcp(), unwrap(), 400,
                      said("INVALID_ARGUMENT",
                           "The checksum in field ciphertext_crc32c did not "
                           "match the data in field ciphertext.")),
              ErrorCode::damaged);
    EXPECT_EQ(code_of(gcp(), unwrap(), 400, said("FAILED_PRECONDITION")), ErrorCode::denied);
    for (const int status : {400, 401, 403, 404, 418})
        for (const char *foreign : {"<html>", "RBAC: access denied", "", R"({"error":"forbidden"})",
                                    R"({"error":{"code":403}})"})
            EXPECT_EQ(code_of(gcp(), unwrap(), status, foreign), ErrorCode::unreachable)
                << status << foreign;
    EXPECT_FALSE(gcp_dialect().refuses_credential(response(401, "<html>")));
    const auto precondition = [](const char *type) {
        return std::string(
                   R"({"error":{"status":"FAILED_PRECONDITION","details":[{"violations":[)") +
               R"({"type":"KEY_STATE"},{"type":")" + type + R"("}]}]}})";
    };
    for (const char *type : {"EXTERNAL_UNREACHABLE", "EKM_CONNECTION_ERROR", "EXTERNAL_TIMEOUT",
                             "EXTERNAL_KEY_UNAVAILABLE"})
        EXPECT_EQ(code_of(gcp(), unwrap(), 400, precondition(type)), ErrorCode::unreachable)
            << type;
    for (const char *type :
         {"KEY_DISABLED", "KEY_DESTROYED", "EXTERNAL_PERMISSION_DENIED", "EXTERNAL_NOT_FOUND", ""})
        EXPECT_EQ(code_of(gcp(), unwrap(), 400, precondition(type)), ErrorCode::denied) << type;
    const std::pair<int, ErrorCode> statuses[] = {
        {401, ErrorCode::denied},      {403, ErrorCode::denied},
        {404, ErrorCode::denied},      {429, ErrorCode::throttled},
        {500, ErrorCode::unreachable}, {503, ErrorCode::unreachable},
        {504, ErrorCode::unreachable}, {418, ErrorCode::misconfigured}};
    for (const auto &[status, code] : statuses)
        EXPECT_EQ(code_of(gcp(), unwrap(), status, said("X")), code) << status;
    EXPECT_TRUE(gcp_dialect().refuses_credential(
        response(401, R"({"error":{"status":"UNAUTHENTICATED"}})")));
    EXPECT_FALSE(gcp_dialect().refuses_credential(response(403, "")));
}

TEST(Gcp, NamesWhatTheCallNeeds) {
    const SecretBytes key = *crypto::from_base64_secret(kKeyBase64);
    const auto has = [](const std::string &hint, const char *words) {
        EXPECT_NE(hint.find(words), std::string::npos) << hint;
    };
    has(hint_of(gcp(), unwrap(), 403, R"({"error":{"status":"PERMISSION_DENIED"}})"),
        "cryptoKeyDecrypter ");
    has(hint_of(gcp(), wrap(key), 403, R"({"error":{"status":"PERMISSION_DENIED"}})"),
        "cryptoKeyEncrypterDecrypter ");
    const auto reason = [](const char *name) {
        return std::string(R"({"error":{"status":"PERMISSION_DENIED","details":[{"x":"y"},)") +
               R"({"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":")" + name +
               R"("}]}})";
    };
    has(hint_of(gcp(), unwrap(), 403, reason("ACCESS_TOKEN_SCOPE_INSUFFICIENT")), "scopes");
    has(hint_of(gcp(), unwrap(), 403, reason("SERVICE_DISABLED")), "not enabled");
    has(hint_of(gcp(), unwrap(), 403, reason("BILLING_DISABLED")), "billing");
    has(hint_of(gcp(), unwrap(), 403, reason("SOMETHING_NEW")), "cryptoKeyDecrypter ");
}

TEST(Gcp, KeysAreNamedInFull) {
    for (const char *bad : {"app", "projects/p", "projects/p/locations/l/keyRings/r/cryptoKeys/",
                            "x/projects/p/locations/l/keyRings/r/cryptoKeys/k",
                            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"}) {
        Server server = gcp();
        server.options["master_key"] = bad;
        EXPECT_FALSE(server.dialect->check_complete(server)) << bad;
    }
    EXPECT_TRUE(gcp_dialect().check_complete(gcp()));
}

// --- Azure

TEST(Azure, WrapsTheKeyWithTheDigestOfItsContextAndHasItAttested) {
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    const http::Request request = request_for(azure(), wrap(key));
    EXPECT_EQ(request.url, "https://v.vault.azure.net/keys/app/wrapkey?api-version=7.4");
    const Json body = body_of(request);
    EXPECT_EQ(body.text({"alg"}), "RSA-OAEP-256");
    const auto payload = crypto::from_base64url_secret(*body.text({"value"}));
    ASSERT_TRUE(payload);
    ASSERT_EQ(payload->size(), 64u);
    const crypto::Digest digest = crypto::sha256(as_bytes(kContext));
    EXPECT_TRUE(equal_constant_time(payload->expose().first(32), key.expose()));
    EXPECT_TRUE(equal_constant_time(payload->expose().subspan(32), digest));

    auto wrapped = azure_dialect().read(
        azure(), wrap(key),
        response(200,
                 R"({"kid":"https://v.vault.azure.net/keys/app/0123abcd","value":"d3JhcHBlZA"})"));
    ASSERT_TRUE(wrapped);
    EXPECT_TRUE(wrapped->more);
    EXPECT_EQ(as_text(wrapped->wrapped), "azure:0123abcd:d3JhcHBlZA");
    EXPECT_EQ(wrapped->master_key_version, "0123abcd");

    Ask sign = wrap(key);
    sign.so_far = &*wrapped;
    const http::Request signs = request_for(azure(), sign);
    EXPECT_EQ(signs.url, "https://v.vault.azure.net/keys/attest/sign?api-version=7.4");
    const crypto::Digest commitment =
        crypto::commitment(key.expose().first<crypto::kKeySize>(), kContext);
    const std::string attested =
        kContext + std::string(as_text(commitment)) + std::string(as_text(wrapped->wrapped));
    EXPECT_EQ(body_of(signs).text({"alg"}), "PS256");
    EXPECT_EQ(body_of(signs).text({"value"}),
              crypto::to_base64url(crypto::sha256(as_bytes(attested))));
    const auto done = azure_dialect().read(
        azure(), sign,
        response(200, R"({"kid":"https://v.vault.azure.net/keys/attest/77","value":"c2ln"})"));
    ASSERT_TRUE(done);
    EXPECT_FALSE(done->more);
    EXPECT_EQ(as_text(done->attestation), "77:c2ln");
    EXPECT_EQ(done->wrapped, wrapped->wrapped);
}

TEST(Azure, RefusesAnswersAboutOtherKeys) {
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    for (const char *kid :
         {"", "https://v.vault.azure.net/keys/other/1", "https://v.vault.azure.net/keys/app",
          "https://v.vault.azure.net/keys/app/", "https://v.vault.azure.net/keys/app/1:2",
          "https://v.vault.azure.net/keys/app/1/2"})
        EXPECT_EQ(code_of(azure(), wrap(key), 200,
                          std::string(R"({"kid":")") + kid + R"(","value":"d3JhcHBlZA"})"),
                  ErrorCode::bad_answer)
            << kid;
    for (const char *value : {"", "a=", "+/", "a"})
        EXPECT_EQ(
            code_of(azure(), wrap(key), 200,
                    std::string(R"({"kid":"https://v/keys/app/1","value":")") + value + "\"}"),
            ErrorCode::bad_answer)
            << value;
}

TEST(Azure, UnwrapsWithTheVersionThatWrapped) {
    Ask ask = unwrap("azure:0123abcd:d3JhcHBlZA");
    const std::string attestation = "77:c2ln";
    ask.attestation = as_bytes(attestation);
    EXPECT_EQ(request_for(azure(), ask).url,
              "https://v.vault.azure.net/keys/app/0123abcd/unwrapkey?api-version=7.4");
    const auto read = [&](const std::string &payload) {
        return azure_dialect().read(
            azure(), ask,
            response(200, R"({"kid":"https://v/keys/app/1","value":")" +
                              crypto::to_base64url(as_bytes(payload)) + "\"}"));
    };
    const std::string key(32, 'k');
    const crypto::Digest digest = crypto::sha256(as_bytes(kContext));
    const auto good = read(key + std::string(as_text(digest)));
    ASSERT_TRUE(good);
    EXPECT_TRUE(good->more);  // the attestation is yet to be checked
    for (const std::string &bad :
         {key, key + std::string(32, 'x'), std::string(), key + key + key}) {
        const auto refused = read(bad);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
    }
    // a signature that is none
    Ask check = ask;
    check.so_far = &*good;
    EXPECT_EQ(request_for(azure(), check).url,
              "https://v.vault.azure.net/keys/attest/77?api-version=7.4");
    EXPECT_EQ(code_of(azure(), check, 200, R"({"key":{"n":"AQAB","e":"AQAB"}})"),
              ErrorCode::corrupt);
    EXPECT_EQ(code_of(azure(), check, 200, R"({"key":{}})"), ErrorCode::bad_answer);
    EXPECT_EQ(code_of(azure(), check, 200, "{}"), ErrorCode::unreachable);
}

TEST(Azure, WithoutAnAttestationNothingIsEvenAsked) {
    const Credential token{SecretBytes("t")};
    for (const char *attestation : {"", ":c2ln", "no colon"}) {
        Ask ask = unwrap("azure:0123abcd:d3JhcHBlZA");
        ask.attestation = as_bytes(attestation);
        const auto asked = azure_dialect().ask(azure(), ask, token);
        const auto *answer = std::get_if<Result<Answer>>(&asked);
        ASSERT_NE(answer, nullptr) << attestation;
        EXPECT_EQ(answer->error().code, ErrorCode::corrupt);
    }
    for (const char *wrapped : {"", "vault:v1:x", "azure:", "azure::x", "azure:../x:y"}) {
        const auto asked = azure_dialect().ask(azure(), unwrap(wrapped), token);
        const auto *answer = std::get_if<Result<Answer>>(&asked);
        ASSERT_NE(answer, nullptr) << wrapped;
        EXPECT_EQ(answer->error().code, ErrorCode::corrupt);
    }
    // AES-KW authenticates by itself
    Server hsm = azure();
    hsm.options["algorithm"] = "A256KW";
    EXPECT_TRUE(request_for(hsm, unwrap("azure:1:eA")).url.ends_with("/unwrapkey?api-version=7.4"));
}

TEST(Azure, Errors) {
    const std::pair<int, ErrorCode> statuses[] = {
        {400, ErrorCode::corrupt},      {401, ErrorCode::denied},
        {403, ErrorCode::denied},       {404, ErrorCode::denied},
        {408, ErrorCode::unreachable},  {429, ErrorCode::throttled},
        {500, ErrorCode::unreachable},  {503, ErrorCode::unreachable},
        {409, ErrorCode::misconfigured}};
    for (const auto &[status, code] : statuses)
        EXPECT_EQ(code_of(azure(), unwrap(), status, R"({"error":{"code":"X"}})"), code) << status;
    for (const int status : {400, 401, 403, 404, 409})
        for (const char *foreign : {"<html>", "RBAC: access denied", "", R"({"error":"x"})"})
            EXPECT_EQ(code_of(azure(), unwrap(), status, foreign), ErrorCode::unreachable)
                << status << foreign;
    EXPECT_FALSE(azure_dialect().refuses_credential(response(401, "<html>")));
    const SecretBytes key(*crypto::from_base64_secret(kKeyBase64));
    EXPECT_EQ(code_of(azure(), wrap(key), 400, R"({"error":{"code":"X"}})"),
              ErrorCode::misconfigured);
    EXPECT_EQ(azure_resource(azure()), "https://vault.azure.net");
    Server hsm = azure();
    hsm.options["endpoint"] = "https://h.managedhsm.azure.net/";
    EXPECT_EQ(azure_resource(hsm), "https://managedhsm.azure.net");
}

// --- references to secrets

TEST(Azure, NamesTheRightThatTheCallNeeds) {
    const SecretBytes key = *crypto::from_base64_secret(kKeyBase64);
    const Answer before;
    const auto refused = [&](Ask ask, bool second) {
        if (second) ask.so_far = &before;
        return hint_of(azure(), ask, 403,
                       R"({"error":{"code":"Forbidden","innererror":{"code":"ForbiddenByRbac"}}})");
    };
    // an application is never told to ask for signing
    const std::string app[] = {refused(unwrap(), false), refused(unwrap(), true),
                               refused(wrap(key), false)};
    const char *rights[] = {"keys/unwrap ", "keys/read ", "keys/wrap "};
    for (std::size_t i = 0; i < std::size(app); ++i) {
        EXPECT_NE(app[i].find(rights[i]), std::string::npos) << app[i];
        EXPECT_NE(app[i].find("Key Vault Crypto Service Encryption User"), std::string::npos);
        EXPECT_EQ(app[i].find("sign"), std::string::npos);
    }
    EXPECT_NE(refused(wrap(key), true).find("keys/sign "), std::string::npos);
}

TEST(Reference, Parts) {
    const auto file = parse_reference("file:/run/secrets/x");
    ASSERT_TRUE(file);
    EXPECT_EQ(file->store, SecretStore::file);
    EXPECT_EQ(file->name, "/run/secrets/x");
    const auto aws_secret = parse_reference("aws-secretsmanager:s:arn:aws:sm:r:1:secret:a/b-X#f");
    ASSERT_TRUE(aws_secret);
    EXPECT_EQ(aws_secret->store, SecretStore::aws);
    EXPECT_EQ(aws_secret->server, "s");
    EXPECT_EQ(aws_secret->name, "arn:aws:sm:r:1:secret:a/b-X");
    EXPECT_EQ(aws_secret->field, "f");
    EXPECT_EQ(parse_reference("vault-kv:s:kv/a/b#f")->name, "kv/a/b");
    EXPECT_EQ(parse_reference("doppler:p/c/N")->name, "p/c/N");
    EXPECT_EQ(parse_reference("gcp-secretmanager:s:projects/p/secrets/x")->field, "");
    EXPECT_EQ(parse_reference("azure-keyvault:s:n")->store, SecretStore::azure);
}

TEST(Reference, WhatIsNone) {
    for (const char *bad : {"",
                            "file:",
                            "file:x",
                            "FILE:/x",
                            "hvs.CAESIJ",
                            "aws-secretsmanager:",
                            "aws-secretsmanager:s",
                            "aws-secretsmanager:s:",
                            "aws-secretsmanager::n",
                            "aws-secretsmanager:s:n#",
                            "aws-secretsmanager:s:n#a b",
                            "azure-keyvault:s:../n",
                            "azure-keyvault:s:n?x",
                            "azure-keyvault:s:/n",
                            "azure-keyvault:s:n/",
                            "vault-kv:s:kv/a",
                            "vault-kv:s:kv#f",
                            "gcp-secretmanager:s:a%2fb",
                            "doppler:p/c",
                            "doppler:p/c/n/x",
                            "doppler:/c/n",
                            "doppler:p/c/",
                            "vault-kv:s s:kv/a#f",
                            "other:s:n",
                            "azure-keyvault:s:n\n"})
        EXPECT_FALSE(parse_reference(bad)) << bad;
}

}  // namespace
}  // namespace envcrypt::kms
