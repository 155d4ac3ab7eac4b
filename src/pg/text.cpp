// See text.hpp. PostgreSQL's own conversion would repeat the bytes that it cannot convert in its
// error.
#include "pg/text.hpp"

#include "pg/type.hpp"

namespace envcrypt::pg {

text *convert(ByteView bytes, int from, int to, const char *what) {
    const Oid conversion = FindDefaultConversionProc(from, to);
    if (!OidIsValid(conversion))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
                        errmsg("there is no conversion from encoding %s to %s",
                               pg_encoding_to_char(from), pg_encoding_to_char(to))));
    const std::size_t room = bytes.size() * MAX_CONVERSION_GROWTH + 1;
    auto *result =
        static_cast<text *>(MemoryContextAllocHuge(CurrentMemoryContext, VARHDRSZ + room));
    const int converted = pg_do_encoding_conversion_buf(
        conversion, from, to, const_cast<unsigned char *>(bytes.data()),
        static_cast<int>(bytes.size()), reinterpret_cast<unsigned char *>(VARDATA(result)),
        static_cast<int>(Min(room, static_cast<std::size_t>(PG_INT32_MAX))), true);
    if (converted != static_cast<int>(bytes.size()))
        ereport(ERROR, (errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
                        errmsg("%s has a character without equivalent in encoding %s", what,
                               pg_encoding_to_char(to))));
    const std::size_t length = strlen(VARDATA(result));
    if (length > MaxAllocSize - VARHDRSZ)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("%s is too long", what)));
    SET_VARSIZE(result, VARHDRSZ + length);
    return result;
}

ByteView to_utf8(ByteView text, const char *what) {
    const int encoding = GetDatabaseEncoding();
    if (encoding == PG_UTF8 || text.empty()) return text;
    if (encoding != PG_SQL_ASCII) return varlena_bytes(convert(text, encoding, PG_UTF8, what));
    if (!pg_verify_mbstr(PG_UTF8, reinterpret_cast<const char *>(text.data()),
                         static_cast<int>(text.size()), true))
        ereport(ERROR, (errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
                        errmsg("%s is not valid UTF-8", what),
                        errdetail("In a database of encoding SQL_ASCII, only UTF-8 text can be "
                                  "encrypted.")));
    return text;
}

void require_utf8(ByteView bytes) {
    if (unlikely(!pg_verify_mbstr(PG_UTF8, reinterpret_cast<const char *>(bytes.data()),
                                  static_cast<int>(bytes.size()), true)))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION), errmsg("the decrypted text is not valid UTF-8")));
}

bool server_keeps_utf8() {
    return GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII;
}

text *from_utf8(ByteView bytes) {
    require_utf8(bytes);
    if (server_keeps_utf8() || bytes.empty())
        return cstring_to_text_with_len(reinterpret_cast<const char *>(bytes.data()),
                                        static_cast<int>(bytes.size()));
    return convert(bytes, PG_UTF8, GetDatabaseEncoding(), "the decrypted text");
}

}  // namespace envcrypt::pg
