// create_group_key() and move_tenant(): many tenants whose keys one KMS call opens.
#include "pg/act.hpp"
#include "pg/backend.hpp"
#include "pg/journal.hpp"
#include "pg/making.hpp"
#include "pg/opening.hpp"
#include "pg/resolve.hpp"

namespace envcrypt::pg {

// create_group_key(name, server, master_key)
ENVCRYPT_ACT(envcrypt_create_group_key, "create_group_key") {
    require_writable("create_group_key()");
    char *name = text_argument(fcinfo, 0, "name");
    const char *server = text_argument(fcinfo, 1, "server");
    const char *master_key = text_argument(fcinfo, 2, "master_key");
    require_tenant_name(name);
    lock_tenant(name);
    KeyRow present;
    if (find_newest_key(
            name, crypto::Purpose::group, [](const KeyRow &) { return true; }, present))
        ereport(ERROR,
                (errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("group key \"%s\" exists already", name),
                 errdetail("A name is never used again.")));
    List *places = list_make1(at_server(server, master_key, master_key[0] != '\0'));
    KeyRow key{};
    key.key_id = random_key_id();
    key.tenant = name;
    key.purpose = crypto::Purpose::group;
    key.version = 1;
    key.state = KeyState::pending;
    Journal journal("create_group_key", name);
    make_keys(places, &key, 1, false, journal);
    journal.write();
    PG_RETURN_VOID();
}

// move_tenant(tenant, group_key): into a group, out of it ('') or into another.
ENVCRYPT_ACT(envcrypt_move_tenant, "move_tenant") {
    require_writable("move_tenant()");
    const char *name = tenant_argument(fcinfo, 0);
    const char *group = text_argument(fcinfo, 1, "group_key");
    lock_tenant(name);
    TenantRow tenant = require_tenant(name, false);
    if (strcmp(tenant.group_key, group) == 0) PG_RETURN_VOID();
    if (tenant.master_key[0] != '\0')
        ereport(ERROR,
                (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                 errmsg("tenant \"%s\" has a master key of its own", name),
                 errdetail("In a group its keys would be wrapped by a key that is not its own."),
                 errhint("Move it to the master key of a server before, another one than now: "
                         "add_wrapping(), drop_wrapping().")));
    const Destination *destination =
        group[0] == '\0' ? at_server(tenant.server, "", false) : in_group(group);
    // within the group nothing has depended on that server
    if (destination->group == nullptr) (void)prove_server(*destination);
    List *wrappings = NIL;
    ListCell *cell;
    foreach (cell, find_all_keys(name)) {
        const auto *key = static_cast<KeyRow *>(lfirst(cell));
        if (!is_live(*key)) continue;
        wrappings = lappend(wrappings, new_wrapping(key, nullptr));
        note_key(key->key_id);
    }
    ErrorReport report;
    if (!wrap_keys(*destination, wrappings, report)) raise(report);
    Journal journal("move_tenant", name);
    journal.add("group_key", group);
    foreach (cell, wrappings) {
        const auto *wrapping = static_cast<Wrapping *>(lfirst(cell));
        const std::uint64_t key_id = wrapping->key->key_id;
        delete_wrapped_keys(key_id);
        write_wrapping(*wrapping);
        journal.add_wrapping(*wrapping);
        Backend &state = backend();
        if (!guarded(report, [&] { state.cache.drop_key(key_id); })) raise(report);
    }
    lock_tenant_row(name);
    if (!find_tenant(name, tenant)) raise_unknown_tenant(name);
    set_tenant_place(name, tenant.server, "", group);
    journal.write();
    PG_RETURN_VOID();
}

}  // namespace envcrypt::pg
