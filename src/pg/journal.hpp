// One line of the journal in the making: what was done to which tenant, with what. PostgreSQL
// frames; lies in the current memory context.
#pragma once

#include "keyring/operation.hpp"
#include "pg/keys.hpp"

namespace envcrypt::pg {

class Journal {
public:
    // Both must outlive it.
    Journal(const char *act, const char *tenant);
    void add(const char *name, const char *text);
    void add(const char *name, int number);
    // A key that a KMS made or wrapped: its id, where, under which master key, and the KMS's id of
    // the request.
    void add_key(const KeyRow &key, const char *server, const kms::Answer &made);
    // Once, in the transaction of what it tells.
    void write();

private:
    void name(const char *name);
    const char *act_;
    const char *tenant_;
    StringInfoData details_;
    StringInfoData keys_;
};

}  // namespace envcrypt::pg
