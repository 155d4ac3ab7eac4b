// encrypt(), decrypt(), the casts into and out of `encrypted`, the coercion between declarations,
// inspect(): the hot path. Each call site of a query keeps in fn_extra what it needs for the next
// row (site.hpp), so that a warm call does nothing but the cipher.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/plaintext.hpp"
#include "pg/probe.hpp"
#include "pg/resolve.hpp"
#include "pg/rights.hpp"
#include "pg/search.hpp"
#include "pg/site.hpp"
#include "pg/text.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

struct OpeningSite {
    Site site;
    std::uint64_t key_id;
    keyring::Subkey *subkey;
    std::uint64_t subkey_serial;
    bool knows_label;
    value::Label label;    // that the argument's declaration names
    Oid result;            // of a cast
    FunctionCallInfo row;  // of decrypt_in_row(): whose arguments are the row's key
};

struct SealingSite {
    Site site;
    TenantSite tenant;
    Oid source;  // the SQL type of the plaintext
    TokenSite token;
};

// What to do where a key is not available: denied, its KMS away, its tenant out of use.
enum class Unavailable { raise, is_null };

// Null only where that is asked for.
keyring::Subkey *opening_subkey(OpeningSite &site, Oid right, const value::Parsed &parsed,
                                Unavailable unavailable) {
    ErrorReport report;
    if (!site.site.is_current() || site.key_id != parsed.header.key_id) {
        const std::uint64_t seen = epoch;
        site.site.key = nullptr;
        require_right(right);
        keyring::OpenKey *open =
            resolve_for_opening(parsed.header.key_id, unavailable == Unavailable::is_null);
        if (open == nullptr) return nullptr;
        site.site.remember(*open, seen);
        site.key_id = parsed.header.key_id;
        site.subkey = nullptr;
    }
    if (site.subkey == nullptr || site.subkey->serial != site.subkey_serial ||
        memcmp(site.subkey->salt.data(), parsed.salt.data(), value::kSaltSize) != 0) {
        Backend &state = backend();
        if (!guarded(report,
                     [&] { site.subkey = &state.cache.subkey(*site.site.key, parsed.salt); }))
            raise(report);
        site.subkey_serial = site.subkey->serial;
    } else {
        site.subkey->used = true;
    }
    require_locked_memory();
    return site.subkey;
}

[[noreturn]] void raise_wrong_label(value::Label label, value::Label expected) {
    if (label == 0)
        ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
                        errmsg("the value has no label, and %s was expected", label_name(expected)),
                        errdetail("It may have been planted in the place of a labelled one.")));
    if (expected == 0)
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION),
                 errmsg("the value belongs to a column with the label %s", label_name(label)),
                 errdetail("It decrypts only out of such a column, or where its label is said."),
                 errhint("Where PostgreSQL does not know the column any more (variables, "
                         "aggregates, domains), say it: decrypt(value, label => '%s').",
                         label_name(label))));
    ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
                    errmsg("the value belongs to a column with the label %s, not %s",
                           label_name(label), label_name(expected)),
                    errdetail("It was moved from one column to another."),
                    errhint("Look for who moved it. If the label is mistyped, say %s.",
                            label_name(label))));
    pg_unreachable();
}

// The argument of decrypt_in_row() that names the columns of the row's key; their values follow.
constexpr int kKeyColumns = 3;

// The row's key as PostgreSQL writes one: Key (a, b)=(1, 2).
const char *key_text(FunctionCallInfo row) {
    StringInfoData key;
    initStringInfo(&key);
    appendStringInfo(&key, "Key (%s)=(", TextDatumGetCString(row->args[kKeyColumns].value));
    for (int i = kKeyColumns + 1; i < row->nargs; ++i) {
        if (i > kKeyColumns + 1) appendStringInfoString(&key, ", ");
        Oid output;
        bool is_varlena;
        getTypeOutputInfo(get_fn_expr_argtype(row->flinfo, i), &output, &is_varlena);
        appendStringInfoString(
            &key, row->args[i].isnull ? "null" : OidOutputFunctionCall(output, row->args[i].value));
    }
    appendStringInfoChar(&key, ')');
    return key.data;
}

