// The type `encrypted`: input, output, typmod, length coercion. Pure functions of bytes: no key, no
// catalog, no network, never plaintext.
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

// COPY's context would put what was fed in into the log, hence errhidecontext() on these errors.
// How to write what type input refuses: most often a literal without a cast.
constexpr const char *kWriteHint =
    "Plaintext is encrypted on assignment from its own type: write 'value'::text, $1::date for a "
    "parameter, or envcrypt.encrypt(...); to search, envcrypt.matches(column, value). COPY takes "
    "encrypted values only.";
// Of what begins like one.
constexpr const char *kDamaged =
    "It begins like an encrypted value, but is damaged or of a later version: %s.";

// A word as SQL reads it in a declaration: a type or label that is a name stands bare.
std::string quote_word(std::string_view word) {
    const std::string text(word);
    const int keyword = ScanKeywordLookup(text.c_str(), &ScanKeywords);
    const bool reserved =
        keyword >= 0 && (ScanKeywordCategories[keyword] == RESERVED_KEYWORD ||
                         ScanKeywordCategories[keyword] == TYPE_FUNC_NAME_KEYWORD);
    const bool bare =
        text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
    return bare && !reserved ? text : "'" + text + "'";
}

}  // namespace

value::Declaration declaration_of(int32 typmod) {
    const std::optional<value::Declaration> declaration = value::from_typmod(typmod);
    if (!declaration)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("invalid type modifier of type encrypted")));
    return *declaration;
}

char *declaration_name(const value::Declaration &declaration) {
    char words[80];
    ErrorReport report;
    if (!guarded(report,
                 [&] { copy_text(words, value::declaration_text(declaration, quote_word)); }))
        raise(report);
    return psprintf("encrypted(%s)", words);
}

const char *label_name(value::Label label) {
    char text[8];
    ErrorReport report;
    if (!guarded(report, [&] { copy_text(text, value::label_text(label)); })) raise(report);
    return pstrdup(text);
}

bool fits(const value::Header &header, const value::Declaration &declaration) {
    return header.type == declaration.type && header.label == declaration.label &&
           (header.has_token ? header.token.mode : value::SearchMode::none) == declaration.search;
}

bool require_fit(const value::Header &header, const value::Declaration &declaration,
                 [[maybe_unused]] fmNodePtr soft) {
    if (fits(header, declaration)) return true;
    const char *column = declaration_name(declaration);
    if (header.type != declaration.type) {
        ENVCRYPT_SAVE_ERROR(soft, (errcode(ERRCODE_DATA_EXCEPTION),
                                   errmsg("a value of type %s does not fit a column of type %s",
                                          value::type_name(header.type), column),
                                   errhint("Assign the plaintext, decrypted where it came from and "
                                           "cast to %s.",
                                           value::type_name(declaration.type))));
        return false;
    }
    if (header.label != declaration.label) {
        ENVCRYPT_SAVE_ERROR(
            soft, (errcode(ERRCODE_DATA_EXCEPTION),
                   header.label == 0
                       ? errmsg("a value without a label does not fit a column of type %s", column)
                       : errmsg("a value with the label %s does not fit a column of type %s",
                                label_name(header.label), column),
                   errhint("Assign the plaintext, decrypted where it came from (in ALTER TABLE: "
                           "USING envcrypt.decrypt(column)); the column's declaration then "
                           "encrypts it.")));
        return false;
    }
    ENVCRYPT_SAVE_ERROR(
        soft,
        (errcode(ERRCODE_DATA_EXCEPTION),
         header.has_token
             ? errmsg("a value that is %s does not fit a column of type %s",
                      value::search_word(header.token.mode), column)
             : errmsg("a value without a search token does not fit a column of type %s", column),
         errhint("Assign the plaintext; the column's declaration then encrypts it.")));
    return false;
}

value::Parsed parse_value(ByteView bytes) {
    value::Parsed parsed;
    const value::Fault fault = value::parse(bytes, parsed);
    if (unlikely(fault != value::Fault::none))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION), errmsg("invalid encrypted value"),
                 errdetail("The check that failed: %s.", value::fault_name(fault))));
    return parsed;
}

