// See servers.hpp. Also the validators of the foreign data wrappers: which options there are is
// said by the dialects.
#include "pg/servers.hpp"

#include "kms/reference.hpp"
#include "pg/backend.hpp"

namespace envcrypt::pg {

namespace {

// Copies options out of PostgreSQL's lists; a C++ frame that reads plain C strings which were
// fetched before.
struct OptionText {
    const char *name;
    const char *value;
};

OptionText *option_texts(List *options) {
    auto *texts =
        static_cast<OptionText *>(palloc(sizeof(OptionText) * (list_length(options) + 1)));
    ListCell *cell;
    int i = 0;
    foreach (cell, options) {
        auto *option = static_cast<DefElem *>(lfirst(cell));
        texts[i++] = {option->defname, defGetString(option)};
    }
    return texts;
}

kms::Options as_options(const OptionText *texts, int count) {
    kms::Options options;
    for (int i = 0; i < count; ++i) options.insert_or_assign(texts[i].name, texts[i].value);
    return options;
}

}  // namespace

// The validator of every wrapper: envcrypt.NAME_validator() is that of envcrypt_NAME.
ENVCRYPT_FUNCTION(envcrypt_validator) {
    const char *function = get_func_name(fcinfo->flinfo->fn_oid);
    const kms::Dialect *known = nullptr;
    ErrorReport report;
    if (!guarded(report, [&] {
            constexpr std::string_view suffix = "_validator";
            std::string_view name = function != nullptr ? function : "";
            if (name.ends_with(suffix)) name.remove_suffix(suffix.size());
            known = kms::find_dialect("envcrypt_" + std::string(name));
        }))
        raise(report);
    if (known == nullptr) elog(ERROR, "envcrypt: a validator of no KMS");
    const kms::Dialect &dialect = *known;
    List *options = untransformRelOptions(PG_GETARG_DATUM(0));
    const Oid catalog = PG_GETARG_OID(1);
    // an empty list, too: it may take options away, and a mapping without any is one of a local KMS
    if (!superuser())
        ereport(ERROR,
                (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                 errmsg("permission denied to set options of %s", dialect.wrapper_name()),
                 errdetail("Options name secrets of the database server, so only a superuser may "
                           "set them, and make servers and user mappings.")));
    if (options == NIL) PG_RETURN_VOID();
    const bool on_server = catalog == ForeignServerRelationId;
    if (!on_server && catalog != UserMappingRelationId)
        ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
                        errmsg("%s has options on servers and user mappings only",
                               dialect.wrapper_name())));
    const OptionText *texts = option_texts(options);
    const int count = list_length(options);
    if (!guarded(report, [&] {
            return kms::check_options(
                dialect, on_server ? kms::OptionPlace::server : kms::OptionPlace::mapping,
                as_options(texts, count));
        }))
        raise(report);
    PG_RETURN_VOID();
}

// The server that a secret is read from, by a mapping's option; "" where it refers to none.
static void name_store(const Place &place, const OptionText &option, char (&server)[NAMEDATALEN]) {
    ErrorReport report;
    server[0] = '\0';
    if (!guarded(report, [&] {
            const auto reference = kms::parse_reference(option.value);
            if (reference && kms::is_secret_option(*place.dialect, option.name))
                copy_text(server, reference->server);
        }))
        raise(report);
}

// Which version of a catalog row this is.
static void name_version(HeapTuple tuple, std::uint32_t *version) {
    version[0] = HeapTupleHeaderGetRawXmin(tuple->t_data);
    version[1] = ItemPointerGetBlockNumberNoCheck(&tuple->t_self);
    version[2] = ItemPointerGetOffsetNumberNoCheck(&tuple->t_self);
}

// The secret that logs in comes from the role's own identity at another server: with another of
// those, or another version, it is another identity here.
static void mix_stores(Place &place, Oid role) {
    const OptionText *texts = option_texts(place.identity_options);
    const int count = list_length(place.identity_options);
    std::uint64_t mixed = 0xcbf29ce484222325u;
    const auto mix = [&](std::uint32_t part) { mixed = (mixed ^ part) * 0x100000001b3u; };
    mix(place.identity[6]);
    mix(place.identity[7]);
    for (int i = 0; i < count; ++i) {
        char server[NAMEDATALEN];
        name_store(place, texts[i], server);
        if (server[0] == '\0') continue;
        Place store{};
        mix(static_cast<std::uint32_t>(find_place(server, role, store, true)));
        for (const std::uint32_t part : store.identity) mix(part);
    }
    place.identity[6] = static_cast<std::uint32_t>(mixed >> 32);
    place.identity[7] = static_cast<std::uint32_t>(mixed);
}

