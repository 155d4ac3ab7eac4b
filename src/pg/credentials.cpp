// set_credential() and clear_credential(): an identity that a session brings itself, in place of a
// user mapping. It lies in this backend's secret memory and nowhere else, serves the role that
// brought it, and ends with the transaction unless told otherwise.
#include "pg/backend.hpp"
#include "pg/rights.hpp"
#include "pg/servers.hpp"
#include "pg/text.hpp"

namespace envcrypt::pg {

namespace {

struct Given {
    const char *name;
    std::size_t name_length;
    const char *value;
    std::size_t value_length;
};

[[noreturn]] void raise_not_options() {
    ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                    errmsg("credential must be an object of strings"),
                    errhint("It has the names of the user mapping's options, and in place of "
                            "references what they lead to.")));
    pg_unreachable();
}

// The members of the object; they lie in it.
Given *members_of(Jsonb *object, int &count) {
    if (!JB_ROOT_IS_OBJECT(object)) raise_not_options();
    auto *given = static_cast<Given *>(palloc(sizeof(Given) * (JB_ROOT_COUNT(object) + 1)));
    JsonbIterator *iterator = JsonbIteratorInit(&object->root);
    JsonbValue value;
    JsonbIteratorToken token;
    count = 0;
    while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE) {
        if (token == WJB_KEY) {
            given[count].name = value.val.string.val;
            given[count].name_length = static_cast<std::size_t>(value.val.string.len);
        } else if (token == WJB_VALUE) {
            if (value.type != jbvString) raise_not_options();
            // what goes to a KMS is UTF-8
            const ByteView utf8 = to_utf8(
                as_bytes({value.val.string.val, static_cast<std::size_t>(value.val.string.len)}),
                "the credential");
            given[count].value = reinterpret_cast<const char *>(utf8.data());
            given[count].value_length = utf8.size();
            ++count;
        }
    }
    return given;
}

// The server by that name, if it is a KMS that the role may use.
Oid usable_server(const char *name, const kms::Dialect *&dialect) {
    Place place;
    const PlaceFault fault = find_place(name, GetUserId(), place);
    if (fault != PlaceFault::none && fault != PlaceFault::no_mapping)
        raise_place_fault(fault, name, GetUserId());
    dialect = place.dialect;
    return place.server;
}

}  // namespace

// set_credential(server, credential, session)
ENVCRYPT_FUNCTION(envcrypt_set_credential) {
    refuse_maintenance();
    require_right(fcinfo->flinfo->fn_oid);
    for (int i = 0; i < 3; ++i)
        if (PG_ARGISNULL(i))
            ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
                            errmsg("no argument of set_credential() may be NULL")));
    const char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
    Jsonb *credential = PG_GETARG_JSONB_P(1);
    const bool for_session = PG_GETARG_BOOL(2);
    const kms::Dialect *dialect;
    const Oid server = usable_server(name, dialect);
    int count;
    const Given *given = members_of(credential, count);
    const Oid role = GetUserId();
    const int nest_level = GetCurrentTransactionNestLevel();
    Backend &state = backend();
    ErrorReport report;
    if (!guarded(report, [&]() -> Status {
            std::map<std::string, SecretBytes, std::less<>> all;
            for (int i = 0; i < count; ++i)
                all.insert_or_assign(
                    std::string(given[i].name, given[i].name_length),
                    SecretBytes(std::string_view(given[i].value, given[i].value_length)));
            static std::uint32_t last_serial = 0;
            BroughtIdentity brought{server,        role, for_session, nest_level,
                                    ++last_serial, {},   {},          {}};
            auto contents = std::make_shared<std::map<std::string, SecretBytes, std::less<>>>();
            Status legal = kms::split_brought(*dialect, std::move(all), brought.options, *contents);
            if (!legal) return legal;
            brought.contents = std::move(contents);
            // one of before this (sub)transaction is only hidden: a rollback brings it back
            forget_brought(state, [&](const BroughtIdentity &other) {
                return other.server == server && other.role == role &&
                       other.nest_level == nest_level && (for_session || !other.for_session);
            });
            state.brought.push_back(std::move(brought));
            session_brought_identity = true;
            ++epoch;
            return Unit{};
        }))
        raise(report);
    require_locked_memory();
    if (!for_session && !IsTransactionBlock())
        ereport(
            WARNING,
            (errmsg("the credential for KMS \"%s\" ends with this statement", name),
             errhint("BEGIN a transaction before, or bring it for the session: session => true.")));
    // a plan made before may have parallel workers, who lack the credential
    ResetPlanCache();
    PG_RETURN_VOID();
}

// clear_credential(server)
ENVCRYPT_FUNCTION(envcrypt_clear_credential) {
    if (PG_ARGISNULL(0))
        ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
                        errmsg("the server of clear_credential() must not be NULL")));
    const char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
    const Oid server = get_foreign_server_oid(name, true);
    if (!OidIsValid(server)) raise_place_fault(PlaceFault::no_server, name, GetUserId());
    const Oid role = GetUserId();
    if (Backend *state = backend_if_any()) {
        ErrorReport report;
        if (!guarded(report, [&] {
                forget_brought(*state, [&](const BroughtIdentity &identity) {
                    return identity.server == server && identity.role == role;
                });
            }))
            raise(report);
    }
    PG_RETURN_VOID();
}

}  // namespace envcrypt::pg
