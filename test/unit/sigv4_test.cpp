// Signature Version 4 against AWS's own published vectors (test/vectors/sigv4).
#include "kms/sigv4.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "crypto/digest.hpp"
#include "crypto/encoding.hpp"
#include "kms/json.hpp"
#include "kms/time.hpp"

namespace envcrypt::kms {
namespace {

namespace fs = std::filesystem;

fs::path vectors() {
    const char *dir = std::getenv("ENVCRYPT_TEST_DIR");
    return fs::path(dir != nullptr ? dir : "test") / "vectors/sigv4";
}

std::string contents(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

TEST(Sigv4, SignsAsAwsDoes) {
    int cases = 0;
    for (const auto &entry : fs::directory_iterator(vectors())) {
        if (!entry.is_directory()) continue;
        SCOPED_TRACE(entry.path().filename().string());
        const auto context = Json::parse(SecretBytes(contents(entry.path() / "context.json")));
        ASSERT_TRUE(context);
        // METHOD PATH HTTP/1.1, headers, an empty line, the body
        std::string request_text = contents(entry.path() / "request.txt");
        http::Request request;
        const bool post = request_text.starts_with("POST / ");
        request.method = post ? "POST" : "GET";
        // a query is nothing that is ever sent here
        if (!post && !request_text.starts_with("GET / ")) continue;
        std::size_t at = request_text.find('\n') + 1;
        while (at < request_text.size() && request_text[at] != '\n') {
            const std::size_t end = std::min(request_text.find('\n', at), request_text.size());
            const std::string line = request_text.substr(at, end - at);
            const std::string name = line.substr(0, line.find(':'));
            const std::string value = line.substr(line.find(':') + 1);
            if (name == "Host")
                request.url = "https://" + value + "/";
            else if (name != "X-Amz-Date")
                request.headers.push_back({name, SecretBytes(value)});
            at = end + 1;
        }
        if (at + 1 < request_text.size())
            request.body = SecretBytes(std::string_view(request_text).substr(at + 1));
        if (context->boolean({"sign_body"}) == true)
            request.headers.push_back(
                {"x-amz-content-sha256",
                 SecretBytes(crypto::to_hex(crypto::sha256(request.body.expose())))});
        Credential keys{SecretBytes(*context->text({"credentials", "secret_access_key"}))};
        keys.id = *context->text({"credentials", "access_key_id"});
        const auto token = context->text({"credentials", "token"});
        // one that is added after signing is not signed: nothing that is done here
        if (token && context->boolean({"omit_session_token"}) != true)
            keys.session_token = SecretBytes(*token);
        sign_v4(request, keys, *context->text({"region"}), *context->text({"service"}),
                *parse_utc_time(*context->text({"timestamp"})));
        const std::string authorization(request.headers.back().value.expose_text());
        std::string signature = contents(entry.path() / "header-signature.txt");
        while (signature.ends_with('\n')) signature.pop_back();
        EXPECT_TRUE(authorization.ends_with("Signature=" + signature)) << authorization;
        ++cases;
    }
    EXPECT_GE(cases, 13);
}

TEST(Sigv4, TheHostIsThatOfTheUrl) {
    const auto signed_with = [](const char *url) {
        http::Request request;
        request.url = url;
        sign_v4(request, Credential{SecretBytes("s")}, "r", "s", 0);
        return std::string(request.headers.back().value.expose_text());
    };
    EXPECT_EQ(signed_with("https://kms.test/"), signed_with("https://kms.test:443/"));
    EXPECT_NE(signed_with("https://kms.test/"), signed_with("https://kms.test:8443/"));
}

}  // namespace
}  // namespace envcrypt::kms