[[noreturn]] void raise_wrong_tenant(const char *tenant, ByteView expected, FunctionCallInfo row) {
    ereport(ERROR,
            (errcode(ERRCODE_DATA_EXCEPTION),
             errmsg("the value belongs to tenant \"%s\", not \"%s\"", tenant,
                    pnstrdup(reinterpret_cast<const char *>(expected.data()),
                             static_cast<int>(expected.size()))),
             row == nullptr ? errdetail("It was moved from one tenant's row to another's.")
                            : errdetail("It was moved from one tenant's row to another's: %s.",
                                        key_text(row))));
    pg_unreachable();
}

// The plaintext of a stored value as a varlena, in the type's send format. Of any tenant where none
// is expected. Null only where that is asked for.
bytea *open_value(OpeningSite &site, Oid right, const value::Parsed &parsed, value::Label label,
                  ByteView associated_data, ByteView tenant,
                  Unavailable unavailable = Unavailable::raise) {
    if (unlikely(parsed.header.label != label)) raise_wrong_label(parsed.header.label, label);
    if (unlikely(parsed.header.bound != !associated_data.empty())) {
        if (parsed.header.bound)
            ereport(
                ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION),
                 errmsg("the value is bound to associated data, and none was given"),
                 errhint(
                     "Name what it was encrypted with: decrypt(value, associated_data => ...).")));
        ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
                        errmsg("associated data was given, but the value is not bound to any"),
                        errdetail("It may have been planted in the place of a bound one."),
                        errhint("The second argument is associated_data; a label is named: "
                                "label => '...'.")));
    }
    follow_epoch();
    keyring::Subkey *subkey = opening_subkey(site, right, parsed, unavailable);
    if (unlikely(subkey == nullptr)) return nullptr;
    if (!tenant.empty() && as_text(tenant) != site.site.key->tenant) {
        if (unavailable == Unavailable::is_null) return nullptr;
        raise_wrong_tenant(site.site.key->tenant.c_str(), tenant, site.row);
    }
    const std::size_t size = parsed.plaintext_size();
    auto *plaintext = static_cast<bytea *>(palloc(VARHDRSZ + size));
    SET_VARSIZE(plaintext, VARHDRSZ + size);
    bool opened = false;
    ErrorReport report;
    if (unlikely(!guarded(report, [&] {
            opened = value::open(*subkey->aead, parsed, associated_data,
                                 {reinterpret_cast<std::uint8_t *>(VARDATA(plaintext)), size});
        })))
        raise(report);
    if (unlikely(!opened))
        ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("could not decrypt the value"),
                        errdetail("It was altered, or encrypted under another key%s.",
                                  parsed.header.bound ? " or with other associated data" : "")));
    return plaintext;
}

// The value that is the first argument; its label is what `label` says or else what its column
// declares.
bytea *open_argument(FunctionCallInfo fcinfo, value::Label label, ByteView associated_data,
                     ByteView tenant, value::Type *type,
                     Unavailable unavailable = Unavailable::raise) {
    refuse_maintenance();
    auto &site = call_site<OpeningSite>(fcinfo->flinfo);
    if (unlikely(!site.knows_label)) {
        const int32 typmod = argument_typmod(fcinfo->flinfo, 0);
        site.label = typmod == kNoTypmod ? 0 : declaration_of(typmod).label;
        site.knows_label = true;
    }
    const value::Parsed parsed = parse_value(varlena_bytes(PG_GETARG_BYTEA_PP(0)));
    *type = parsed.header.type;
    return open_value(site, fcinfo->flinfo->fn_oid, parsed, label != 0 ? label : site.label,
                      associated_data, tenant, unavailable);
}

keyring::OpenKey &sealing_key(SealingSite &site, Oid right, ByteView tenant) {
    if (site.site.is_current() && site.tenant.is_same(tenant)) return *site.site.key;
    site.site.key = nullptr;
    site.tenant.set(tenant);
    const std::uint64_t seen = epoch;
    require_right(right);
    keyring::OpenKey &open = resolve_for_sealing(site.tenant.name, !site.tenant.given);
    site.site.remember(open, seen);
    return open;
}

