// rename_server(): the name by which wrapped keys find their KMS.
#include "kms/reference.hpp"
#include "pg/act.hpp"
#include "pg/journal.hpp"
#include "pg/making.hpp"

namespace envcrypt::pg {

namespace {

// Secrets are referred to by the server's name, too, in options that are a superuser's to change.
void refuse_referenced(const char *server) {
    Relation mappings = table_open(UserMappingRelationId, AccessShareLock);
    SysScanDesc scan = systable_beginscan(mappings, InvalidOid, false, nullptr, 0, nullptr);
    bool found = false;
    for (HeapTuple tuple = systable_getnext(scan); HeapTupleIsValid(tuple) && !found;
         tuple = systable_getnext(scan)) {
        bool is_null;
        const Datum options = heap_getattr(tuple, Anum_pg_user_mapping_umoptions,
                                           RelationGetDescr(mappings), &is_null);
        if (is_null) continue;
        ListCell *cell;
        foreach (cell, untransformRelOptions(options)) {
            const char *value = defGetString(static_cast<DefElem *>(lfirst(cell)));
            ErrorReport report;
            if (!guarded(report, [&] {
                    const auto reference = kms::parse_reference(value);
                    found = found || (reference && reference->server == server);
                }))
                raise(report);
        }
    }
    systable_endscan(scan);
    table_close(mappings, AccessShareLock);
    if (found)
        ereport(ERROR,
                (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
                 errmsg("cannot rename server \"%s\": user mappings read secrets from it", server),
                 errhint("Alter the options that name it, SCHEME:%s:NAME, before.", server)));
}

}  // namespace

// rename_server(old, new): how many wrapped keys name it.
ENVCRYPT_ACT(envcrypt_rename_server, "rename_server") {
    require_writable("rename_server()");
    const char *from = text_argument(fcinfo, 0, "server");
    const char *to = text_argument(fcinfo, 1, "new_name");
    if (to[0] == '\0' || strlen(to) >= NAMEDATALEN)
        ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("invalid server name"),
                        errdetail("It has 1 to %d bytes.", NAMEDATALEN - 1)));
    const Place place = place_of(from);
    if (!owns_server(place.server, GetUserId()))
        aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, from);
    refuse_referenced(from);
    // waits for whoever is about to wrap a key there
    LockDatabaseObject(ForeignServerRelationId, place.server, 0, AccessExclusiveLock);
    auto *rename = makeNode(RenameStmt);
    rename->renameType = OBJECT_FOREIGN_SERVER;
    rename->object = reinterpret_cast<Node *>(makeString(pstrdup(from)));
    rename->newname = pstrdup(to);
    (void)ExecRenameStmt(rename);
    CommandCounterIncrement();
    const int count = rename_server_rows(from, to);
    Journal journal("rename_server", "");
    journal.add("server", from);
    journal.add("new_name", to);
    journal.write();
    PG_RETURN_INT32(count);
}

}  // namespace envcrypt::pg
