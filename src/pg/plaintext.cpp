// See plaintext.hpp. Text and what contains text is written here rather than by its send function,
// which would convert to the client's encoding.
#include "pg/plaintext.hpp"

#include "pg/text.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

struct Plain {
    Oid oid;
    PGFunction send;  // null where it is written here
    PGFunction receive;
    PGFunction output;
};
// In the order of value::Type, from 1.
constexpr Plain kPlain[] = {
    {TEXTOID, nullptr, nullptr, nullptr},
    {BYTEAOID, nullptr, nullptr, byteaout},
    {BOOLOID, boolsend, boolrecv, boolout},
    {INT2OID, int2send, int2recv, int2out},
    {INT4OID, int4send, int4recv, int4out},
    {INT8OID, int8send, int8recv, int8out},
    {FLOAT8OID, float8send, float8recv, float8out},
    {NUMERICOID, numeric_send, numeric_recv, numeric_out},
    {DATEOID, date_send, date_recv, date_out},
    {TIMESTAMPOID, timestamp_send, timestamp_recv, timestamp_out},
    {TIMESTAMPTZOID, timestamptz_send, timestamptz_recv, timestamptz_out},
    {INTERVALOID, interval_send, interval_recv, interval_out},
    {UUIDOID, uuid_send, uuid_recv, uuid_out},
    {INETOID, inet_send, inet_recv, inet_out},
    {JSONBOID, nullptr, nullptr, jsonb_out},
    {TEXTARRAYOID, nullptr, nullptr, nullptr},
};
static_assert(lengthof(kPlain) == value::kLastType);

const Plain &plain(value::Type type) {
    return kPlain[static_cast<int>(type) - 1];
}

// As numeric_float8, whose error shows the number.
Datum numeric_to_float8(FunctionCallInfo fcinfo) {
    const Numeric given = PG_GETARG_NUMERIC(0);
    const double converted = DatumGetFloat8(numeric_float8_no_overflow(fcinfo));
    const bool overflows = std::isinf(converted) && !numeric_is_inf(given);
    const bool underflows =
        converted == 0 &&
        !DatumGetBool(DirectFunctionCall2(numeric_eq, NumericGetDatum(given),
                                          DirectFunctionCall1(int4_numeric, Int32GetDatum(0))));
    if (overflows || underflows)
        ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
                        errmsg("the value is out of range for type double precision")));
    PG_RETURN_FLOAT8(converted);
}

struct Conversion {
    Oid from;
    value::Type to;
    PGFunction convert;
};
constexpr Conversion kConversions[] = {
    {INT4OID, value::Type::int2, i4toi2},
    {INT8OID, value::Type::int2, int82},
    {NUMERICOID, value::Type::int2, numeric_int2},
    {INT2OID, value::Type::int4, i2toi4},
    {INT8OID, value::Type::int4, int84},
    {NUMERICOID, value::Type::int4, numeric_int4},
    {INT2OID, value::Type::int8, int28},
    {INT4OID, value::Type::int8, int48},
    {NUMERICOID, value::Type::int8, numeric_int8},
    {INT2OID, value::Type::numeric, int2_numeric},
    {INT4OID, value::Type::numeric, int4_numeric},
    {INT8OID, value::Type::numeric, int8_numeric},
    {INT2OID, value::Type::float8, i2tod},
    {INT4OID, value::Type::float8, i4tod},
    {INT8OID, value::Type::float8, i8tod},
    {NUMERICOID, value::Type::float8, numeric_to_float8},
    {FLOAT4OID, value::Type::float8, ftod},
};

constexpr char kJsonbVersion = 1;

[[noreturn]] void raise_unreadable(value::Type type) {
    ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
                    errmsg("what was decrypted is not a value of type %s", value::type_name(type)),
                    errdetail("It fits its tag, so whoever wrote it had the key and kept another "
                              "format.")));
    pg_unreachable();
}

void append_utf8(StringInfo buffer, ByteView text, const char *what) {
    const ByteView utf8 = to_utf8(text, what);
    appendBinaryStringInfo(buffer, reinterpret_cast<const char *>(utf8.data()),
                           static_cast<int>(utf8.size()));
}

ByteView buffer_bytes(const StringInfoData &buffer) {
    return {reinterpret_cast<const std::uint8_t *>(buffer.data),
            static_cast<std::size_t>(buffer.len)};
}