Datum seal_value(SealingSite &site, Oid right, const value::Declaration &declaration,
                 ByteView plaintext, ByteView tenant, ByteView associated_data) {
    refuse_maintenance();
    follow_epoch();
    if (unlikely(plaintext.size() > value::kMaxPlaintext))
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("value is too long to be encrypted"),
                        errdetail("At most 500 MiB fit into an encrypted value.")));
    Backend &state = backend();
    value::Header header;
    header.type = declaration.type;
    header.label = declaration.label;
    header.bound = !associated_data.empty();
    if (declaration.search != value::SearchMode::none) {
        header.has_token = true;
        header.token = make_token(site.token, declaration, plaintext, tenant);
        if (unlikely(plaintext.size() > kMaxBtreePlaintext)) refuse_btree(site.token, declaration);
    }
    keyring::OpenKey &key = sealing_key(site, right, tenant);
    header.key_id = key.ref.key_id;
    const std::size_t size = value::sealed_size(header, plaintext.size());
    auto *result = static_cast<bytea *>(palloc(VARHDRSZ + size));
    SET_VARSIZE(result, VARHDRSZ + size);
    ErrorReport report;
    if (unlikely(!guarded(report, [&] {
            const std::int64_t statement = GetCurrentStatementStartTimestamp();
            keyring::Subkey &subkey = state.cache.sealing_subkey(
                key, plaintext.size(), state.random, statement, MyProcPid);
            std::array<std::uint8_t, value::kNonceSize> nonce;
            state.random.take(nonce, statement, MyProcPid);
            return value::seal(*subkey.aead, header, subkey.salt, nonce, associated_data, plaintext,
                               {reinterpret_cast<std::uint8_t *>(VARDATA(result)), size});
        })))
        raise(report);
    require_locked_memory();
    PG_RETURN_BYTEA_P(result);
}

// The plaintext that is to be encrypted. Text that is a probe or holds an encrypted value is
// refused: it is what comes of `column || 'x'`, to_jsonb(row) and the like, and would decrypt to
// ciphertext.
ByteView plaintext_of(Oid source, Datum datum, value::Type type) {
    const ByteView plaintext = to_plaintext(source, datum, type);
    if (type != value::Type::text && type != value::Type::jsonb && type != value::Type::text_array)
        return plaintext;
    std::uint8_t probe[kProbeSize + 3];
    if (unlikely(read_probe(as_text(plaintext), probe)))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION), errmsg("the text to be encrypted is a probe"),
                 errhint("A probe is looked for, and never stored: compare a column with it.")));
    bool holds_value = false;
    ErrorReport report;
    if (unlikely(!guarded(report, [&] { holds_value = value::contains_text(as_text(plaintext)); })))
        raise(report);
    if (unlikely(holds_value))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION), errmsg("the plaintext holds an encrypted value"),
                 errhint("Give an encrypted value as it is, without a cast to text or as an "
                         "untyped literal or parameter; to work on its text, decrypt it: "
                         "envcrypt.decrypt(column) || '...'.")));
    return plaintext;
}

// The SQL type of the function's first argument, as pg_proc has it.
Oid source_type(FmgrInfo *function, SealingSite &site) {
    if (unlikely(!OidIsValid(site.source))) {
        Oid *types;
        int count;
        get_func_signature(function->fn_oid, &types, &count);
        site.source = types[0];
    }
    return site.source;
}

}  // namespace

// encrypt(value, tenant, label, search, associated_data)
ENVCRYPT_FUNCTION(envcrypt_encrypt) {
    const ByteView tenant = optional_text(fcinfo, 1, "tenant");
    const ByteView label = optional_text(fcinfo, 2, "label");
    const ByteView search = optional_text(fcinfo, 3, "search");
    const ByteView associated = optional_text(fcinfo, 4, "associated_data");
    auto &site = call_site<SealingSite>(fcinfo->flinfo);
    const Oid source = source_type(fcinfo->flinfo, site);
    value::Declaration declaration{natural_type(source), value::SearchMode::none,
                                   read_label(label)};
    if (!search.empty()) declaration.search = read_search(search, declaration);
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    return seal_value(site, fcinfo->flinfo->fn_oid, declaration,
                      plaintext_of(source, PG_GETARG_DATUM(0), declaration.type), tenant,
                      to_utf8(associated, "associated_data"));
}

