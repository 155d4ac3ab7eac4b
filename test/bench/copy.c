/* A function that only copies its argument: what `make bench` measures decrypt() against. */
#include "postgres.h"
#include "fmgr.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(bench_copy);

Datum bench_copy(PG_FUNCTION_ARGS) {
    struct varlena *value = PG_GETARG_VARLENA_PP(0);
    Size size = VARSIZE_ANY_EXHDR(value);
    struct varlena *copy = (struct varlena *)palloc(VARHDRSZ + size);

    SET_VARSIZE(copy, VARHDRSZ + size);
    memcpy(VARDATA(copy), VARDATA_ANY(value), size);
    PG_RETURN_POINTER(copy);
}
