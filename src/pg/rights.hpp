// What each call of a function that uses keys checks anew, in a few instructions: that it does not
// run where its result would be stored, and that the caller may still call it.
#pragma once

#include "pg/pg.hpp"

namespace envcrypt::pg {

[[noreturn]] void raise_maintenance();
// The statement that loads this library begins without its hooks: EXPLAIN ANALYZE CREATE
// MATERIALIZED VIEW is then known by the materialized view that it has made.
extern bool loaded_amid_statement;
void note_loading();
// EXPLAIN ANALYZE CREATE MATERIALIZED VIEW
bool explains_materialized_view(Node *statement);
void refuse_materializing();
[[noreturn]] void raise_no_right(Oid function);  // access.cpp

// ANALYZE, CREATE INDEX, REFRESH MATERIALIZED VIEW and the like would store what a decrypting
// expression yields, under whatever identity they run as.
inline void refuse_maintenance() {
    if (unlikely(InSecurityRestrictedOperation() || is_autovacuum_worker())) raise_maintenance();
    if (unlikely(loaded_amid_statement)) refuse_materializing();
}

// The OID of envcrypt.encrypted.
Oid encrypted_type();
Oid encrypted_type_if_any();  // InvalidOid where the extension is not in this database

// The function whose EXECUTE stands for a right where C code uses it on the way.
enum class Right { encrypt, decrypt, search };
Oid right_function(Right right);

// PostgreSQL checks EXECUTE when a query starts; a cursor or a cached expression may go on as
// another role, or after the right was taken back.
inline void require_right(Oid function) {
    if (unlikely(!may_execute(function, GetUserId()))) raise_no_right(function);
}

}  // namespace envcrypt::pg
