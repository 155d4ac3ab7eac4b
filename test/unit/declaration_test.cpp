// Declarations as words and as numbers, and the canonical bytes of tokens.
#include "value/declaration.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace envcrypt::value {
namespace {

using test::hex;
using test::unhex;

std::string bare(std::string_view word) {
    return std::string(word);
}

TEST(Declaration, IsItsNumberAndItsWords) {
    for (int type = 1; type <= kLastType; ++type)
        for (int mode = 0; mode <= 3; ++mode)
            for (const char *label : {"", "a", "ssn", "zzzzz"}) {
                const Declaration given{static_cast<Type>(type), static_cast<SearchMode>(mode),
                                        make_label(label).value_or(0)};
                const auto back = from_typmod(to_typmod(given));
                const bool legal =
                    mode == 0 || (*label != '\0' && is_searchable(given.type, given.search));
                ASSERT_EQ(back.has_value(), legal);
                if (!legal) continue;
                EXPECT_EQ(*back, given);
                std::vector<std::string_view> words{type_name(given.type)};
                if (mode != 0) words.push_back(search_word(given.search));
                if (*label != '\0') words.emplace_back(label);
                const auto read = read_declaration(words);
                ASSERT_TRUE(read);
                EXPECT_EQ(*read, given);
            }
    EXPECT_EQ(to_typmod({Type::text, SearchMode::exact, *make_label("ssn")}),
              1 << 26 | 1 << 24 | 10481562);
    EXPECT_EQ(declaration_text({Type::text, SearchMode::digits, *make_label("ssn")}, bare),
              "text, searchable_digits, ssn");
}

TEST(Declaration, NumbersThatAreNone) {
    for (const std::int32_t typmod :
         {-1, -2, 0, 1, 17 << 26, 31 << 26, 1 << 26 | 1, 1 << 26 | 1 << 24,
          7 << 26 | 1 << 24 | 10481562, 9 << 26 | 2 << 24 | 10481562, 1 << 26 | 0xffffff})
        EXPECT_FALSE(from_typmod(typmod)) << typmod;
}

TEST(Declaration, TheNamesOfSql) {
    const std::pair<const char *, Type> names[] = {
        {"integer", Type::int4},    {"int", Type::int4},
        {"bigint", Type::int8},     {"smallint", Type::int2},
        {"bool", Type::boolean},    {"double precision", Type::float8},
        {"decimal", Type::numeric}, {"timestamp with time zone", Type::timestamptz}};
    for (const auto &[name, type] : names) {
        const std::string_view words[] = {name};
        const auto read = read_declaration(words);
        ASSERT_TRUE(read) << name;
        EXPECT_EQ(read->type, type);
    }
}

std::string canonical_hex(Type type, SearchMode mode, std::string_view plaintext) {
    Bytes buffer;
    const auto bytes = canonical(type, mode, as_bytes(plaintext), buffer);
    return bytes ? hex(*bytes) : "none";
}

TEST(Canonical, Text) {
    EXPECT_EQ(canonical_hex(Type::text, SearchMode::exact, "Aa \xc3\x84"), "416120c384");
    EXPECT_EQ(canonical_hex(Type::text, SearchMode::nocase, "AZaz[@\xc3\x84"), "617a617a5b40c384");
    EXPECT_EQ(canonical_hex(Type::text, SearchMode::digits, "+1 (555) 09/:"),
              "3135353530"
              "39");
    EXPECT_EQ(canonical_hex(Type::text, SearchMode::digits, "none"), "");
}

TEST(Canonical, NumericsThatSqlCallsEqual) {
    // ndigits, weight, sign, dscale, digits
    const auto numeric = [](const char *digits) {
        const Bytes bytes = unhex(digits);
        return canonical_hex(Type::numeric, SearchMode::exact, as_text(bytes));
    };
    EXPECT_EQ(numeric("00020000000000010001"
                      "1388"),
              "000200000000"
              "00011388");  // 1.5
    EXPECT_EQ(numeric("00020000000000050001"
                      "1388"),
              "000200000000"
              "00011388");  // 1.50000
    EXPECT_EQ(numeric("0003000000000009"
                      "000113880000"),
              "000200000000"
              "00011388");
    EXPECT_EQ(numeric("0000000000000000"), "000000000000");
    EXPECT_EQ(numeric("0000000000000003"), "000000000000");  // 0.000
    EXPECT_EQ(numeric("00000000c0000000"), "00000000c000");  // NaN
    EXPECT_EQ(numeric("0001000040000000"
                      "0001"),
              "000100004000"
              "0001");
    for (const char *malformed :
         {"", "0000", "00010000000000", "0001000000000000", "000100000000000000"})
        EXPECT_EQ(numeric(malformed), "none");
}

TEST(Canonical, EverythingElseIsItself) {
    for (const Type type : {Type::bytea, Type::int8, Type::date, Type::uuid, Type::inet})
        EXPECT_EQ(canonical_hex(type, SearchMode::exact, "\x01\x02"), "0102");
}

}  // namespace
}  // namespace envcrypt::value
