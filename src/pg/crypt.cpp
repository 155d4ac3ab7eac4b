// encrypt(), decrypt(), the casts into and out of `encrypted`, inspect(): the hot path. Each call
// site of a query keeps in fn_extra what it needs for the next row, so that a warm call does
// nothing but the cipher.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/resolve.hpp"
#include "pg/rights.hpp"
#include "pg/text.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

// What both kinds of call sites know of the key they used last.
struct Site {
    std::uint64_t epoch;
    Oid role;
    keyring::OpenKey *key;
    std::uint64_t key_serial;

    bool is_current() const {
        return epoch == pg::epoch && role == GetUserId() && key != nullptr &&
               key->serial == key_serial;
    }
    void remember(keyring::OpenKey &open, std::uint64_t seen) {
        epoch = seen;
        role = GetUserId();
        key = &open;
        key_serial = open.serial;
    }
};

struct OpeningSite {
    Site site;
    std::uint64_t key_id;
    keyring::Subkey *subkey;
    std::uint64_t subkey_serial;
};

struct SealingSite {
    Site site;
    std::uint64_t setting_changes;
    std::size_t tenant_length;
    char tenant[kMaxTenantName + 1];
    bool tenant_given;
};

template <class AnySite>
AnySite &call_site(FmgrInfo *function) {
    if (function->fn_extra == nullptr)
        function->fn_extra = MemoryContextAllocZero(function->fn_mcxt, sizeof(AnySite));
    return *static_cast<AnySite *>(function->fn_extra);
}

// An option that was given; "" is "not given", and NULL must not be taken for it.
ByteView optional_text(FunctionCallInfo fcinfo, int argument, const char *name) {
    if (PG_ARGISNULL(argument))
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be NULL", name),
                 errhint("Leave it out where it is not meant.")));
    return varlena_bytes(PG_GETARG_TEXT_PP(argument));
}

keyring::Subkey &opening_subkey(FmgrInfo *function, const value::Parsed &parsed) {
    OpeningSite &site = call_site<OpeningSite>(function);
    ErrorReport report;
    if (!site.site.is_current() || site.key_id != parsed.header.key_id) {
        const std::uint64_t seen = epoch;
        site.site.key = nullptr;
        require_right(function);
        keyring::OpenKey &open = resolve_for_opening(parsed.header.key_id);
        site.site.remember(open, seen);
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
    return *site.subkey;
}

// The plaintext of a stored value as a varlena, in the type's send format.
bytea *open_value(FunctionCallInfo fcinfo, ByteView associated_data, value::Type *type) {
    refuse_maintenance();
    value::Parsed parsed;
    const value::Fault fault = value::parse(varlena_bytes(PG_GETARG_BYTEA_PP(0)), parsed);
    if (unlikely(fault != value::Fault::none))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION), errmsg("invalid encrypted value"),
                 errdetail("The check that failed: %s.", value::fault_name(fault))));
    if (unlikely(parsed.header.label != 0))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION), errmsg("the value belongs to a labelled column"),
                 errdetail("It decrypts only where its label is said.")));
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
                        errdetail("It may have been planted in the place of a bound one.")));
    }
    *type = parsed.header.type;
    follow_epoch();
    keyring::Subkey &subkey = opening_subkey(fcinfo->flinfo, parsed);
    const std::size_t size = parsed.plaintext_size();
    auto *plaintext = static_cast<bytea *>(palloc(VARHDRSZ + size));
    SET_VARSIZE(plaintext, VARHDRSZ + size);
    bool opened = false;
    ErrorReport report;
    if (unlikely(!guarded(report, [&] {
            opened = value::open(*subkey.aead, parsed, associated_data,
                                 {reinterpret_cast<std::uint8_t *>(VARDATA(plaintext)), size});
        })))
        raise(report);
    if (unlikely(!opened))
        ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("could not decrypt the value"),
                        errdetail("It was altered, or encrypted under another key%s.",
                                  parsed.header.bound ? " or with other associated data" : "")));
    return plaintext;
}

// Text that was stored as UTF-8, in the server encoding. What is not UTF-8 was never written by
// encrypt().
text *from_utf8(bytea *plaintext) {
    char *bytes = VARDATA(plaintext);
    const int length = static_cast<int>(VARSIZE(plaintext) - VARHDRSZ);
    if (unlikely(!pg_verify_mbstr(PG_UTF8, bytes, length, true)))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_EXCEPTION), errmsg("the decrypted text is not valid UTF-8")));
    const int encoding = GetDatabaseEncoding();
    if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII || length == 0)
        return reinterpret_cast<text *>(plaintext);
    return convert(varlena_bytes(plaintext), PG_UTF8, encoding, "the decrypted text");
}

keyring::OpenKey &sealing_key(FmgrInfo *function, ByteView tenant) {
    SealingSite &site = call_site<SealingSite>(function);
    // the setting is compared by its count of changes, an argument by its bytes
    const bool given = !tenant.empty();
    if (site.site.is_current() && site.tenant_given == given &&
        (given ? site.tenant_length == tenant.size() &&
                     memcmp(site.tenant, tenant.data(), tenant.size()) == 0
               : site.setting_changes == tenant_setting_changes))
        return *site.site.key;

    if (given && tenant.size() > kMaxTenantName)
        ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("invalid tenant name"),
                        errdetail("A tenant's name has at most 128 letters.")));
    site.site.key = nullptr;
    site.tenant_given = given;
    site.setting_changes = tenant_setting_changes;
    const char *name = given ? reinterpret_cast<const char *>(tenant.data()) : setting_tenant;
    site.tenant_length = given ? tenant.size() : strlen(name);
    memcpy(site.tenant, name, site.tenant_length);
    site.tenant[site.tenant_length] = '\0';
    const std::uint64_t seen = epoch;
    require_right(function);
    keyring::OpenKey &open = resolve_for_sealing(site.tenant, !given);
    site.site.remember(open, seen);
    return open;
}

