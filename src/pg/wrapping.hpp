// Keys wrapped at one more place, or anew at the same: by a KMS's master key or by a group key, and
// checked before anything is written. What is done with that, and in which transaction, is said by
// making.cpp, moving.cpp and groups.cpp. PostgreSQL frames; they may wait.
#pragma once

#include "pg/keys.hpp"
#include "pg/servers.hpp"

namespace envcrypt::pg {

// Where keys are to be wrapped.
struct Destination {
    char *server;         // "" where a group key wraps
    Place place;          // of a server
    const KeyRow *group;  // else null
    char *master_key;     // "": the one that the server's option names
    bool own_master_key;  // the tenant's
};

// One key on its way there, and what came of it.
struct Wrapping {
    const KeyRow *key;
    const WrappedKeyRow *before;  // what it was made from, where it is there already
    WrappedKeyRow row;
    char *request_id;  // "" where the KMS gave none
};

Wrapping *new_wrapping(const KeyRow *key, const WrappedKeyRow *before);

// The server, which nobody drops or renames before this transaction ends. Raises where the current
// role may not use it, and where a local KMS is to have a master key of a tenant's own.
Destination *at_server(const char *server, const char *master_key, bool own_master_key);
// Raises where there is no such group key.
Destination *in_group(const char *group);
// All places where the tenant's new keys are wrapped, the first first; of Destination *.
List *places_of_new_keys(const TenantRow &tenant);

// Wraps the keys of these (of Wrapping *), which it opens where they are not open, and fills `row`.
// False where a KMS refuses, as the report says; nothing is written.
bool wrap_keys(const Destination &destination, List *wrappings, ErrorReport &report);
// The same inside the KMS, from `before`: only where can_rewrap().
bool rewrap_keys(const Destination &destination, List *wrappings, ErrorReport &report);
bool can_rewrap(const Destination &destination, const WrappedKeyRow &row);

// What a KMS or a group key made of the key.
void fill_wrapping(const Destination &destination, Wrapping &wrapping, const kms::Answer &made);

// Writes it, in place of what is there where `before` says so, and reads it back.
void write_wrapping(const Wrapping &wrapping);

// What the KMS says of its master key, having proved that it binds keys to their tenant.
struct MasterKey {
    char *name;
    char *version;
};
MasterKey prove_server(const Destination &destination);

}  // namespace envcrypt::pg