value::Label read_label(ByteView label) {
    if (label.empty()) return 0;
    const std::optional<value::Label> read = value::make_label(as_text(label));
    if (!read)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid label"),
                        errdetail("A label has one to five letters a to z.")));
    return *read;
}

int32 argument_typmod(const FmgrInfo *function, int argument) {
    if (function->fn_expr == nullptr || !IsA(function->fn_expr, FuncExpr)) return kNoTypmod;
    List *arguments = reinterpret_cast<FuncExpr *>(function->fn_expr)->args;
    if (list_length(arguments) <= argument) return kNoTypmod;
    auto *node = static_cast<Node *>(list_nth(arguments, argument));
    const int32 typmod = exprTypmod(node);
    return getBaseType(exprType(node)) == exprType(node) ? typmod : kNoTypmod;
}

ENVCRYPT_FUNCTION(envcrypt_in) {
    const char *text = PG_GETARG_CSTRING(0);
    const int32 typmod = PG_GETARG_INT32(2);
    const std::size_t length = strlen(text);
    const std::size_t capacity = value::text_capacity(length);
    if (capacity > value::kMaxPlaintext + value::kMaxOverhead + 3)
        ENVCRYPT_INPUT_ERROR(fcinfo, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                                      errmsg("encrypted value is too long"), errhidecontext(true)));
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
                              errdetail(kDamaged, value::fault_name(fault)), errhidecontext(true)));
    if (typmod != kNoTypmod && !require_fit(parsed.header, declaration_of(typmod), fcinfo->context))
        PG_RETURN_NULL();
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
    if (fault == value::Fault::unknown_format)
        ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                        errmsg("invalid binary input for type encrypted: not an encrypted value"),
                        errdetail("The check that failed: %s.", value::fault_name(fault)),
                        errhint("%s", kWriteHint), errhidecontext(true)));
    if (fault != value::Fault::none)
        ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                        errmsg("invalid binary input for type encrypted"),
                        errdetail(kDamaged, value::fault_name(fault)), errhidecontext(true)));
    if (typmod != kNoTypmod) require_fit(parsed.header, declaration_of(typmod));
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
    constexpr int max_words = 8;
    std::string_view views[max_words];
    count = Min(count, max_words);
    for (int i = 0; i < count; ++i) views[i] = DatumGetCString(words[i]);
    int32 typmod = kNoTypmod;
    ErrorReport report;
    if (guarded(report, [&]() -> Status {
            const Result<value::Declaration> declaration =
                value::read_declaration({views, static_cast<std::size_t>(count)});
            if (!declaration) return declaration.error();
            typmod = value::to_typmod(*declaration);
            return Unit{};
        }))
        PG_RETURN_INT32(typmod);
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", report.message),
                    errdetail("%s", report.detail), errhint("%s", report.hint)));
}

ENVCRYPT_FUNCTION(envcrypt_typmod_out) {
    // "encrypted(...)" without its first word
    PG_RETURN_CSTRING(declaration_name(declaration_of(PG_GETARG_INT32(0))) + strlen("encrypted"));
}

// declaration(typmod): its parts, for the view columns. The planner may ask for modifiers of other
// types before it applies a condition, so what is no declaration is no error.
ENVCRYPT_FUNCTION(envcrypt_declaration) {
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("declaration() must be called where a record is accepted")));
    Datum values[3] = {};
    bool nulls[3] = {true, true, true};
    const std::optional<value::Declaration> declaration = value::from_typmod(PG_GETARG_INT32(0));
    if (declaration) {
        values[0] = CStringGetTextDatum(value::type_name(declaration->type));
        values[1] = CStringGetTextDatum(value::search_word(declaration->search));
        values[2] = CStringGetTextDatum(label_name(declaration->label));
        nulls[0] = false;
        nulls[1] = declaration->search == value::SearchMode::none;
        nulls[2] = declaration->label == 0;
    }
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

}  // namespace envcrypt::pg
