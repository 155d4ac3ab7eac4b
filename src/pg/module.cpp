// The module's magic, settings, and the two hooks. Nothing else happens at load time: it may run in
// the postmaster.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/parameters.hpp"
#include "pg/rights.hpp"

extern "C" {
ENVCRYPT_EXPORT const Pg_magic_struct *PG_MAGIC_FUNCTION_NAME(void);
#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(.name = "envcrypt", .version = "1.0");
#else
PG_MODULE_MAGIC;
#endif
ENVCRYPT_EXPORT void _PG_init(void);
}

namespace envcrypt::pg {

char *setting_tenant = nullptr;
std::uint64_t tenant_setting_changes = 0;
bool setting_tenant_per_transaction = false;
bool session_brought_identity = false;
int setting_kms_timeout = 10000;
int setting_kms_concurrency = 32;
int setting_cache_ttl = 300;
int setting_outage_grace = 0;
int setting_cache_size = 1024;
bool setting_require_mlock = false;

namespace {

ProcessUtility_hook_type next_utility_hook = nullptr;
planner_hook_type next_planner_hook = nullptr;

// What is kept with each value of envcrypt.tenant: the transaction that set it. A value that comes
// back, after SET LOCAL, a savepoint or a function with a SET clause, brings its own along.
struct TenantStamp {
    LocalTransactionId set_in;
};
bool defining_settings = false;  // the values that are there already are of no transaction we know

bool stamp_tenant(void **extra) {
#if PG_VERSION_NUM >= 160000
    auto *stamp = static_cast<TenantStamp *>(guc_malloc(LOG, sizeof(TenantStamp)));
#else
    auto *stamp = static_cast<TenantStamp *>(malloc(sizeof(TenantStamp)));
#endif
    if (stamp == nullptr) return false;
    stamp->set_in =
        MyProc == nullptr || defining_settings ? InvalidLocalTransactionId : current_transaction();
    *extra = stamp;
    return true;
}

bool check_tenant(char **value, void **extra, GucSource) {
    // '' is what is left of a SET LOCAL that came before this library
    if (**value == '\0' || is_tenant_name(*value)) return stamp_tenant(extra);
    GUC_check_errdetail("A tenant's name has 1 to 128 of the letters A-Z a-z 0-9 . _ : @ / + = -.");
    return false;
}

enum TenantScope { scope_session, scope_transaction };
int setting_tenant_scope = scope_session;
constexpr config_enum_entry kTenantScopes[] = {{"session", scope_session, false},
                                               {"transaction", scope_transaction, false},
                                               {nullptr, 0, false}};

// It is this library that sets it, by its variable; for the worker the server does.
bool check_brought(bool *, void **, GucSource source) {
    return source == PGC_S_DEFAULT || source == PGC_S_OVERRIDE || InitializingParallelWorker;
}

void assign_tenant_scope(int scope, void *) {
    setting_tenant_per_transaction = scope == scope_transaction;
}

// The transaction that set the tenant: a setting, since settings are what parallel workers get.
int tenant_set_in = InvalidLocalTransactionId;

void assign_tenant(const char *, void *extra) {
    ++tenant_setting_changes;
    if (InitializingParallelWorker) return;
    tenant_set_in = extra == nullptr ? InvalidLocalTransactionId
                                     : static_cast<int>(static_cast<TenantStamp *>(extra)->set_in);
}

bool tenant_is_of_this_transaction() {
    const PGPROC *leader = IsParallelWorker() ? MyProc->lockGroupLeader : MyProc;
    return tenant_set_in != InvalidLocalTransactionId && leader != nullptr &&
           static_cast<LocalTransactionId>(tenant_set_in) == transaction_of(*leader);
}

bool check_stamp(int *, void **, GucSource source) {
    return source == PGC_S_DEFAULT || source == PGC_S_OVERRIDE || InitializingParallelWorker;
}

// EXPLAIN ANALYZE CREATE MATERIALIZED VIEW would store what decrypt() yields. And DISCARD ALL gives
// the session to somebody else: it must not hold this one's keys. There is no other way to notice
// it.
void on_utility(PlannedStmt *statement, const char *query, bool read_only,
                ProcessUtilityContext context, ParamListInfo parameters,
                QueryEnvironment *environment, DestReceiver *receiver,
                QueryCompletion *completion) {
    if (context == PROCESS_UTILITY_TOPLEVEL) loaded_amid_statement = false;
    // the statement may be gone after it was run
    const bool discards_all =
        IsA(statement->utilityStmt, DiscardStmt) &&
        reinterpret_cast<DiscardStmt *>(statement->utilityStmt)->target == DISCARD_ALL;
    // restricted as CREATE MATERIALIZED VIEW itself is, in parallel workers too; an error takes it
    // back
    const bool materializes = explains_materialized_view(statement->utilityStmt);
    Oid user;
    int restrictions;
    GetUserIdAndSecContext(&user, &restrictions);
    if (materializes) SetUserIdAndSecContext(user, restrictions | SECURITY_RESTRICTED_OPERATION);
    (next_utility_hook != nullptr ? next_utility_hook : standard_ProcessUtility)(
        statement, query, read_only, context, parameters, environment, receiver, completion);
    if (materializes) SetUserIdAndSecContext(user, restrictions);
    if (!discards_all) return;
    if (Backend *state = backend_if_any()) {
        ErrorReport report;
        if (!guarded(report, [&] {
                forget_brought(*state, [](const BroughtIdentity &) { return true; });
                forget_keys(*state);
            }))
            raise(report);
    }
}

// Only a superuser's connection may ask for these by its options. Where the library is loaded after
// those were read, PostgreSQL would drop what it refuses, and with it what the role, the database
// or the configuration file say: back to the built-in default.
void refuse_client_setting(const char *name) {
    const config_generic *setting = nullptr;
#if PG_VERSION_NUM >= 160000
    setting = find_option(name, false, true, 0);
#else
    config_generic **all = get_guc_variables();
    for (int i = 0; i < GetNumConfigOptions() && setting == nullptr; ++i)
        if (pg_strcasecmp(all[i]->name, name) == 0) setting = all[i];
#endif
    if (setting == nullptr || setting->reset_source != PGC_S_CLIENT ||
        setting->reset_scontext != PGC_BACKEND)
        return;
    // as PostgreSQL itself would, which knows GRANT SET ON PARAMETER
    if (IsTransactionState() &&
        pg_parameter_aclcheck(name, setting->reset_srole, ACL_SET) == ACLCHECK_OK)
        return;
    ereport(FATAL, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                    errmsg("permission denied to set parameter \"%s\"", name),
                    errhint("Leave it out of the options of the connection.")));
}

// Parallel workers have none of the identities that a session brought, and know nothing of keys
// that its transaction made.
PlannedStmt *on_plan(Query *query, const char *text, int options, ParamListInfo parameters) {
    const Backend *state = backend_if_any();
    if (state != nullptr && (!state->brought.empty() || !state->uncommitted.empty()))
        options &= ~CURSOR_OPT_PARALLEL_OK;
    check_parameters(query);
    return (next_planner_hook != nullptr ? next_planner_hook : standard_planner)(
        query, text, options, parameters);
}

}  // namespace

