// See search.hpp; search(), matches(), matches_any(), and how the planner turns the latter two into
// an index condition.
#include "pg/search.hpp"

#include "pg/keys.hpp"
#include "pg/opening.hpp"
#include "pg/parameters.hpp"
#include "pg/plaintext.hpp"
#include "pg/probe.hpp"
#include "pg/resolve.hpp"
#include "pg/rights.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

value::Token token_under(keyring::OpenKey &search_key, int key_version,
                         const value::Declaration &declaration, ByteView plaintext) {
    value::Token token;
    token.mode = declaration.search;
    token.version = static_cast<std::uint8_t>(key_version);
    ErrorReport report;
    if (!guarded(report, [&]() -> Status {
            // as plaintexts are anyway: locked memory is for keys, and little
            Bytes buffer;
            const auto canonical =
                value::canonical(declaration.type, declaration.search, plaintext, buffer);
            if (!canonical) return Error{ErrorCode::internal, "malformed plaintext", {}, {}};
            const std::uint8_t label[] = {static_cast<std::uint8_t>(declaration.label >> 16),
                                          static_cast<std::uint8_t>(declaration.label >> 8),
                                          static_cast<std::uint8_t>(declaration.label)};
            token.bytes =
                crypto::search_token(keyring::Cache::token_key(search_key), label,
                                     static_cast<std::uint8_t>(declaration.type),
                                     static_cast<std::uint8_t>(declaration.search), *canonical);
            wipe(buffer);
            return Unit{};
        }))
        raise(report);
    require_locked_memory();
    return token;
}

// The search keys of the tenant that a call site searches for.
struct SearchSite {
    TenantSite tenant;
    std::uint64_t epoch;
    Oid role;
    ResolvedSearch keys;
    Oid source;
    Oid element;  // of an array of plaintexts
    Oid probe;
    // What was searched last, and what came of it: without an index it is asked for each row.
    bool has_last;
    int16 source_length;
    bool source_by_value;
    int32 last_declaration;
    Datum last_sought;
    Datum last_probes;

    bool is_current() const { return epoch == pg::epoch && role == GetUserId() && keys.is_open(); }
};

struct Probes {
    Datum *datums;
    int count;
    int room;

    void add(const value::Token &token) {
        if (count == room) {
            room = Max(8, 2 * room);
            datums =
                static_cast<Datum *>(datums == nullptr ? palloc(sizeof(Datum) * room)
                                                       : repalloc(datums, sizeof(Datum) * room));
        }
        datums[count++] = make_probe(token);
    }
};

// Adds the probes of a plaintext for one tenant: one for each search key that values may bear
// tokens of.
void add_probes(Probes &probes, SearchSite &site, Oid right, ByteView tenant,
                const value::Declaration &declaration, ByteView plaintext) {
    follow_epoch();
    const std::uint64_t seen = epoch;
    if (!site.is_current() || !site.tenant.is_same(tenant)) {
        site.tenant.set(tenant);
        require_right(right);
        site.keys = find_open_search_keys(site.tenant.name);
        site.epoch = seen;
        site.role = GetUserId();
    }
    if (site.keys.count > 0) {
        for (int i = 0; i < site.keys.count; ++i)
            probes.add(token_under(*site.keys.keys[i].key, site.keys.keys[i].version, declaration,
                                   plaintext));
        return;
    }
    List *rows = find_search_keys(site.tenant.name, !site.tenant.given);
    (void)open_keys(rows);
    // what was changed while the KMS was waited for counts
    AcceptInvalidationMessages();
    if (epoch != seen) rows = find_search_keys(site.tenant.name, !site.tenant.given);
    ResolvedSearch keys;
    int count = 0;
    ListCell *cell;
    foreach (cell, rows) {
        const auto *row = static_cast<KeyRow *>(lfirst(cell));
        keyring::OpenKey &key = *open_key(*row);
        probes.add(token_under(key, row->version, declaration, plaintext));
        if (count < ResolvedSearch::kMaxKeys) keys.keys[count] = {&key, key.serial, row->version};
        ++count;
    }
    if (count > ResolvedSearch::kMaxKeys) return;
    keys.count = count;
    site.keys = keys;
    site.epoch = seen;
    keep_search_keys(site.tenant.name, keys, seen);
}

Datum probe_array(FunctionCallInfo fcinfo, SearchSite &site, const Probes &probes) {
    if (!OidIsValid(site.probe))
        site.probe = get_element_type(get_func_rettype(fcinfo->flinfo->fn_oid));
    return PointerGetDatum(
        construct_array(probes.datums, probes.count, site.probe, kProbeSize, false, TYPALIGN_CHAR));
}

