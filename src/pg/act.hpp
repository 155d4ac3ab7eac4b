// Acts on keys as they are called from SQL: what fails is told to the server's log with the fields
// that the journal has of what succeeds. PostgreSQL frames.
#pragma once

#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

// Runs an act that a function or procedure of that name does.
Datum run_act(FunctionCallInfo fcinfo, const char *act, PGFunction body);

// Defines the C function `symbol` as an act.
#define ENVCRYPT_ACT(symbol, act)                   \
    static Datum symbol##_body(PG_FUNCTION_ARGS);   \
    ENVCRYPT_FUNCTION(symbol) {                     \
        return run_act(fcinfo, act, symbol##_body); \
    }                                               \
    static Datum symbol##_body(PG_FUNCTION_ARGS)

// A key that the act under way makes or changes, for the log.
void note_key(std::uint64_t key_id);

// Does a part of an act in a subtransaction. Null where it is done; else it is taken back, and this
// is why. A cancel or a shutdown is raised on.
ErrorData *try_part(void (*part)(void *), void *argument);
// Tells the log and the client of a part that failed while the act goes on: "WHAT: the error's
// message".
void warn_failure(const char *act, const char *subject, const char *what, const ErrorData *error);

// Raises on a standby, in a read-only transaction and in a parallel worker.
void require_writable(const char *what);
// Raises unless the procedure may commit.
void require_nonatomic(FunctionCallInfo fcinfo, const char *what);
// The argument's text; raises where it is NULL.
char *text_argument(FunctionCallInfo fcinfo, int argument, const char *name);

}  // namespace envcrypt::pg
