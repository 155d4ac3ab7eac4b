// The one table from ErrorCode to SQLSTATE, and the one place that raises what the core reports.
#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

namespace {

// A text cut in the middle of a character would be an error of its own.
const char *clipped(char *text) {
    const int length = static_cast<int>(strlen(text));
    text[pg_mbcliplen(text, length, length)] = '\0';
    return text;
}

}  // namespace

int sqlstate_of(ErrorCode code) {
    switch (code) {
        case ErrorCode::malformed_value:
            return ERRCODE_INVALID_BINARY_REPRESENTATION;
        case ErrorCode::malformed_text:
            return ERRCODE_INVALID_TEXT_REPRESENTATION;
        case ErrorCode::mismatch:
            return ERRCODE_DATA_EXCEPTION;
        case ErrorCode::damaged:
        case ErrorCode::corrupt:
            return ERRCODE_DATA_CORRUPTED;
        case ErrorCode::denied:
            return ERRCODE_INSUFFICIENT_PRIVILEGE;
        case ErrorCode::unreachable:
            return ERRCODE_CONNECTION_FAILURE;
        case ErrorCode::throttled:
            return ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
        case ErrorCode::bad_answer:
            return ERRCODE_PROTOCOL_VIOLATION;
        case ErrorCode::misconfigured:
            return ERRCODE_FDW_ERROR;
        case ErrorCode::no_key:
            return ERRCODE_UNDEFINED_OBJECT;
        case ErrorCode::key_unusable:
            return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
        case ErrorCode::too_large:
            return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
        case ErrorCode::internal:
            break;
    }
    return ERRCODE_INTERNAL_ERROR;
}

void raise(const ErrorReport &report) {
    ErrorReport copy = report;
    ereport(ERROR, (errcode(sqlstate_of(copy.code)), errmsg("%s", clipped(copy.message)),
                    copy.detail[0] != '\0' ? errdetail("%s", clipped(copy.detail)) : 0,
                    copy.hint[0] != '\0' ? errhint("%s", clipped(copy.hint)) : 0));
    pg_unreachable();
}

// raise_error(sqlstate, message, hint): for functions of ours that are written in SQL.
ENVCRYPT_FUNCTION(envcrypt_raise_error) {
    const char *state = text_to_cstring(PG_GETARG_TEXT_PP(0));
    if (strlen(state) != 5 || strncmp(state, "00", 2) == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid SQLSTATE")));
    ereport(ERROR, (errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
                    errmsg("%s", text_to_cstring(PG_GETARG_TEXT_PP(1))),
                    errhint("%s", text_to_cstring(PG_GETARG_TEXT_PP(2)))));
}

}  // namespace envcrypt::pg