Oid argument_type(FmgrInfo *function, SearchSite &site) {
    if (!OidIsValid(site.source)) {
        Oid *types;
        int count;
        get_func_signature(function->fn_oid, &types, &count);
        site.source = types[0];
        site.element = get_element_type(types[0]);
        get_typlenbyval(site.source, &site.source_length, &site.source_by_value);
    }
    return site.source;
}

// Larger ones are looked up anew each time.
constexpr Size kMaxRemembered = 65536;

bool may_remember(const SearchSite &site, Datum sought) {
    if (site.source_by_value || site.source_length > 0) return true;
    const auto *value = reinterpret_cast<varlena *>(DatumGetPointer(sought));
    return !VARATT_IS_EXTERNAL(value) && !VARATT_IS_COMPRESSED(value) &&
           VARSIZE_ANY(value) <= kMaxRemembered;
}

// Null where something else was searched last, or the keys may be others by now.
ArrayType *last_probes(const SearchSite &site, Datum sought, int32 declaration) {
    if (!site.has_last || site.last_declaration != declaration || !site.is_current() ||
        !site.tenant.is_same({}) || !may_remember(site, sought) ||
        !datumIsEqual(site.last_sought, sought, site.source_by_value, site.source_length))
        return nullptr;
    return DatumGetArrayTypePCopy(site.last_probes);
}

void remember_probes(FunctionCallInfo fcinfo, SearchSite &site, Datum sought, int32 declaration,
                     Datum probes) {
    if (!may_remember(site, sought)) return;
    const MemoryContext before = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
    if (std::exchange(site.has_last, false)) {
        if (!site.source_by_value) pfree(DatumGetPointer(site.last_sought));
        pfree(DatumGetPointer(site.last_probes));
    }
    site.last_sought = datumCopy(sought, site.source_by_value, site.source_length);
    site.last_probes = PointerGetDatum(DatumGetArrayTypePCopy(probes));
    site.last_declaration = declaration;
    site.has_last = true;
    MemoryContextSwitchTo(before);
}

struct IntegerRange {
    value::Type type;
    std::int64_t low;
    std::int64_t high;
};
constexpr IntegerRange kIntegers[] = {{value::Type::int2, PG_INT16_MIN, PG_INT16_MAX},
                                      {value::Type::int4, PG_INT32_MIN, PG_INT32_MAX},
                                      {value::Type::int8, PG_INT64_MIN, PG_INT64_MAX}};

bool is_number(value::Type type) {
    return type == value::Type::numeric || type == value::Type::int2 || type == value::Type::int4 ||
           type == value::Type::int8;
}

// The whole number that a numeric is, where that fits into 64 bits.
bool numeric_as_integer(Datum numeric, std::int64_t &integer) {
    const ByteView sent =
        varlena_bytes(DatumGetByteaPP(DirectFunctionCall1(numeric_send, numeric)));
    const auto number = [&](std::size_t at) {
        return static_cast<std::int16_t>(sent[at] << 8 | sent[at + 1]);
    };
    const int digits = number(0);
    const int weight = number(2);
    const int sign = number(4);
    constexpr int negative = 0x4000;
    if (sign != 0 && sign != negative) return false;  // NaN, infinities
    // PostgreSQL keeps no trailing zeros: a digit after the point is a fraction
    if (digits > weight + 1 || weight > 4) return digits == 0 && (integer = 0, true);
    __int128 value = 0;
    for (int i = 0; i <= weight; ++i)
        value = value * 10000 + (i < digits ? number(8 + 2 * static_cast<std::size_t>(i)) : 0);
    if (sign == negative) value = -value;
    if (value < PG_INT64_MIN || value > PG_INT64_MAX) return false;
    integer = static_cast<std::int64_t>(value);
    return true;
}

// What equals `datum` among the values of `type`; false where nothing does.
bool equal_plaintext(Oid from, Datum datum, value::Type type, ByteView &plaintext) {
    if (natural_type(from) == type || type == value::Type::numeric) {
        plaintext = to_plaintext(from, datum, type);
        return true;
    }
    std::int64_t integer;
    switch (from) {
        case INT2OID:
            integer = DatumGetInt16(datum);
            break;
        case INT4OID:
            integer = DatumGetInt32(datum);
            break;
        case INT8OID:
            integer = DatumGetInt64(datum);
            break;
        default:
            if (!numeric_as_integer(datum, integer)) return false;
    }
    for (const IntegerRange &range : kIntegers)
        if (range.type == type) {
            if (integer < range.low || integer > range.high) return false;
            plaintext = to_plaintext(INT8OID, Int64GetDatum(integer), type);
            return true;
        }
    return false;
}

