// libFuzzer target for all that reads a value which an attacker may have written: parse, open,
// from_text. Seeds: test/vectors/write_seeds.py DIR.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include "value/declaration.hpp"
#include "value/value.hpp"

namespace {

using namespace envcrypt;

void require(bool holds) {
    if (!holds) std::abort();
}

crypto::Aead &subkey() {
    static const std::array<std::uint8_t, crypto::kKeySize> key{1};
    static crypto::Aead aead(key);
    return aead;
}

void fuzz_parse(ByteView input) {
    static constexpr std::array<std::uint8_t, value::kSaltSize> no_salt{};
    static constexpr std::array<std::uint8_t, value::kNonceSize> no_nonce{};
    value::Parsed parsed{{}, {}, no_salt, no_nonce, {}};
    const value::Fault fault = value::parse(input, parsed);
    if (fault != value::Fault::none) {
        require(value::malformed(fault).detail.find(value::fault_name(fault)) != std::string::npos);
        return;
    }
    const value::Header &header = parsed.header;
    require(parsed.authenticated.size() + parsed.sealed.size() == input.size());
    require(value::sealed_size(header, parsed.plaintext_size()) == input.size());
    require(value::type_name(header.type)[0] != '\0');
    if (header.label != 0)
        require(value::make_label(value::label_text(header.label)) == header.label);

    Bytes plaintext(parsed.plaintext_size());
    const ByteView row = as_bytes(header.bound ? "row" : "");
    require(!value::open(subkey(), parsed, row, plaintext));

    // one encoding for each header: sealing writes the bytes that were read
    Bytes again(input.size());
    require(value::seal(subkey(), header, parsed.salt, parsed.nonce, row, plaintext, again).ok());
    require(std::equal(parsed.authenticated.begin(), parsed.authenticated.end(), again.begin()));
    value::Parsed reparsed = parsed;
    require(value::parse(again, reparsed) == value::Fault::none);
    require(value::open(subkey(), reparsed, row, plaintext));
}

void fuzz_text(ByteView input) {
    const std::string_view text = as_text(input);
    Bytes decoded(value::text_capacity(text.size()));
    if (const auto size = value::from_text(text, decoded)) {
        std::string again(value::text_length(*size) + 1, '#');
        value::to_text(ByteView(decoded).first(*size), again);
        require(std::string_view(again).substr(0, again.size() - 1) == text);
    }
    std::string form(value::text_length(input.size()) + 1, '#');
    value::to_text(input, form);
    form.pop_back();
    Bytes back(value::text_capacity(form.size()));
    require(value::from_text(form, back) == input.size());
    require(std::equal(input.begin(), input.end(), back.begin()));
    value::contains_text(text);
    value::Parsed parsed;
    if (value::parse(input, parsed) == value::Fault::none) require(value::contains_text(form));
}

// A declaration as a number and as words, and the canonical bytes of a plaintext.
void fuzz_declaration(ByteView input) {
    if (input.size() >= 4) {
        std::int32_t typmod;
        std::memcpy(&typmod, input.data(), sizeof(typmod));
        if (const auto declaration = value::from_typmod(typmod)) {
            require(value::to_typmod(*declaration) == typmod);
            require(typmod >= 0);
        }
    }
    std::vector<std::string_view> words;
    for (std::string_view rest = as_text(input); !rest.empty() && words.size() < 8;) {
        const std::size_t end = std::min(rest.find(' '), rest.size());
        words.push_back(rest.substr(0, end));
        rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    if (const auto declaration = value::read_declaration(words))
        require(value::from_typmod(value::to_typmod(*declaration)) == *declaration);
    for (const value::SearchMode mode :
         {value::SearchMode::exact, value::SearchMode::nocase, value::SearchMode::digits})
        for (const value::Type type :
             {value::Type::text, value::Type::numeric, value::Type::bytea}) {
            Bytes buffer;
            if (const auto canonical = value::canonical(type, mode, input, buffer))
                require(canonical->size() <= input.size());
        }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    fuzz_parse({data, size});
    fuzz_text({data, size});
    fuzz_declaration({data, size});
    return 0;
}
