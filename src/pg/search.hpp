// Search tokens: what a value bears beside its ciphertext so that an ordinary index finds it, and
// the probes that are looked for. PostgreSQL frames.
#pragma once

#include "pg/site.hpp"
#include "value/declaration.hpp"

namespace envcrypt::pg {

// A call site's search key.
struct TokenSite {
    Site site;
    TenantSite tenant;
    int version;
    int32 checked_btree;  // the declaration that was
};

// The token of a plaintext under the tenant's newest search key. Raises without the right search.
value::Token make_token(TokenSite &site, const value::Declaration &declaration, ByteView plaintext,
                        ByteView tenant);

// The argument `search` of a call: a word of a declaration. Raises where it is none, or none for
// that type, or where there is no label.
value::SearchMode read_search(ByteView word, const value::Declaration &declaration);

// The longest plaintext whose value fits into an entry of a btree (2704 bytes with its header).
inline constexpr std::size_t kMaxBtreePlaintext = 2630;
// Raises, naming the index, where every column of that declaration has a btree, so that PostgreSQL
// would refuse the longer value, and with it the whole statement, in words that do not help.
void refuse_btree(TokenSite &site, const value::Declaration &declaration);

}  // namespace envcrypt::pg
