// load_keys(): many tenants' keys opened at once, with as many calls to the KMSs under way as
// envcrypt.kms_concurrency allows.
#include "pg/backend.hpp"
#include "pg/keys.hpp"
#include "pg/opening.hpp"
#include "pg/resolve.hpp"
#include "pg/rights.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

// load_keys(tenants text[])
ENVCRYPT_FUNCTION(envcrypt_load_keys) {
    refuse_maintenance();
    require_right(fcinfo->flinfo->fn_oid);
    Datum *tenants;
    bool *nulls;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT, &tenants, &nulls,
                      &count);
    follow_epoch();
    auto **names = static_cast<const char **>(palloc(sizeof(char *) * (count + 1)));
    for (int i = 0; i < count; ++i) {
        if (nulls[i])
            ereport(ERROR,
                    (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("a tenant must not be NULL")));
        names[i] = TextDatumGetCString(tenants[i]);
    }
    qsort(names, count, sizeof(char *), pg_qsort_strcmp);

    // whoever may not search needs no search keys
    const bool searches = may_execute(right_function(Right::search), GetUserId());
    List *keys = NIL;
    for (int i = 0; i < count; ++i) {
        CHECK_FOR_INTERRUPTS();
        const char *tenant = names[i];
        if (i > 0 && strcmp(tenant, names[i - 1]) == 0) continue;
        TenantRow row;
        if (!find_tenant(tenant, row)) raise_unknown_tenant(tenant);
        require_active_tenant(tenant);
        List *rows = find_keys(tenant, crypto::Purpose::data);
        if (searches) rows = list_concat(rows, find_keys(tenant, crypto::Purpose::search));
        keys = list_concat(keys, rows);
    }
    (void)open_keys(keys);
    if (list_length(keys) > setting_cache_size)
        ereport(WARNING, (errmsg("%d keys were opened, and only %d of them are kept",
                                 list_length(keys), setting_cache_size),
                          errhint("Raise envcrypt.cache_size.")));
    PG_RETURN_INT32(list_length(keys));
}

}  // namespace envcrypt::pg
