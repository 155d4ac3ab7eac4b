// Plaintexts between SQL and the stored form: the binary send format of each of the 16 types, with
// text in UTF-8 (doc/format.md, Types). Knows no keys. PostgreSQL frames; results lie in the
// current memory context.
#pragma once

#include "value/declaration.hpp"

#include "pg/pg.hpp"

namespace envcrypt::pg {

Oid type_oid(value::Type type);
// What a value of that SQL type is stored as where nothing else is declared: varchar and bpchar are
// text, float4 is float8, cidr is inet. Raises for any other type.
value::Type natural_type(Oid type);

// The plaintext of `datum`, which is of the SQL type `from`, stored as `type`: its own, or for
// numbers any that PostgreSQL would assign it to. Raises where it cannot be. `column`: for the
// error.
ByteView to_plaintext(Oid from, Datum datum, value::Type type);

// What was decrypted, as a datum of its type, and in its type's text form. Raise where it is not
// what to_plaintext() writes: nothing but a stolen key makes such a value.
Datum from_plaintext(value::Type type, bytea *plaintext);
text *plaintext_text(value::Type type, bytea *plaintext);

}  // namespace envcrypt::pg
