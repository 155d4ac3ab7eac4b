// The bare cipher: nanoseconds to open values of several lengths with each library behind Aead, and to derive a subkey. Where the
// two cross is what kSodiumMaxInput in src/crypto/aead.cpp should be.
#include <chrono>
#include <cstdio>

#include "crypto/aead.hpp"
#include "crypto/keys.hpp"

using namespace envcrypt;
using namespace envcrypt::crypto;

template <class Work>
static double nanoseconds(Work work) {
    double best = 1e18;
    for (int round = 0; round < 7; ++round) {
        const auto start = std::chrono::steady_clock::now();
        constexpr int times = 20000;
        for (int i = 0; i < times; ++i) work();
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
        best = std::min(best, took.count() / times);
    }
    return best;
}

int main() {
    const std::array<std::uint8_t, 32> key{1};
    const std::array<std::uint8_t, 12> nonce{2};
    const std::array<std::uint8_t, 26> header{3};
    std::printf("%8s %12s %12s\n", "bytes", "libsodium", "OpenSSL");
    for (const std::size_t length : {11, 32, 64, 96, 128, 200, 1000, 4096}) {
        Bytes plaintext(length), sealed(length + kTagSize), out(length);
        double took[2];
        int i = 0;
        for (const AeadLibrary library : {AeadLibrary::sodium, AeadLibrary::openssl}) {
            Aead aead(key, library);
            if (!aead.seal(nonce, header, plaintext, sealed)) return 1;
            bool ok = true;
            took[i++] = nanoseconds([&] { ok &= aead.open(nonce, header, sealed, out); });
            if (!ok) return 1;
        }
        std::printf("%8zu %9.0f ns %9.0f ns\n", length, took[0], took[1]);
    }
    const std::array<std::uint8_t, 4> salt{};
    std::printf("deriving and expanding a subkey: %.0f ns\n", nanoseconds([&] {
                    const SecretBytes subkey = value_subkey(key, salt);
                    Aead expanded(subkey.expose().first<32>());
                }));
}
