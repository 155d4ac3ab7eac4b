// One line of the journal in the making: what was done to which tenant, with what. PostgreSQL
// frames; lies in the current memory context.
#pragma once

#include "pg/wrapping.hpp"

namespace envcrypt::pg {

// A line of the journal: `details` is a JSON object.
void insert_journal(const char *act, const char *tenant, const char *details);

class Journal {
public:
    // Both must outlive it.
    Journal(const char *act, const char *tenant);
    void add(const char *name, const char *text);
    void add(const char *name, int number);
    // A key that was made or wrapped: its id, where, under which master key, and the KMS's id of
    // the request.
    void add_wrapping(const Wrapping &wrapping);
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