// As array_send() does: dimensions, whether there are NULLs, the elements' type, and for each
// dimension its length and lower bound; then each element's length (-1 is NULL) and bytes.
ByteView write_array(ArrayType *array) {
    StringInfoData buffer;
    initStringInfo(&buffer);
    const int dimensions = ARR_NDIM(array);
    pq_sendint32(&buffer, dimensions);
    pq_sendint32(&buffer, ARR_HASNULL(array) ? 1 : 0);
    pq_sendint32(&buffer, TEXTOID);
    for (int i = 0; i < dimensions; ++i) {
        pq_sendint32(&buffer, ARR_DIMS(array)[i]);
        pq_sendint32(&buffer, ARR_LBOUND(array)[i]);
    }
    Datum *elements;
    bool *nulls;
    int count;
    deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_INT, &elements, &nulls,
                      &count);
    for (int i = 0; i < count; ++i) {
        if (nulls[i]) {
            pq_sendint32(&buffer, -1);
            continue;
        }
        const ByteView element =
            to_utf8(varlena_bytes(DatumGetTextPP(elements[i])), "an element of the array");
        pq_sendint32(&buffer, static_cast<std::uint32_t>(element.size()));
        appendBinaryStringInfo(&buffer, reinterpret_cast<const char *>(element.data()),
                               static_cast<int>(element.size()));
    }
    return buffer_bytes(buffer);
}

class Reader {
public:
    explicit Reader(const bytea *plaintext) : left_(varlena_bytes(plaintext)) {}
    // Nothing where there is no more.
    bool number(std::int32_t &number) {
        if (left_.size() < 4) return false;
        number = static_cast<std::int32_t>(std::uint32_t{left_[0]} << 24 |
                                           std::uint32_t{left_[1]} << 16 |
                                           std::uint32_t{left_[2]} << 8 | left_[3]);
        left_ = left_.subspan(4);
        return true;
    }
    bool bytes(std::size_t size, ByteView &bytes) {
        if (left_.size() < size) return false;
        bytes = left_.first(size);
        left_ = left_.subspan(size);
        return true;
    }
    std::size_t left() const { return left_.size(); }

private:
    ByteView left_;
};

Datum read_array(const bytea *plaintext) {
    Reader reader(plaintext);
    std::int32_t dimensions;
    std::int32_t has_nulls;
    std::int32_t element_type;
    if (!reader.number(dimensions) || dimensions < 0 || dimensions > MAXDIM ||
        !reader.number(has_nulls) || !reader.number(element_type) || element_type != TEXTOID)
        raise_unreadable(value::Type::text_array);
    int lengths[MAXDIM];
    int lower_bounds[MAXDIM];
    std::size_t count = dimensions == 0 ? 0 : 1;
    for (int i = 0; i < dimensions; ++i) {
        if (!reader.number(lengths[i]) || !reader.number(lower_bounds[i]) || lengths[i] < 1 ||
            lower_bounds[i] > PG_INT32_MAX - lengths[i])
            raise_unreadable(value::Type::text_array);
        count *= static_cast<std::size_t>(lengths[i]);
        // an element takes four bytes at least
        if (count > reader.left() / 4) raise_unreadable(value::Type::text_array);
    }
    auto *elements = static_cast<Datum *>(palloc(sizeof(Datum) * (count + 1)));
    auto *nulls = static_cast<bool *>(palloc0(count + 1));
    for (std::size_t i = 0; i < count; ++i) {
        std::int32_t size;
        ByteView bytes;
        if (!reader.number(size) || size < -1) raise_unreadable(value::Type::text_array);
        nulls[i] = size == -1;
        if (nulls[i]) continue;
        if (!reader.bytes(static_cast<std::size_t>(size), bytes))
            raise_unreadable(value::Type::text_array);
        elements[i] = PointerGetDatum(from_utf8(bytes));
    }
    if (reader.left() != 0) raise_unreadable(value::Type::text_array);
    if (count == 0) return PointerGetDatum(construct_empty_array(TEXTOID));
    return PointerGetDatum(construct_md_array(elements, nulls, dimensions, lengths, lower_bounds,
                                              TEXTOID, -1, false, TYPALIGN_INT));
}

Datum read_jsonb(const bytea *plaintext) {
    const ByteView bytes = varlena_bytes(plaintext);
    if (bytes.empty() || bytes[0] != kJsonbVersion) raise_unreadable(value::Type::jsonb);
    return DirectFunctionCall1(jsonb_in,
                               CStringGetDatum(text_to_cstring(from_utf8(bytes.subspan(1)))));
}

#if PG_VERSION_NUM < 170000
// PostgreSQL 17 has infinite intervals, written as what is a finite one here.
void refuse_infinity(const Interval *interval) {
    const bool high = interval->month == PG_INT32_MAX && interval->day == PG_INT32_MAX &&
                      interval->time == PG_INT64_MAX;
    const bool low = interval->month == PG_INT32_MIN && interval->day == PG_INT32_MIN &&
                     interval->time == PG_INT64_MIN;
    if (high || low)
        ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
                        errmsg("the interval is infinite, which this PostgreSQL does not know"),
                        errhint("It was written by PostgreSQL 17 or later.")));
}
#endif

}  // namespace

