// Tests http/engine against real TLS servers on loopback, good ones and bad ones, which
// test/servers/tls_server.py runs. Needs python3 and openssl, and slow_resolver.c linked in or
// preloaded. ENVCRYPT_TEST_SERVERS names the directory test/servers where it is not beside this
// file's; ENVCRYPT_TEST_CERTS one made by make_certs.sh, else one is made.
#include "http/engine.hpp"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <string>

namespace {
int directories_trusted = 0;
}

// Stands before OpenSSL's: libcurl calls it to trust a whole directory of CAs.
extern "C" __attribute__((visibility("default"))) int X509_STORE_load_path(void *store,
                                                                           const char *path) {
    if (std::string_view(path) != "/dev/null") ++directories_trusted;
    using Load = int (*)(void *, const char *);
    return reinterpret_cast<Load>(dlsym(RTLD_NEXT, "X509_STORE_load_path"))(store, path);
}

namespace envcrypt::http {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLong{20'000};    // never reached unless something hangs
constexpr milliseconds kShort{300};      // for transfers that shall time out
constexpr milliseconds kPatience{1000};  // within which what must not wait returns, even under ASan

std::string servers_directory() {
    if (const char *given = std::getenv("ENVCRYPT_TEST_SERVERS")) return given;
    const std::string here = __FILE__;
    return here.substr(0, here.rfind('/')) + "/../servers";
}

// --- what the process holds ---

std::set<int> open_descriptors() {
    std::set<int> result;
    DIR *directory = opendir("/proc/self/fd");
    while (const dirent *entry = readdir(directory))
        if (entry->d_name[0] != '.') result.insert(std::atoi(entry->d_name));
    result.erase(dirfd(directory));
    closedir(directory);
    return result;
}

std::set<std::string> threads() {
    std::set<std::string> result;
    DIR *directory = opendir("/proc/self/task");
    while (const dirent *entry = readdir(directory))
        if (entry->d_name[0] != '.') result.insert(entry->d_name);
    closedir(directory);
    return result;
}

unsigned long blocked_signals(const std::string &thread) {
    std::ifstream status("/proc/self/task/" + thread + "/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("SigBlk:")) return std::stoul(line.substr(7), nullptr, 16);
    return 0;
}

// --- the servers ---

class Servers {
public:
    Servers() {
        const char *given = std::getenv("ENVCRYPT_TEST_CERTS");
        if (given != nullptr) {
            certs_ = given;
        } else {
            char directory[] = "/tmp/envcrypt_certs_XXXXXX";
            certs_ = made_ = mkdtemp(directory);
            const std::string command = servers_directory() + "/make_certs.sh " + certs_;
            if (std::system(command.c_str()) != 0) std::abort();
        }
        int to_server[2], from_server[2];
        if (pipe2(to_server, O_CLOEXEC) != 0 || pipe2(from_server, O_CLOEXEC) != 0) std::abort();
        const std::string script = servers_directory() + "/tls_server.py";
        process_ = fork();
        if (process_ == 0) {
            dup2(to_server[0], STDIN_FILENO);
            dup2(from_server[1], STDOUT_FILENO);
            unsetenv("LD_PRELOAD");
            unsetenv("OPENSSL_CONF");
            execlp("python3", "python3", script.c_str(), certs_.c_str(), "--events",
                   static_cast<char *>(nullptr));
            _exit(127);
        }
        close(to_server[0]);
        close(from_server[1]);
        input_ = to_server[1];
        output_ = from_server[0];
        fcntl(output_, F_SETFL, O_NONBLOCK);
    }

    ~Servers() {
        close(input_);
        close(output_);
        waitpid(process_, nullptr, 0);
        if (made_.empty()) return;
        const std::string command = "rm -r " + made_;
        if (std::system(command.c_str()) != 0) std::perror("rm");
    }

    int output() const { return output_; }
    std::string cert(const std::string &name) const { return certs_ + "/" + name; }

    // The next line the servers said, if there is one by now.
    std::optional<std::string> line() {
        char block[4096];
        for (ssize_t n; (n = read(output_, block, sizeof block)) > 0;) said_.append(block, n);
        const auto end = said_.find('\n');
        if (end == std::string::npos) return std::nullopt;
        std::string first = said_.substr(0, end);
        said_.erase(0, end + 1);
        return first;
    }

    int port(const std::string &server) {
        while (ports_.empty()) {
            pollfd ready{output_, POLLIN, 0};
            if (poll(&ready, 1, kLong.count()) <= 0) std::abort();
            if (const auto first = line()) ports_ = *first;
        }
        const std::string key = "\"" + server + "\": ";
        const auto at = ports_.find(key);
        if (at == std::string::npos) std::abort();
        return std::atoi(ports_.c_str() + at + key.size());
    }

private:
    std::string certs_, made_, ports_, said_;
    pid_t process_ = -1;
    int input_ = -1, output_ = -1;
};

Servers *servers = nullptr;
int (*resolver_sleeping)() = nullptr;

class Setup : public testing::Environment {
public:
    void SetUp() override {
        signal(SIGPIPE, SIG_IGN);  // as PostgreSQL does
        resolver_sleeping =
            reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "envcrypt_resolver_sleeping"));
        ASSERT_NE(resolver_sleeping, nullptr)
            << "link slow_resolver.c in (-rdynamic), or preload it";
        servers = new Servers;
        // else a strict system would refuse old TLS where the engine forgot to
        setenv("OPENSSL_CONF", servers->cert("lax_openssl.cnf").c_str(), 1);
    }
    void TearDown() override {
        delete servers;
        servers = nullptr;
    }
};
const auto *const setup = testing::AddGlobalTestEnvironment(new Setup);

// --- requests ---

std::string url(const std::string &server, const std::string &path,
                const std::string &host = "127.0.0.1") {
    return "https://" + host + ":" + std::to_string(servers->port(server)) + path;
}

Request get(std::string where) {
    Request request;
    request.method = "GET";
    request.url = std::move(where);
    request.transport.ca_file = servers->cert("ca.pem");
    return request;
}

Request post(std::string where, std::string_view body) {
    Request request = get(std::move(where));
    request.method = "POST";
    request.body = SecretBytes(body);
    return request;
}

Request with_client(Request request, const std::string &cert, const std::string &key) {
    request.transport.client_cert_file = servers->cert(cert);
    request.transport.client_key_file = servers->cert(key);
    return request;
}

std::string field(const Response &response, const std::string &name) {
    const std::string text(response.body.expose_text());
    const std::string key = "\"" + name + "\": ";
    const auto at = text.find(key);
    if (at == std::string::npos) return "(none)";
    const auto from = at + key.size();
    return text.substr(from, text.find_first_of(",}", from) - from);
}

bool has(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

class EngineTest : public testing::Test {
protected:
    void SetUp() override {
        while (threads().size() > 1) poll(nullptr, 0, 10);  // resolvers of an earlier test
        secrets_before_ = secret_memory().in_use;
        open_before_ = open_descriptors();
        make_engine();
    }

    void TearDown() override {
        engine_.reset();
        while (threads().size() > 1) poll(nullptr, 0, 10);
        EXPECT_EQ(open_descriptors(), open_before_);
        EXPECT_EQ(secret_memory().in_use, secrets_before_);
        EXPECT_EQ(blocked_signals(std::to_string(getpid())), 0u);
    }

    void make_engine() {
        auto made = Engine::create();
        ASSERT_TRUE(made) << made.error().message;
        engine_ = std::move(made).value();
    }

    // Steps whenever the engine's descriptor says so, until `done`. False: it took for ever. `done`
    // is asked again when `also` is readable, and every 20 ms: some things have no descriptor.
    bool drive(const std::function<bool()> &done, int also = -1) {
        const auto end = Clock::now() + 2 * kLong;
        while (!done()) {
            if (Clock::now() > end) return false;
            pollfd ready[] = {{engine_->poll_fd(), POLLIN, 0}, {also, POLLIN, 0}};
            poll(ready, 2, 20);
            if (ready[0].revents == 0) continue;
            ++steps_;
            const auto begin = Clock::now();
            const Status status = engine_->step();
            EXPECT_TRUE(status) << status.error().message << ": " << status.error().detail;
            EXPECT_LT(Clock::now() - begin, kPatience);
        }
        return true;
    }

    TransferId start(Request request, milliseconds timeout = kLong) {
        auto started = engine_->start(std::move(request), timeout);
        if (!started) {
            ADD_FAILURE() << started.error().message << ": " << started.error().detail;
            return 0;
        }
        return *started;
    }

    Result<Response> run(Request request, milliseconds timeout = kLong) {
        auto started = engine_->start(std::move(request), timeout);
        if (!started) return started.error();
        std::optional<Finished> finished;
        if (!drive([&] { return (finished = engine_->take_finished()).has_value(); }))
            return Error{ErrorCode::internal, "the test waited for ever", {}, {}};
        EXPECT_EQ(finished->id, *started);
        EXPECT_FALSE(engine_->take_finished());
        return std::move(finished->result);
    }

    Response answer(Request request) {
        auto result = run(std::move(request));
        if (result) return std::move(result).value();
        ADD_FAILURE() << result.error().message << ": " << result.error().detail;
        return {};
    }

    // Runs it, and expects it to fail.
    Error failure(Request request, ErrorCode code, const std::string &message,
                  milliseconds timeout = kLong) {
        auto result = run(std::move(request), timeout);
        if (result) {
            ADD_FAILURE() << "status " << result->status << " instead of: " << message;
            return {};
        }
        Error &error = result.error();
        EXPECT_EQ(static_cast<int>(error.code), static_cast<int>(code)) << error.message;
        EXPECT_TRUE(has(error.message, message)) << error.message;
        if (std::getenv("ENVCRYPT_TEST_VERBOSE"))
            std::printf("  %d | %s | %s | %s\n", static_cast<int>(error.code),
                        error.message.c_str(), error.detail.c_str(), error.hint.c_str());
        return std::move(error);
    }

    // Goes on until the servers have said a line with this in it.
    std::string await(const std::string &part) {
        std::optional<std::string> line;
        EXPECT_TRUE(drive(
            [&] {
                while ((line = servers->line()))
                    if (has(*line, part)) return true;
                return false;
            },
            servers->output()))
            << "waited for ever for " << part;
        return line.value_or("");
    }

    // How much of an endless answer the server got rid of before it was stopped.
    long bytes_sent(const std::string &path) {
        const std::string before = "\"" + path + "\", \"sent\": ";
        const std::string line = await(before);
        const auto at = line.find(before);
        return at == std::string::npos ? -1 : std::atol(line.c_str() + at + before.size());
    }

    void abort_quickly() {
        const auto begin = Clock::now();
        engine_->abort();
        EXPECT_LT(Clock::now() - begin, kPatience);
        EXPECT_FALSE(engine_->take_finished());
        EXPECT_TRUE(engine_->step());
        pollfd ready{engine_->poll_fd(), POLLIN, 0};
        EXPECT_EQ(poll(&ready, 1, 0), 0);  // nothing is left to do
    }

    std::unique_ptr<Engine> engine_;
    std::set<int> open_before_;
    std::size_t secrets_before_ = 0;
    int steps_ = 0;
};

// --- what works ---

TEST_F(EngineTest, GetsAnAnswer) {
    const Response response = answer(get(url("good", "/echo?a=b%2Fc")));
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(field(response, "method"), "\"GET\"");
    EXPECT_EQ(field(response, "path"), "\"/echo?a=b%2Fc\"");
    const std::pair<std::string, std::string> expected{"x-test-header", "Some Value"};
    EXPECT_EQ(std::count(response.headers.begin(), response.headers.end(), expected), 1);
}

// That nothing of them is left is test/t/220_memory.pl's to show.
TEST_F(EngineTest, HasLibcurlWipeWhatItFrees) {
    EXPECT_TRUE(Engine::wipes_what_is_freed());
}

TEST_F(EngineTest, SendsBodyAndHeaders) {
    Request request = post(url("good", "/echo"), "the body");
    request.headers.push_back({"X-Vault-Token", SecretBytes("s.token")});
    request.headers.push_back({"X-Empty", {}});
    const Response response = answer(std::move(request));
    const std::string text(response.body.expose_text());
    EXPECT_TRUE(has(text, "\"method\": \"POST\"")) << text;
    EXPECT_TRUE(has(text, "\"body\": \"the body\"")) << text;
    EXPECT_TRUE(has(text, "\"x-vault-token\": \"s.token\"")) << text;
    EXPECT_TRUE(has(text, "\"x-empty\": \"\"")) << text;
    EXPECT_TRUE(has(text, "\"content-length\": \"8\"")) << text;
    for (const char *unwanted :
         {"expect", "\"accept\"", "content-type", "user-agent", "accept-enc"})
        EXPECT_FALSE(has(text, unwanted)) << text;
}

TEST_F(EngineTest, SendsTheContentTypeItIsGiven) {
    Request request = post(url("good", "/echo"), "{}");
    request.headers.push_back({"Content-Type", SecretBytes("application/x-amz-json-1.1")});
    const Response response = answer(std::move(request));
    EXPECT_EQ(field(response, "content-type"), "\"application/x-amz-json-1.1\"");
}

TEST_F(EngineTest, SendsEmptyAndLargeBodies) {
    EXPECT_EQ(field(answer(post(url("good", "/echo"), "")), "content-length"), "\"0\"");
    const std::string large(100'000, 'x');
    const Response response = answer(post(url("good", "/echo"), large));
    EXPECT_TRUE(has(std::string(response.body.expose_text()), large));
}

TEST_F(EngineTest, KnowsOtherMethods) {
    for (const char *method : {"PUT", "PATCH"}) {
        Request request = get(url("good", "/echo"));
        request.method = method;
        const Response response = answer(std::move(request));
        EXPECT_EQ(field(response, "method"), "\"" + std::string(method) + "\"");
        EXPECT_EQ(field(response, "content-length"), "\"0\"");
    }
    Request request = get(url("good", "/echo"));
    request.method = "DELETE";
    EXPECT_EQ(field(answer(std::move(request)), "method"), "\"DELETE\"");
    request = get(url("good", "/echo"));
    request.method = "HEAD";
    const Response response = answer(std::move(request));
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(response.body.empty());
}

TEST_F(EngineTest, LeavesThePathAsItIs) {
    EXPECT_EQ(field(answer(get(url("good", "/echo/../a/./b"))), "path"), "\"/echo/../a/./b\"");
}

TEST_F(EngineTest, ReturnsErrorStatusAsAnAnswer) {
    for (int status : {204, 400, 403, 404, 429, 500, 503})
        EXPECT_EQ(answer(get(url("good", "/status/" + std::to_string(status)))).status, status);
}

TEST_F(EngineTest, IgnoresInterimAnswers) {
    const Response response = answer(get(url("good", "/interim")));
    EXPECT_EQ(response.status, 200);
    for (const auto &[name, value] : response.headers) EXPECT_NE(name, "x-early");
}

TEST_F(EngineTest, TakesAnAnswerOfExactlyTheLimit) {
    EXPECT_EQ(answer(get(url("good", "/bytes/" + std::to_string(kMaxBody)))).body.size(), kMaxBody);
    failure(get(url("good", "/bytes/" + std::to_string(kMaxBody + 1))), ErrorCode::bad_answer,
            "too long");
}

TEST_F(EngineTest, ReusesConnections) {
    const std::string first = field(answer(get(url("good", "/echo"))), "connection");
    EXPECT_EQ(field(answer(get(url("good", "/echo"))), "connection"), first);
    engine_->abort();  // an idle connection is in no doubt
    EXPECT_EQ(field(answer(get(url("good", "/echo"))), "connection"), first);
    const int fd = engine_->poll_fd();
    engine_->close_connections();
    EXPECT_EQ(engine_->poll_fd(), fd);
    EXPECT_NE(field(answer(get(url("good", "/echo"))), "connection"), first);
}

TEST_F(EngineTest, DoesNotReuseAConnectionForAnotherTrustOrIdentity) {
    const std::string first = field(answer(get(url("good", "/echo"))), "connection");
    Request request = with_client(get(url("good", "/echo")), "client.pem", "client.key");
    EXPECT_NE(field(answer(std::move(request)), "connection"), first);
    request = get(url("good", "/echo"));
    request.transport.ca_file = servers->cert("other_ca.pem");
    failure(std::move(request), ErrorCode::misconfigured, "certificate of 127.0.0.1:");
}

TEST_F(EngineTest, SurvivesAConnectionThatDiedIdle) {
    answer(get(url("good", "/last")));
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
}

TEST_F(EngineTest, RunsManyTransfersAtOnce) {
    std::map<TransferId, std::size_t> expected;
    for (std::size_t i = 0; i < 64; ++i)
        expected[start(get(url("good", "/bytes/" + std::to_string(1000 + i))))] = 1000 + i;
    const TransferId bad = start(get(url("expired", "/echo")));
    const TransferId silent = start(get(url("good", "/silent")), kShort);
    std::set<TransferId> failed;
    EXPECT_TRUE(drive([&] {
        while (auto finished = engine_->take_finished()) {
            if (!finished->result) {
                failed.insert(finished->id);
                continue;
            }
            const auto found = expected.find(finished->id);
            if (found == expected.end() || finished->result->body.size() != found->second)
                ADD_FAILURE() << "wrong answer";
            else
                expected.erase(found);
        }
        return expected.empty() && failed.size() == 2;
    }));
    EXPECT_EQ(failed, (std::set<TransferId>{bad, silent}));
}

TEST_F(EngineTest, ResolvesNames) {
    EXPECT_EQ(answer(get(url("good", "/echo", "localhost"))).status, 200);
    setenv("ENVCRYPT_RESOLVER_DELAY", "0.1", 1);
    EXPECT_EQ(answer(get(url("good", "/echo", "kms.slow.test"))).status, 200);
    failure(get(url("good", "/echo", "missing.slow.test")), ErrorCode::unreachable,
            "could not connect to missing.slow.test:");
}

TEST_F(EngineTest, IgnoresTheEnvironmentsProxy) {
    const std::string proxy = url("refused", "");
    for (const char *name : {"https_proxy", "HTTPS_PROXY", "ALL_PROXY"})
        setenv(name, proxy.c_str(), 1);
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
    for (const char *name : {"https_proxy", "HTTPS_PROXY", "ALL_PROXY"}) unsetenv(name);
}

TEST_F(EngineTest, UsesTheProxyItIsGiven) {
    Request request = get(url("good", "/echo"));
    request.transport.proxy = "http://127.0.0.1:" + std::to_string(servers->port("refused"));
    setenv("no_proxy", "127.0.0.1", 1);
    failure(std::move(request), ErrorCode::unreachable, "could not connect to");
    unsetenv("no_proxy");
}

TEST_F(EngineTest, PresentsAClientCertificate) {
    for (const char *server : {"mtls", "mtls12"}) {
        Request request = with_client(get(url(server, "/echo")), "client.pem", "client.key");
        EXPECT_EQ(field(answer(std::move(request)), "client"), "\"client\"") << server;
    }
}

TEST_F(EngineTest, TakesUpAClientCertificateThatWasReplaced) {
    namespace fs = std::filesystem;
    const fs::path dir = fs::temp_directory_path() / ("envcrypt." + std::to_string(getpid()));
    fs::create_directory(dir);
    const auto install = [&](const char *name) {
        for (const char *kind : {".pem", ".key"}) {
            // as those do who replace certificates: written beside, then renamed
            fs::copy_file(servers->cert(std::string(name) + kind), dir / "next");
            fs::rename(dir / "next", dir / (std::string("mine") + kind));
        }
    };
    const auto request = [&] {
        Request made = get(url("mtls", "/echo"));
        made.transport.client_cert_file = dir / "mine.pem";
        made.transport.client_key_file = dir / "mine.key";
        return made;
    };
    install("client");
    const std::string first = field(answer(request()), "connection");
    EXPECT_EQ(field(answer(request()), "connection"), first);
    install("client");
    EXPECT_NE(field(answer(request()), "connection"), first);
    install("other_client");
    failure(request(), ErrorCode::misconfigured, "agree on TLS");
    install("client");
    EXPECT_EQ(answer(request()).status, 200);
    fs::remove_all(dir);
}

// --- what is refused before any I/O ---

TEST_F(EngineTest, SpeaksHttpToMetadataServicesAlone) {
    for (const char *address : {"http://169.254.169.254/x", "http://169.254.170.2/x",
                                "http://169.254.170.23/x", "http://[fd00:ec2::23]/x"}) {
        auto started = engine_->start(get(address), milliseconds(1));
        EXPECT_TRUE(started) << address;
        engine_->abort();
    }
    for (const char *address :
         {"http://169.254.169.253/x", "http://169.254.169.254.evil.test/x", "http://localhost/x",
          "http://169.254.169.254@evil.test/x", "http://[fd00:ec2::24]/x"})
        EXPECT_FALSE(engine_->start(get(address), milliseconds(1))) << address;
}

TEST_F(EngineTest, RefusesUrlsThatAreNotHttps) {
    for (const std::string &wrong :
         {std::string("http://127.0.0.1/x"), std::string("ftp://kms/x"), std::string("file:///etc"),
          std::string("kms:8200/x"), std::string(""), std::string("https://"),
          std::string("https://app:hunter2@kms/x"), std::string("https://hunter2@kms/x"),
          std::string("https://kms:99999/hunter2"), std::string("https://kms/hunter2\r\nX: y"),
          std::string("https://kms/hunter2\0x", 21), std::string("//kms/x")}) {
        const Error error = failure(get(wrong), ErrorCode::misconfigured, "URL of the KMS");
        EXPECT_FALSE(has(error.message + error.detail + error.hint, "hunter2"));
    }
    EXPECT_EQ(open_descriptors().size(), open_before_.size() + 2);  // nothing but epoll and timer
}

TEST_F(EngineTest, RefusesHeadersThatAreNone) {
    for (const std::string_view value : {std::string_view("a\r\nX-Forged: 1"),
                                         std::string_view("a\nb"), std::string_view("a\0b", 3)}) {
        Request request = get(url("good", "/echo"));
        request.headers.push_back({"X-Vault-Token", SecretBytes(value)});
        const Error error = failure(std::move(request), ErrorCode::misconfigured, "X-Vault-Token");
        EXPECT_FALSE(has(error.detail, "Forged"));
    }
    Request request = get(url("good", "/echo"));
    request.headers.push_back({"X: y\r\nZ", SecretBytes("1")});
    failure(std::move(request), ErrorCode::misconfigured, "header");
}

// --- TLS ---

TEST_F(EngineTest, DistrustsBadCertificates) {
    Error error = failure(get(url("expired", "/echo")), ErrorCode::misconfigured, "certificate of");
    EXPECT_TRUE(has(error.detail, "expired")) << error.detail;
    EXPECT_TRUE(has(error.hint, "Renew")) << error.hint;
    error = failure(get(url("wrong_host", "/echo")), ErrorCode::misconfigured, "certificate of");
    EXPECT_TRUE(has(error.hint, "host name")) << error.hint;
    error = failure(get(url("other_ca", "/echo")), ErrorCode::misconfigured, "certificate of");
    EXPECT_TRUE(has(error.hint, "ca_file")) << error.hint;
    Request request = get(url("good", "/echo"));
    request.transport.ca_file.clear();  // the system's
    error = failure(std::move(request), ErrorCode::misconfigured, "certificate of");
    EXPECT_TRUE(has(error.hint, "ca_file")) << error.hint;
}

TEST_F(EngineTest, NamesAnUnusableCaFile) {
    for (const char *name : {"missing.pem", "garbage.pem"}) {
        Request request = get(url("good", "/echo"));
        request.transport.ca_file = servers->cert(name);
        failure(std::move(request), ErrorCode::misconfigured, servers->cert(name));
    }
}

TEST_F(EngineTest, TrustsNothingButTheCaFile) {
    directories_trusted = 0;
    answer(get(url("good", "/echo")));
    EXPECT_EQ(directories_trusted, 0);
}

TEST_F(EngineTest, NamesAnUnusableClientCertificate) {
    const auto good = [] { return get(url("mtls", "/echo")); };
    failure(with_client(good(), "missing.pem", "client.key"), ErrorCode::misconfigured,
            servers->cert("missing.pem"));
    failure(with_client(good(), "client.pem", "missing.key"), ErrorCode::misconfigured,
            servers->cert("missing.key"));
    failure(with_client(good(), "client.pem", "other_client.key"), ErrorCode::misconfigured,
            servers->cert("other_client.key"));
    // nobody is asked for its passphrase
    failure(with_client(good(), "client.pem", "client_locked.key"), ErrorCode::misconfigured,
            servers->cert("client_locked.key"));
}

TEST_F(EngineTest, TellsThatAClientCertificateIsRefused) {
    for (const char *server : {"mtls", "mtls12"}) {
        Error error = failure(get(url(server, "/echo")), ErrorCode::misconfigured, "agree on TLS");
        EXPECT_TRUE(has(error.hint, "client_cert_file")) << error.hint;
        error =
            failure(with_client(get(url(server, "/echo")), "other_client.pem", "other_client.key"),
                    ErrorCode::misconfigured, "agree on TLS");
        EXPECT_TRUE(has(error.hint, "client_cert_file")) << error.hint;
    }
}

TEST_F(EngineTest, RefusesOldTls) {
    EXPECT_EQ(answer(get(url("tls12", "/echo"))).status, 200);
    const Error error =
        failure(get(url("tls11", "/echo")), ErrorCode::misconfigured, "agree on TLS");
    EXPECT_TRUE(has(error.hint, "TLS 1.2")) << error.hint;
}

TEST_F(EngineTest, TellsAPortWithoutTls) {
    failure(get(url("plain", "/echo")), ErrorCode::misconfigured, "agree on TLS");
}

// --- answers that are none ---

TEST_F(EngineTest, DoesNotFollowRedirects) {
    for (const char *status : {"301", "302", "303", "307", "308"}) {
        const Error error = failure(get(url("good", std::string("/redirect/") + status)),
                                    ErrorCode::unreachable, "redirect");
        EXPECT_TRUE(error.passes_soon);
        EXPECT_EQ(error.detail,
                  std::string("HTTP status ") + status + " to https://elsewhere.test:8200");
    }
    failure(get(url("good", "/status/304")), ErrorCode::unreachable, "redirect");
}

TEST_F(EngineTest, StopsAnEndlessAnswerEarly) {
    for (const char *path : {"/big/1", "/big-chunked/1", "/big-until-close/1"}) {
        failure(get(url("good", path)), ErrorCode::bad_answer, "answer from 127.0.0.1:");
        EXPECT_LT(bytes_sent(path), 64 << 20) << path;
    }
}

TEST_F(EngineTest, StopsEndlessHeadersEarly) {
    for (const char *path : {"/many-headers/1", "/long-header/1"}) {
        failure(get(url("good", path)), ErrorCode::bad_answer, "header of the answer from");
        EXPECT_LT(bytes_sent(path), 64 << 20) << path;
    }
}

TEST_F(EngineTest, RefusesWhatIsNotHttp) {
    failure(get(url("good", "/not-http")), ErrorCode::bad_answer, "not HTTP");
    failure(get(url("good", "/bad-chunk")), ErrorCode::bad_answer, "not HTTP");
}

// --- connections that fail ---

TEST_F(EngineTest, TellsWhatCannotBeReached) {
    const Error error =
        failure(get(url("refused", "/echo")), ErrorCode::unreachable, "could not connect to 127.0");
    EXPECT_FALSE(error.hint.empty());
    failure(get(url("cut", "/echo")), ErrorCode::unreachable, "could not connect to");
    failure(get(url("reset", "/echo")), ErrorCode::unreachable, "could not connect to");
    failure(get(url("good", "/close")), ErrorCode::unreachable, "was lost");
    failure(get(url("good", "/half")), ErrorCode::unreachable, "was lost");
}

TEST_F(EngineTest, TellsInWhichPhaseTimeRanOut) {
    failure(get(url("full", "/echo")), ErrorCode::unreachable, "timeout while connecting to",
            kShort);
    failure(get(url("silent", "/echo")), ErrorCode::unreachable, "timeout while negotiating TLS",
            kShort);
    failure(get(url("good", "/silent")), ErrorCode::unreachable, "timeout while waiting for an",
            kShort);
    failure(get(url("good", "/stall")), ErrorCode::unreachable, "timeout while reading the answer",
            kShort);
    answer(get(url("good", "/echo")));  // and on a connection that was there already
    failure(get(url("good", "/silent")), ErrorCode::unreachable, "timeout while waiting for an",
            kShort);
    failure(get(url("good", "/silent")), ErrorCode::unreachable, "timeout while", milliseconds(0));
}

TEST_F(EngineTest, TimesOutWithoutWaitingForTheResolver) {
    setenv("ENVCRYPT_RESOLVER_DELAY", "3", 1);
    const auto begin = Clock::now();
    failure(get(url("good", "/echo", "kms.slow.test")), ErrorCode::unreachable,
            "timeout while resolving the name of kms.slow.test:", kShort);
    EXPECT_LT(Clock::now() - begin, kShort + kPatience);
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
}

// --- abort() ---

TEST_F(EngineTest, AbortsAtOnceWhileResolving) {
    setenv("ENVCRYPT_RESOLVER_DELAY", "5", 1);
    start(get(url("good", "/echo", "kms.slow.test")));
    // newer ones ask for both kinds of addresses at once
    ASSERT_TRUE(drive([] { return resolver_sleeping() >= 1; }));
    for (const std::string &thread : threads()) {  // B17
        const unsigned long blocked = blocked_signals(thread);
        const bool is_main = thread == std::to_string(getpid());
        for (int number : {SIGINT, SIGTERM, SIGUSR1, SIGURG, SIGHUP, SIGALRM, SIGPIPE})
            EXPECT_EQ((blocked >> (number - 1)) & 1, is_main ? 0u : 1u) << number;
    }
    abort_quickly();
    EXPECT_GE(resolver_sleeping(), 1);  // it was not waited for
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
    engine_.reset();  // nor here
    EXPECT_GE(resolver_sleeping(), 1);
}

TEST_F(EngineTest, LeavesNothingBehindAfterAbortsWhileResolving) {
    setenv("ENVCRYPT_RESOLVER_DELAY", "1", 1);
    answer(get(url("good", "/echo")));
    const auto open = open_descriptors().size();
    for (int i = 0; i < 200; ++i) {
        start(get(url("good", "/echo", "kms" + std::to_string(i) + ".slow.test")));
        ASSERT_TRUE(engine_->step());
        abort_quickly();
    }
    EXPECT_TRUE(drive([] { return threads().size() == 1; }));
    EXPECT_EQ(open_descriptors().size(), open);
}

TEST_F(EngineTest, LeavesNothingBehindAfterAbortsInEachPhase) {
    const auto repeat = [this](const char *server, const char *path, const auto &reach) {
        std::size_t open = 0;
        for (int i = 0; i < 201; ++i) {
            const std::string where = path + ("/" + std::to_string(i));
            start(get(url(server, where)));
            reach(where);
            abort_quickly();
            if (i == 0) open = open_descriptors().size();  // libcurl keeps some for later
            ASSERT_EQ(open_descriptors().size(), open) << server << where;
        }
    };
    const auto connecting = [this](const std::string &) {
        const auto open = open_descriptors().size();
        ASSERT_TRUE(drive([&] { return open_descriptors().size() > open; }));
    };
    repeat("full", "/echo", connecting);
    repeat("silent", "/echo", [this](const std::string &) { await("\"hello\""); });
    for (const char *path : {"/silent", "/big"})
        repeat("good", path, [this](const std::string &where) { await(where + "\""); });
    repeat("good", "/stall", [this](const std::string &where) {
        await(where + "\"");  // asked
        await(where + "\"");  // and half answered
    });
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
}

TEST_F(EngineTest, ForgetsTransfersThatHaveJustStarted) {
    for (int i = 0; i < 1000; ++i) {
        start(post(url("good", "/echo"), "body"));
        start(get(url("good", "/echo", "localhost")));
        abort_quickly();
    }
    const auto before = secret_memory().in_use;
    EXPECT_EQ(before, secrets_before_);
    EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
}

TEST_F(EngineTest, ForgetsFinishedTransfers) {
    start(get("https://127.0.0.1:1/"));  // nobody is there
    const TransferId slow = start(get(url("good", "/silent")), kShort);
    ASSERT_TRUE(drive([&] {
        // as soon as the second one has timed out, the first has long failed
        pollfd ready{engine_->poll_fd(), POLLIN, 0};
        return slow != 0 && poll(&ready, 1, 2 * kShort.count()) == 0;
    }));
    abort_quickly();
}

TEST_F(EngineTest, MakesAndDropsEngines) {
    for (int i = 0; i < 100; ++i) {
        EXPECT_EQ(answer(get(url("good", "/echo"))).status, 200);
        start(get(url("good", "/silent")));
        ASSERT_TRUE(engine_->step());
        make_engine();
    }
}

// --- the rest of the house ---

TEST_F(EngineTest, OpensSocketsThatAProgramDoesNotInherit) {
    start(get(url("good", "/silent/inherit")));
    await("/silent/inherit");
    int sockets = 0;
    for (int fd : open_descriptors()) {
        if (open_before_.count(fd)) continue;
        sockaddr_storage address;
        socklen_t length = sizeof address;
        if (getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length) == 0 &&
            address.ss_family == AF_UNIX)
            continue;  // libcurl's wake-up pair, which leads nowhere
        EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0) << fd;
        ++sockets;
    }
    EXPECT_GE(sockets, 3);
    engine_->abort();
}

TEST_F(EngineTest, ReportsEveryTransferWhenBroken) {
    const std::set<TransferId> started{start(get(url("good", "/silent"))),
                                       start(get(url("full", "/echo")))};
    ASSERT_TRUE(engine_->step());
    const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ASSERT_EQ(dup3(nothing, engine_->poll_fd(), O_CLOEXEC), engine_->poll_fd());
    close(nothing);
    EXPECT_FALSE(engine_->step());
    std::set<TransferId> failed;
    while (auto finished = engine_->take_finished()) {
        ASSERT_FALSE(finished->result);
        EXPECT_EQ(static_cast<int>(finished->result.error().code),
                  static_cast<int>(ErrorCode::internal));
        failed.insert(finished->id);
    }
    EXPECT_EQ(failed, started);
}

TEST_F(EngineTest, DoesNotSpinWhileNothingHappens) {
    failure(get(url("good", "/silent")), ErrorCode::unreachable, "timeout", milliseconds(1500));
    failure(get(url("full", "/echo")), ErrorCode::unreachable, "timeout", milliseconds(500));
    answer(get(url("good", "/echo")));
    EXPECT_LT(steps_, 200);
    pollfd ready{engine_->poll_fd(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, 0), 0);  // an idle connection is no reason to step
}

}  // namespace
}  // namespace envcrypt::http
