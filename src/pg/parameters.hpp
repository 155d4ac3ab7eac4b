// A field of a plpgsql record is a parameter of the type and declaration that it had when the
// statement was first planned. Later records may have others: PostgreSQL compares the types and not
// the declarations, and a value would get into a column that refuses it.
#pragma once

#include "pg/pg.hpp"

namespace envcrypt::pg {

// value::encrypted(declaration), checked whatever the expression says of itself; `function` is the
// type's length coercion.
Expr *make_coercion(Oid function, Oid type, Expr *value, int32 typmod);

// Where a query has parameters of declared types: what it writes to declared columns passes their
// declarations, and what it selects of such parameters declares nothing. Changes the query.
void check_parameters(Query *query);

}  // namespace envcrypt::pg