Datum seal_value(FunctionCallInfo fcinfo, value::Type type, ByteView plaintext, ByteView tenant,
                 ByteView associated_data) {
    refuse_maintenance();
    follow_epoch();
    Backend &state = backend();
    keyring::OpenKey &key = sealing_key(fcinfo->flinfo, tenant);
    value::Header header;
    header.type = type;
    header.key_id = key.ref.key_id;
    header.bound = !associated_data.empty();
    const std::size_t size = value::sealed_size(header, plaintext.size());
    if (unlikely(plaintext.size() > value::kMaxPlaintext))
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("value is too long to be encrypted"),
                        errdetail("At most 500 MiB fit into an encrypted value.")));
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
    PG_RETURN_BYTEA_P(result);
}

// encrypt(value, tenant, associated_data)
Datum encrypt(FunctionCallInfo fcinfo, value::Type type) {
    const ByteView tenant = optional_text(fcinfo, 1, "tenant");
    const ByteView associated = optional_text(fcinfo, 2, "associated_data");
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    ByteView plaintext = varlena_bytes(PG_GETARG_VARLENA_PP(0));
    if (type == value::Type::text) plaintext = to_utf8(plaintext, "the text");
    return seal_value(fcinfo, type, plaintext, tenant, to_utf8(associated, "associated_data"));
}

// An assignment cast: (value, typmod, explicit), strict.
Datum encrypt_cast(FunctionCallInfo fcinfo, value::Type type, ByteView plaintext) {
    require_fit(type, PG_GETARG_INT32(1));
    if (type == value::Type::text) plaintext = to_utf8(plaintext, "the text");
    return seal_value(fcinfo, type, plaintext, {}, {});
}

}  // namespace

ENVCRYPT_FUNCTION(envcrypt_encrypt_text) {
    return encrypt(fcinfo, value::Type::text);
}
ENVCRYPT_FUNCTION(envcrypt_encrypt_bytea) {
    return encrypt(fcinfo, value::Type::bytea);
}

ENVCRYPT_FUNCTION(envcrypt_cast_from_text) {
    return encrypt_cast(fcinfo, value::Type::text, varlena_bytes(PG_GETARG_VARLENA_PP(0)));
}
ENVCRYPT_FUNCTION(envcrypt_cast_from_bytea) {
    return encrypt_cast(fcinfo, value::Type::bytea, varlena_bytes(PG_GETARG_VARLENA_PP(0)));
}
// As PostgreSQL's own cast from character(n) to text does, trailing blanks are dropped.
ENVCRYPT_FUNCTION(envcrypt_cast_from_bpchar) {
    const ByteView padded = varlena_bytes(PG_GETARG_VARLENA_PP(0));
    const int length =
        bpchartruelen(const_cast<char *>(reinterpret_cast<const char *>(padded.data())),
                      static_cast<int>(padded.size()));
    return encrypt_cast(fcinfo, value::Type::text, padded.first(length));
}

// decrypt(value, associated_data): the plaintext in its type's text form.
ENVCRYPT_FUNCTION(envcrypt_decrypt) {
    const ByteView associated = optional_text(fcinfo, 1, "associated_data");
    if (PG_ARGISNULL(0)) PG_RETURN_NULL();
    value::Type type;
    bytea *plaintext = open_value(fcinfo, to_utf8(associated, "associated_data"), &type);
    if (type == value::Type::text) PG_RETURN_TEXT_P(from_utf8(plaintext));
    if (type == value::Type::bytea)
        PG_RETURN_TEXT_P(cstring_to_text(
            DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(plaintext)))));
    ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                    errmsg("a value of type %s cannot be decrypted by this version of envcrypt",
                           value::type_name(type))));
}

// The explicit cast to bytea, strict.
ENVCRYPT_FUNCTION(envcrypt_cast_to_bytea) {
    value::Type type;
    bytea *plaintext = open_value(fcinfo, {}, &type);
    if (type != value::Type::bytea)
        ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
                        errmsg("the value is of type %s, not bytea", value::type_name(type)),
                        errhint("Use envcrypt.decrypt(value).")));
    PG_RETURN_BYTEA_P(plaintext);
}

// inspect(value): what is readable without a key.
ENVCRYPT_FUNCTION(envcrypt_inspect) {
    const ByteView bytes = varlena_bytes(PG_GETARG_BYTEA_PP(0));
    value::Parsed parsed;
    const value::Fault fault = value::parse(bytes, parsed);
    if (fault != value::Fault::none)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION), errmsg("invalid encrypted value"),
                 errdetail("The check that failed: %s.", value::fault_name(fault))));
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("inspect() must be called where a record is accepted")));
    const value::Header &header = parsed.header;
    char label[8] = "";
    ErrorReport report;
    if (!guarded(report, [&] { copy_text(label, value::label_text(header.label)); })) raise(report);
    static constexpr const char *modes[] = {"", "exact", "nocase", "digits"};

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
    values[6] = CStringGetTextDatum(label);
    nulls[7] = !header.has_token;
    values[7] = CStringGetTextDatum(modes[static_cast<int>(header.token.mode)]);
    values[8] = BoolGetDatum(header.bound);
    values[9] = Int64GetDatum(static_cast<int64>(parsed.plaintext_size()));
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

}  // namespace envcrypt::pg