// Raises unless a column of that declaration can be searched for a value of that SQL type.
void require_searchable(const value::Declaration &declaration, Oid type) {
    if (declaration.search == value::SearchMode::none)
        ereport(ERROR,
                (errcode(ERRCODE_WRONG_OBJECT_TYPE),
                 errmsg("a column of type %s cannot be searched", declaration_name(declaration)),
                 value::is_searchable(declaration.type, value::SearchMode::exact)
                     ? errhint("Declare it searchable: ALTER TABLE ... ALTER ... TYPE "
                               "envcrypt.encrypted(%s, searchable, LABEL) USING "
                               "envcrypt.decrypt(...).",
                               value::type_name(declaration.type))
                     : errhint("The type %s has no search mode: encrypt what is searched for once "
                               "more, in a column of its own.",
                               value::type_name(declaration.type))));
    const value::Type given = natural_type(type);
    if (given == declaration.type || (is_number(given) && is_number(declaration.type))) return;
    ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
                    errmsg("a column of type %s cannot be searched for a value of type %s",
                           declaration_name(declaration), format_type_be(type)),
                    errhint("Cast the value: matches(column, value::%s).",
                            value::type_name(declaration.type))));
}

[[noreturn]] void raise_no_column(const char *function) {
    ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
                    errmsg("%s() needs a column that is declared searchable", function),
                    errdetail("The column is envcrypt.encrypted without a declaration, or "
                              "PostgreSQL does not know it here (variables, aggregates)."),
                    errhint("Cast it: matches(value::envcrypt.encrypted(text, searchable, LABEL), "
                            "...), or use envcrypt.search().")));
    pg_unreachable();
}

// Of a column whose type is a domain, what the domain declares.
int32 declared_typmod(Node *column) {
    int32 typmod = exprTypmod(column);
    if (typmod == kNoTypmod && IsA(column, RelabelType))
        getBaseTypeAndTypmod(
            exprType(reinterpret_cast<Node *>(reinterpret_cast<RelabelType *>(column)->arg)),
            &typmod);
    return typmod;
}

char kSchema[] = "envcrypt";

// The column, refused where it is not of that declaration.
Node *coerced(Node *column, int32 typmod) {
    const Oid type = exprType(column);
    Oid function;
    if (find_typmod_coercion_function(type, &function) != COERCION_PATH_FUNC)
        elog(ERROR, "envcrypt: there is no coercion");
    return reinterpret_cast<Node *>(
        make_coercion(function, type, reinterpret_cast<Expr *>(column), typmod));
}

// column OPERATOR(envcrypt.=) ANY (envcrypt.search(value, declaration))
Node *index_condition(Node *column, Node *sought, int32 typmod) {
    char search_name[] = "search";
    char equals[] = "=";
    const Oid types[] = {exprType(sought), INT4OID};
    const Oid search = LookupFuncName(list_make2(makeString(kSchema), makeString(search_name)),
                                      lengthof(types), types, false);
    const Oid probes = get_func_rettype(search);
    const Oid equal = OpernameGetOprid(list_make2(makeString(kSchema), makeString(equals)),
                                       exprType(column), get_element_type(probes));
    auto *call = makeFuncExpr(search, probes,
                              list_make2(sought, makeConst(INT4OID, -1, InvalidOid, sizeof(int32),
                                                           Int32GetDatum(typmod), false, true)),
                              InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
    ScalarArrayOpExpr *any = makeNode(ScalarArrayOpExpr);
    any->opno = equal;
    any->opfuncid = get_opcode(equal);
    any->useOr = true;
    any->inputcollid = InvalidOid;
    any->args = list_make2(column, call);
    any->location = -1;
    return reinterpret_cast<Node *>(any);
}

}  // namespace

value::Token make_token(TokenSite &site, const value::Declaration &declaration, ByteView plaintext,
                        ByteView tenant) {
    if (!site.site.is_current() || !site.tenant.is_same(tenant)) {
        site.site.key = nullptr;
        site.tenant.set(tenant);
        const std::uint64_t seen = epoch;
        require_right(right_function(Right::search));
        keyring::OpenKey &open =
            resolve_search_key(site.tenant.name, !site.tenant.given, &site.version);
        site.site.remember(open, seen);
    }
    return token_under(*site.site.key, site.version, declaration, plaintext);
}

