// See parameters.hpp.
#include "pg/parameters.hpp"
#include "pg/rights.hpp"
#include "pg/type.hpp"

namespace envcrypt::pg {

namespace {

// PostgreSQL 15 declares its callbacks without parameters.
#if PG_VERSION_NUM >= 160000
using Walker = tree_walker_callback;
using Mutator = tree_mutator_callback;
#else
using Walker = bool (*)();
using Mutator = Node *(*)();
#endif
using AnyFunction = void (*)();

bool is_declared(const Param *param) {
    return param->paramkind == PARAM_EXTERN && param->paramtypmod >= 0 &&
           param->paramtype >= FirstNormalObjectId;
}

// Whether a parameter below has a declared type that PostgreSQL itself does not have.
bool has_declared(Node *node, void *context) {
    if (node == nullptr) return false;
    if (IsA(node, Param)) return is_declared(reinterpret_cast<Param *>(node));
    const auto walker = reinterpret_cast<Walker>(reinterpret_cast<AnyFunction>(has_declared));
    if (IsA(node, Query))
        return query_tree_walker(reinterpret_cast<Query *>(node), walker, context, 0);
    return expression_tree_walker(node, walker, context);
}

struct Coercion {
    Oid type;
    Oid function;
};

Node *coerce(Node *node, void *context) {
    if (node == nullptr) return nullptr;
    const auto &coercion = *static_cast<Coercion *>(context);
    if (IsA(node, Param)) {
        auto *param = static_cast<Param *>(copyObjectImpl(node));
        auto *plain = reinterpret_cast<Node *>(param);
        if (!is_declared(param) || param->paramtype != coercion.type) return plain;
        const int32 typmod = param->paramtypmod;
        param->paramtypmod = kNoTypmod;
        auto *declared =
            makeConst(INT4OID, -1, InvalidOid, sizeof(int32), Int32GetDatum(typmod), false, true);
        List *arguments = list_make3(param, declared, makeBoolConst(false, false));
        return reinterpret_cast<Node *>(makeFuncExpr(coercion.function, coercion.type, arguments,
                                                     InvalidOid, InvalidOid, COERCE_IMPLICIT_CAST));
    }
    const auto mutator = reinterpret_cast<Mutator>(reinterpret_cast<AnyFunction>(coerce));
    if (IsA(node, Query))
        return reinterpret_cast<Node *>(
            query_tree_mutator(reinterpret_cast<Query *>(node), mutator, context, 0));
    return expression_tree_mutator(node, mutator, context);
}

}  // namespace

Query *check_parameters(Query *query) {
    if (!has_declared(reinterpret_cast<Node *>(query), nullptr)) return query;
    Coercion coercion{encrypted_type_if_any(), InvalidOid};
    if (!OidIsValid(coercion.type) ||
        find_typmod_coercion_function(coercion.type, &coercion.function) != COERCION_PATH_FUNC)
        return query;
    return reinterpret_cast<Query *>(coerce(reinterpret_cast<Node *>(query), &coercion));
}

}  // namespace envcrypt::pg
