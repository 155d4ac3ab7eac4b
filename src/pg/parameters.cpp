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

struct Declared {
    Oid type;    // encrypted
    Oid array;   // encrypted[]
    Oid coerce;  // encrypted -> encrypted(...)
};

bool may_be_declared(const Param *param) {
    return param->paramkind == PARAM_EXTERN && param->paramtypmod >= 0 &&
           param->paramtype >= FirstNormalObjectId;
}

// Whether a parameter below has a declared type: of ours, or, as long as these are not known
// (null), of any that PostgreSQL itself does not have.
bool has_declared(Node *node, void *context) {
    if (node == nullptr) return false;
    if (IsA(node, Param)) {
        const auto *param = reinterpret_cast<Param *>(node);
        const auto *types = static_cast<Declared *>(context);
        return may_be_declared(param) && (types == nullptr || param->paramtype == types->type ||
                                          param->paramtype == types->array);
    }
    const auto walker = reinterpret_cast<Walker>(reinterpret_cast<AnyFunction>(has_declared));
    if (IsA(node, Query))
        return query_tree_walker(reinterpret_cast<Query *>(node), walker, context, 0);
    return expression_tree_walker(node, walker, context);
}

Expr *coerce_array(Expr *array, const Declared &types, int32 typmod) {
    auto *element = makeNode(CaseTestExpr);
    element->typeId = types.type;
    element->typeMod = kNoTypmod;
    auto *each = makeNode(ArrayCoerceExpr);
    each->arg = array;
    each->elemexpr =
        make_coercion(types.coerce, types.type, reinterpret_cast<Expr *>(element), typmod);
    each->resulttype = types.array;
    each->resulttypmod = typmod;
    each->coerceformat = COERCE_IMPLICIT_CAST;
    each->location = -1;
    return reinterpret_cast<Expr *>(each);
}

// What is written to a declared column passes its declaration, once.
void check_written(List *targets, Oid relation, const Declared &types) {
    ListCell *cell;
    foreach (cell, targets) {
        auto *target = static_cast<TargetEntry *>(lfirst(cell));
        if (target->resjunk || target->resno <= 0) continue;
        Oid column;
        int32 typmod;
        Oid collation;
        get_atttypetypmodcoll(relation, target->resno, &column, &typmod, &collation);
        const Oid base = getBaseTypeAndTypmod(column, &typmod);
        if (typmod < 0 || (base != types.type && base != types.array)) continue;
        const Oid given = exprType(reinterpret_cast<Node *>(target->expr));
        if (given != types.type && given != types.array) continue;
        target->expr = given == types.type
                           ? make_coercion(types.coerce, types.type, target->expr, typmod)
                           : coerce_array(target->expr, types, typmod);
    }
}

// Both in every query below, which may be changed in place.
void check_writing(Query *query, const Declared &types);
bool check_below(Node *node, void *context) {
    if (node == nullptr) return false;
    const auto walker = reinterpret_cast<Walker>(reinterpret_cast<AnyFunction>(check_below));
    if (!IsA(node, Query)) return expression_tree_walker(node, walker, context);
    check_writing(reinterpret_cast<Query *>(node), *static_cast<Declared *>(context));
    return query_tree_walker(reinterpret_cast<Query *>(node), walker, context, 0);
}

void check_writing(Query *query, const Declared &types) {
    if (query->resultRelation == 0) return;
    const auto *entry = rt_fetch(query->resultRelation, query->rtable);
    if (query->commandType == CMD_INSERT || query->commandType == CMD_UPDATE)
        check_written(query->targetList, entry->relid, types);
    if (query->onConflict != nullptr)
        check_written(query->onConflict->onConflictSet, entry->relid, types);
    if (query->commandType == CMD_MERGE) {
        ListCell *cell;
        foreach (cell, query->mergeActionList)
            check_written(static_cast<MergeAction *>(lfirst(cell))->targetList, entry->relid,
                          types);
    }
}

// What a SELECT yields of parameters declares nothing: plpgsql then checks what it assigns.
void forget_declarations(Query *query, Declared &types) {
    ListCell *cell;
    foreach (cell, query->targetList) {
        auto *target = static_cast<TargetEntry *>(lfirst(cell));
        auto *node = reinterpret_cast<Node *>(target->expr);
        const Oid type = exprType(node);
        if ((type != types.type && type != types.array) || exprTypmod(node) < 0 ||
            !has_declared(node, &types))
            continue;
        target->expr = reinterpret_cast<Expr *>(
            makeRelabelType(target->expr, type, kNoTypmod, InvalidOid, COERCE_IMPLICIT_CAST));
    }
}

}  // namespace

Expr *make_coercion(Oid function, Oid type, Expr *value, int32 typmod) {
    auto *declared =
        makeConst(INT4OID, -1, InvalidOid, sizeof(int32), Int32GetDatum(typmod), false, true);
    return reinterpret_cast<Expr *>(
        makeFuncExpr(function, type, list_make3(value, declared, makeBoolConst(false, false)),
                     InvalidOid, InvalidOid, COERCE_IMPLICIT_CAST));
}

void check_parameters(Query *query) {
    if (!has_declared(reinterpret_cast<Node *>(query), nullptr)) return;
    Declared types{encrypted_type_if_any(), InvalidOid, InvalidOid};
    if (!OidIsValid(types.type)) return;
    types.array = get_array_type(types.type);
    if (!has_declared(reinterpret_cast<Node *>(query), &types) ||
        find_typmod_coercion_function(types.type, &types.coerce) != COERCION_PATH_FUNC)
        return;
    (void)check_below(reinterpret_cast<Node *>(query), &types);
    if (query->commandType == CMD_SELECT) forget_declarations(query, types);
}

}  // namespace envcrypt::pg