value::SearchMode read_search(ByteView word, const value::Declaration &declaration) {
    const std::optional<value::SearchMode> mode = value::find_search_word(as_text(word));
    if (!mode)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid search mode"),
                        errhint("Use searchable, searchable_nocase or searchable_digits.")));
    if (!value::is_searchable(declaration.type, *mode))
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("a value of type %s cannot be %s",
                               value::type_name(declaration.type), value::search_word(*mode))));
    if (declaration.label == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("a searchable value needs a label"),
                        errhint("Say the label of the column: label => '...'.")));
    return *mode;
}

void refuse_btree(TokenSite &site, const value::Declaration &declaration) {
    const int32 typmod = value::to_typmod(declaration);
    if (std::exchange(site.checked_btree, typmod) == typmod) return;
    Oid types[] = {INT4OID};
    Datum values[] = {Int32GetDatum(typmod)};
    SPI_connect();
    const int done = SPI_execute_with_args(
        "SELECT pg_catalog.bool_and(i.indexrelid IS NOT NULL), "
        "pg_catalog.min(i.indexrelid::pg_catalog.regclass::pg_catalog.text COLLATE \"C\"), "
        "pg_catalog.min(a.attrelid::pg_catalog.regclass::pg_catalog.text COLLATE \"C\"), "
        "pg_catalog.min(pg_catalog.quote_ident(a.attname) COLLATE \"C\") "
        "FROM pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid "
        "AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.\"char\"[]) "
        "JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid "
        "AND t.typname OPERATOR(pg_catalog.=) 'encrypted' "
        "JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace "
        "AND n.nspname OPERATOR(pg_catalog.=) 'envcrypt' "
        "LEFT JOIN (pg_catalog.pg_index i "
        "JOIN pg_catalog.pg_class ic ON ic.oid OPERATOR(pg_catalog.=) i.indexrelid "
        "JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) ic.relam "
        "AND m.amname OPERATOR(pg_catalog.=) 'btree') "
        "ON i.indrelid OPERATOR(pg_catalog.=) a.attrelid AND i.indpred IS NULL "
        "AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey) "
        "WHERE a.atttypmod OPERATOR(pg_catalog.=) $1 AND NOT a.attisdropped",
        lengthof(types), types, values, nullptr, true, 1);
    if (done != SPI_OK_SELECT || SPI_processed != 1)
        elog(ERROR, "envcrypt: could not look for indexes");
    HeapTuple row = SPI_tuptable->vals[0];
    TupleDesc columns = SPI_tuptable->tupdesc;
    bool is_null;
    const bool all = DatumGetBool(SPI_getbinval(row, columns, 1, &is_null));
    if (!is_null && all)
        ereport(
            ERROR,
            (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
             errmsg("the value is too long for the btree index %s", SPI_getvalue(row, columns, 2)),
             errdetail("A searchable value of more than %d bytes fits into no entry of a btree.",
                       static_cast<int>(kMaxBtreePlaintext)),
             errhint("Use a hash index instead: CREATE INDEX ON %s USING hash (%s);",
                     SPI_getvalue(row, columns, 3), SPI_getvalue(row, columns, 4))));
    SPI_finish();
}

// search(value, label, search, tenants): what an index is looked up with, for each tenant and each
// of its search keys.
ENVCRYPT_FUNCTION(envcrypt_search) {
    refuse_maintenance();
    const ByteView label = optional_text(fcinfo, 1, "label");
    const ByteView mode = optional_text(fcinfo, 2, "search");
    if (PG_ARGISNULL(3))
        ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("tenants must not be NULL"),
                        errhint("Leave it out where it is not meant.")));
    auto &site = call_site<SearchSite>(fcinfo->flinfo);
    const Oid source = argument_type(fcinfo->flinfo, site);
    value::Declaration declaration{natural_type(source), value::SearchMode::none,
                                   read_label(label)};
    declaration.search = read_search(mode, declaration);
    Datum *tenants;
    bool *nulls;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), TEXTOID, -1, false, TYPALIGN_INT, &tenants, &nulls,
                      &count);
    for (int i = 0; i < count; ++i)
        if (nulls[i])
            ereport(ERROR,
                    (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("a tenant must not be NULL")));
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    const ByteView plaintext = to_plaintext(source, PG_GETARG_DATUM(0), declaration.type);
    Probes probes{};
    const Oid right = fcinfo->flinfo->fn_oid;
    if (count == 0) add_probes(probes, site, right, {}, declaration, plaintext);
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        const ByteView tenant = varlena_bytes(DatumGetTextPP(tenants[i]));
        if (tenant.empty())
            ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("invalid tenant name")));
        add_probes(probes, site, right, tenant, declaration, plaintext);
    }
    return probe_array(fcinfo, site, probes);
}

