// A field of a plpgsql record is a parameter of the type and declaration that it had when the
// statement was first planned. Later records may have others: PostgreSQL compares the types and not
// the declarations, and a value would get into a column that refuses it.
#pragma once

#include "pg/pg.hpp"

namespace envcrypt::pg {

// Where a query has parameters of declared types: what it writes to declared columns passes their
// declarations, and what it selects of such parameters declares nothing. Changes the query.
void check_parameters(Query *query);

}  // namespace envcrypt::pg