Oid type_oid(value::Type type) {
    return plain(type).oid;
}

value::Type natural_type(Oid type) {
    switch (type) {
        case VARCHAROID:
        case BPCHAROID:
            return value::Type::text;
        case FLOAT4OID:
            return value::Type::float8;
        case CIDROID:
            return value::Type::inet;
        case VARCHARARRAYOID:
            return value::Type::text_array;
        default:
            break;
    }
    for (std::size_t i = 0; i < lengthof(kPlain); ++i)
        if (kPlain[i].oid == type) return static_cast<value::Type>(i + 1);
    ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
                    errmsg("a value of type %s cannot be encrypted", format_type_be(type)),
                    errhint("Cast it to text, or to one of the types that doc/columns.md lists.")));
    pg_unreachable();
}

ByteView to_plaintext(Oid from, Datum datum, value::Type type) {
    if (natural_type(from) != type || from == FLOAT4OID) {
        const auto *conversion = std::find_if(
            std::begin(kConversions), std::end(kConversions),
            [&](const Conversion &known) { return known.from == from && known.to == type; });
        if (conversion == std::end(kConversions))
            ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
                            errmsg("a value of type %s does not fit a column of type encrypted(%s)",
                                   format_type_be(from), value::type_name(type)),
                            errhint("Cast the plaintext to %s before it is encrypted.",
                                    value::type_name(type))));
        datum = DirectFunctionCall1(conversion->convert, datum);
    }
    switch (type) {
        case value::Type::text: {
            const ByteView bytes = varlena_bytes(DatumGetTextPP(datum));
            // trailing blanks are dropped, as PostgreSQL's own cast does
            const std::size_t length =
                from != BPCHAROID
                    ? bytes.size()
                    : static_cast<std::size_t>(bpchartruelen(
                          const_cast<char *>(reinterpret_cast<const char *>(bytes.data())),
                          static_cast<int>(bytes.size())));
            return to_utf8(bytes.first(length), "the text");
        }
        case value::Type::bytea:
            return varlena_bytes(DatumGetByteaPP(datum));
        case value::Type::jsonb: {
            Jsonb *jsonb = DatumGetJsonbP(datum);
            const char *written = JsonbToCString(nullptr, &jsonb->root, VARSIZE(jsonb));
            StringInfoData buffer;
            initStringInfo(&buffer);
            appendStringInfoChar(&buffer, kJsonbVersion);
            append_utf8(&buffer, {reinterpret_cast<const std::uint8_t *>(written), strlen(written)},
                        "the jsonb");
            return buffer_bytes(buffer);
        }
        case value::Type::text_array:
            return write_array(DatumGetArrayTypeP(datum));
        default:
            return varlena_bytes(DatumGetByteaPP(DirectFunctionCall1(plain(type).send, datum)));
    }
}

Datum from_plaintext(value::Type type, bytea *plaintext) {
    switch (type) {
        case value::Type::text:
            if (!server_keeps_utf8()) return PointerGetDatum(from_utf8(varlena_bytes(plaintext)));
            require_utf8(varlena_bytes(plaintext));
            return PointerGetDatum(plaintext);
        case value::Type::bytea:
            return PointerGetDatum(plaintext);
        case value::Type::jsonb:
            return read_jsonb(plaintext);
        case value::Type::text_array:
            return read_array(plaintext);
        default:
            break;
    }
    StringInfoData message;
    message.data = VARDATA_ANY(plaintext);
    message.len = static_cast<int>(VARSIZE_ANY_EXHDR(plaintext));
    message.maxlen = message.len + 1;
    message.cursor = 0;
    const Datum datum = DirectFunctionCall3(plain(type).receive, PointerGetDatum(&message),
                                            ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
    if (message.cursor != message.len) raise_unreadable(type);
#if PG_VERSION_NUM < 170000
    if (type == value::Type::interval) refuse_infinity(DatumGetIntervalP(datum));
#endif
    return datum;
}

text *plaintext_text(value::Type type, bytea *plaintext) {
    const Datum datum = from_plaintext(type, plaintext);
    if (type == value::Type::text) return DatumGetTextPP(datum);
    if (type == value::Type::text_array)
        return cstring_to_text(OidOutputFunctionCall(F_ARRAY_OUT, datum));
    return cstring_to_text(DatumGetCString(DirectFunctionCall1(plain(type).output, datum)));
}

}  // namespace envcrypt::pg
