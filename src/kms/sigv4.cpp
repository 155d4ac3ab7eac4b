// See sigv4.hpp. The steps bear the names that AWS gives them.
#include "kms/sigv4.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "crypto/digest.hpp"
#include "crypto/encoding.hpp"
#include "kms/time.hpp"

namespace envcrypt::kms {

namespace {

std::string lower_case(std::string_view text) {
    std::string result(text);
    for (char &c : result)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return result;
}

// Without blanks at the ends, and one for each run of them within.
void append_trimmed(SecretBytes &to, std::string_view value) {
    bool blank = false;
    bool any = false;
    for (const char c : value) {
        if (c == ' ' || c == '\t') {
            blank = true;
            continue;
        }
        if (blank && any) to.append(as_bytes(" "));
        to.append(as_bytes(std::string_view(&c, 1)));
        blank = false;
        any = true;
    }
}

// HOST of https://HOST/..., with the port unless it is https's own.
std::string host_of(std::string_view url) {
    url.remove_prefix(url.find("://") + 3);
    std::string host = lower_case(url.substr(0, url.find('/')));
    if (host.ends_with(":443")) host.resize(host.size() - 4);
    return host;
}

}  // namespace

void sign_v4(http::Request &request, const Credential &credential, std::string_view region,
             std::string_view service, std::int64_t time) {
    const std::string moment = basic_utc_time(time);
    const std::string scope = moment.substr(0, 8) + "/" + std::string(region) + "/" +
                              std::string(service) + "/aws4_request";
    request.headers.push_back({"X-Amz-Date", SecretBytes(moment)});
    if (!credential.session_token.empty())
        request.headers.push_back({"X-Amz-Security-Token", credential.session_token.copy()});

    // canonical headers: sorted by name, those of one name joined; a token may be among them
    std::map<std::string, SecretBytes> canonical;
    canonical.emplace("host", SecretBytes(host_of(request.url)));
    for (const http::Header &header : request.headers) {
        SecretBytes &value = canonical[lower_case(header.name)];
        if (!value.empty()) value.append(as_bytes(","));
        append_trimmed(value, header.value.expose_text());
    }
    SecretBytes canonical_request(std::string_view(request.method));
    canonical_request.append(as_bytes("\n/\n\n"));
    std::string signed_headers;
    for (const auto &[name, value] : canonical) {
        canonical_request.append(as_bytes(name));
        canonical_request.append(as_bytes(":"));
        canonical_request.append(value.expose());
        canonical_request.append(as_bytes("\n"));
        signed_headers += (signed_headers.empty() ? "" : ";") + name;
    }
    canonical_request.append(as_bytes("\n" + signed_headers + "\n"));
    canonical_request.append(as_bytes(crypto::to_hex(crypto::sha256(request.body.expose()))));

    const std::string string_to_sign = "AWS4-HMAC-SHA256\n" + moment + "\n" + scope + "\n" +
                                       crypto::to_hex(crypto::sha256(canonical_request.expose()));

    SecretBytes key("AWS4");
    key.append(credential.secret.expose());
    for (const std::string_view part : {std::string_view(moment).substr(0, 8), region, service,
                                        std::string_view("aws4_request")}) {
        crypto::Digest derived = crypto::hmac_sha256(key.expose(), {as_bytes(part)});
        key = SecretBytes(ByteView(derived));
        wipe(derived);
    }
    const std::string signature =
        crypto::to_hex(crypto::hmac_sha256(key.expose(), {as_bytes(string_to_sign)}));
    request.headers.push_back(
        {"Authorization",
         SecretBytes("AWS4-HMAC-SHA256 Credential=" + credential.id + "/" + scope +
                     ", SignedHeaders=" + signed_headers + ", Signature=" + signature)});
}

}  // namespace envcrypt::kms