// An assignment cast: (value, typmod, explicit), strict.
ENVCRYPT_FUNCTION(envcrypt_cast_from) {
    auto &site = call_site<SealingSite>(fcinfo->flinfo);
    const Oid source = source_type(fcinfo->flinfo, site);
    const int32 typmod = PG_GETARG_INT32(1);
    const value::Declaration declaration =
        typmod == kNoTypmod ? value::Declaration{natural_type(source)} : declaration_of(typmod);
    return seal_value(site, fcinfo->flinfo->fn_oid, declaration,
                      plaintext_of(source, PG_GETARG_DATUM(0), declaration.type), {}, {});
}

// The length coercion encrypted -> encrypted(...): what a column of another declaration may take
// over. A value that is bound to no column is sealed again as this one asks, under the key of its
// own tenant.
ENVCRYPT_FUNCTION(envcrypt_coerce) {
    const int32 typmod = PG_GETARG_INT32(1);
    const value::Parsed parsed = parse_value(varlena_bytes(PG_GETARG_BYTEA_PP(0)));
    if (typmod == kNoTypmod) PG_RETURN_DATUM(PG_GETARG_DATUM(0));
    const value::Declaration declaration = declaration_of(typmod);
    if (fits(parsed.header, declaration)) PG_RETURN_DATUM(PG_GETARG_DATUM(0));
    const bool is_free = parsed.header.type == declaration.type && parsed.header.label == 0 &&
                         !parsed.header.bound && declaration.label != 0;
    if (!is_free) require_fit(parsed.header, declaration);
    struct CoercionSite {
        OpeningSite opening;
        SealingSite sealing;
    };
    refuse_maintenance();
    auto &site = call_site<CoercionSite>(fcinfo->flinfo);
    const bytea *plaintext =
        open_value(site.opening, right_function(Right::decrypt), parsed, 0, {}, {});
    // the tenant of the key that opened it, whatever the key tables say by now; sealing may drop
    // that key
    const char *tenant = pstrdup(site.opening.site.key->tenant.c_str());
    return seal_value(site.sealing, right_function(Right::encrypt), declaration,
                      varlena_bytes(plaintext),
                      {reinterpret_cast<const std::uint8_t *>(tenant), strlen(tenant)}, {});
}

static Datum decrypt_text(FunctionCallInfo fcinfo, Unavailable unavailable) {
    const ByteView associated = optional_text(fcinfo, 1, "associated_data");
    const ByteView label = optional_text(fcinfo, 2, "label");
    const ByteView tenant = optional_text(fcinfo, 3, "tenant");
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    value::Type type;
    bytea *plaintext =
        open_argument(fcinfo, read_label(label), to_utf8(associated, "associated_data"), tenant,
                      &type, unavailable);
    if (unlikely(plaintext == nullptr)) PG_RETURN_NULL();
    PG_RETURN_TEXT_P(plaintext_text(type, plaintext));
}

// decrypt(value, associated_data, label, tenant): the plaintext in its type's text form.
ENVCRYPT_FUNCTION(envcrypt_decrypt) {
    return decrypt_text(fcinfo, Unavailable::raise);
}

// try_decrypt(value, associated_data, label, tenant): NULL where the key is not available, or the
// value is of another tenant.
ENVCRYPT_FUNCTION(envcrypt_try_decrypt) {
    return decrypt_text(fcinfo, Unavailable::is_null);
}

static void require_type(value::Type type, Oid wanted) {
    if (likely(type_oid(type) == wanted)) return;
    ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
                    errmsg("the value is of type %s, not %s", value::type_name(type),
                           format_type_be(wanted)),
                    errhint("Use envcrypt.decrypt(value), or envcrypt.decrypt_as(value, NULL::%s).",
                            value::type_name(type))));
}

