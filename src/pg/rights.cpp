// See rights.hpp.
#include "pg/rights.hpp"

namespace envcrypt::pg {

void raise_maintenance() {
    ereport(ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("keys cannot be used within a security-restricted operation"),
             errdetail("ANALYZE, materialized views and index builds would store plaintext, or run "
                       "as another role."),
             errhint("Do not use decrypting or encrypting expressions in indexes, statistics or "
                     "materialized views.")));
    pg_unreachable();
}

void raise_no_right(const FmgrInfo *function) {
    ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                    errmsg("permission denied for function %s", get_func_name(function->fn_oid)),
                    errhint("A superuser can give the right: SELECT envcrypt.grant_access(...).")));
    pg_unreachable();
}

}  // namespace envcrypt::pg