void require_tenant_scope() {
    if (!setting_tenant_per_transaction || tenant_is_of_this_transaction()) return;
    ereport(
        ERROR,
        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
         errmsg("envcrypt.tenant was not set in this transaction"),
         errdetail("envcrypt.tenant_scope is transaction: whoever used this connection before "
                   "may have left its own."),
         errhint("BEGIN; SELECT set_config('envcrypt.tenant', 'NAME', true); or name the tenant "
                 "in the call.")));
}

}  // namespace envcrypt::pg

void _PG_init(void) {
    using namespace envcrypt::pg;
    note_loading();
    for (const char *name : {"envcrypt.tenant_scope", "envcrypt.cache_ttl", "envcrypt.outage_grace",
                             "envcrypt.cache_size", "envcrypt.require_mlock",
                             "envcrypt.session_credentials", "envcrypt.tenant_set_in"})
        refuse_client_setting(name);
    defining_settings = true;
    DefineCustomStringVariable("envcrypt.tenant", "Whose key encrypts where no tenant is named.",
                               nullptr, &setting_tenant, "default", PGC_USERSET, 0, check_tenant,
                               assign_tenant, nullptr);
    DefineCustomEnumVariable(
        "envcrypt.tenant_scope",
        "Whether envcrypt.tenant may be set for the session, or for each transaction only.",
        nullptr, &setting_tenant_scope, scope_session, kTenantScopes, PGC_SUSET, 0, nullptr,
        assign_tenant_scope, nullptr);
    DefineCustomIntVariable("envcrypt.kms_timeout",
                            "The longest time one key operation with a KMS may take, all in all.",
                            nullptr, &setting_kms_timeout, 10000, 100, 600000, PGC_USERSET,
                            GUC_UNIT_MS, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("envcrypt.kms_concurrency",
                            "How many calls of one backend to a KMS may be under way at once.",
                            nullptr, &setting_kms_concurrency, 32, 1, 1000, PGC_USERSET, 0, nullptr,
                            nullptr, nullptr);
    DefineCustomIntVariable("envcrypt.cache_ttl",
                            "How long an unwrapped key is used before the KMS is asked again.",
                            nullptr, &setting_cache_ttl, 300, 1, 86400, PGC_SUSET, GUC_UNIT_S,
                            nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "envcrypt.outage_grace",
        "How long after its time an unwrapped key serves on while its KMS cannot be reached.",
        nullptr, &setting_outage_grace, 0, 0, 86400, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr,
        nullptr);
    DefineCustomIntVariable("envcrypt.cache_size", "How many keys a backend keeps unwrapped.",
                            nullptr, &setting_cache_size, 1024, 1, 1000000, PGC_SUSET, 0, nullptr,
                            nullptr, nullptr);
    DefineCustomBoolVariable(
        "envcrypt.require_mlock", "Refuses to keep keys in memory that could not be locked.",
        nullptr, &setting_require_mlock, false, PGC_SUSET, 0, nullptr, nullptr, nullptr);
    DefineCustomBoolVariable(
        "envcrypt.session_credentials", "Whether the session brought credentials of its own.",
        nullptr, &session_brought_identity, false, PGC_SUSET,
        GUC_NO_SHOW_ALL | GUC_NO_RESET_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
        check_brought, nullptr, nullptr);
    DefineCustomIntVariable(
        "envcrypt.tenant_set_in", "Which transaction of the session set envcrypt.tenant.", nullptr,
        &tenant_set_in, InvalidLocalTransactionId, PG_INT32_MIN, PG_INT32_MAX, PGC_SUSET,
        GUC_NO_SHOW_ALL | GUC_NO_RESET_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE, check_stamp,
        nullptr, nullptr);
    // what has its default value is not handed to workers
    if (!IsParallelWorker()) {
        SetConfigOption("envcrypt.session_credentials", "off", PGC_SUSET, PGC_S_OVERRIDE);
        SetConfigOption("envcrypt.tenant_set_in", "0", PGC_SUSET, PGC_S_OVERRIDE);
    }
    defining_settings = false;
    MarkGUCPrefixReserved("envcrypt");
    next_utility_hook = ProcessUtility_hook;
    ProcessUtility_hook = on_utility;
    next_planner_hook = planner_hook;
    planner_hook = on_plan;
}