static Datum decrypt_typed(FunctionCallInfo fcinfo, ByteView associated, value::Label label,
                           ByteView tenant, Unavailable unavailable) {
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    auto &site = call_site<OpeningSite>(fcinfo->flinfo);
    if (unlikely(!OidIsValid(site.result))) site.result = get_fn_expr_argtype(fcinfo->flinfo, 1);
    value::Type type;
    bytea *plaintext = open_argument(fcinfo, label, associated, tenant, &type, unavailable);
    if (unlikely(plaintext == nullptr)) PG_RETURN_NULL();
    require_type(type, site.result);
    PG_RETURN_DATUM(from_plaintext(type, plaintext));
}

static Datum decrypt_as(FunctionCallInfo fcinfo, Unavailable unavailable) {
    // a view shows the rest of a row that names no tenant
    if (unavailable == Unavailable::is_null && (PG_ARGISNULL(0) || PG_ARGISNULL(4)))
        PG_RETURN_NULL();
    const ByteView associated = optional_text(fcinfo, 2, "associated_data");
    const ByteView label = optional_text(fcinfo, 3, "label");
    const ByteView tenant = optional_text(fcinfo, 4, "tenant");
    return decrypt_typed(fcinfo, to_utf8(associated, "associated_data"), read_label(label), tenant,
                         unavailable);
}

// decrypt_as(value, NULL::T, associated_data, label, tenant): the plaintext as a T.
ENVCRYPT_FUNCTION(envcrypt_decrypt_as) {
    return decrypt_as(fcinfo, Unavailable::raise);
}

// try_decrypt_as(value, NULL::T, associated_data, label, tenant): NULL where try_decrypt() gives
// it.
ENVCRYPT_FUNCTION(envcrypt_try_decrypt_as) {
    return decrypt_as(fcinfo, Unavailable::is_null);
}

// decrypt_in_row(value, NULL::T, tenant, key_columns, key ...): the plaintext as a T. The key goes
// into an error only.
ENVCRYPT_FUNCTION(envcrypt_decrypt_in_row) {
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    optional_text(fcinfo, kKeyColumns, "key_columns");
    if (PG_ARGISNULL(2)) {
        const char *key = key_text(fcinfo);
        ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
                        errmsg("the row's tenant is NULL, and its value cannot be decrypted"),
                        errdetail("%s.", key), errhint("Give the row its tenant.")));
    }
    const ByteView tenant = optional_text(fcinfo, 2, "tenant");
    call_site<OpeningSite>(fcinfo->flinfo).row = fcinfo;
    return decrypt_typed(fcinfo, {}, 0, tenant, Unavailable::raise);
}

// The explicit casts, strict.
ENVCRYPT_FUNCTION(envcrypt_cast_to) {
    auto &site = call_site<OpeningSite>(fcinfo->flinfo);
    if (unlikely(!OidIsValid(site.result))) site.result = get_func_rettype(fcinfo->flinfo->fn_oid);
    value::Type type;
    bytea *plaintext = open_argument(fcinfo, 0, {}, {}, &type);
    require_type(type, site.result);
    PG_RETURN_DATUM(from_plaintext(type, plaintext));
}

// inspect(value): what is readable without a key.
ENVCRYPT_FUNCTION(envcrypt_inspect) {
    const value::Parsed parsed = parse_value(varlena_bytes(PG_GETARG_BYTEA_PP(0)));
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("inspect() must be called where a record is accepted")));
    const value::Header &header = parsed.header;
    Datum values[10] = {};
    bool nulls[10] = {};
    KeyRow key;
    const bool known = find_key(header.key_id, key);
    values[0] = Int32GetDatum(1);
    values[1] = CStringGetTextDatum("AES-256-GCM");
    values[2] =
        CStringGetTextDatum(psprintf("%016llx", static_cast<unsigned long long>(header.key_id)));
    nulls[3] = nulls[4] = !known;
    if (known) {
        values[3] = CStringGetTextDatum(key.tenant);
        values[4] = Int32GetDatum(key.version);
    }
    values[5] = CStringGetTextDatum(value::type_name(header.type));
    nulls[6] = header.label == 0;
    values[6] = CStringGetTextDatum(label_name(header.label));
    nulls[7] = !header.has_token;
    values[7] = CStringGetTextDatum(value::search_word(header.token.mode));
    values[8] = BoolGetDatum(header.bound);
    values[9] = Int64GetDatum(static_cast<int64>(parsed.plaintext_size()));
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

}  // namespace envcrypt::pg