PlaceFault find_place(const char *name, Oid role, Place &place, bool is_store) {
    const Oid server = get_foreign_server_oid(name, true);
    if (!OidIsValid(server)) return PlaceFault::no_server;
    // the options and their version from one and the same row
    HeapTuple tuple = SearchSysCacheCopy1(FOREIGNSERVEROID, ObjectIdGetDatum(server));
    if (!HeapTupleIsValid(tuple)) return PlaceFault::no_server;
    const auto *row = reinterpret_cast<Form_pg_foreign_server>(GETSTRUCT(tuple));
    place.server_name = pstrdup(NameStr(row->srvname));
    place.server = server;
    place.identity[0] = server;
    name_version(tuple, &place.identity[1]);
    bool is_null;
    Datum options =
        SysCacheGetAttr(FOREIGNSERVEROID, tuple, Anum_pg_foreign_server_srvoptions, &is_null);
    place.server_options = is_null ? NIL : untransformRelOptions(options);

    const char *wrapper = GetForeignDataWrapper(row->srvfdw)->fdwname;
    ErrorReport report;
    if (!guarded(report, [&] { place.dialect = kms::find_dialect(wrapper); })) raise(report);
    if (place.dialect == nullptr) return PlaceFault::other_wrapper;
    if (!may_use_server(server, role)) return PlaceFault::no_usage;

    // a parallel worker knows nothing of what its leader's session brought
    if (session_brought_identity && IsParallelWorker())
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("a parallel worker has none of the credentials that the session "
                               "brought"),
                        errhint("The query was planned before set_credential(): plan it anew, or "
                                "SET max_parallel_workers_per_gather = 0.")));
    place.brought = 0;
    place.identity_options = NIL;
    if (const Backend *state = backend_if_any()) {
        // the last one hides those before
        for (auto at = state->brought.rbegin(); at != state->brought.rend(); ++at) {
            const BroughtIdentity &brought = *at;
            if (brought.server != server || brought.role != role) continue;
            place.brought = brought.serial;
            place.identity[4] = keyring::kNoMapping;
            place.identity[5] = brought.serial;
            place.identity[6] = place.identity[7] = 0;
            return PlaceFault::none;
        }
    }
    HeapTuple mapping =
        SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(role), ObjectIdGetDatum(server));
    if (!HeapTupleIsValid(mapping))
        mapping = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
                                  ObjectIdGetDatum(server));
    if (!HeapTupleIsValid(mapping)) return PlaceFault::no_mapping;
    options =
        SysCacheGetAttr(USERMAPPINGUSERSERVER, mapping, Anum_pg_user_mapping_umoptions, &is_null);
    place.identity_options = is_null ? NIL : untransformRelOptions(options);
    place.identity[4] = reinterpret_cast<Form_pg_user_mapping>(GETSTRUCT(mapping))->oid;
    name_version(mapping, &place.identity[5]);
    ReleaseSysCache(mapping);
    if (!is_store) mix_stores(place, role);
    return PlaceFault::none;
}

static void report_place_fault(PlaceFault fault, const char *server, Oid role,
                               ErrorReport &report) {
    const char *role_name = quote_identifier(GetUserNameFromId(role, false));
    const char *server_name = quote_identifier(server);
    switch (fault) {
        case PlaceFault::no_server:
            fill_report(report, ErrorCode::no_key, psprintf("server \"%s\" does not exist", server),
                        "",
                        psprintf("Create it: CREATE SERVER %s FOREIGN DATA WRAPPER envcrypt_vault "
                                 "OPTIONS (...).",
                                 server_name));
            return;
        case PlaceFault::other_wrapper:
            fill_report(report, ErrorCode::misconfigured,
                        psprintf("server \"%s\" is not a KMS", server), "",
                        "Use a server of a foreign data wrapper of envcrypt.");
            return;
        case PlaceFault::no_usage:
            fill_report(
                report, ErrorCode::denied, psprintf("permission denied for KMS \"%s\"", server), "",
                psprintf("GRANT USAGE ON FOREIGN SERVER %s TO %s;", server_name, role_name));
            return;
        case PlaceFault::no_mapping:
        case PlaceFault::none:
            break;
    }
    fill_report(report, ErrorCode::denied,
                psprintf("role %s has no identity at KMS \"%s\"", role_name, server),
                "The role has no user mapping on the server, and PUBLIC has none.",
                psprintf("A superuser can make one: CREATE USER MAPPING FOR %s SERVER %s "
                         "OPTIONS (...);",
                         role_name, server_name));
}

