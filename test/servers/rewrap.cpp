// Rewraps keys at a real KMS, without PostgreSQL, until rewrap_keys() does: makes N keys, says
// "made", waits for a line on its standard input, rewraps them, and says for each under which
// version it was and is. Ends with 1 and the error where one fails.
//   rewrap WRAPPER N SERVER_OPTION=VALUE... -- MAPPING_OPTION=VALUE...
#include <poll.h>
#include <signal.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include "http/engine.hpp"
#include "keyring/operation.hpp"

using namespace envcrypt;

namespace {

std::unique_ptr<http::Engine> engine;
keyring::Credentials credentials;
int requests = 0;

kms::Clock now() {
    timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return kms::Clock(time.tv_sec * 1000 + time.tv_nsec / 1000000);
}

[[noreturn]] void fail(const Error &error) {
    std::cout << "failed: " << error.message << " " << error.detail << " " << error.hint << "\n";
    std::exit(1);
}

Result<SecretBytes> read_file(const kms::FileRequest &file) {
    std::ifstream in(file.path);
    std::stringstream text;
    text << in.rdbuf();
    std::string contents = text.str();
    if (contents.ends_with('\n')) contents.pop_back();
    if (contents.empty()) return Error{ErrorCode::denied, "no file " + file.path, {}, {}};
    return SecretBytes(contents);
}

Result<http::Response> exchange(http::Request request) {
    ++requests;
    if (auto started = engine->start(std::move(request), std::chrono::seconds(10)); !started)
        return std::move(started.error());
    for (;;) {
        if (Status stepped = engine->step(); !stepped) fail(stepped.error());
        if (auto finished = engine->take_finished()) return std::move(finished->result);
        pollfd ready{engine->poll_fd(), POLLIN, 0};
        poll(&ready, 1, 1000);
    }
}

void run(keyring::Operation &operation, kms::Task<Status> work) {
    operation.credentials = &credentials;
    operation.work = std::move(work);
    kms::Conversation &talk = operation.talk;
    for (bool started = false; !operation.work.done(); started = true) {
        talk.set_now(now());
        talk.set_wall_time(time(nullptr));
        if (!started)
            operation.work.start();
        else if (talk.needs_file())
            talk.answer(read_file(talk.take_file()));
        else if (talk.needs_exchange())
            talk.answer(exchange(talk.take_request()));
        else
            talk.wake();
    }
    if (Status status = operation.work.take(); !status) fail(status.error());
}

}  // namespace

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    if (count < 3) return 2;
    auto made_engine = http::Engine::create();
    if (!made_engine) fail(made_engine.error());
    engine = std::move(*made_engine);
    kms::Server server;
    server.name = "kms";
    server.dialect = kms::find_dialect(arguments[1]);
    kms::Options *options = &server.options;
    for (int i = 3; i < count; ++i) {
        const char *equals = std::strchr(arguments[i], '=');
        if (equals == nullptr)
            options = &server.identity;
        else
            options->insert_or_assign(
                std::string(arguments[i], static_cast<std::size_t>(equals - arguments[i])),
                equals + 1);
    }

    keyring::Operation many;
    many.server = server;
    for (int i = 0; i < std::atoi(arguments[2]); ++i) {
        keyring::Operation one;
        one.server = server;
        one.context = crypto::wrap_context(crypto::Purpose::data, static_cast<std::uint64_t>(i),
                                           "tenant" + std::to_string(i));
        run(one, keyring::make_key(one));
        keyring::KeyToOpen &key = many.keys.emplace_back();
        key.context = one.context;
        key.wrapped = one.made.wrapped;
        key.attestation = one.made.attestation;
        key.commitment =
            crypto::commitment(one.key.expose().first<crypto::kKeySize>(), one.context);
        key.master_key = one.made.master_key;
        key.master_key_version = one.made.master_key_version;
    }
    std::cout << "made" << std::endl;
    std::string line;
    std::getline(std::cin, line);

    requests = 0;
    run(many, keyring::rewrap_keys(many));
    for (const keyring::KeyToOpen &key : many.keys)
        std::cout << key.master_key_version << " " << key.made.master_key_version << " "
                  << (key.made.wrapped.empty() ? "kept" : "rewrapped") << "\n";
    std::cout << "requests " << requests << std::endl;
    return 0;
}