// search(value or values, typmod of the column): what matches() and matches_any() become. Strict.
ENVCRYPT_FUNCTION(envcrypt_search_column) {
    refuse_maintenance();
    auto &site = call_site<SearchSite>(fcinfo->flinfo);
    const Oid source = argument_type(fcinfo->flinfo, site);
    const int32 typmod = PG_GETARG_INT32(1);
    follow_epoch();
    if (ArrayType *last = last_probes(site, PG_GETARG_DATUM(0), typmod)) PG_RETURN_POINTER(last);
    const value::Declaration declaration = declaration_of(typmod);
    const bool many = OidIsValid(site.element);
    require_searchable(declaration, many ? site.element : source);
    Datum one[] = {PG_GETARG_DATUM(0)};
    bool not_null[] = {false};
    Datum *sought = one;
    bool *nulls = not_null;
    int count = 1;
    if (many) {
        int16 length;
        bool by_value;
        char align;
        get_typlenbyvalalign(site.element, &length, &by_value, &align);
        deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), site.element, length, by_value, align, &sought,
                          &nulls, &count);
    }
    Probes probes{};
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        ByteView plaintext;
        if (nulls[i]) continue;
        if (!equal_plaintext(many ? site.element : source, sought[i], declaration.type,
                             plaintext)) {
            // no value has it: a row is compared, so that NULL gives NULL
            probes.add(value::Token{});
            continue;
        }
        add_probes(probes, site, fcinfo->flinfo->fn_oid, {}, declaration, plaintext);
    }
    const Datum array = probe_array(fcinfo, site, probes);
    remember_probes(fcinfo, site, PG_GETARG_DATUM(0), typmod, array);
    return array;
}

// The planner's question about matches(column, value) and matches_any(column, values).
ENVCRYPT_FUNCTION(envcrypt_matches_support) {
    auto *asked = reinterpret_cast<Node *>(PG_GETARG_POINTER(0));
    if (!IsA(asked, SupportRequestSimplify)) PG_RETURN_POINTER(nullptr);
    const FuncExpr *call = reinterpret_cast<SupportRequestSimplify *>(asked)->fcall;
    auto *column = static_cast<Node *>(linitial(call->args));
    auto *sought = static_cast<Node *>(lsecond(call->args));
    const int32 typmod = declared_typmod(column);
    if (typmod == kNoTypmod) raise_no_column(get_func_name(call->funcid));
    const Oid element = get_element_type(exprType(sought));
    require_searchable(declaration_of(typmod), OidIsValid(element) ? element : exprType(sought));
    // a parameter is declared as it was when the statement was planned: index_condition() compares
    // tokens, and another label's would just not be found
    if (IsA(column, Param)) column = coerced(column, typmod);
    PG_RETURN_POINTER(index_condition(column, sought, typmod));
}

// The selectivity of column = probe, column <> probe, and of the former in a join. The planner
// takes an array that it does not know for ten elements, and asks for one of them with a dummy in
// its place; search() yields one for each search key, which is one most of the time. Else a generic
// plan would seem ten times as costly as it is, and every execution be planned anew.
static constexpr double kUnknownElements = 10;

static bool is_for_unknown(FunctionCallInfo fcinfo) {
    const auto *arguments = reinterpret_cast<List *>(PG_GETARG_POINTER(2));
    return list_length(arguments) == 2 &&
           (IsA(linitial(arguments), CaseTestExpr) || IsA(lsecond(arguments), CaseTestExpr));
}

ENVCRYPT_FUNCTION(envcrypt_probe_eqsel) {
    const double selectivity = DatumGetFloat8(eqsel(fcinfo));
    PG_RETURN_FLOAT8(is_for_unknown(fcinfo) ? selectivity / kUnknownElements : selectivity);
}
// of which ten are multiplied
ENVCRYPT_FUNCTION(envcrypt_probe_neqsel) {
    const double selectivity = DatumGetFloat8(neqsel(fcinfo));
    PG_RETURN_FLOAT8(is_for_unknown(fcinfo) ? std::pow(selectivity, 1 / kUnknownElements)
                                            : selectivity);
}
ENVCRYPT_FUNCTION(envcrypt_probe_eqjoinsel) {
    const double selectivity = DatumGetFloat8(eqjoinsel(fcinfo));
    PG_RETURN_FLOAT8(is_for_unknown(fcinfo) ? selectivity / kUnknownElements : selectivity);
}

// Reached only where nothing planned the call.
ENVCRYPT_FUNCTION(envcrypt_matches) {
    raise_no_column(get_func_name(fcinfo->flinfo->fn_oid));
}

}  // namespace envcrypt::pg
