// What the files of this folder share about the type `encrypted`: its typmod, and values as Datums.
#pragma once

#include "value/declaration.hpp"
#include "value/value.hpp"

#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

inline constexpr int32 kNoTypmod = -1;
// What a column declares. Raises for a number that is no declaration, which a caller of the cast
// functions can give; must not be kNoTypmod.
value::Declaration declaration_of(int32 typmod);
// "encrypted(text, searchable, ssn)", as SQL reads it.
char *declaration_name(const value::Declaration &declaration);

inline ByteView varlena_bytes(const void *varlena) {
    return {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(varlena)),
            static_cast<std::size_t>(VARSIZE_ANY_EXHDR(varlena))};
}

// Its letters.
const char *label_name(value::Label label);

// Whether a value that is declared so itself may stand in a column of that declaration.
bool fits(const value::Header &header, const value::Declaration &declaration);
// True where it does. Raises where it does not; from PostgreSQL 16 on, reports that into `soft` and
// returns false if an input function was given one.
bool require_fit(const value::Header &header, const value::Declaration &declaration,
                 fmNodePtr soft = nullptr);

// The parts of a stored value. Raises where it is none.
value::Parsed parse_value(ByteView bytes);

// A label that was written in a call. Raises where it is none; `""` is no label.
value::Label read_label(ByteView label);

// The declaration of the column that the n-th argument of the call is, where the parser knows it;
// kNoTypmod where it does not.
int32 argument_typmod(const FmgrInfo *function, int argument);

}  // namespace envcrypt::pg
