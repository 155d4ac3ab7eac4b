// See act.hpp. With wait.cpp the only file that catches what PostgreSQL raises.
#include "pg/act.hpp"

namespace envcrypt::pg {

namespace {

constexpr int kMaxNoted = 16;
std::uint64_t noted[kMaxNoted];
int noted_count = 0;

void add_member(StringInfo json, const char *name, const char *text) {
    if (text == nullptr) return;
    appendStringInfo(json, "%s\"%s\": ", json->len == 0 ? "{" : ", ", name);
    escape_json(json, text);
}

// Whose act it is, in the current memory context.
struct Who {
    const char *role;
    const char *session_role;
};
Who who() {
    return {GetUserNameFromId(GetUserId(), true),
            GetUserNameFromId(GetAuthenticatedUserId(), true)};
}

// Reads no catalog: it may be called before the failed transaction is cleaned up.
void log_error(const char *act, const char *subject, const Who &by, const ErrorData *error) {
    StringInfoData json;
    initStringInfo(&json);
    add_member(&json, "of", subject);
    add_member(&json, "role", by.role);
    add_member(&json, "session_role", by.session_role);
    for (int i = 0; i < noted_count; ++i)
        appendStringInfo(&json, "%s\"%016llx\"", i == 0 ? ", \"keys\": [" : ", ",
                         static_cast<unsigned long long>(noted[i]));
    if (noted_count > 0) appendStringInfoChar(&json, ']');
    add_member(&json, "sqlstate", unpack_sql_state(error->sqlerrcode));
    add_member(&json, "message", error->message);
    add_member(&json, "detail", error->detail);
    ereport(LOG_SERVER_ONLY,
            (errmsg("envcrypt: %s failed %s}", act, json.data), errhidestmt(true)));
}

bool is_end(int sqlstate) {
    return sqlstate == ERRCODE_QUERY_CANCELED || sqlstate == ERRCODE_ADMIN_SHUTDOWN ||
           sqlstate == ERRCODE_CRASH_SHUTDOWN;
}

}  // namespace

Datum run_act(FunctionCallInfo fcinfo, const char *act, PGFunction body) {
    const MemoryContext context = CurrentMemoryContext;
    const char *volatile subject = nullptr;
    if (fcinfo->nargs > 0 && !PG_ARGISNULL(0) && get_fn_expr_argtype(fcinfo->flinfo, 0) == TEXTOID)
        subject = text_to_cstring(PG_GETARG_TEXT_PP(0));
    const Who by = who();
    Datum result = (Datum)0;
    noted_count = 0;
    PG_TRY();
    { result = body(fcinfo); }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        log_error(act, subject, by, CopyErrorData());
        PG_RE_THROW();
    }
    PG_END_TRY();
    return result;
}

ErrorData *try_part(void (*part)(void *), void *argument) {
    const MemoryContext context = CurrentMemoryContext;
    const ResourceOwner owner = CurrentResourceOwner;
    ErrorData *volatile error = nullptr;
    noted_count = 0;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(context);
    PG_TRY();
    {
        part(argument);
        ReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        error = CopyErrorData();
        FlushErrorState();
        RollbackAndReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
    }
    PG_END_TRY();
    if (error != nullptr && is_end(error->sqlerrcode)) ReThrowError(error);
    return error;
}

void warn_failure(const char *act, const char *subject, const char *what, const ErrorData *error) {
    log_error(act, subject, who(), error);
    noted_count = 0;
    ereport(WARNING, (errmsg("%s: %s", what, error->message),
                      error->detail != nullptr ? errdetail("%s", error->detail) : 0,
                      error->hint != nullptr ? errhint("%s", error->hint) : 0));
}

void note_key(std::uint64_t key_id) {
    if (noted_count < kMaxNoted) noted[noted_count++] = key_id;
}

void require_writable(const char *what) {
    PreventCommandIfReadOnly(what);
    PreventCommandIfParallelMode(what);
}

void require_nonatomic(FunctionCallInfo fcinfo, const char *what) {
    const auto *context = reinterpret_cast<const CallContext *>(fcinfo->context);
    if (context != nullptr && IsA(context, CallContext) && !context->atomic) return;
    ereport(ERROR,
            (errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
             errmsg("%s commits as it goes, and cannot run within a transaction block", what),
             errhint("CALL it by itself.")));
}

char *text_argument(FunctionCallInfo fcinfo, int argument, const char *name) {
    if (PG_ARGISNULL(argument))
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be NULL", name),
                 errhint("Leave it out where it is not meant.")));
    return text_to_cstring(PG_GETARG_TEXT_PP(argument));
}

}  // namespace envcrypt::pg