void raise_place_fault(PlaceFault fault, const char *server, Oid role) {
    ErrorReport report;
    report_place_fault(fault, server, role, report);
    raise(report);
}

// Makes an operation there, or at the end of the batch where that is null. Null where something is
// missing or not allowed, as the report says.
static keyring::Operation *prepare_in(std::unique_ptr<keyring::Operation> *where,
                                      const Place &place, const char *master_key,
                                      ErrorReport &report) {
    Backend &state = backend();
    const OptionText *server_texts = option_texts(place.server_options);
    const int server_count = list_length(place.server_options);
    const OptionText *identity_texts = option_texts(place.identity_options);
    const int identity_count = list_length(place.identity_options);
    // the servers that secret references name
    auto *referenced = static_cast<Place *>(palloc(sizeof(Place) * (identity_count + 1)));
    int referenced_count = 0;
    for (int i = 0; i < identity_count; ++i) {
        char server[NAMEDATALEN];
        name_store(place, identity_texts[i], server);
        if (server[0] == '\0') continue;
        Place &store = referenced[referenced_count++];
        const PlaceFault fault = find_place(server, GetUserId(), store, true);
        if (fault == PlaceFault::none) continue;
        report_place_fault(fault, server, GetUserId(), report);
        return nullptr;
    }
    struct StoreTexts {
        const OptionText *server;
        const OptionText *identity;
    };
    auto *texts = static_cast<StoreTexts *>(
        palloc(sizeof(StoreTexts) * static_cast<std::size_t>(referenced_count + 1)));
    for (int i = 0; i < referenced_count; ++i)
        texts[i] = {option_texts(referenced[i].server_options),
                    option_texts(referenced[i].identity_options)};
    keyring::Operation *made = nullptr;
    if (!guarded(report, [&]() -> Status {
            auto operation = std::make_unique<keyring::Operation>();
            kms::Server &server = operation->server;
            server.name = place.server_name;
            server.dialect = place.dialect;
            server.options = as_options(server_texts, server_count);
            server.identity = as_options(identity_texts, identity_count);
            for (const BroughtIdentity &brought : state.brought) {
                if (brought.serial != place.brought) continue;
                server.identity = brought.options;
                server.brought = brought.contents;
            }
            for (int i = 0; i < referenced_count; ++i) {
                kms::Server &store = server.referenced.emplace_back();
                store.name = referenced[i].server_name;
                store.dialect = referenced[i].dialect;
                store.options =
                    as_options(texts[i].server, list_length(referenced[i].server_options));
                store.identity =
                    as_options(texts[i].identity, list_length(referenced[i].identity_options));
                for (BroughtIdentity &brought : state.brought) {
                    if (brought.serial != referenced[i].brought) continue;
                    brought.used_by.insert(place.identity);
                    store.identity = brought.options;
                    store.brought = brought.contents;
                }
            }
            if (master_key != nullptr && master_key[0] != '\0') {
                Status named = kms::name_master_key(server, master_key);
                if (!named) return named;
            }
            for (const kms::Server &store : server.referenced)
                if (Status usable = kms::check_store(store); !usable) return usable;
            Status complete = place.dialect->check_complete(server);
            if (!complete) return complete;
            operation->identity = place.identity;
            operation->credentials = &state.credentials;
            if (where == nullptr) where = &state.batch.emplace_back();
            *where = std::move(operation);
            made = where->get();
            return Unit{};
        }))
        return nullptr;
    if (place.dialect == &kms::local_dialect()) {
        static bool warned = false;
        if (!warned)
            ereport(
                WARNING,
                (errmsg("KMS \"%s\" is a file on the database server", place.server_name),
                 errdetail("Whoever reads the server's disk can read the master key: the local KMS "
                           "is for development and tests.")));
        warned = true;
    }
    return made;
}

void prepare_operation(const Place &place, const char *master_key, crypto::Purpose purpose,
                       std::uint64_t key_id, const char *tenant) {
    ErrorReport report;
    keyring::Operation *made = prepare_in(&backend().operation, place, master_key, report);
    if (made == nullptr ||
        !guarded(report, [&] { made->context = crypto::wrap_context(purpose, key_id, tenant); }))
        raise(report);
}

void prepare_unbound_operation(const Place &place) {
    ErrorReport report;
    if (prepare_in(&backend().operation, place, nullptr, report) == nullptr) raise(report);
}

keyring::Operation *prepare_in_batch(const Place &place, const char *master_key,
                                     ErrorReport &report) {
    return prepare_in(nullptr, place, master_key, report);
}

}  // namespace envcrypt::pg
