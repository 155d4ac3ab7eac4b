// libFuzzer: whatever a KMS (or something in its place) answers is read without harm, and only a
// complete answer counts. The first byte chooses the question and the status.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kms/dialect.hpp"
#include "kms/reference.hpp"
#include "kms/time.hpp"

using namespace envcrypt;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0) return 0;
    static constexpr kms::Verb verbs[] = {kms::Verb::make_data_key, kms::Verb::wrap,
                                          kms::Verb::unwrap};
    static constexpr int statuses[] = {200, 400, 403, 503};
    static constexpr std::string_view wrapped = "vault:v1:x";
    const SecretBytes key(std::string_view("0123456789abcdef0123456789abcdef"));
    kms::Server server;
    server.name = "kms";
    server.dialect = &kms::vault_dialect();
    server.options = {{"endpoint", "https://kms"}, {"master_key", "app"}};
    kms::Ask ask;
    ask.verb = verbs[data[0] % 3];
    ask.key = &key;
    ask.wrapped = as_bytes(wrapped);
    http::Response response;
    response.status = statuses[data[0] / 3 % 4];
    response.body = SecretBytes(ByteView(data + 1, size - 1));
    const kms::Dialect *const clouds[] = {&kms::aws_dialect(), &kms::gcp_dialect(),
                                          &kms::azure_dialect()};
    for (const kms::Dialect *cloud : clouds) {
        http::Response copy;
        copy.status = response.status;
        copy.body = response.body.copy();
        (void)cloud->refuses_credential(copy);
        (void)cloud->refuses_time(copy);
        server.options["attestation_key"] = "app";
        const Result<kms::Answer> read = cloud->read(server, ask, std::move(copy));
        if (read && response.status != 200) std::abort();
    }
    http::Response batch;
    batch.status = response.status;
    batch.body = response.body.copy();
    const kms::Ask asks[] = {ask, ask};
    const auto answers = server.dialect->read_batch(server, asks, std::move(batch));
    if (answers && answers->size() != 2) std::abort();
    (void)kms::parse_reference(response.body.expose_text());
    (void)kms::parse_http_date(response.body.expose_text());
    (void)kms::parse_utc_time(response.body.expose_text());

    const Result<kms::Answer> answer = server.dialect->read(server, ask, std::move(response));
    if (answer && (statuses[data[0] / 3 % 4] != 200 || answer->master_key_version.empty() ||
                   answer->wrapped.empty()))
        std::abort();

    // the key file of a local KMS is foreign, too
    server.dialect = &kms::local_dialect();
    const kms::Credential key_file{SecretBytes(ByteView(data + 1, size - 1))};
    (void)server.dialect->ask(server, ask, key_file);
    return 0;
}
