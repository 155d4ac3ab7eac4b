// Implements engine.hpp: libcurl's sockets and its timer sit in one epoll descriptor, and every
// option that makes a transfer safe is set here. What an answer means, whether to try again and how
// long to wait is decided elsewhere.
// What libcurl copies into buffers of its own (headers sent, the answer on its way) is wiped when
// libcurl frees it, provided that nobody initialised libcurl in this process before; see
// initialise_curl(). OpenSSL wipes the plaintext of a TLS record once it is read. While a
// connection is idle, libcurl and nghttp2 may keep parts of what went over it (HTTP/2 remembers
// header fields): close_connections() ends that. Everything that this file owns is wiped.
#include "http/engine.hpp"

#include <curl/curl.h>
#include <fcntl.h>
#include <malloc.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <new>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace envcrypt::http {

namespace {

constexpr std::size_t kMaxHeaders = 32 * 1024;
constexpr int kEventsPerRound = 64;
constexpr int kRoundsPerStep = 16;  // then the caller gets a turn, to check for interrupts

constexpr long kMaxIdleConnections = 8;
constexpr long kMaxIdleSeconds = 50;  // servers and load balancers commonly hang up after 60
constexpr long kMaxConnectionSeconds = 600;
constexpr long kMaxTrustSeconds =
    60;  // how long libcurl may use a CA file without reading it again

constexpr unsigned kOldestVersion = 0x075801;        // 7.88.1
constexpr unsigned kFirstGoodHttp2 = 0x080100;       // 8.1.0: HTTP/2 repaired, see boundary.md 6.4
constexpr unsigned kFirstMultiQuickExit = 0x081400;  // 8.20.0
constexpr auto kTooLarge = static_cast<CURLcode>(100);          // 8.6.0
constexpr auto kMultiQuickExit = static_cast<CURLMoption>(21);  // not in the oldest header

constexpr const char *kReachHint =
    "Check the server's option endpoint, and name resolution and firewalls between the database "
    "host and the KMS.";

constinit bool curl_is_initialised = false;

// Threads that libcurl starts inherit the mask: none of them may take PostgreSQL's signals.
class SignalBlock {
public:
    SignalBlock() noexcept {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalBlock() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalBlock(const SignalBlock &) = delete;
    SignalBlock &operator=(const SignalBlock &) = delete;

private:
    sigset_t before_;
};

class Descriptor {
public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) close(fd_);
    }
    Descriptor(Descriptor &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor &operator=(Descriptor &&) = delete;

    int get() const noexcept { return fd_; }

private:
    int fd_;
};

struct Cleanup {
    void operator()(CURL *easy) const noexcept { curl_easy_cleanup(easy); }
    void operator()(CURLU *url) const noexcept { curl_url_cleanup(url); }
    void operator()(char *text) const noexcept { curl_free(text); }
};
using EasyHandle = std::unique_ptr<CURL, Cleanup>;
using UrlHandle = std::unique_ptr<CURLU, Cleanup>;
using CurlText = std::unique_ptr<char, Cleanup>;

Error internal(std::string what, std::string_view detail) {
    return {ErrorCode::internal, std::move(what), std::string(detail), {}};
}

Error system_error(const char *call) {
    return internal(std::string(call) + " failed", std::system_category().message(errno));
}

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// Text that a peer may have had a hand in, fit for a message in any encoding.
std::string printable(std::string_view text) {
    std::string result(text);
    for (char &c : result)
        if (c < ' ' || c > '~') c = '?';
    while (!result.empty() && result.back() == ' ') result.pop_back();
    return result;
}

std::string url_part(CURLU *url, CURLUPart part) {
    char *text = nullptr;
    if (curl_url_get(url, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
    return printable(CurlText(text).get());
}

UrlHandle new_url() {
    UrlHandle url(curl_url());
    if (!url) throw std::bad_alloc();
    return url;
}

// The metadata services of clouds, which speak no TLS and are reached over the host's own link.
bool is_metadata_address(std::string_view host) {
    return host == "169.254.169.254" || host == "169.254.170.2" || host == "169.254.170.23" ||
           host == "[fd00:ec2::23]";
}

// "host:port" of an https URL without user name. The URL itself is never echoed: where it is wrong
// it may hold a password.
Result<std::string> place_of(const std::string &text) {
    const auto refuse = [](const char *why) {
        return Error{ErrorCode::misconfigured, "URL of the KMS cannot be used", why,
                     "Set the server's option endpoint to https://host:port."};
    };
    if (contains(text, std::string_view("\0", 1))) return refuse("It contains a NUL byte.");
    const UrlHandle url = new_url();
    const CURLUcode code = curl_url_set(url.get(), CURLUPART_URL, text.c_str(),
                                        CURLU_DISALLOW_USER | CURLU_NON_SUPPORT_SCHEME);
    if (code == CURLUE_OUT_OF_MEMORY) throw std::bad_alloc();
    if (code != CURLUE_OK) return refuse(curl_url_strerror(code));
    const std::string scheme = url_part(url.get(), CURLUPART_SCHEME);
    if (scheme != "https" &&
        (scheme != "http" || !is_metadata_address(url_part(url.get(), CURLUPART_HOST))))
        return refuse("Only https is spoken.");
    return url_part(url.get(), CURLUPART_HOST) + ":" + url_part(url.get(), CURLUPART_PORT);
}

// Header lines in libcurl's form, which it reads in place: tokens stay in secret memory.
class HeaderLines {
public:
    void add(std::string_view name, std::string_view separator, std::string_view value = {}) {
        SecretBytes line(name.size() + separator.size() + value.size() + 1);
        std::uint8_t *to = line.expose().data();
        for (std::string_view part : {name, separator, value})
            to = std::copy(part.begin(), part.end(), to);
        lines_.push_back(std::move(line));
    }

    // Valid until the next add().
    curl_slist *link() {
        nodes_.resize(lines_.size());
        for (std::size_t i = 0; i < lines_.size(); ++i) {
            nodes_[i].data = reinterpret_cast<char *>(lines_[i].expose().data());
            nodes_[i].next = i + 1 < lines_.size() ? &nodes_[i + 1] : nullptr;
        }
        return nodes_.empty() ? nullptr : nodes_.data();
    }

private:
    std::vector<SecretBytes> lines_;
    std::vector<curl_slist> nodes_;
};

char lower(char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string lower(std::string_view text) {
    std::string result(text);
    for (char &c : result) c = lower(c);
    return result;
}

std::string_view trim(std::string_view text) {
    const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    return text;
}

bool is_header_name(std::string_view name) {
    return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
        return (lower(c) >= 'a' && lower(c) <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
               c == '_';
    });
}

bool is_header_value(std::string_view value) {
    return std::none_of(value.begin(), value.end(), [](char c) {
        return (static_cast<unsigned char>(c) < ' ' && c != '\t') || c == 0x7f;
    });
}

enum class Refusal { none, body_too_long, headers_too_long, no_memory };

// How far a transfer has come. libcurl's own times cannot tell: some versions know the end of
// connecting only after the TLS handshake, others set all of them on a timeout.
enum class Phase { resolving, connecting, negotiating, waiting, reading };

struct Transfer {
    TransferId id = 0;
    Request request;
    std::string place;  // host:port, for messages
    HeaderLines headers;
    Response response;
    std::size_t header_bytes = 0;
    bool in_headers = false;
    Phase phase = Phase::resolving;
    std::chrono::milliseconds timeout{};
    bool repeated = false;
    Refusal refusal = Refusal::none;  // why a callback stopped the transfer
    char words[CURL_ERROR_SIZE] = "";
    EasyHandle easy;  // last: it refers to everything above
};

// --- callbacks of libcurl: record and return, never throw ---

std::size_t refuse(Transfer &transfer, Refusal why) {
    transfer.refusal = why;
    return 0;  // fewer bytes than were given: libcurl ends the transfer
}

std::size_t on_body(char *data, std::size_t, std::size_t length, void *user) {
    Transfer &transfer = *static_cast<Transfer *>(user);
    try {
        if (length > kMaxBody - transfer.response.body.size())
            return refuse(transfer, Refusal::body_too_long);
        transfer.response.body.append(as_bytes({data, length}));
        return length;
    } catch (...) {
        return refuse(transfer, Refusal::no_memory);
    }
}

// One header line. Those of an interim answer (1xx) give way to the final one's, trailers are
// ignored, and all of them count.
std::size_t on_header(char *data, std::size_t, std::size_t length, void *user) {
    Transfer &transfer = *static_cast<Transfer *>(user);
    try {
        transfer.phase = Phase::reading;
        transfer.header_bytes += length;
        if (transfer.header_bytes > kMaxHeaders) return refuse(transfer, Refusal::headers_too_long);
        const std::string_view line = trim({data, length});
        if (line.starts_with("HTTP/")) {
            transfer.response.headers.clear();
            transfer.in_headers = true;
        } else if (line.empty()) {
            transfer.in_headers = false;
        } else if (const auto colon = line.find(':');
                   transfer.in_headers && colon != std::string_view::npos) {
            transfer.response.headers.emplace_back(lower(trim(line.substr(0, colon))),
                                                   trim(line.substr(colon + 1)));
        }
        return length;
    } catch (...) {
        return refuse(transfer, Refusal::no_memory);
    }
}

// TLS begins. Its buffers must not keep what was read, nor outlast it.
CURLcode on_tls(CURL *, void *tls, void *user) {
    Transfer &transfer = *static_cast<Transfer *>(user);
    transfer.phase = std::max(transfer.phase, Phase::negotiating);
    auto *context = static_cast<SSL_CTX *>(tls);
    SSL_CTX_set_options(context, SSL_OP_CLEANSE_PLAINTEXT);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    return CURLE_OK;
}

// The connection is there, new or used before, and the request goes out.
int on_connection(void *user, char *, char *, int, int) {
    Transfer &transfer = *static_cast<Transfer *>(user);
    transfer.phase = std::max(transfer.phase, Phase::waiting);
    return CURL_PREREQFUNC_OK;
}

// An address is known. libcurl 7.88 leaves its sockets open in the children of COPY ... PROGRAM.
curl_socket_t open_socket(void *user, curlsocktype, curl_sockaddr *address) {
    Transfer &transfer = *static_cast<Transfer *>(user);
    transfer.phase = std::max(transfer.phase, Phase::connecting);
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

// --- options ---

// Sets options of an easy handle until one fails.
class Options {
public:
    explicit Options(CURL *easy) : easy_(easy) {}

    template <class T>
    void set(CURLoption option, T value) {
        static_assert(std::is_pointer_v<T> || std::is_same_v<T, long> ||
                      std::is_same_v<T, curl_off_t>);
        if (code_ != CURLE_OK) return;
        code_ = curl_easy_setopt(easy_, option, value);
        option_ = option;
    }

    Status status() const {
        if (code_ == CURLE_OK) return Unit{};
        if (code_ == CURLE_OUT_OF_MEMORY) throw std::bad_alloc();
        const curl_easyoption *option = curl_easy_option_by_id(option_);
        return internal(
            std::string("could not set libcurl's option ") + (option ? option->name : "(unknown)"),
            curl_easy_strerror(code_));
    }

private:
    CURL *easy_;
    CURLoption option_{};
    CURLcode code_ = CURLE_OK;
};

Status add_headers(const Request &request, HeaderLines &lines) {
    // what libcurl would add by itself and no KMS needs; Expect would cost a round trip
    bool has_accept = false, has_type = false;
    for (const Header &header : request.headers) {
        const std::string_view value = header.value.expose_text();
        if (!is_header_name(header.name) || !is_header_value(value))
            return Error{ErrorCode::misconfigured,
                         "value of HTTP header \"" + printable(header.name) + "\" cannot be sent",
                         "It contains a line break or another control character.",
                         "Check the credential or option that it comes from."};
        const std::string name = lower(header.name);
        has_accept |= name == "accept";
        has_type |= name == "content-type";
        if (value.empty())
            lines.add(header.name, ";");  // libcurl's way to write an empty header
        else
            lines.add(header.name, ": ", value);
    }
    lines.add("Expect", ":");
    if (!has_accept) lines.add("Accept", ":");
    if (!has_type) lines.add("Content-Type", ":");
    return Unit{};
}

void set_method(Options &options, const Request &request) {
    const std::string_view method = request.method;
    const bool has_body = !request.body.empty();
    if (method == "HEAD") {
        options.set(CURLOPT_NOBODY, 1L);
        return;
    }
    if (has_body || method == "POST" || method == "PUT" || method == "PATCH") {
        options.set(CURLOPT_POST, 1L);
        options.set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
        // without a pointer libcurl would read the body from stdin
        options.set(CURLOPT_POSTFIELDS, has_body ? request.body.expose_text().data() : "");
        if (method != "POST") options.set(CURLOPT_CUSTOMREQUEST, request.method);
        return;
    }
    options.set(CURLOPT_HTTPGET, 1L);
    if (method != "GET") options.set(CURLOPT_CUSTOMREQUEST, request.method);
}

// Nothing can be put into it.
constexpr const char *kNoDirectory = "/dev/null";

void set_trust(Options &options, const Transport &transport) {
    options.set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    options.set(CURLOPT_SSL_VERIFYPEER, 1L);
    options.set(CURLOPT_SSL_VERIFYHOST, 2L);
    options.set(CURLOPT_CA_CACHE_TIMEOUT, kMaxTrustSeconds);
    if (!transport.ca_file.empty()) {
        options.set(CURLOPT_CAINFO, transport.ca_file.c_str());
        // Debian's libcurl would trust the system's directory of CAs as well, and from 8.20 on
        // takes no directory for that one
        options.set(CURLOPT_CAPATH, kNoDirectory);
    }
    if (!transport.client_cert_file.empty())
        options.set(CURLOPT_SSLCERT, transport.client_cert_file.c_str());
    if (!transport.client_key_file.empty())
        options.set(CURLOPT_SSLKEY, transport.client_key_file.c_str());
    // without this OpenSSL would ask the terminal for an encrypted key's passphrase, and wait
    options.set(CURLOPT_KEYPASSWD, "");

    options.set(CURLOPT_PROXY, transport.proxy.c_str());
    options.set(CURLOPT_NOPROXY, "");
    options.set(CURLOPT_PROXY_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    options.set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
}

Status set_options(Transfer &transfer, std::chrono::milliseconds timeout) {
    const curl_version_info_data *curl = curl_version_info(CURLVERSION_NOW);
    const bool http2 =
        curl->version_num >= kFirstGoodHttp2 && (curl->features & CURL_VERSION_HTTP2) != 0;
    const long limit = static_cast<long>(
        std::clamp<std::int64_t>(timeout.count(), 1, std::numeric_limits<int>::max()));

    Options options(transfer.easy.get());
    options.set(CURLOPT_ERRORBUFFER, static_cast<char *>(transfer.words));
    options.set(CURLOPT_URL, transfer.request.url.c_str());
    options.set(CURLOPT_PATH_AS_IS, 1L);  // a signed path is sent as it was signed
    // place_of() let http through for metadata services alone
    options.set(CURLOPT_PROTOCOLS_STR,
                transfer.request.url.starts_with("http:") ? "http" : "https");
    options.set(CURLOPT_REDIR_PROTOCOLS_STR, "https");
    options.set(CURLOPT_FOLLOWLOCATION, 0L);
    options.set(CURLOPT_HTTP_VERSION,
                static_cast<long>(http2 ? CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
    options.set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
    options.set(CURLOPT_NOSIGNAL, 1L);
    options.set(CURLOPT_QUICK_EXIT, 1L);  // ending a transfer does not wait for the resolver
    options.set(CURLOPT_CONNECTTIMEOUT_MS, limit);
    options.set(CURLOPT_TIMEOUT_MS, limit);
    options.set(CURLOPT_TCP_KEEPALIVE, 1L);
    options.set(CURLOPT_MAXAGE_CONN, kMaxIdleSeconds);
    options.set(CURLOPT_MAXLIFETIME_CONN, kMaxConnectionSeconds);
    options.set(CURLOPT_MAXFILESIZE_LARGE, static_cast<curl_off_t>(kMaxBody));
    options.set(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    options.set(CURLOPT_OPENSOCKETDATA, &transfer);
    options.set(CURLOPT_PREREQFUNCTION, on_connection);
    options.set(CURLOPT_PREREQDATA, &transfer);
    options.set(CURLOPT_WRITEFUNCTION, on_body);
    options.set(CURLOPT_WRITEDATA, &transfer);
    options.set(CURLOPT_HEADERFUNCTION, on_header);
    options.set(CURLOPT_HEADERDATA, &transfer);
    options.set(CURLOPT_SSL_CTX_FUNCTION, on_tls);
    options.set(CURLOPT_SSL_CTX_DATA, &transfer);
    options.set(CURLOPT_HTTPHEADER, transfer.headers.link());
    set_method(options, transfer.request);
    set_trust(options, transfer.request.transport);
    return options.status();
}

// Connections die unnoticed between two requests, say when the KMS is restarted. libcurl itself
// repeats a request that met such a one, but not every version does over HTTP/2.
bool met_dead_connection(CURLcode code, const Transfer &transfer) {
    switch (code) {
        case CURLE_SEND_ERROR:
        case CURLE_RECV_ERROR:
        case CURLE_GOT_NOTHING:
        case CURLE_HTTP2:
        case CURLE_HTTP2_STREAM: {
            long new_connections = 0;
            curl_easy_getinfo(transfer.easy.get(), CURLINFO_NUM_CONNECTS, &new_connections);
            return new_connections == 0 && transfer.phase < Phase::reading;
        }
        default:
            return false;
    }
}

// Makes a transfer start over, on a connection of its own and in what is left of its time.
void prepare_again(Transfer &transfer) {
    curl_off_t microseconds = 0;
    curl_easy_getinfo(transfer.easy.get(), CURLINFO_TOTAL_TIME_T, &microseconds);
    const long left = static_cast<long>(
        std::max<std::int64_t>(transfer.timeout.count() - microseconds / 1000, 1));
    curl_easy_setopt(transfer.easy.get(), CURLOPT_FRESH_CONNECT, 1L);
    curl_easy_setopt(transfer.easy.get(), CURLOPT_CONNECTTIMEOUT_MS, left);
    curl_easy_setopt(transfer.easy.get(), CURLOPT_TIMEOUT_MS, left);
    transfer.words[0] = '\0';
    transfer.phase = Phase::resolving;
    transfer.repeated = true;
}

// --- what went wrong ---

const char *phase_of(const Transfer &transfer) {
    switch (transfer.phase) {
        case Phase::resolving:
            return "resolving the name of";
        case Phase::connecting:
            return "connecting to";
        case Phase::negotiating:
            return "negotiating TLS with";
        case Phase::waiting:
            return "waiting for an answer from";
        case Phase::reading:
            break;
    }
    return "reading the answer from";
}

const char *certificate_hint(const Transfer &transfer, std::string_view words) {
    // numbers that OpenSSL's x509_vfy.h promises to keep
    constexpr long kNotYetValid = 9, kHasExpired = 10;
    // the name is checked by libcurl, not by OpenSSL
    if (contains(words, "subject name") || contains(words, "common name"))
        return "Set the server's option endpoint to a host name that the KMS's certificate holds.";
    long verdict = 0;
    curl_easy_getinfo(transfer.easy.get(), CURLINFO_SSL_VERIFYRESULT, &verdict);
    if (verdict == kNotYetValid || verdict == kHasExpired)
        return "Renew the KMS's certificate, and check the clock of the database host.";
    return "Set the server's option ca_file to the CA that signed the KMS's certificate.";
}

// Whether TLS itself said no, rather than being cut short.
bool is_tls_refusal(CURLcode code, std::string_view words) {
    if (contains(words, "alert internal error")) return false;  // the KMS is in trouble
    if (contains(words, " alert ")) return true;
    return code == CURLE_SSL_CONNECT_ERROR && contains(words, "SSL routines") &&
           !contains(words, "unexpected eof");
}

const char *tls_hint(std::string_view words) {
    if (contains(words, "protocol")) return "The KMS must speak TLS 1.2 or later.";
    if (contains(words, "alert"))
        return "Set the server's options client_cert_file and client_key_file to a certificate "
               "that the KMS accepts, if it asks for one.";
    return "Check that the port in the server's option endpoint speaks TLS 1.2 or later.";
}

Error too_long(const Transfer &transfer, const char *what, std::size_t limit) {
    return {ErrorCode::bad_answer,
            std::string(what) + " from " + transfer.place + " is too long",
            "The limit is " + std::to_string(limit) + " bytes.",
            {}};
}

// Why a callback, or libcurl's own limits, stopped the transfer.
std::optional<Error> explain_refusal(CURLcode code, const Transfer &transfer) {
    Refusal refusal = transfer.refusal;
    if (refusal == Refusal::none) {
        if (code == CURLE_FILESIZE_EXCEEDED) refusal = Refusal::body_too_long;
        // a single header line beyond what libcurl keeps is an OUT_OF_MEMORY in 7.88
        if (code == CURLE_OUT_OF_MEMORY || code == kTooLarge)
            refusal = transfer.in_headers ? Refusal::headers_too_long : Refusal::no_memory;
    }
    switch (refusal) {
        case Refusal::none:
            return std::nullopt;
        case Refusal::body_too_long:
            return too_long(transfer, "answer", kMaxBody);
        case Refusal::headers_too_long:
            return too_long(transfer, "header of the answer", kMaxHeaders);
        case Refusal::no_memory:
            break;
    }
    return internal("out of memory", "");
}

Error explain(CURLcode code, const Transfer &transfer) {
    if (auto refusal = explain_refusal(code, transfer)) return *std::move(refusal);
    const std::string &place = transfer.place;
    const Transport &transport = transfer.request.transport;
    std::string words =
        printable(transfer.words[0] != '\0' ? transfer.words : curl_easy_strerror(code));
    if (is_tls_refusal(code, words))
        return {ErrorCode::misconfigured, "could not agree on TLS with " + place, words,
                tls_hint(words)};
    switch (code) {
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_RESOLVE_PROXY:
        case CURLE_COULDNT_CONNECT:
        case CURLE_PROXY:
        case CURLE_SSL_CONNECT_ERROR:
            return {ErrorCode::unreachable, "could not connect to " + place, words, kReachHint};
        case CURLE_OPERATION_TIMEDOUT:
            return {ErrorCode::unreachable,
                    std::string("timeout while ") + phase_of(transfer) + " " + place, words,
                    kReachHint};
        case CURLE_RECV_ERROR:
            // libcurl has no code of its own for a broken chunk
            if (contains(words, "chunk")) break;
            [[fallthrough]];
        case CURLE_SEND_ERROR:
        case CURLE_GOT_NOTHING:
        case CURLE_PARTIAL_FILE:
        case CURLE_HTTP2:
        case CURLE_HTTP2_STREAM:
            return {ErrorCode::unreachable, "connection to " + place + " was lost", words, {}};
        case CURLE_PEER_FAILED_VERIFICATION:
            return {ErrorCode::misconfigured, "certificate of " + place + " cannot be trusted",
                    words, certificate_hint(transfer, words)};
        case CURLE_SSL_CACERT_BADFILE:
            if (transport.ca_file.empty())
                return {ErrorCode::misconfigured, "could not load the system's CA certificates",
                        words, "Set the server's option ca_file."};
            return {ErrorCode::misconfigured,
                    "could not use the CA file \"" + printable(transport.ca_file) + "\"", words,
                    "It must be a PEM file that PostgreSQL's operating system user can read."};
        case CURLE_BAD_FUNCTION_ARGUMENT:  // what 8.22 says of a key that it cannot use
            if (transport.client_key_file.empty() || !contains(words, "private key"))
                return internal("libcurl failed on " + place, words);
            [[fallthrough]];
        case CURLE_SSL_CERTPROBLEM:
            return {ErrorCode::misconfigured,
                    "could not use the client certificate \"" +
                        printable(transport.client_cert_file) + "\" with the key \"" +
                        printable(transport.client_key_file) + "\"",
                    words,
                    "Both must be PEM files that PostgreSQL's operating system user can read, and "
                    "the key must belong to the certificate and have no passphrase."};
        case CURLE_SSL_CLIENTCERT:
        case CURLE_SSL_CIPHER:
        case CURLE_SSL_ISSUER_ERROR:
        case CURLE_SSL_INVALIDCERTSTATUS:
            return {ErrorCode::misconfigured, "could not agree on TLS with " + place, words,
                    tls_hint(words)};
        case CURLE_UNSUPPORTED_PROTOCOL:
        case CURLE_WEIRD_SERVER_REPLY:
        case CURLE_BAD_CONTENT_ENCODING:
            break;
        default:
            return internal("libcurl failed on " + place, words);
    }
    return {ErrorCode::bad_answer, "answer from " + place + " is not HTTP", words,
            "Check that the server's option endpoint is the KMS itself."};
}

// Scheme, host and port of where a redirect points; the rest could hold anything.
std::string redirect_target(const Response &response) {
    for (const auto &[name, value] : response.headers) {
        if (name != "location") continue;
        const UrlHandle url = new_url();
        if (curl_url_set(url.get(), CURLUPART_URL, value.c_str(), CURLU_NON_SUPPORT_SCHEME) !=
            CURLUE_OK)
            break;
        return " to " + url_part(url.get(), CURLUPART_SCHEME) + "://" +
               url_part(url.get(), CURLUPART_HOST) + ":" + url_part(url.get(), CURLUPART_PORT);
    }
    return {};
}

Result<Response> conclude(CURLcode code, Transfer &transfer) {
    if (code != CURLE_OK) return explain(code, transfer);
    long status = 0;
    curl_easy_getinfo(transfer.easy.get(), CURLINFO_RESPONSE_CODE, &status);
    if (status >= 300 && status < 400)
        return Error{ErrorCode::unreachable, transfer.place + " answered with a redirect",
                     "HTTP status " + std::to_string(status) + redirect_target(transfer.response),
                     "OpenBao and Vault redirect while they have no active node. Else something in "
                     "front of the KMS does: set the server's option endpoint to the address of "
                     "the KMS itself. Redirects are not followed.",
                     true};
    transfer.response.status = static_cast<int>(status);
    return std::move(transfer.response);
}

class CurlEngine final : public Engine {
public:
    CurlEngine(Descriptor epoll, Descriptor timer) noexcept
        : epoll_(std::move(epoll)), timer_(std::move(timer)) {}
    ~CurlEngine() override { close_connections(); }

    int poll_fd() const noexcept override { return epoll_.get(); }

    Result<TransferId> start(Request request, std::chrono::milliseconds timeout) override {
        Result<std::string> place = place_of(request.url);
        if (!place) return std::move(place).error();
        auto transfer = std::make_unique<Transfer>();
        transfer->place = std::move(place).value();
        transfer->request = std::move(request);
        transfer->timeout = timeout;
        if (Status status = add_headers(transfer->request, transfer->headers); !status)
            return std::move(status).error();

        const SignalBlock block;
        if (have_files_changed(transfer->request.transport)) connections_stale_ = true;
        if (connections_stale_ && transfers_.empty()) {
            drop_multi();
            connections_stale_ = false;
        }
        transfer->easy.reset(curl_easy_init());
        if (!transfer->easy) throw std::bad_alloc();
        if (Status status = set_options(*transfer, timeout); !status)
            return std::move(status).error();
        if (connections_stale_) {
            // others are still under way on the old connections
            curl_easy_setopt(transfer->easy.get(), CURLOPT_FRESH_CONNECT, 1L);
            curl_easy_setopt(transfer->easy.get(), CURLOPT_SSL_SESSIONID_CACHE, 0L);
        }
        if (multi_ == nullptr) {
            if (Status status = open_multi(); !status) return std::move(status).error();
        }

        transfer->id = ++last_id_;
        CURL *easy = transfer->easy.get();
        const auto place_in_map = transfers_.emplace(easy, std::move(transfer)).first;
        if (const CURLMcode code = curl_multi_add_handle(multi_, easy); code != CURLM_OK) {
            transfers_.erase(place_in_map);
            return internal("libcurl could not start a transfer", curl_multi_strerror(code));
        }
        return last_id_;
    }

    Status step() override {
        const SignalBlock block;
        for (int round = 0; round < kRoundsPerStep; ++round) {
            epoll_event events[kEventsPerRound];
            const int count = epoll_wait(epoll_.get(), events, kEventsPerRound, 0);
            if (count == 0 || (count < 0 && errno == EINTR)) break;
            if (count < 0) return fail_all(system_error("epoll_wait"));
            for (int i = 0; i < count; ++i) {
                const CURLMcode code = act(events[i]);
                if (code != CURLM_OK)
                    return fail_all(
                        internal("libcurl failed on all transfers", curl_multi_strerror(code)));
            }
            collect();
        }
        return Unit{};
    }

    std::optional<Finished> take_finished() override {
        if (finished_.empty()) return std::nullopt;
        std::optional<Finished> first(std::move(finished_.front()));
        finished_.pop_front();
        return first;
    }

    void abort() noexcept override {
        const SignalBlock block;
        bool in_doubt = false;
        for (const auto &entry : transfers_)
            if (curl_multi_remove_handle(multi_, entry.first) != CURLM_OK) in_doubt = true;
        transfers_.clear();
        finished_.clear();
        if (in_doubt) drop_multi();
    }

    void close_connections() noexcept override {
        abort();
        drop_multi();
    }

private:
    // --- files that connections were made with ---

    // Which version of a file this is; all zero where it cannot be told.
    struct FileVersion {
        dev_t device = 0;
        ino_t number = 0;
        off_t size = 0;
        timespec modified{};
        bool operator==(const FileVersion &other) const {
            return device == other.device && number == other.number && size == other.size &&
                   modified.tv_sec == other.modified.tv_sec &&
                   modified.tv_nsec == other.modified.tv_nsec;
        }
    };

    // Certificates are replaced while the server runs, hourly by a SPIFFE helper: what was made
    // with an older one must not be used again.
    bool have_files_changed(const Transport &transport) {
        bool changed = false;
        for (const std::string *path :
             {&transport.ca_file, &transport.client_cert_file, &transport.client_key_file}) {
            if (path->empty()) continue;
            FileVersion version;
            struct stat about;
            if (stat(path->c_str(), &about) == 0)
                version = {about.st_dev, about.st_ino, about.st_size, about.st_mtim};
            const auto [known, is_new] = files_.try_emplace(*path, version);
            if (!is_new && !(known->second == version)) changed = true;
            known->second = version;
        }
        return changed;
    }

    // --- callbacks of the multi handle ---

    static int on_socket(CURL *, curl_socket_t socket, int what, void *user, void *) {
        const int epoll = static_cast<CurlEngine *>(user)->epoll_.get();
        if (what == CURL_POLL_REMOVE) {
            epoll_ctl(epoll, EPOLL_CTL_DEL, socket, nullptr);  // fails where it is closed already
            return 0;
        }
        epoll_event event{};
        event.data.fd = socket;
        if (what & CURL_POLL_IN) event.events |= EPOLLIN;
        if (what & CURL_POLL_OUT) event.events |= EPOLLOUT;
        if (epoll_ctl(epoll, EPOLL_CTL_MOD, socket, &event) == 0) return 0;
        if (errno != ENOENT) return -1;
        fcntl(socket, F_SETFD, FD_CLOEXEC);  // the resolver's socket pair, too
        return epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event);
    }

    static int on_timer(CURLM *, long milliseconds, void *user) {
        return static_cast<CurlEngine *>(user)->set_timer(milliseconds);
    }

    // Negative: never. 0 or a negative number.
    int set_timer(long milliseconds) noexcept {
        itimerspec when{};
        if (milliseconds > 0) {
            when.it_value.tv_sec = milliseconds / 1000;
            when.it_value.tv_nsec = milliseconds % 1000 * 1000 * 1000;
        } else if (milliseconds == 0) {
            when.it_value.tv_nsec = 1;  // 0 would disarm it
        }
        return timerfd_settime(timer_.get(), 0, &when, nullptr);
    }

    // --- the multi handle ---

    Status open_multi() {
        multi_ = curl_multi_init();
        if (multi_ == nullptr) throw std::bad_alloc();
        CURLMcode code = CURLM_OK;
        const char *failed = nullptr;
        const auto set = [&](CURLMoption option, const char *name, auto value) {
            if (code != CURLM_OK) return;
            code = curl_multi_setopt(multi_, option, value);
            failed = name;
        };
        set(CURLMOPT_SOCKETFUNCTION, "SOCKETFUNCTION", on_socket);
        set(CURLMOPT_SOCKETDATA, "SOCKETDATA", this);
        set(CURLMOPT_TIMERFUNCTION, "TIMERFUNCTION", on_timer);
        set(CURLMOPT_TIMERDATA, "TIMERDATA", this);
        set(CURLMOPT_MAXCONNECTS, "MAXCONNECTS", kMaxIdleConnections);
        if (curl_version_info(CURLVERSION_NOW)->version_num >= kFirstMultiQuickExit)
            set(kMultiQuickExit, "QUICK_EXIT", 1L);
        if (code == CURLM_OK) return Unit{};
        drop_multi();
        return internal(std::string("could not set libcurl's multi option ") + failed,
                        curl_multi_strerror(code));
    }

    // Only without transfers.
    void drop_multi() noexcept {
        const SignalBlock block;
        if (multi_ != nullptr) curl_multi_cleanup(multi_);
        multi_ = nullptr;
        set_timer(-1);
    }

    CURLMcode act(const epoll_event &event) {
        int running = 0;
        if (event.data.fd == timer_.get()) {
            std::uint64_t expirations;
            // nothing to read: an event of this round has armed it anew
            if (read(timer_.get(), &expirations, sizeof expirations) < 0) return CURLM_OK;
            if (multi_ == nullptr) return CURLM_OK;
            return curl_multi_socket_action(multi_, CURL_SOCKET_TIMEOUT, 0, &running);
        }
        if (multi_ == nullptr) return CURLM_OK;
        int ready = 0;
        if (event.events & EPOLLIN) ready |= CURL_CSELECT_IN;
        if (event.events & EPOLLOUT) ready |= CURL_CSELECT_OUT;
        // not CURL_CSELECT_ERR: that hides what arrived before the error, and the error's name
        if (event.events & (EPOLLERR | EPOLLHUP)) ready |= CURL_CSELECT_IN | CURL_CSELECT_OUT;
        return curl_multi_socket_action(multi_, event.data.fd, ready, &running);
    }

    void collect() {
        int left = 0;
        while (multi_ != nullptr) {
            const CURLMsg *message = curl_multi_info_read(multi_, &left);
            if (message == nullptr) return;
            if (message->msg != CURLMSG_DONE) continue;
            const CURLcode code = message->data.result;
            CURL *easy = message->easy_handle;
            curl_multi_remove_handle(multi_, easy);
            const auto found = transfers_.find(easy);
            if (found == transfers_.end()) continue;
            if (!found->second->repeated && met_dead_connection(code, *found->second)) {
                prepare_again(*found->second);
                if (curl_multi_add_handle(multi_, easy) == CURLM_OK) continue;
            }
            const auto node = transfers_.extract(found);
            Transfer &transfer = *node.mapped();
            finished_.push_back({transfer.id, conclude(code, transfer)});
        }
    }

    Error fail_all(Error error) {
        collect();
        for (const auto &entry : transfers_) {
            curl_multi_remove_handle(multi_, entry.first);
            finished_.push_back({entry.second->id, error});
        }
        transfers_.clear();
        drop_multi();
        return error;
    }

    Descriptor epoll_;
    Descriptor timer_;
    CURLM *multi_ = nullptr;  // made by start(), dropped when in doubt
    std::map<std::string, FileVersion> files_;
    bool connections_stale_ = false;
    TransferId last_id_ = 0;
    std::unordered_map<CURL *, std::unique_ptr<Transfer>> transfers_;
    std::deque<Finished> finished_;
};

// --- memory of libcurl: the system's, wiped before it goes back. Called by the resolver's thread
// too, so nothing here is shared but a flag. ---

constinit std::atomic<bool> curl_uses_wiping = false;

void *wiping_malloc(std::size_t size) {
    curl_uses_wiping.store(true, std::memory_order_relaxed);
    return std::malloc(size);
}

void *wiping_calloc(std::size_t count, std::size_t size) {
    curl_uses_wiping.store(true, std::memory_order_relaxed);
    return std::calloc(count, size);
}

void wiping_free(void *memory) {
    if (memory == nullptr) return;
    wipe({static_cast<std::uint8_t *>(memory), malloc_usable_size(memory)});
    std::free(memory);
}

// Never lets the system move a piece, since that would leave the old one as it is.
void *wiping_realloc(void *memory, std::size_t size) {
    if (memory == nullptr) return wiping_malloc(size);
    const std::size_t before = malloc_usable_size(memory);
    void *larger = std::malloc(size);
    if (larger == nullptr) return nullptr;
    std::memcpy(larger, memory, std::min(before, size));
    wiping_free(memory);
    return larger;
}

char *wiping_strdup(const char *text) {
    const std::size_t size = std::strlen(text) + 1;
    void *copy = wiping_malloc(size);
    if (copy != nullptr) std::memcpy(copy, text, size);
    return static_cast<char *>(copy);
}

// libcurl's initialisations are counted, and only the first one's functions are taken. Whether that
// was ours is seen from who is asked for memory.
Status initialise_curl() {
    if (curl_is_initialised) return Unit{};
    const curl_version_info_data *curl = curl_version_info(CURLVERSION_NOW);
    const auto lacks = [&](const char *what) {
        return Error{ErrorCode::misconfigured,
                     std::string("libcurl ") + curl->version + " cannot be used", what,
                     "Install a libcurl of version 7.88.1 or later with TLS by OpenSSL."};
    };
    if (curl->version_num < kOldestVersion) return lacks("It is too old.");
    if ((curl->features & CURL_VERSION_SSL) == 0) return lacks("It lacks https.");
    if ((curl->features & CURL_VERSION_ASYNCHDNS) == 0)
        return lacks("It resolves names without letting anything else happen.");
    // on_tls() sets options of OpenSSL
    if (curl->ssl_version == nullptr ||
        !std::string_view(curl->ssl_version).starts_with("OpenSSL/"))
        return lacks("Its TLS is not OpenSSL's.");
    // never undone: others in this process may use libcurl too
    if (const CURLcode code = curl_global_init_mem(CURL_GLOBAL_DEFAULT, wiping_malloc, wiping_free,
                                                   wiping_realloc, wiping_strdup, wiping_calloc);
        code != CURLE_OK)
        return internal("could not initialise libcurl", curl_easy_strerror(code));
    curl_is_initialised = true;
    return Unit{};
}

}  // namespace

bool Engine::wipes_what_is_freed() {
    if (!curl_is_initialised) return false;
    curl_uses_wiping.store(false, std::memory_order_relaxed);
    const UrlHandle probe(curl_url());
    return curl_uses_wiping.load(std::memory_order_relaxed);
}

Result<std::unique_ptr<Engine>> Engine::create() {
    const SignalBlock block;
    if (Status status = initialise_curl(); !status) return std::move(status).error();
    Descriptor epoll(epoll_create1(EPOLL_CLOEXEC));
    if (epoll.get() < 0) return system_error("epoll_create1");
    Descriptor timer(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    if (timer.get() < 0) return system_error("timerfd_create");
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = timer.get();
    if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, timer.get(), &event) < 0)
        return system_error("epoll_ctl");
    return std::unique_ptr<Engine>(new CurlEngine(std::move(epoll), std::move(timer)));
}

}  // namespace envcrypt::http
