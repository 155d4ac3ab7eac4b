// What the files of this folder share about the type `encrypted`: its typmod, and values as Datums.
#pragma once

#include "value/value.hpp"

#include "pg/guard.hpp"
#include "pg/pg.hpp"

namespace envcrypt::pg {

// A declaration: plaintext type << 26 | search mode << 24 | label; -1 is none.
inline constexpr int32 kNoTypmod = -1;
inline value::Type typmod_type(int32 typmod) {
    return static_cast<value::Type>(typmod >> 26 & 0x1f);
}

inline ByteView varlena_bytes(const void *varlena) {
    return {reinterpret_cast<const std::uint8_t *>(VARDATA_ANY(varlena)),
            static_cast<std::size_t>(VARSIZE_ANY_EXHDR(varlena))};
}

// True where a value of this type fits into a column declared so. Raises where it does not; from
// PostgreSQL 16 on, reports that into `soft` and returns false if an input function was given one.
bool require_fit(value::Type type, int32 typmod, fmNodePtr soft = nullptr);

}  // namespace envcrypt::pg
