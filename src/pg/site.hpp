// What a call site of a query keeps from row to row in fn_extra, so that a warm call does nothing
// but the cipher: which key it used, and as whom, in which epoch.
#pragma once

#include "pg/backend.hpp"
#include "pg/keys.hpp"

namespace envcrypt::pg {

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

// A tenant that is named by an argument or, where that is empty, by envcrypt.tenant.
struct TenantSite {
    bool given;
    std::uint64_t setting_changes;
    std::size_t length;
    char name[kMaxTenantName + 1];

    // The setting is compared by its count of changes, an argument by its bytes.
    bool is_same(ByteView tenant) const {
        return given != tenant.empty() &&
               (given ? length == tenant.size() && memcmp(name, tenant.data(), length) == 0
                      : setting_changes == tenant_setting_changes);
    }
    // Raises where the name is too long.
    void set(ByteView tenant) {
        if (tenant.size() > kMaxTenantName)
            ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("invalid tenant name"),
                            errdetail("A tenant's name has at most 128 letters.")));
        given = !tenant.empty();
        if (!given) require_tenant_scope();
        setting_changes = tenant_setting_changes;
        const char *text = given ? reinterpret_cast<const char *>(tenant.data()) : setting_tenant;
        length = given ? tenant.size() : strlen(text);
        memcpy(name, text, length);
        name[length] = '\0';
    }
};

template <class AnySite>
AnySite &call_site(FmgrInfo *function) {
    if (function->fn_extra == nullptr)
        function->fn_extra = MemoryContextAllocZero(function->fn_mcxt, sizeof(AnySite));
    return *static_cast<AnySite *>(function->fn_extra);
}

// An option that was given; "" is "not given", and NULL must not be taken for it.
inline ByteView optional_text(FunctionCallInfo fcinfo, int argument, const char *name) {
    if (PG_ARGISNULL(argument))
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be NULL", name),
                 errhint("Leave it out where it is not meant.")));
    const text *given = PG_GETARG_TEXT_PP(argument);
    return {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(given)),
            static_cast<std::size_t>(VARSIZE_ANY_EXHDR(given))};
}

}  // namespace envcrypt::pg
