// The prelude of this folder: the core's headers, then PostgreSQL's (port.h and c.h redefine common
// names, so the order matters), then every difference between its versions (15 to 18).
#pragma once

#include <cmath>

#include "http/engine.hpp"
#include "keyring/cache.hpp"
#include "keyring/operation.hpp"
#include "value/value.hpp"

extern "C" {
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/reloptions.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "commands/alter.h"
#include "commands/defrem.h"
#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "common/keywords.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "nodes/supportnodes.h"
#include "optimizer/planner.h"
#include "parser/parse_coerce.h"
#include "parser/parse_func.h"
#include "parser/parsetree.h"
#include "pgstat.h"
#include "postmaster/autovacuum.h"
#include "rewrite/rewriteHandler.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#include "varatt.h"
#endif
}

// 15 leaves PGDLLEXPORT empty on Unix, so what PostgreSQL looks up would stay hidden: predeclared
// as visible here.
#define ENVCRYPT_EXPORT __attribute__((visibility("default")))
#define ENVCRYPT_FUNCTION(name)                                   \
    extern "C" {                                                  \
    ENVCRYPT_EXPORT Datum name(PG_FUNCTION_ARGS);                 \
    ENVCRYPT_EXPORT const Pg_finfo_record *pg_finfo_##name(void); \
    PG_FUNCTION_INFO_V1(name);                                    \
    }                                                             \
    Datum name(PG_FUNCTION_ARGS)

namespace envcrypt::pg {

inline bool may_use_server(Oid server, Oid user) {
#if PG_VERSION_NUM >= 160000
    return object_aclcheck(ForeignServerRelationId, server, user, ACL_USAGE) == ACLCHECK_OK;
#else
    return pg_foreign_server_aclcheck(server, user, ACL_USAGE) == ACLCHECK_OK;
#endif
}

inline bool may_execute(Oid function, Oid user) {
#if PG_VERSION_NUM >= 160000
    return object_aclcheck(ProcedureRelationId, function, user, ACL_EXECUTE) == ACLCHECK_OK;
#else
    return pg_proc_aclcheck(function, user, ACL_EXECUTE) == ACLCHECK_OK;
#endif
}

// Whether the user may drop or rename the object: as owner, by membership in it, or as superuser.
inline bool owns_extension(Oid extension, Oid user) {
#if PG_VERSION_NUM >= 160000
    return object_ownercheck(ExtensionRelationId, extension, user);
#else
    return pg_extension_ownercheck(extension, user);
#endif
}

inline bool owns_schema(Oid schema, Oid user) {
#if PG_VERSION_NUM >= 160000
    return object_ownercheck(NamespaceRelationId, schema, user);
#else
    return pg_namespace_ownercheck(schema, user);
#endif
}

inline bool owns_server(Oid server, Oid user) {
#if PG_VERSION_NUM >= 160000
    return object_ownercheck(ForeignServerRelationId, server, user);
#else
    return pg_foreign_server_ownercheck(server, user);
#endif
}

// The transaction that a process has under way, as it numbers them itself; invalid outside of one.
inline LocalTransactionId transaction_of(const PGPROC &process) {
#if PG_VERSION_NUM >= 170000
    return process.vxid.lxid;
#else
    return process.lxid;
#endif
}
inline LocalTransactionId current_transaction() {
    return transaction_of(*MyProc);
}

inline bool is_autovacuum_worker() {
#if PG_VERSION_NUM >= 170000
    return AmAutoVacuumWorkerProcess();
#else
    return IsAutoVacuumWorkerProcess();
#endif
}

// For an input function: raises, or from 16 on reports softly where the caller asked for that.
#if PG_VERSION_NUM >= 160000
#define ENVCRYPT_INPUT_ERROR(fcinfo, ...) ereturn((fcinfo)->context, (Datum)0, __VA_ARGS__)
#define ENVCRYPT_SAVE_ERROR(context, ...) errsave(context, __VA_ARGS__)
#else
#define ENVCRYPT_INPUT_ERROR(fcinfo, ...) ereport(ERROR, __VA_ARGS__)
#define ENVCRYPT_SAVE_ERROR(context, ...) ereport(ERROR, __VA_ARGS__)
#endif

}  // namespace envcrypt::pg
