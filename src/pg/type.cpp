// The type `encrypted`: input, output, typmod, length coercion. Pure functions of bytes: no key, no
// catalog, no network, never plaintext.
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

// The plaintext types that can be declared.
constexpr value::Type kDeclarable[] = {value::Type::text, value::Type::bytea};

// COPY's context would put what was fed in into the log, hence errhidecontext() on these errors.
// How to write what type input refuses: most often a literal without a cast.
constexpr const char *kWriteHint =
    "Plaintext is encrypted on assignment from its own type: write 'value'::text, or "
    "envcrypt.encrypt('value'), or bind a parameter of that type. COPY takes encrypted values "
    "only.";

}  // namespace

static void require_valid_typmod(int32 typmod) {
    const auto number = static_cast<std::uint8_t>(typmod_type(typmod));
    if (number == 0 || number > value::kLastType)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("invalid type modifier of type encrypted")));
}

bool require_fit(value::Type type, int32 typmod, [[maybe_unused]] fmNodePtr soft) {
    if (typmod == kNoTypmod || typmod_type(typmod) == type) return true;
    require_valid_typmod(typmod);  // a caller of the cast functions can give any number
    ENVCRYPT_SAVE_ERROR(soft,
                        (errcode(ERRCODE_DATA_EXCEPTION),
                         errmsg("a value of type %s does not fit a column of type encrypted(%s)",
                                value::type_name(type), value::type_name(typmod_type(typmod))),
                         errhint("Cast the plaintext to %s before it is encrypted.",
                                 value::type_name(typmod_type(typmod)))));
    return false;
}

ENVCRYPT_FUNCTION(envcrypt_in) {
    const char *text = PG_GETARG_CSTRING(0);
    const int32 typmod = PG_GETARG_INT32(2);
    const std::size_t length = strlen(text);
    const std::size_t capacity = value::text_capacity(length);
    if (capacity > value::kMaxPlaintext + value::kMaxOverhead + 3)
        ENVCRYPT_INPUT_ERROR(fcinfo, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                                      errmsg("encrypted value is too long")));
    auto *result = static_cast<bytea *>(palloc(VARHDRSZ + capacity + 1));
    auto *bytes = reinterpret_cast<std::uint8_t *>(VARDATA(result));
    std::optional<std::size_t> decoded;
    ErrorReport report;
    if (!guarded(report, [&] { decoded = value::from_text({text, length}, {bytes, capacity}); }))
        raise(report);
    if (!decoded)
        ENVCRYPT_INPUT_ERROR(fcinfo,
                             (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
                              errmsg("invalid input for type encrypted: not an encrypted value"),
                              errdetail("The text form of an encrypted value is ec1: and base64."),
                              errhint("%s", kWriteHint), errhidecontext(true)));
    value::Parsed parsed;
    const value::Fault fault = value::parse({bytes, *decoded}, parsed);
    if (fault != value::Fault::none)
        ENVCRYPT_INPUT_ERROR(fcinfo,
                             (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
                              errmsg("invalid input for type encrypted"),
                              errdetail("The check that failed: %s.", value::fault_name(fault)),
                              errhint("%s", kWriteHint), errhidecontext(true)));
    if (!require_fit(parsed.header.type, typmod, fcinfo->context)) PG_RETURN_NULL();
    SET_VARSIZE(result, VARHDRSZ + *decoded);
    PG_RETURN_BYTEA_P(result);
}

ENVCRYPT_FUNCTION(envcrypt_out) {
    const ByteView bytes = varlena_bytes(PG_GETARG_BYTEA_PP(0));
    const std::size_t size = value::text_length(bytes.size()) + 1;
    auto *text = static_cast<char *>(palloc(size));
    ErrorReport report;
    if (!guarded(report, [&] { value::to_text(bytes, {text, size}); })) raise(report);
    PG_RETURN_CSTRING(text);
}

ENVCRYPT_FUNCTION(envcrypt_recv) {
    auto *message = reinterpret_cast<StringInfo>(PG_GETARG_POINTER(0));
    const int32 typmod = PG_GETARG_INT32(2);
    const int length = message->len - message->cursor;
    const char *bytes = pq_getmsgbytes(message, length);
    value::Parsed parsed;
    const value::Fault fault = value::parse(
        {reinterpret_cast<const std::uint8_t *>(bytes), static_cast<std::size_t>(length)}, parsed);
    if (fault != value::Fault::none)
        ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                        errmsg("invalid binary input for type encrypted"),
                        errdetail("The check that failed: %s.", value::fault_name(fault)),
                        errhint("%s", kWriteHint), errhidecontext(true)));
    require_fit(parsed.header.type, typmod);
    auto *result = static_cast<bytea *>(palloc(VARHDRSZ + length));
    SET_VARSIZE(result, VARHDRSZ + length);
    memcpy(VARDATA(result), bytes, length);
    PG_RETURN_BYTEA_P(result);
}

ENVCRYPT_FUNCTION(envcrypt_send) {
    PG_RETURN_BYTEA_P(PG_GETARG_BYTEA_P_COPY(0));
}

ENVCRYPT_FUNCTION(envcrypt_typmod_in) {
    Datum *words;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), CSTRINGOID, -2, false, TYPALIGN_CHAR, &words,
                      nullptr, &count);
    if (count == 1)
        for (const value::Type type : kDeclarable)
            if (strcmp(DatumGetCString(words[0]), value::type_name(type)) == 0)
                PG_RETURN_INT32(static_cast<int32>(type) << 26);
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                    errmsg("invalid declaration of an encrypted column"),
                    errhint("Declare encrypted(text) or encrypted(bytea).")));
}

ENVCRYPT_FUNCTION(envcrypt_typmod_out) {
    const int32 typmod = PG_GETARG_INT32(0);
    require_valid_typmod(typmod);
    PG_RETURN_CSTRING(psprintf("(%s)", value::type_name(typmod_type(typmod))));
}

// The length coercion encrypted -> encrypted(...): what a column of another declaration may take
// over.
ENVCRYPT_FUNCTION(envcrypt_coerce) {
    auto *stored = PG_GETARG_BYTEA_PP(0);
    value::Parsed parsed;
    const value::Fault fault = value::parse(varlena_bytes(stored), parsed);
    if (fault != value::Fault::none)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION), errmsg("invalid encrypted value"),
                 errdetail("The check that failed: %s.", value::fault_name(fault))));
    require_fit(parsed.header.type, PG_GETARG_INT32(1));
    PG_RETURN_DATUM(PG_GETARG_DATUM(0));
}

}  // namespace envcrypt::pg
