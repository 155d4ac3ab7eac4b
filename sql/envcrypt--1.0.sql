\echo Use "CREATE EXTENSION envcrypt" to load this file. \quit

-- Everything here lies in the schema envcrypt. What touches keys is nobody's until grant_access() says so.

-- This script runs with the schema first in the search path after pg_catalog. So nobody but a superuser may have put anything
-- into it, and nothing below is looked up by the path: functions and operators are qualified (test/checks/install_script).
DO $$
DECLARE
    reason text;
BEGIN
    SELECT CASE
            WHEN NOT r.rolsuper THEN pg_catalog.format('The schema belongs to role "%s", which is not a superuser.', r.rolname)
            WHEN d.objid IS NOT NULL THEN pg_catalog.format('The schema contains %s.', pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid))
            WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC may create objects in the schema.'
            WHEN a.grantee IS NOT NULL THEN pg_catalog.format('Role "%s" may create objects in the schema.', pg_catalog.pg_get_userbyid(a.grantee))
        END
        INTO reason
        FROM pg_catalog.pg_namespace n
        JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) n.nspowner
        LEFT JOIN pg_catalog.pg_depend d ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
            AND d.refobjid OPERATOR(pg_catalog.=) n.oid
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
                AND d.objid OPERATOR(pg_catalog.=) e.oid AND e.extname OPERATOR(pg_catalog.=) 'envcrypt')
        -- where CREATE EXTENSION has just made the schema, default privileges may have granted CREATE, but nobody else sees it yet
        LEFT JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a ON a.grantee OPERATOR(pg_catalog.<>) n.nspowner
            AND a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype OPERATOR(pg_catalog.=) 'transactionid'
                AND l.transactionid OPERATOR(pg_catalog.=) n.xmin AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.granted)
        WHERE n.nspname OPERATOR(pg_catalog.=) 'envcrypt'
        ORDER BY d.classid, d.objid, a.grantee
        LIMIT 1;
    IF reason IS NOT NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'extension envcrypt cannot use the existing schema "envcrypt"',
            DETAIL = reason, HINT = 'Drop the schema: CREATE EXTENSION makes it.';
    END IF;
END $$;

---------------------------------------------------------------- the key tables
-- No foreign keys among them: a parallel pg_restore would lose rows. Servers are named, since OIDs do not survive a dump.
CREATE TABLE envcrypt.tenant (
    name          text COLLATE "C" PRIMARY KEY,
    state         text COLLATE "C" NOT NULL,
    server        text COLLATE "C" NOT NULL,
    master_key    text COLLATE "C" NOT NULL DEFAULT '',
    group_key     text COLLATE "C" NOT NULL DEFAULT '',
    search_tenant text COLLATE "C" NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL
);
COMMENT ON TABLE envcrypt.tenant IS
    'Whatever must be revocable on its own: its state (active, disabled, destroyed), and where its new keys are wrapped ('''' is not given).';
CREATE INDEX tenant_search_tenant_idx ON envcrypt.tenant (search_tenant);

CREATE TABLE envcrypt.data_key (
    key_id     bigint PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    purpose    text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    state      text COLLATE "C" NOT NULL,
    suite      smallint NOT NULL,
    commitment bytea NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (tenant, purpose, version)
);
COMMENT ON TABLE envcrypt.data_key IS
    'The versions of each tenant''s keys: random 64-bit id, purpose (data, search, group), state (pending, active, decrypt_only, destroyed), suite 1 (AES-256-GCM; doc/format.md), 32-byte commitment.';

CREATE TABLE envcrypt.wrapped_key (
    key_id             bigint NOT NULL,
    server             text COLLATE "C" NOT NULL DEFAULT '',
    group_key          text COLLATE "C" NOT NULL DEFAULT '',
    wrapped            bytea NOT NULL,
    master_key         text COLLATE "C" NOT NULL,
    master_key_version text COLLATE "C" NOT NULL,
    attestation        bytea NOT NULL DEFAULT '',
    own_master_key     boolean NOT NULL DEFAULT false,
    created_at         timestamptz NOT NULL,
    wrapped_at         timestamptz NOT NULL,
    PRIMARY KEY (key_id, server, group_key)
);
-- ANALYZE would keep copies of what destroy_tenant() deletes.
ALTER TABLE envcrypt.wrapped_key ALTER wrapped SET STATISTICS 0, ALTER attestation SET STATISTICS 0;
COMMENT ON TABLE envcrypt.wrapped_key IS
    'Each key wrapped, once for each place: the KMS server or the group key that wraps it, and the master key and version that the KMS named; own_master_key where it is the tenant''s rather than the server''s; since when it is wrapped there, and when these bytes were made.';

CREATE TABLE envcrypt.journal (
    at           timestamptz NOT NULL,
    role         text COLLATE "C" NOT NULL,
    session_role text COLLATE "C" NOT NULL,
    act          text COLLATE "C" NOT NULL,
    tenant       text COLLATE "C" NOT NULL,
    details      jsonb NOT NULL
);
COMMENT ON TABLE envcrypt.journal IS
    'What was done to keys, and committed: when, by whom (and as whom they had logged in), what, to which tenant; with key ids, servers, master keys and the ids that the KMSs gave the requests. Written by the functions that do it, in the same transaction. Superusers, the owner and members of pg_write_all_data can change it.';

CREATE INDEX journal_at_idx ON envcrypt.journal (at);
CREATE INDEX journal_tenant_at_idx ON envcrypt.journal (tenant, at);

CREATE TABLE envcrypt.run (
    act         text COLLATE "C" NOT NULL,
    server      text COLLATE "C" NOT NULL,
    to_server   text COLLATE "C" NOT NULL,
    tenant      text COLLATE "C" NOT NULL,
    role        text COLLATE "C" NOT NULL,
    lock_id     bigint NOT NULL,
    total       bigint NOT NULL,
    done        bigint NOT NULL,
    left_over   bigint NOT NULL,
    started_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    is_finished boolean NOT NULL,
    PRIMARY KEY (act, server, to_server, tenant)
);
COMMENT ON TABLE envcrypt.run IS
    'The last run of each procedure that commits as it goes: the rows of the view progress. Not dumped: it tells of this cluster.';

SELECT pg_catalog.pg_extension_config_dump('envcrypt.tenant', '');
SELECT pg_catalog.pg_extension_config_dump('envcrypt.data_key', '');
SELECT pg_catalog.pg_extension_config_dump('envcrypt.wrapped_key', '');
SELECT pg_catalog.pg_extension_config_dump('envcrypt.journal', '');

-- Changes by DML, restore and logical apply reach every backend's cache: row triggers, since apply fires no others.
CREATE FUNCTION envcrypt.keys_changed() RETURNS trigger
    AS 'MODULE_PATHNAME', 'envcrypt_keys_changed' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.keys_changed() IS 'Tells every backend, at commit, that keys have changed.';

CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON envcrypt.tenant
    FOR EACH ROW EXECUTE FUNCTION envcrypt.keys_changed();
CREATE TRIGGER truncated AFTER TRUNCATE ON envcrypt.tenant
    FOR EACH STATEMENT EXECUTE FUNCTION envcrypt.keys_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON envcrypt.data_key
    FOR EACH ROW EXECUTE FUNCTION envcrypt.keys_changed();
CREATE TRIGGER truncated AFTER TRUNCATE ON envcrypt.data_key
    FOR EACH STATEMENT EXECUTE FUNCTION envcrypt.keys_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON envcrypt.wrapped_key
    FOR EACH ROW EXECUTE FUNCTION envcrypt.keys_changed();
CREATE TRIGGER truncated AFTER TRUNCATE ON envcrypt.wrapped_key
    FOR EACH STATEMENT EXECUTE FUNCTION envcrypt.keys_changed();
ALTER TABLE envcrypt.tenant ENABLE ALWAYS TRIGGER changed, ENABLE ALWAYS TRIGGER truncated;
ALTER TABLE envcrypt.data_key ENABLE ALWAYS TRIGGER changed, ENABLE ALWAYS TRIGGER truncated;
ALTER TABLE envcrypt.wrapped_key ENABLE ALWAYS TRIGGER changed, ENABLE ALWAYS TRIGGER truncated;

---------------------------------------------------------------- KMSs as foreign servers
CREATE FUNCTION envcrypt.vault_validator(text[], oid) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_validator' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.vault_validator(text[], oid) IS 'Checks the options of servers and user mappings of envcrypt_vault.';
CREATE FUNCTION envcrypt.aws_validator(text[], oid) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_validator' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.aws_validator(text[], oid) IS 'Checks the options of servers and user mappings of envcrypt_aws.';
CREATE FUNCTION envcrypt.gcp_validator(text[], oid) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_validator' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.gcp_validator(text[], oid) IS 'Checks the options of servers and user mappings of envcrypt_gcp.';
CREATE FUNCTION envcrypt.azure_validator(text[], oid) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_validator' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.azure_validator(text[], oid) IS 'Checks the options of servers and user mappings of envcrypt_azure.';
CREATE FUNCTION envcrypt.local_validator(text[], oid) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_validator' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.local_validator(text[], oid) IS 'Checks the options of servers and user mappings of envcrypt_local.';

CREATE FOREIGN DATA WRAPPER envcrypt_vault VALIDATOR envcrypt.vault_validator;
COMMENT ON FOREIGN DATA WRAPPER envcrypt_vault IS
    'OpenBao or HashiCorp Vault, transit engine, derived keys. Server options: endpoint, master_key, mount, namespace, cache_ttl, outage_grace, ca_file, proxy, client_cert_file, client_key_file. User mapping options: auth (token, approle, kubernetes, jwt, cert), auth_mount, token, role_id, secret_id, role, jwt.';
CREATE FOREIGN DATA WRAPPER envcrypt_aws VALIDATOR envcrypt.aws_validator;
COMMENT ON FOREIGN DATA WRAPPER envcrypt_aws IS
    'AWS KMS, symmetric keys; C goes as EncryptionContext. Server options: region, master_key, endpoint, fips, dual_stack and others; user mapping options: auth (profile, web_identity, container, instance) and what it needs: doc/kms.md.';
CREATE FOREIGN DATA WRAPPER envcrypt_gcp VALIDATOR envcrypt.gcp_validator;
COMMENT ON FOREIGN DATA WRAPPER envcrypt_gcp IS
    'Google Cloud KMS, symmetric keys; C goes as additionalAuthenticatedData, CRC-32C both ways. Server options: master_key, endpoint and others; user mapping options: auth (metadata, service_account, external_account), credentials_file: doc/kms.md.';
CREATE FOREIGN DATA WRAPPER envcrypt_azure VALIDATOR envcrypt.azure_validator;
COMMENT ON FOREIGN DATA WRAPPER envcrypt_azure IS
    'Azure Key Vault (RSA-OAEP-256 with a PS256 attestation) and Managed HSM (A256KW). Server options: endpoint, master_key, attestation_key, algorithm and others; user mapping options: auth (managed_identity, client_secret, federated) and what it needs: doc/kms.md.';
CREATE FOREIGN DATA WRAPPER envcrypt_local VALIDATOR envcrypt.local_validator;
COMMENT ON FOREIGN DATA WRAPPER envcrypt_local IS
    'Master keys in a file of the database server, for development and tests. Server option: key_file (64 hex digits a line, the last the newest).';

---------------------------------------------------------------- the type
CREATE TYPE envcrypt.encrypted;
CREATE FUNCTION envcrypt.encrypted_in(cstring, oid, integer) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted_out(envcrypt.encrypted) RETURNS cstring
    AS 'MODULE_PATHNAME', 'envcrypt_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted_recv(internal, oid, integer) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_recv' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted_send(envcrypt.encrypted) RETURNS bytea
    AS 'MODULE_PATHNAME', 'envcrypt_send' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted_typmod_in(cstring[]) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_typmod_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted_typmod_out(integer) RETURNS cstring
    AS 'MODULE_PATHNAME', 'envcrypt_typmod_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
-- storage external: ciphertext does not compress
CREATE TYPE envcrypt.encrypted (
    INPUT = envcrypt.encrypted_in, OUTPUT = envcrypt.encrypted_out,
    RECEIVE = envcrypt.encrypted_recv, SEND = envcrypt.encrypted_send,
    TYPMOD_IN = envcrypt.encrypted_typmod_in, TYPMOD_OUT = envcrypt.encrypted_typmod_out,
    INTERNALLENGTH = VARIABLE, ALIGNMENT = int4, STORAGE = external
);
COMMENT ON TYPE envcrypt.encrypted IS
    'A value encrypted with AES-256-GCM (NIST SP 800-38D) under its tenant''s data key; declared encrypted(TYPE [, SEARCH] [, LABEL]): one of 16 types; searchable, searchable_nocase or searchable_digits; one to five letters a-z. Its text form is ec1: and base64 (RFC 4648): never plaintext. Overhead 42 bytes, 45 with a label, 62 with label and token; at most 500 MiB of plaintext. Format: doc/format.md.';
COMMENT ON FUNCTION envcrypt.encrypted_in(cstring, oid, integer) IS 'Input: an encrypted value in its text form, never plaintext. Errors: 22P02.';
COMMENT ON FUNCTION envcrypt.encrypted_out(envcrypt.encrypted) IS 'Output: ec1: and base64.';
COMMENT ON FUNCTION envcrypt.encrypted_recv(internal, oid, integer) IS 'Binary input: the bytes of an encrypted value. Errors: 22P03.';
COMMENT ON FUNCTION envcrypt.encrypted_send(envcrypt.encrypted) IS 'Binary output: the bytes of the encrypted value.';
COMMENT ON FUNCTION envcrypt.encrypted_typmod_in(cstring[]) IS 'Reads a declaration: (type [, searchable | searchable_nocase | searchable_digits] [, label]). Errors: 22023.';
COMMENT ON FUNCTION envcrypt.encrypted_typmod_out(integer) IS 'Shows a declaration as it is written.';

CREATE FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_coerce' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean) IS
    'Lets a value into a column of this declaration, or raises 22000. One with neither label, token nor associated data is sealed again as the column declares, under the key of its own tenant; that needs the rights encrypt and decrypt (and search).';
CREATE CAST (envcrypt.encrypted AS envcrypt.encrypted)
    WITH FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean) AS IMPLICIT;

---------------------------------------------------------------- into the type, out of it, and searching it
-- STABLE, although each result is another: within a statement they are equal in what they decrypt to, and PostgreSQL still
-- calls for each row. The defaults of typmod and explicit are for callers that know only the value (Citus).
CREATE TYPE envcrypt.probe;
CREATE FUNCTION envcrypt.probe_in(cstring) RETURNS envcrypt.probe
    AS 'MODULE_PATHNAME', 'envcrypt_probe_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.probe_out(envcrypt.probe) RETURNS cstring
    AS 'MODULE_PATHNAME', 'envcrypt_probe_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.probe_recv(internal) RETURNS envcrypt.probe
    AS 'MODULE_PATHNAME', 'envcrypt_probe_recv' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.probe_send(envcrypt.probe) RETURNS bytea
    AS 'MODULE_PATHNAME', 'envcrypt_probe_send' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE TYPE envcrypt.probe (
    INPUT = envcrypt.probe_in, OUTPUT = envcrypt.probe_out, RECEIVE = envcrypt.probe_recv, SEND = envcrypt.probe_send,
    INTERNALLENGTH = 17, ALIGNMENT = char
);
COMMENT ON TYPE envcrypt.probe IS
    'What searchable values are looked up with: search mode, search key version and the 16-byte token (HMAC-SHA-256, doc/format.md). Made by search(); no cast leads from it into the type encrypted.';
COMMENT ON FUNCTION envcrypt.probe_in(cstring) IS 'Input: ep1: and base64 of 17 bytes. Errors: 22P02.';
COMMENT ON FUNCTION envcrypt.probe_out(envcrypt.probe) IS 'Output: ep1: and base64.';
COMMENT ON FUNCTION envcrypt.probe_recv(internal) IS 'Binary input: 17 bytes.';
COMMENT ON FUNCTION envcrypt.probe_send(envcrypt.probe) IS 'Binary output: 17 bytes.';

CREATE FUNCTION envcrypt.probe_eqsel(internal, oid, internal, integer) RETURNS double precision
    AS 'MODULE_PATHNAME', 'envcrypt_probe_eqsel' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.probe_eqsel(internal, oid, internal, integer) IS 'The selectivity of column = probe.';
CREATE FUNCTION envcrypt.probe_neqsel(internal, oid, internal, integer) RETURNS double precision
    AS 'MODULE_PATHNAME', 'envcrypt_probe_neqsel' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.probe_neqsel(internal, oid, internal, integer) IS 'The selectivity of column <> probe.';
CREATE FUNCTION envcrypt.probe_eqjoinsel(internal, oid, internal, smallint, internal) RETURNS double precision
    AS 'MODULE_PATHNAME', 'envcrypt_probe_eqjoinsel' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.probe_eqjoinsel(internal, oid, internal, smallint, internal) IS 'The selectivity of a join by column = probe.';

-- Comparisons look at tokens, where there are any, or at ciphertext: no key, no error, nothing leaks.
DO $$
DECLARE
    l record;
    r record;
    op record;
BEGIN
    FOR l IN SELECT * FROM (VALUES ('v', 'envcrypt.encrypted'), ('p', 'envcrypt.probe')) AS t (letter, type) LOOP
        FOR r IN SELECT * FROM (VALUES ('v', 'envcrypt.encrypted'), ('p', 'envcrypt.probe')) AS t (letter, type) LOOP
            FOR op IN SELECT * FROM (VALUES ('lt', '<', '>', '>=', 'scalarlt'), ('le', '<=', '>=', '>', 'scalarle'), ('eq', '=', '=', '<>', 'eq'),
                    ('ne', '<>', '<>', '=', 'neq'), ('ge', '>=', '<=', '<', 'scalarge'), ('gt', '>', '<', '<=', 'scalargt'))
                    AS t (name, sign, commutator, negator, estimator) LOOP
                EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypted_%s(%s, %s) RETURNS boolean AS ''MODULE_PATHNAME'', ''envcrypt_%s_%s%s''
                    LANGUAGE C IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE', op.name, l.type, r.type, op.name, l.letter, r.letter);
                EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypted_%s(%s, %s) IS
                    ''Implements the operator %s: by tokens, where there are any, else by ciphertext. Needs no key.''', op.name, l.type, r.type, op.sign);
                EXECUTE pg_catalog.format('CREATE OPERATOR envcrypt.%s (FUNCTION = envcrypt.encrypted_%s, LEFTARG = %s, RIGHTARG = %s,
                    COMMUTATOR = OPERATOR(envcrypt.%s), NEGATOR = OPERATOR(envcrypt.%s), RESTRICT = %s%ssel, JOIN = %s%sjoinsel%s)',
                    op.sign, op.name, l.type, r.type, op.commutator, op.negator,
                    CASE WHEN l.letter OPERATOR(pg_catalog.<>) r.letter AND op.name OPERATOR(pg_catalog.=) ANY ('{eq,ne}'::pg_catalog.text[])
                        THEN 'envcrypt.probe_' ELSE 'pg_catalog.' END, op.estimator,
                    CASE WHEN l.letter OPERATOR(pg_catalog.<>) r.letter AND op.name OPERATOR(pg_catalog.=) 'eq'
                        THEN 'envcrypt.probe_' ELSE 'pg_catalog.' END, op.estimator,
                    CASE WHEN op.name OPERATOR(pg_catalog.=) 'eq' THEN ', MERGES, HASHES' END);
            END LOOP;
            EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypted_cmp(%s, %s) RETURNS integer AS ''MODULE_PATHNAME'', ''envcrypt_cmp_%s%s''
                LANGUAGE C IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE', l.type, r.type, l.letter, r.letter);
            EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypted_cmp(%s, %s) IS %L', l.type, r.type,
                'The order of btree indexes: values with a token by mode, version and token, then the others by their bytes.');
        END LOOP;
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypted_hash(%s) RETURNS integer AS ''MODULE_PATHNAME'', ''envcrypt_hash_%s''
            LANGUAGE C IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE', l.type, l.letter);
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypted_hash(%s, bigint) RETURNS bigint AS ''MODULE_PATHNAME'', ''envcrypt_hash_extended_%s''
            LANGUAGE C IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE', l.type, l.letter);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypted_hash(%s) IS ''For hash indexes, joins and grouping: of the token, else of the bytes.''', l.type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypted_hash(%s, bigint) IS ''The same with a seed.''', l.type);
    END LOOP;
END $$;
CREATE OPERATOR FAMILY envcrypt.encrypted_ops USING btree;
CREATE OPERATOR FAMILY envcrypt.encrypted_ops USING hash;
-- no equalimage function: equal tokens do not make equal values
CREATE OPERATOR CLASS envcrypt.encrypted_ops DEFAULT FOR TYPE envcrypt.encrypted USING btree FAMILY envcrypt.encrypted_ops AS
    OPERATOR 1 envcrypt.<, OPERATOR 2 envcrypt.<=, OPERATOR 3 envcrypt.=, OPERATOR 4 envcrypt.>=, OPERATOR 5 envcrypt.>,
    FUNCTION 1 envcrypt.encrypted_cmp(envcrypt.encrypted, envcrypt.encrypted);
CREATE OPERATOR CLASS envcrypt.probe_ops DEFAULT FOR TYPE envcrypt.probe USING btree FAMILY envcrypt.encrypted_ops AS
    OPERATOR 1 envcrypt.<, OPERATOR 2 envcrypt.<=, OPERATOR 3 envcrypt.=, OPERATOR 4 envcrypt.>=, OPERATOR 5 envcrypt.>,
    FUNCTION 1 envcrypt.encrypted_cmp(envcrypt.probe, envcrypt.probe);
ALTER OPERATOR FAMILY envcrypt.encrypted_ops USING btree ADD
    OPERATOR 1 envcrypt.< (envcrypt.encrypted, envcrypt.probe), OPERATOR 2 envcrypt.<= (envcrypt.encrypted, envcrypt.probe),
    OPERATOR 3 envcrypt.= (envcrypt.encrypted, envcrypt.probe), OPERATOR 4 envcrypt.>= (envcrypt.encrypted, envcrypt.probe),
    OPERATOR 5 envcrypt.> (envcrypt.encrypted, envcrypt.probe),
    FUNCTION 1 (envcrypt.encrypted, envcrypt.probe) envcrypt.encrypted_cmp(envcrypt.encrypted, envcrypt.probe),
    OPERATOR 1 envcrypt.< (envcrypt.probe, envcrypt.encrypted), OPERATOR 2 envcrypt.<= (envcrypt.probe, envcrypt.encrypted),
    OPERATOR 3 envcrypt.= (envcrypt.probe, envcrypt.encrypted), OPERATOR 4 envcrypt.>= (envcrypt.probe, envcrypt.encrypted),
    OPERATOR 5 envcrypt.> (envcrypt.probe, envcrypt.encrypted),
    FUNCTION 1 (envcrypt.probe, envcrypt.encrypted) envcrypt.encrypted_cmp(envcrypt.probe, envcrypt.encrypted);
CREATE OPERATOR CLASS envcrypt.encrypted_ops DEFAULT FOR TYPE envcrypt.encrypted USING hash FAMILY envcrypt.encrypted_ops AS
    OPERATOR 1 envcrypt.=, FUNCTION 1 envcrypt.encrypted_hash(envcrypt.encrypted),
    FUNCTION 2 envcrypt.encrypted_hash(envcrypt.encrypted, bigint);
CREATE OPERATOR CLASS envcrypt.probe_ops DEFAULT FOR TYPE envcrypt.probe USING hash FAMILY envcrypt.encrypted_ops AS
    OPERATOR 1 envcrypt.=, FUNCTION 1 envcrypt.encrypted_hash(envcrypt.probe), FUNCTION 2 envcrypt.encrypted_hash(envcrypt.probe, bigint);
ALTER OPERATOR FAMILY envcrypt.encrypted_ops USING hash ADD
    OPERATOR 1 envcrypt.= (envcrypt.encrypted, envcrypt.probe), OPERATOR 1 envcrypt.= (envcrypt.probe, envcrypt.encrypted);

CREATE FUNCTION envcrypt.matches_support(internal) RETURNS internal
    AS 'MODULE_PATHNAME', 'envcrypt_matches_support' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.matches_support(internal) IS 'Has the planner write matches() as column = ANY (search(...)), which an index serves.';

DO $$
DECLARE
    type text;
    name text;
BEGIN
    -- every plaintext type
    FOREACH type IN ARRAY '{text,bytea,boolean,int2,int4,int8,float8,numeric,date,timestamp,timestamptz,interval,uuid,inet,jsonb,text[]}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypt(value %s, tenant text DEFAULT '''', label text DEFAULT '''', search text DEFAULT '''',
                associated_data text DEFAULT '''') RETURNS envcrypt.encrypted
            AS ''MODULE_PATHNAME'', ''envcrypt_encrypt'' LANGUAGE C STABLE COST 30 PARALLEL SAFE', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypt(%s, text, text, text, text) IS %L', type,
            pg_catalog.format('Encrypts a %s of at most 500 MiB under the newest committed key of the tenant ('''': that of envcrypt.tenant); for a column of that label, with a token for that search mode (searchable, searchable_nocase, searchable_digits), bound to the associated data, where given. NULL gives NULL; a NULL option raises 22004. Needs the right encrypt (and search for a token), USAGE on the KMS server and a user mapping there. May ask the KMS. Errors: 42704 no tenant, 42501 no right or denied, 55000 out of use, 08006 unreachable, 53400 throttled, HV000 misconfigured, 54000 too long, 22023 label or search mode.', type));
    END LOOP;
    -- assignment casts: from those and their narrower kin
    FOREACH type IN ARRAY '{text,varchar,bpchar,bytea,boolean,int2,int4,int8,float4,float8,numeric,date,timestamp,timestamptz,interval,uuid,inet,cidr,jsonb,text[],varchar[]}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.encrypted(%s, integer DEFAULT -1, boolean DEFAULT false) RETURNS envcrypt.encrypted
            AS ''MODULE_PATHNAME'', ''envcrypt_cast_from'' LANGUAGE C STABLE STRICT COST 30 PARALLEL SAFE', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.encrypted(%s, integer, boolean) IS %L', type,
            'The assignment cast: encrypts as the column declares, under the newest key of the tenant that envcrypt.tenant names. Needs the right encrypt (and search for a searchable column). May ask the KMS.');
        EXECUTE pg_catalog.format('CREATE CAST (%1$s AS envcrypt.encrypted) WITH FUNCTION envcrypt.encrypted(%1$s, integer, boolean) AS ASSIGNMENT', type);
    END LOOP;
    -- explicit casts: to all but text and jsonb, to which PostgreSQL's own functions cast on the way
    FOREACH type IN ARRAY '{bytea,boolean,int2,int4,int8,float8,numeric,date,timestamp,timestamptz,interval,uuid,inet,text[]}'::pg_catalog.text[] LOOP
        name := CASE WHEN type OPERATOR(pg_catalog.=) 'boolean' THEN 'bool' WHEN type OPERATOR(pg_catalog.=) 'text[]' THEN 'text_array' ELSE type END;
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.%I(envcrypt.encrypted) RETURNS %s
            AS ''MODULE_PATHNAME'', ''envcrypt_cast_to'' LANGUAGE C STABLE STRICT COST 30 PARALLEL SAFE', name, type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.%I(envcrypt.encrypted) IS %L', name,
            pg_catalog.format('The explicit cast: the plaintext of a value of type %s, as decrypt() with its rights and errors; 42804 another type.', type));
        EXECUTE pg_catalog.format('CREATE CAST (envcrypt.encrypted AS %s) WITH FUNCTION envcrypt.%I(envcrypt.encrypted)', type, name);
    END LOOP;
    -- searching
    FOREACH type IN ARRAY '{text,bytea,int2,int4,int8,numeric,date,timestamp,timestamptz,uuid,inet}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.search(value %s, label text, search text, tenants text[] DEFAULT ''{}'') RETURNS envcrypt.probe[]
            AS ''MODULE_PATHNAME'', ''envcrypt_search'' LANGUAGE C STABLE COST 100 PARALLEL SAFE', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.search(%s, text, text, text[]) IS %L', type,
            'What a column of that label and search mode is looked up with: WHERE column OPERATOR(envcrypt.=) ANY (envcrypt.search(value, label, search)). One probe for each tenant (default: that of envcrypt.tenant) and each of its search keys. NULL gives NULL. Needs the right search. May ask the KMS.');
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.search(value %s, declaration integer) RETURNS envcrypt.probe[]
            AS ''MODULE_PATHNAME'', ''envcrypt_search_column'' LANGUAGE C STABLE STRICT COST 50 PARALLEL SAFE', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.search(%s, integer) IS %L', type, 'What matches() becomes; declaration is the type modifier of the column.');
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.search("values" %s[], declaration integer) RETURNS envcrypt.probe[]
            AS ''MODULE_PATHNAME'', ''envcrypt_search_column'' LANGUAGE C STABLE STRICT COST 50 PARALLEL SAFE', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.search(%s[], integer) IS %L', type, 'What matches_any() becomes; declaration is the type modifier of the column.');
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.matches("column" envcrypt.encrypted, value %s) RETURNS boolean
            AS ''MODULE_PATHNAME'', ''envcrypt_matches'' LANGUAGE C STABLE STRICT PARALLEL SAFE SUPPORT envcrypt.matches_support', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.matches(envcrypt.encrypted, %s) IS %L', type,
            'Whether a column that is declared searchable holds that value of the tenant that envcrypt.tenant names; served by an ordinary btree or hash index on the column. NULL gives NULL. Needs the right search, and not decrypt. May ask the KMS. Errors: 42809 not searchable, 42804 another type.');
        EXECUTE pg_catalog.format('CREATE FUNCTION envcrypt.matches_any("column" envcrypt.encrypted, "values" %s[]) RETURNS boolean
            AS ''MODULE_PATHNAME'', ''envcrypt_matches'' LANGUAGE C STABLE STRICT PARALLEL SAFE SUPPORT envcrypt.matches_support', type);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION envcrypt.matches_any(envcrypt.encrypted, %s[]) IS %L', type, 'The same for any of these values; NULLs among them match nothing.');
    END LOOP;
END $$;

CREATE FUNCTION envcrypt.decrypt(value envcrypt.encrypted, associated_data text DEFAULT '', label text DEFAULT '', tenant text DEFAULT '') RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt' LANGUAGE C STABLE COST 30 PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.decrypt(envcrypt.encrypted, text, text, text) IS
    'The plaintext in its type''s text form. associated_data must be what the value was encrypted with, and be left out where it was not. A labelled value decrypts out of a column that declares the label, or where label says it. Where tenant is given the value must be of that tenant. NULL gives NULL. Needs the right decrypt, USAGE on the KMS server and a user mapping there. May ask the KMS. Errors: 22000 altered, of another label or tenant, or bound to something else, 42704 no such key, 42501 no right or denied, 55000 out of use, 08006 unreachable, 53400 throttled, 08P01 and HV000 the KMS, XX001 corrupt key.';
CREATE FUNCTION envcrypt.try_decrypt(value envcrypt.encrypted, associated_data text DEFAULT '', label text DEFAULT '', tenant text DEFAULT '') RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_try_decrypt' LANGUAGE C STABLE COST 30 PARALLEL RESTRICTED;
COMMENT ON FUNCTION envcrypt.try_decrypt(envcrypt.encrypted, text, text, text) IS
    'As decrypt(), but NULL where the key is not available: denied, its KMS unreachable, throttled or misconfigured, its tenant disabled or destroyed; or where the value is of another tenant than the one given. For reports across tenants. An error for everything else.';
CREATE FUNCTION envcrypt.decrypt_as(value envcrypt.encrypted, type anyelement, associated_data text DEFAULT '', label text DEFAULT '', tenant text DEFAULT '') RETURNS anyelement
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt_as' LANGUAGE C STABLE COST 30 PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.decrypt_as(envcrypt.encrypted, anyelement, text, text, text) IS
    'The plaintext as a value of its type, which the second argument names: NULL::date. Otherwise as decrypt(). Errors: 42804 another type.';
CREATE FUNCTION envcrypt.try_decrypt_as(value envcrypt.encrypted, type anyelement, associated_data text DEFAULT '', label text DEFAULT '', tenant text DEFAULT '') RETURNS anyelement
    AS 'MODULE_PATHNAME', 'envcrypt_try_decrypt_as' LANGUAGE C STABLE COST 30 PARALLEL RESTRICTED;
COMMENT ON FUNCTION envcrypt.try_decrypt_as(envcrypt.encrypted, anyelement, text, text, text) IS
    'As decrypt_as(), but NULL where try_decrypt() gives NULL.';
CREATE FUNCTION envcrypt.decrypt_in_row(value envcrypt.encrypted, type anyelement, tenant text, key_columns text, VARIADIC key "any") RETURNS anyelement
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt_in_row' LANGUAGE C STABLE COST 30 PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.decrypt_in_row(envcrypt.encrypted, anyelement, text, text, "any") IS
    'As decrypt_as(value, type, tenant => tenant), for the views of view_ddl(): the error for a value of another tenant names the row by its key, of these columns and values.';

CREATE FUNCTION envcrypt.inspect(value envcrypt.encrypted,
        OUT format integer, OUT algorithm text, OUT key_id text, OUT tenant text, OUT key_version integer,
        OUT type text, OUT label text, OUT search text, OUT bound boolean, OUT plaintext_bytes bigint)
    AS 'MODULE_PATHNAME', 'envcrypt_inspect' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.inspect(envcrypt.encrypted) IS
    'What can be read of a value without its key. tenant and key_version are NULL where the key is not in this database; bound says whether associated data is needed.';

CREATE FUNCTION envcrypt.declaration(typmod integer, OUT type text, OUT search text, OUT label text)
    AS 'MODULE_PATHNAME', 'envcrypt_declaration' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.declaration(integer) IS
    'The parts of a column''s declaration, from its type modifier (pg_attribute.atttypmod); NULLs for -1 and for what is no declaration. Ask only of columns of the type encrypted: a modifier of another type may look like a declaration.';

CREATE FUNCTION envcrypt.raise_error(sqlstate text, message text, hint text) RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_raise_error' LANGUAGE C STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.raise_error(text, text, text) IS 'Raises an error, for functions of envcrypt that are written in SQL.';

---------------------------------------------------------------- administration
CREATE FUNCTION envcrypt.grant_access(role regrole, rights text[]) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_grant_access' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.grant_access(regrole, text[]) IS
    'Gives a role rights (encrypt, decrypt, search, manage) by GRANT. Superusers only. The role also needs USAGE on the KMS server and a user mapping there.';
CREATE FUNCTION envcrypt.revoke_access(role regrole, rights text[]) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_revoke_access' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.revoke_access(regrole, text[]) IS
    'Takes rights back from a role by REVOKE: every privilege on what goes with them, and with the last right every privilege on the extension''s objects. Superusers only. Errors: 2BP01 another role than the owner granted one.';

CREATE FUNCTION envcrypt.check_server(server text,
        OUT ok boolean, OUT milliseconds double precision, OUT identity text, OUT master_key text,
        OUT master_key_version text, OUT sqlstate text, OUT error text, OUT hint text)
    AS 'MODULE_PATHNAME', 'envcrypt_check_server' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.check_server(text) IS
    'Has the KMS wrap a key that is thrown away and unwrap it again, proves that it refuses another context, and says how long all of that took, as whom, under which master key; or the error. Needs the right manage. Asks the KMS.';

CREATE FUNCTION envcrypt.create_tenant(name text, server text, master_key text DEFAULT '', group_key text DEFAULT '', search_tenant text DEFAULT '') RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_create_tenant' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.create_tenant(text, text, text, text, text) IS
    'Makes a tenant with its first data key and, unless it uses that of search_tenant, its search key, wrapped by the server''s master key, by the tenant''s own in that KMS or by a group key. The name matches [A-Za-z0-9._:@/+=-]{1,128}, appears in the KMS''s log and is never used again. Needs the right manage. Asks the KMS. Errors: 42710 exists, 42602 name, and those of the KMS.';

---------------------------------------------------------------- the life of a key
CREATE FUNCTION envcrypt.rotate_key(tenant text) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_rotate_key' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.rotate_key(text) IS
    'Makes a new version of the tenant''s data key, which encrypts from this transaction''s commit on; older versions decrypt only, and no value is touched. Returns the version. Needs the right manage. Asks the KMS. Errors: 42704 no such tenant, 55000 disabled or destroyed, and those of the KMS.';
CREATE PROCEDURE envcrypt.rotate_keys(older_than interval)
    AS 'MODULE_PATHNAME', 'envcrypt_rotate_keys' LANGUAGE C;
COMMENT ON PROCEDURE envcrypt.rotate_keys(interval) IS
    'Rotates the key of each active tenant whose newest data key is older, each in a transaction of its own. One that cannot be rotated is warned of, and keeps no other from it. Needs the right manage. Asks the KMS. Errors: 2D000 within a transaction block, 22023 negative, 55000 some were not rotated.';
CREATE FUNCTION envcrypt.disable_tenant(name text) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_disable_tenant' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.disable_tenant(text) IS
    'From this transaction''s commit on nothing of the tenant is encrypted, decrypted or searched, by anybody: 55000. Other sessions follow at their next statement, a running scan within 100 ms. Needs the right manage, and no KMS. Errors: 42704 no such tenant, 55000 destroyed.';
CREATE FUNCTION envcrypt.enable_tenant(name text) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_enable_tenant' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.enable_tenant(text) IS 'Takes disable_tenant() back. Errors: 42704 no such tenant, 55000 destroyed.';
CREATE FUNCTION envcrypt.destroy_tenant(name text, confirm text) RETURNS jsonb
    AS 'MODULE_PATHNAME', 'envcrypt_destroy_tenant' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.destroy_tenant(text, text) IS
    'Crypto-shredding: deletes every wrapped copy of the tenant''s keys in this database; its values never decrypt again, and its name is never used again. confirm repeats the name. Returns a receipt for apply_receipt(): tenant, key ids, commitments, what wrapped them, where the WAL was, when, who; also in the journal, and in the server''s log once committed. Backups, archived WAL and standbys that lag behind decrypt until they expire or the master key is destroyed. Needs the right manage, and no KMS. Errors: 22023 confirm, 42704 no such tenant, 55000 destroyed already, 2BP01 others use its search key, 42602 name.';
CREATE FUNCTION envcrypt.apply_receipt(receipt jsonb) RETURNS boolean
    AS 'MODULE_PATHNAME', 'envcrypt_apply_receipt' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.apply_receipt(jsonb) IS
    'Repeats a destruction in a database that was restored from before it, of all keys that the tenant has by now. True where there was something to destroy; false where nothing of it is left, or was there. Needs the right manage. Errors: 22023 no receipt, XX001 the keys of that tenant are others than the receipt''s, 55000 the restore is not complete.';

CREATE PROCEDURE envcrypt.rewrap_keys(server text, to_server text DEFAULT '')
    AS 'MODULE_PATHNAME', 'envcrypt_rewrap_keys' LANGUAGE C;
COMMENT ON PROCEDURE envcrypt.rewrap_keys(text, text) IS
    'Wraps every key of the server under the newest version of its master key (inside the KMS where it can), or moves it to another server, which then wraps the tenants'' new keys too. No value is touched. Each is unwrapped and checked before it replaces what was there. Commits batch by batch; envcrypt.progress shows how far it is, another CALL goes on. Keys under a tenant''s own master key stay under it; one that is corrupt is warned of and left (ten end it). Needs the right manage. Asks the KMSs. Errors: 2D000 within a transaction block, 55006 under way already, and those of the KMS.';
CREATE PROCEDURE envcrypt.add_wrapping(server text, tenant text DEFAULT '', master_key text DEFAULT '')
    AS 'MODULE_PATHNAME', 'envcrypt_add_wrapping' LANGUAGE C;
COMMENT ON PROCEDURE envcrypt.add_wrapping(text, text, text) IS
    'Has the server wrap the keys of the tenant (or of the group of that name) too, or all keys; master_key: by the tenant''s own in that KMS. They open then where any of their servers answers, in the order in which those were added; new keys are wrapped by all of them. Commits batch by batch as rewrap_keys(). Needs the right manage. Asks the KMSs. Errors: 2D000 within a transaction block, 22023 whose master key, 55000 the tenant is in a group, or another master key wraps there, 55006 under way already.';
CREATE PROCEDURE envcrypt.drop_wrapping(server text, tenant text DEFAULT '')
    AS 'MODULE_PATHNAME', 'envcrypt_drop_wrapping' LANGUAGE C;
COMMENT ON PROCEDURE envcrypt.drop_wrapping(text, text) IS
    'Deletes what the server wraps of the keys of the tenant (or of the group of that name), or of all, once another wrapping of each was unwrapped and checked; asks the server itself nothing, so it may be lost. Where the tenants'' new keys were wrapped there they go to the other. Commits batch by batch. Needs the right manage. Errors: 2D000 within a transaction block, 55000 a key is wrapped nowhere else, 55006 under way already.';
CREATE FUNCTION envcrypt.create_group_key(name text, server text, master_key text DEFAULT '') RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_create_group_key' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.create_group_key(text, text, text) IS
    'Makes a group key, which wraps the keys of many tenants: one call to the KMS opens all of them. It is wrapped by the server''s master key, or by another in that KMS. Its name is as a tenant''s and stands in its place in the KMS''s log. Needs the right manage. Asks the KMS. Errors: 42710 exists, 42602 name, and those of the KMS.';
CREATE FUNCTION envcrypt.move_tenant(tenant text, group_key text) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_move_tenant' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.move_tenant(text, text) IS
    'Moves a tenant''s keys into a group, into another, or out of it (an empty name), to the tenant''s server. No value is touched. Needs the right manage. Asks the KMSs. Errors: 42704 no such tenant or group, 55000 disabled, destroyed, or with a master key of its own, and those of the KMS.';
CREATE FUNCTION envcrypt.export_keys(tenant text) RETURNS jsonb
    AS 'MODULE_PATHNAME', 'envcrypt_export_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.export_keys(text) IS
    'All keys of a tenant that its values need, with the group key where there is one, still wrapped: for import_keys() in another database with the same KMS, or to be kept in escrow. No secret, and as good as the keys to whoever may use the KMS. Journaled. Needs the right manage, and no KMS. Errors: 42704 no such tenant, 55000 destroyed.';
CREATE FUNCTION envcrypt.import_keys(export jsonb) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_import_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.import_keys(jsonb) IS
    'Takes over what export_keys() gave: the tenant where it is not here, and keys and wrappings that are missing, each unwrapped and checked before it is used. Returns how many keys there were to take over or to complete; 0 where all were here. Needs servers of the same names, and the right manage. Asks the KMSs. Errors: 22023 no export, XX001 another key has its id, or it does not unwrap, 55000 destroyed here.';
CREATE FUNCTION envcrypt.rename_server(server text, new_name text) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_rename_server' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.rename_server(text, text) IS
    'ALTER SERVER ... RENAME of a server that wraps keys, with the rows that name it. Returns how many wrapped keys those are. Needs the right manage, and ownership of the server. Errors: 42704 no such server, 42710 the name is taken, 2BP01 secrets are read from it.';

CREATE VIEW envcrypt.tenants AS
    SELECT t.name, t.state, t.server, CASE WHEN t.master_key OPERATOR(pg_catalog.<>) '' THEN t.master_key END AS master_key, CASE WHEN t.group_key OPERATOR(pg_catalog.<>) '' THEN t.group_key END AS group_key, CASE WHEN t.search_tenant OPERATOR(pg_catalog.<>) '' THEN t.search_tenant END AS search_tenant, t.created_at,
        k.version AS key_version, k.created_at AS key_created_at
    FROM envcrypt.tenant t
    LEFT JOIN LATERAL (SELECT d.version, d.created_at FROM envcrypt.data_key d
        WHERE d.tenant OPERATOR(pg_catalog.=) t.name AND d.purpose OPERATOR(pg_catalog.=) 'data' AND d.state OPERATOR(pg_catalog.=) 'active'
        ORDER BY d.version DESC LIMIT 1) k ON true;
COMMENT ON VIEW envcrypt.tenants IS 'Each tenant: its state, where its new keys are wrapped, its group, whose search key it uses, and the version and age of the key that encrypts.';
CREATE VIEW envcrypt.keys AS
    SELECT pg_catalog.lpad(pg_catalog.to_hex(d.key_id), 16, '0') AS key_id, d.tenant, d.purpose, d.version, d.state, d.created_at,
        ARRAY(SELECT w.server FROM envcrypt.wrapped_key w WHERE w.key_id OPERATOR(pg_catalog.=) d.key_id AND w.server OPERATOR(pg_catalog.<>) '' ORDER BY w.created_at, 1) AS servers,
        (SELECT w.group_key FROM envcrypt.wrapped_key w WHERE w.key_id OPERATOR(pg_catalog.=) d.key_id AND w.group_key OPERATOR(pg_catalog.<>) '' LIMIT 1) AS group_key
    FROM envcrypt.data_key d;
COMMENT ON VIEW envcrypt.keys IS 'Each version of each key: its id as values and KMS logs have it, what for, its state, since when, and the servers that wrap it, in the order in which they are asked, or the group key that does. tenant is the name of the group where the purpose is group.';
CREATE VIEW envcrypt.wrappings AS
    SELECT pg_catalog.lpad(pg_catalog.to_hex(w.key_id), 16, '0') AS key_id, d.tenant, d.purpose, d.version, CASE WHEN w.server OPERATOR(pg_catalog.<>) '' THEN w.server END AS server, CASE WHEN w.group_key OPERATOR(pg_catalog.<>) '' THEN w.group_key END AS group_key,
        CASE WHEN w.master_key OPERATOR(pg_catalog.<>) '' THEN w.master_key END AS master_key, CASE WHEN w.master_key_version OPERATOR(pg_catalog.<>) '' THEN w.master_key_version END AS master_key_version, w.own_master_key, w.created_at, w.wrapped_at,
        w.master_key_version OPERATOR(pg_catalog.<>) pg_catalog.first_value(w.master_key_version) OVER
            (PARTITION BY w.server, w.master_key ORDER BY w.wrapped_at DESC) AS outdated
    FROM envcrypt.wrapped_key w LEFT JOIN envcrypt.data_key d ON d.key_id OPERATOR(pg_catalog.=) w.key_id;
COMMENT ON VIEW envcrypt.wrappings IS
    'Each wrapped copy of each key: the server, the master key (own_master_key: the tenant''s) and its version, or the group key; since when at this place, and when it was wrapped last; outdated where a later wrapping by that master key bears another version.';
CREATE VIEW envcrypt.progress AS
    SELECT r.act, r.server, CASE WHEN r.to_server OPERATOR(pg_catalog.<>) '' THEN r.to_server END AS to_server, CASE WHEN r.tenant OPERATOR(pg_catalog.<>) '' THEN r.tenant END AS tenant, r.role,
        CASE WHEN r.is_finished THEN 'finished'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype OPERATOR(pg_catalog.=) 'object' AND l.classid OPERATOR(pg_catalog.=) 'envcrypt.run'::pg_catalog.regclass::pg_catalog.oid
                AND l.objid::pg_catalog.int8 OPERATOR(pg_catalog.=) r.lock_id
                AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())) THEN 'running'
            ELSE 'interrupted' END AS state,
        r.total, r.done, r.left_over, r.started_at, r.updated_at
    FROM envcrypt.run r;
COMMENT ON VIEW envcrypt.progress IS
    'How far the last run of each rewrap_keys(), add_wrapping() and drop_wrapping() is or came: finished, running or interrupted (then another CALL goes on); total: the keys that it looks at, those that need nothing included; done: those that it changed; left_over: still to be looked at while it runs, those that need something still once it is finished.';

CREATE FUNCTION envcrypt.current_tenant() RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_current_tenant' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.current_tenant() IS
    'The setting envcrypt.tenant, for row-level policies and column defaults: refused where envcrypt.tenant_scope is transaction and an earlier transaction set it. Errors: 55000 of an earlier transaction, 42704 none set.';

---------------------------------------------------------------- an identity that a session brings
CREATE FUNCTION envcrypt.set_credential(server text, credential jsonb, session boolean DEFAULT false) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_set_credential' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.set_credential(text, jsonb, boolean) IS
    'Has this session use an identity of its own at the server, in place of the role''s user mapping: an object of the mapping''s option names, with the contents of secrets and files in place of references and paths. Until the end of the transaction, or of the session; for the current role. Never stored; pass it as a parameter, since PostgreSQL may log statements. Needs USAGE on the server and any right. Errors: HV000 options.';
CREATE FUNCTION envcrypt.clear_credential(server text) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_clear_credential' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.clear_credential(text) IS
    'Forgets what set_credential() brought for the server, and every key that was opened with it.';

---------------------------------------------------------------- the article's own format
CREATE FUNCTION envcrypt.encrypt_envelope(server text, plaintext text,
        OUT encrypted_dek bytea, OUT nonce bytea, OUT ciphertext bytea)
    AS 'MODULE_PATHNAME', 'envcrypt_encrypt_envelope_text' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.encrypt_envelope(text, text) IS
    'One value under a data key of its own, as boto3''s generate_data_key(KeySpec=''AES_256'') and AESGCM(key).encrypt(nonce, plaintext, None) of Python make it: the wrapped key, a nonce of 12 bytes, ciphertext and 16-byte tag. Bound to no tenant. At most 500 MiB. Asks the KMS at each call. Needs the right encrypt.';
CREATE FUNCTION envcrypt.encrypt_envelope(server text, plaintext bytea,
        OUT encrypted_dek bytea, OUT nonce bytea, OUT ciphertext bytea)
    AS 'MODULE_PATHNAME', 'envcrypt_encrypt_envelope_bytea' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.encrypt_envelope(text, bytea) IS
    'One value under a data key of its own, as boto3''s generate_data_key(KeySpec=''AES_256'') and AESGCM(key).encrypt(nonce, plaintext, None) of Python make it: the wrapped key, a nonce of 12 bytes, ciphertext and 16-byte tag. Bound to no tenant. At most 500 MiB. Asks the KMS at each call. Needs the right encrypt.';
CREATE FUNCTION envcrypt.decrypt_envelope(server text, encrypted_dek bytea, nonce bytea, ciphertext bytea) RETURNS bytea
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt_envelope' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.decrypt_envelope(text, bytea, bytea, bytea) IS
    'The plaintext of an envelope, whoever made it. Asks the KMS at each call. Needs the right decrypt. Errors: 22023 lengths, XX001 no key of this master key, 22000 the tag does not fit.';

CREATE FUNCTION envcrypt.load_keys(VARIADIC tenants text[]) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_load_keys' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.load_keys(text[]) IS
    'Opens the data keys of all these tenants in this session, and their search keys where the role may search, with up to envcrypt.kms_concurrency calls to the KMSs under way (OpenBao and Vault: 128 keys a call), and returns how many keys are open then. What others had opened by then stays open where one fails, but not what a denied identity opened. Errors: 42704 no such tenant, 42501 denied, 08006 unreachable, 55000 disabled, XX001 corrupt.';
CREATE FUNCTION envcrypt.forget_keys() RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_forget_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.forget_keys() IS
    'Wipes this session''s open keys and credentials; returns how many keys there were.';

CREATE FUNCTION envcrypt.cached_keys(OUT key_id text, OUT tenant text, OUT server text, OUT open_for interval,
        OUT expires_in interval, OUT bridged boolean, OUT ends_in interval) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'envcrypt_cached_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.cached_keys() IS 'The rows of the view cache.';
CREATE VIEW envcrypt.cache AS SELECT * FROM envcrypt.cached_keys();
COMMENT ON VIEW envcrypt.cache IS
    'The keys that this session holds unwrapped, since when, for how long before the KMS is asked again, whether they serve on because it is away (bridged), and until when they could (outage_grace).';

---------------------------------------------------------------- declared columns
CREATE VIEW envcrypt.columns AS
    -- what a type holds at any depth: through domains, arrays and composite types
    WITH RECURSIVE holds(type, inner_type, typmod) AS (
        SELECT t.oid, t.typbasetype, t.typtypmod FROM pg_catalog.pg_type t WHERE t.typtype OPERATOR(pg_catalog.=) 'd'
        UNION SELECT t.oid, t.typelem, NULL FROM pg_catalog.pg_type t WHERE t.typelem OPERATOR(pg_catalog.<>) 0
        UNION SELECT t.oid, a.atttypid, a.atttypmod FROM pg_catalog.pg_type t
            JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.typrelid AND c.relkind OPERATOR(pg_catalog.=) ANY ('{c,r,p,v,m,f}'::pg_catalog."char"[])
            JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) t.typrelid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
    ), encrypting(type, typmod) AS (
        SELECT 'envcrypt.encrypted'::pg_catalog.regtype::pg_catalog.oid, NULL::integer
        -- an array has the declaration of its column, a domain or a field one of its own
        UNION SELECT h.type, CASE WHEN e.typmod OPERATOR(pg_catalog.>=) 0 THEN e.typmod ELSE h.typmod END
            FROM encrypting e JOIN holds h ON h.inner_type OPERATOR(pg_catalog.=) e.type
    )
    SELECT n.nspname AS schema, c.relname AS "table", a.attname AS "column",
        pg_catalog.format_type(a.atttypid, a.atttypmod) AS data_type, d.type, d.search, d.label,
        ARRAY(SELECT i.indexrelid::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_index i
            WHERE i.indrelid OPERATOR(pg_catalog.=) a.attrelid AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey) ORDER BY 1) AS indexes
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    JOIN encrypting e ON e.type OPERATOR(pg_catalog.=) a.atttypid
    CROSS JOIN LATERAL envcrypt.declaration(CASE WHEN a.atttypmod OPERATOR(pg_catalog.>=) 0 THEN a.atttypmod ELSE coalesce(e.typmod, -1) END) d
    WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,f,m}'::pg_catalog."char"[]);
COMMENT ON VIEW envcrypt.columns IS
    'Every encrypted column of the database, of domains, arrays and composite types too (a line for each encrypted field): the plaintext type, search mode and label that it declares (NULL where it does not), and the indexes on it.';

CREATE FUNCTION envcrypt.count_values("table" regclass, "column" name,
        OUT tenant text, OUT key_version integer, OUT key_id text, OUT "values" bigint) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'envcrypt_count_values' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION envcrypt.count_values(regclass, name) IS
    'How many values of a column are encrypted under which key; tenant and key_version are NULL where the key is not in this database, and key_id too where a value is too short to name one: it is damaged. Needs SELECT on the column, and no key.';

CREATE FUNCTION envcrypt.written_here(xid) RETURNS boolean
    AS 'MODULE_PATHNAME', 'envcrypt_written_here' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION envcrypt.written_here(xid) IS 'Whether the transaction under way, or a subtransaction of it, has that id: of a row''s xmin, for the triggers of view_ddl().';
CREATE FUNCTION envcrypt.reads_table(view oid, schema name, "table" name) RETURNS boolean
    AS 'MODULE_PATHNAME', 'envcrypt_reads_table' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.reads_table(oid, name, name) IS 'Whether the FROM of the view names the table that has this name now: the triggers of view_ddl() write to a table by its name.';

CREATE FUNCTION envcrypt.view_ddl("table" regclass, tenant_column name DEFAULT '', unavailable text DEFAULT 'error') RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $view_ddl$
WITH col AS (
    SELECT a.attnum, a.attname, a.atttypid,
        -- NEW.by is no field to PL/pgSQL, whose reserved words these are
        CASE WHEN a.attname ~ '^(all|begin|by|case|declare|else|end|execute|for|foreach|from|if|in|into|loop|not|null|or|strict|then|to|using|when|while)$'
            THEN '"' || a.attname || '"' ELSE quote_ident(a.attname) END AS name,
        CASE WHEN d.search IS NOT NULL THEN (SELECT left(a.attname, n) FROM generate_series(53, 0, -1) n WHERE octet_length(left(a.attname, n)) <= 53 LIMIT 1) || '_encrypted' END AS raw_name,
        format_type(a.atttypid, a.atttypmod) AS own_type, d.type, d.search, d.label,
        d.type IS NOT NULL AS is_plain, a.attgenerated <> '' OR a.attidentity = 'a' AS is_given,
        CASE WHEN a.attgenerated <> '' OR a.attidentity = 'a' THEN NULL
            -- a partition may use its root's sequence
            WHEN a.attidentity <> '' THEN format('nextval(%L::regclass)', coalesce(pg_get_serial_sequence(a.attrelid::regclass::text, a.attname),
                pg_get_serial_sequence(pg_partition_root(a.attrelid)::text, a.attname)))
            ELSE pg_get_expr(x.adbin, x.adrelid) END AS default_,
        -- of plaintext, which the assignment cast encrypts
        EXISTS (SELECT FROM pg_proc p WHERE p.oid::text = substring(x.adbin::text, '^\{FUNCEXPR :funcid (\d+)') AND p.prosrc = 'envcrypt_cast_from'
            AND p.pronamespace = 'envcrypt'::regnamespace) AS is_plain_default,
        a.attnum = ANY (coalesce(k.conkey, '{}')) AS in_key
    FROM pg_attribute a
    LEFT JOIN pg_attrdef x ON x.adrelid = a.attrelid AND x.adnum = a.attnum
    LEFT JOIN pg_constraint k ON k.conrelid = a.attrelid AND k.contype = 'p'
    -- a join condition would not keep other types' modifiers away from it
    LEFT JOIN LATERAL envcrypt.declaration(CASE WHEN a.atttypid = 'envcrypt.encrypted'::regtype THEN a.atttypmod ELSE -1 END) d ON true
    WHERE a.attrelid = "table" AND a.attnum > 0 AND NOT a.attisdropped
), of_row AS (
    SELECT string_agg(attname, ', ' ORDER BY attnum) FILTER (WHERE in_key) AS key_names, string_agg('t.' || name, ', ' ORDER BY attnum) FILTER (WHERE in_key) AS key_values,
        max(name) FILTER (WHERE attname = tenant_column) AS tenant
    FROM col
), written AS (
    SELECT col.*, quote_ident(raw_name) AS raw, CASE WHEN is_plain THEN format('envcrypt.encrypt(NEW.%s::%s%s%s%s)', name, type,
            CASE WHEN tenant_column <> '' THEN format(', tenant => NEW.%s::text', tenant) END,
            CASE WHEN label IS NOT NULL THEN format(', label => %L', label) END,
            CASE WHEN search IS NOT NULL THEN format(', search => %L', search) END)
        ELSE 'NEW.' || name END AS new_value,
        CASE WHEN NOT is_plain THEN 't.' || name
            WHEN unavailable = 'null' THEN format('envcrypt.try_decrypt_as(t.%s, NULL::%s%s)', name, type,
                CASE WHEN tenant_column <> '' THEN format(', tenant => t.%s::text', tenant) END)
            WHEN tenant_column <> '' THEN format('envcrypt.decrypt_in_row(t.%s, NULL::%s, t.%s::text, %L, %s)', name, type, tenant, key_names, key_values)
            WHEN type = 'text' THEN format('envcrypt.decrypt(t.%s)', name)
            WHEN type = 'jsonb' THEN format('envcrypt.decrypt_as(t.%s, NULL::jsonb)', name)
            ELSE format('t.%s::%s', name, type) END AS shown,
        format('ROW(NEW.%1$s)::record OPERATOR(pg_catalog.*<>) ROW(OLD.%1$s)::record', name) AS is_changed,
        format('NEW.%1$s IS DISTINCT FROM OLD.%1$s', tenant) AS is_moved
    FROM col, of_row
), rel AS (
    SELECT n.nspname AS schema_name, c.relname AS table_name, format('%I.%I', n.nspname, c.relname) AS base, format('%I.%I', n.nspname, (SELECT left(c.relname, n) FROM generate_series(57, 0, -1) n WHERE octet_length(left(c.relname, n)) <= 57 LIMIT 1) || '_plain') AS view,
        format('%I.%I', n.nspname, (SELECT left(c.relname, n) FROM generate_series(51, 0, -1) n WHERE octet_length(left(c.relname, n)) <= 51 LIMIT 1) || '_plain_write') AS function
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = "table"
), part AS (
    SELECT concat_ws(E',\n        ', string_agg(shown || CASE WHEN is_plain THEN ' AS ' || name ELSE '' END, E',\n        ' ORDER BY attnum),
            string_agg(format('t.%s AS %s', name, raw), E',\n        ' ORDER BY attnum) FILTER (WHERE raw IS NOT NULL)) AS selected,
        string_agg(name, ', ' ORDER BY attnum) FILTER (WHERE NOT is_given) AS names,
        string_agg(new_value, E',\n            ' ORDER BY attnum) FILTER (WHERE NOT is_given) AS inserted,
        string_agg(CASE WHEN NOT is_plain THEN format('%1$s = CASE WHEN %2$s THEN NEW.%1$s ELSE t.%1$s END', name, is_changed)
            WHEN tenant_column = '' THEN format('%1$s = CASE WHEN %2$s THEN %3$s ELSE t.%1$s END', name, is_changed, new_value)
            WHEN unavailable = 'error' THEN format('%1$s = CASE WHEN %2$s OR %3$s THEN %4$s ELSE t.%1$s END', name, is_changed, is_moved, new_value)
            -- what is not available looks like NULL, and must not become it
            ELSE format('%1$s = CASE WHEN %2$s THEN %4$s WHEN NOT (%3$s) THEN t.%1$s WHEN OLD.%1$s IS NULL AND t.%1$s IS NOT NULL THEN envcrypt.raise_error(%5$L, %6$L, %7$L)::envcrypt.encrypted ELSE %4$s END',
                name, is_changed, is_moved, new_value, '55000', format('the value of column "%s" is not available, so the row cannot move to another tenant', attname),
                'Give the column a value, or move the row when the value can be decrypted.') END, E',\n            ' ORDER BY attnum) FILTER (WHERE NOT is_given) AS updated,
        string_agg(format('t.%1$s = OLD.%1$s', name), ' AND ' ORDER BY attnum) FILTER (WHERE in_key) AS found,
        format('(ROW(%s)::record OPERATOR(pg_catalog.*=) ROW(%s)::record OR envcrypt.written_here(t.xmin))',
            string_agg(CASE WHEN search IS NOT NULL THEN 't.' || name ELSE shown END, ', ' ORDER BY attnum) FILTER (WHERE NOT is_given),
            string_agg('OLD.' || CASE WHEN search IS NOT NULL THEN raw ELSE name END, ', ' ORDER BY attnum) FILTER (WHERE NOT is_given)) AS is_same,
        string_agg('NEW.' || coalesce(raw, name), ', ' ORDER BY attnum) FILTER (WHERE is_given OR search IS NOT NULL) AS returned,
        string_agg('t.' || name, ', ' ORDER BY attnum) FILTER (WHERE is_given OR search IS NOT NULL) AS returned_from,
        format('ROW(%s)::record OPERATOR(pg_catalog.*<>) ROW(%s)::record', string_agg('NEW.' || name, ', ' ORDER BY attnum) FILTER (WHERE is_given),
            string_agg('OLD.' || name, ', ' ORDER BY attnum) FILTER (WHERE is_given)) AS given_is_changed,
        format('ROW(%s)::record OPERATOR(pg_catalog.*<>) ROW(%s)::record', string_agg('NEW.' || raw, ', ' ORDER BY attnum) FILTER (WHERE raw IS NOT NULL),
            string_agg('OLD.' || raw, ', ' ORDER BY attnum) FILTER (WHERE raw IS NOT NULL)) AS raw_is_changed,
        string_agg(format('WHEN ROW(NEW.%1$s)::record OPERATOR(pg_catalog.*<>) ROW(OLD.%1$s)::record THEN %2$L', raw,
            format('column "%s" of the view cannot be written: write the plaintext to column "%s"', raw_name, attname)), E'\n                ' ORDER BY attnum)
            FILTER (WHERE raw IS NOT NULL) AS raw_messages,
        count(*) + count(raw) AS view_columns,
        string_agg(attname, ', ' ORDER BY attnum) FILTER (WHERE is_given) AS given_names,
        bool_or(is_plain) AS any_plain,
        bool_or(in_key AND is_plain) AS encrypted_key
    FROM written
), defaults AS (
    SELECT string_agg(format(E'ALTER VIEW %s ALTER %s SET DEFAULT %s;\n', rel.view, name,
            CASE WHEN NOT is_plain THEN default_
                WHEN is_plain_default THEN format('(%s)::%s', default_, type)
                ELSE format('envcrypt.decrypt_as((%s)::%s, NULL::%s)', default_, own_type, type) END), '' ORDER BY attnum) AS ddl
    FROM written, rel WHERE default_ IS NOT NULL
)
SELECT CASE
    WHEN base IS NULL THEN NULL
    WHEN NOT any_plain THEN envcrypt.raise_error('42809', format('table %s has no column that declares what it encrypts', base),
        'Declare encrypted(TYPE) for its columns.')
    WHEN found IS NULL OR encrypted_key THEN envcrypt.raise_error('42809', format('table %s has no primary key that is not encrypted', base),
        'The view writes by the primary key: add one.')
    WHEN tenant_column <> '' AND NOT EXISTS (SELECT FROM col WHERE attname = tenant_column) THEN
        envcrypt.raise_error('42703', format('table %s has no column "%s"', base, tenant_column), 'Name the column that holds the row''s tenant.')
    WHEN EXISTS (SELECT FROM col WHERE attname = tenant_column AND atttypid = 'envcrypt.encrypted'::regtype) THEN
        envcrypt.raise_error('42809', format('column "%s" of table %s is encrypted', tenant_column, base), 'The tenant decides which key decrypts: it must be readable.')
    WHEN unavailable NOT IN ('error', 'null') THEN envcrypt.raise_error('22023', format('invalid value for unavailable: "%s"', unavailable),
        'Give error, or null.')
    WHEN EXISTS (SELECT FROM col a JOIN col b ON a.attname = b.raw_name) THEN
        envcrypt.raise_error('42701', format('table %s has a column "%s" already', base, (SELECT a.attname FROM col a JOIN col b ON a.attname = b.raw_name LIMIT 1)),
            'The view needs this name for the ciphertext of a searchable column: rename the column.')
    WHEN EXISTS (SELECT FROM col a JOIN col b ON a.attnum < b.attnum AND a.raw_name = b.raw_name) THEN
        envcrypt.raise_error('42701', (SELECT format('columns "%s" and "%s" of table %s would share the name "%s" in the view', a.attname, b.attname, base, a.raw_name)
                FROM col a JOIN col b ON a.attnum < b.attnum AND a.raw_name = b.raw_name LIMIT 1),
            'The view needs a name for the ciphertext of each searchable column, which is cut to 63 bytes: rename one of the columns.')
    WHEN view_columns > 1600 THEN
        envcrypt.raise_error('54011', format('the view of table %s would have %s columns, and PostgreSQL allows 1600', base, view_columns),
            'It needs one column for each of the table and another for each that is searchable: write a view of fewer columns.')
    ELSE format($ddl$-- Plaintext to whoever may decrypt: the view runs as the caller. Write to its plaintext columns; the columns *_encrypted at the
-- end are there to be searched only: WHERE envcrypt.matches(..._encrypted, value). Who inserts needs the privileges of the
-- table, and USAGE on the sequences of its identity columns. A row that another transaction changed meanwhile is not written
-- over: 40001.
CREATE VIEW %1$s WITH (security_invoker = true) AS
    SELECT %2$s
    FROM %3$s t;
%4$sCREATE FUNCTION %5$s() RETURNS trigger LANGUAGE plpgsql AS %6$L;
CREATE TRIGGER write INSTEAD OF INSERT OR UPDATE OR DELETE ON %1$s
    FOR EACH ROW EXECUTE FUNCTION %5$s();
$ddl$, view, selected, base, defaults.ddl, function, format($body$
BEGIN
    IF NOT envcrypt.reads_table(TG_RELID, %9$L, %10$L) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'view "' || TG_TABLE_NAME || %11$L,
            DETAIL = 'The table was renamed after view_ddl() wrote the view: nothing is written.',
            HINT = 'Drop the view and the trigger''s function, run the DDL of view_ddl() for the renamed table, and rename the new view.';
    END IF;
%8$s    IF TG_OP = 'INSERT' THEN
        INSERT INTO %1$s AS t (%2$s) VALUES
            (%3$s)%4$s;
        RETURN NEW;
    ELSIF TG_OP = 'UPDATE' THEN
        UPDATE %1$s t SET
            %5$s
            WHERE %6$s
            AND %7$s%4$s;
    ELSE
        DELETE FROM %1$s t WHERE %6$s
            AND %7$s;
    END IF;
    IF FOUND THEN RETURN CASE TG_OP WHEN 'UPDATE' THEN NEW ELSE OLD END; END IF;
    IF EXISTS (SELECT FROM %1$s t WHERE %6$s AND NOT %7$s) THEN
        RAISE serialization_failure USING MESSAGE = 'the row was changed by another transaction', HINT = 'Repeat the transaction.';
    END IF;
    RETURN NULL;
END 
$body$, base, names, inserted, ' RETURNING ' || returned_from || ' INTO ' || returned, updated, found, is_same,
            -- OLD is NULL in an INSERT
            CASE WHEN given_names IS NOT NULL THEN format($check$    IF TG_OP <> 'DELETE' AND %1$s THEN
        RAISE generated_always USING MESSAGE = %2$L, HINT = 'Leave them out.';
    END IF;
$check$, given_is_changed, 'the table gives these columns their values itself: ' || given_names) ELSE '' END
            || CASE WHEN raw_messages IS NOT NULL THEN format($check$    IF TG_OP <> 'DELETE' AND %1$s THEN
        RAISE generated_always USING MESSAGE = CASE
                %2$s END,
            DETAIL = 'It shows the ciphertext, to be searched.', HINT = 'Name the columns of an INSERT, where SELECT * would give it a value.';
    END IF;
$check$, raw_is_changed, raw_messages) ELSE '' END, schema_name, table_name, format('" does not read table %s, to which its trigger writes', base)))
    END
FROM part LEFT JOIN rel ON true, defaults
$view_ddl$;
COMMENT ON FUNCTION envcrypt.view_ddl(regclass, name, text) IS
    'The DDL of a view TABLE_plain whose columns have the plaintext types, with triggers that encrypt what is written to it, by the tenant that tenant_column of the row names or else envcrypt.tenant. unavailable says what the view shows of a value that cannot be decrypted now, or is of another tenant than its row: error, or null. Run it; it is yours. Errors: 42809 no declared column or primary key, encrypted tenant_column, 42703 no tenant_column, 42701 names, 54011 too many columns, 22023 unavailable.';


---------------------------------------------------------------- guards
CREATE FUNCTION envcrypt.guard_command() RETURNS event_trigger
    AS 'MODULE_PATHNAME', 'envcrypt_guard_command' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.guard_command() IS
    'Refuses to drop the extension, or take it apart, while keys exist, and to rename a server that wraps keys.';
CREATE FUNCTION envcrypt.guard_servers() RETURNS event_trigger
    AS 'MODULE_PATHNAME', 'envcrypt_guard_servers' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.guard_servers() IS 'Refuses to drop a server that wraps keys.';
-- Whoever makes a table runs this: it names nothing of a schema that they may not use, and refuses nothing.
CREATE FUNCTION envcrypt.guard_unique() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_index record;
BEGIN
    FOR found_index IN SELECT DISTINCT i.indexrelid::regclass AS name, a.attname AS column
        FROM pg_event_trigger_ddl_commands() c
        JOIN pg_index i ON c.classid = 'pg_class'::regclass AND c.objid IN (i.indexrelid, i.indrelid) AND i.indisunique
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
        JOIN pg_type t ON t.oid = a.atttypid AND t.typname = 'encrypted'
        JOIN pg_namespace n ON n.oid = t.typnamespace AND n.nspname = 'envcrypt'
        -- no search mode among the declaration's bits
        WHERE a.atttypmod = -1 OR a.atttypmod >> 24 & 3 = 0
    LOOP
        RAISE WARNING USING MESSAGE = format('unique index %s enforces nothing', found_index.name),
            DETAIL = format('Column "%s" is not searchable, and two encryptions of one value differ.', found_index.column),
            HINT = 'Declare the column searchable, or leave the constraint out.';
    END LOOP;
END $$;
COMMENT ON FUNCTION envcrypt.guard_unique() IS 'Warns of unique indexes and keys on encrypted columns that are not searchable.';
CREATE EVENT TRIGGER envcrypt_guard_unique ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'CREATE INDEX', 'ALTER TABLE')
    EXECUTE FUNCTION envcrypt.guard_unique();
CREATE EVENT TRIGGER envcrypt_guard_command ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP SERVER', 'DROP OWNED', 'ALTER SERVER', 'ALTER EXTENSION', 'ALTER SCHEMA',
        'ALTER TABLE', 'ALTER INDEX', 'CREATE INDEX', 'CREATE TRIGGER')
    EXECUTE FUNCTION envcrypt.guard_command();
ALTER EVENT TRIGGER envcrypt_guard_command ENABLE ALWAYS;
CREATE EVENT TRIGGER envcrypt_guard_servers ON sql_drop EXECUTE FUNCTION envcrypt.guard_servers();
ALTER EVENT TRIGGER envcrypt_guard_servers ENABLE ALWAYS;

---------------------------------------------------------------- privileges
CREATE FUNCTION envcrypt.right_of(classid oid, objid oid) RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_right_of' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION envcrypt.right_of(oid, oid) IS
    'The right with which grant_access() gives a function, view or schema of the extension: encrypt, decrypt, search, manage, or any (each of them); NULL where none gives it. Needs the right manage.';
CREATE VIEW envcrypt.grants AS
    WITH member(classid, objid) AS (
        SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
            WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'e' AND e.extname OPERATOR(pg_catalog.=) 'envcrypt'
    ), object(classid, objid, name, part, owner, acl) AS (
        SELECT m.classid, m.objid, pg_catalog.format('TABLE envcrypt.%I', c.relname), '', c.relowner, coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))
            FROM member m JOIN pg_catalog.pg_class c ON m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            AND c.oid OPERATOR(pg_catalog.=) m.objid
        UNION ALL SELECT m.classid, m.objid, pg_catalog.format('TABLE envcrypt.%I', c.relname), pg_catalog.format(' (%I)', a.attname), c.relowner, a.attacl
            FROM member m JOIN pg_catalog.pg_class c ON m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            AND c.oid OPERATOR(pg_catalog.=) m.objid JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
        UNION ALL SELECT m.classid, m.objid, pg_catalog.format('ROUTINE envcrypt.%I(%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), '',
                p.proowner, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
            FROM member m JOIN pg_catalog.pg_proc p ON m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND p.oid OPERATOR(pg_catalog.=) m.objid
        UNION ALL SELECT m.classid, m.objid, pg_catalog.format('TYPE envcrypt.%I', t.typname), '', t.typowner, coalesce(t.typacl, pg_catalog.acldefault('T', t.typowner))
            FROM member m JOIN pg_catalog.pg_type t ON m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_type'::pg_catalog.regclass
            AND t.oid OPERATOR(pg_catalog.=) m.objid AND t.typtype OPERATOR(pg_catalog.=) 'b' AND t.typelem OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        UNION ALL SELECT m.classid, m.objid, pg_catalog.format('FOREIGN DATA WRAPPER %I', f.fdwname), '', f.fdwowner, coalesce(f.fdwacl, pg_catalog.acldefault('F', f.fdwowner))
            FROM member m JOIN pg_catalog.pg_foreign_data_wrapper f ON m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass
            AND f.oid OPERATOR(pg_catalog.=) m.objid
        UNION ALL SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass, n.oid, 'SCHEMA envcrypt', '', n.nspowner, coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))
            FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'envcrypt'
    ), known AS (
        SELECT o.*, envcrypt.right_of(o.classid, o.objid) AS needed FROM object o
    ), granted AS (
        SELECT k.*, a.grantee, a.grantor, a.privilege_type, a.is_grantable,
            CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'public'
                ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS grantee_name
        FROM known k CROSS JOIN LATERAL pg_catalog.aclexplode(k.acl) a WHERE a.grantee OPERATOR(pg_catalog.<>) k.owner
    ), held(grantee, needed) AS (
        -- who may call all functions of a right
        SELECT g.grantee, g.needed FROM granted g WHERE g.privilege_type OPERATOR(pg_catalog.=) 'EXECUTE' AND g.needed OPERATOR(pg_catalog.<>) 'any'
            GROUP BY g.grantee, g.needed HAVING pg_catalog.count(DISTINCT g.objid) OPERATOR(pg_catalog.=) (SELECT pg_catalog.count(*) FROM known k
                WHERE k.needed OPERATOR(pg_catalog.=) g.needed AND k.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass)
    ), judged AS (
        SELECT g.*, CASE WHEN g.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid
                THEN EXISTS (SELECT FROM pg_catalog.pg_init_privs i CROSS JOIN LATERAL pg_catalog.aclexplode(i.initprivs) a
                    WHERE i.classoid OPERATOR(pg_catalog.=) g.classid AND i.objoid OPERATOR(pg_catalog.=) g.objid AND i.objsubid OPERATOR(pg_catalog.=) 0
                    AND a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND a.privilege_type OPERATOR(pg_catalog.=) g.privilege_type)
                ELSE g.privilege_type OPERATOR(pg_catalog.=) CASE WHEN g.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass THEN 'EXECUTE'
                        WHEN g.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass THEN 'SELECT' ELSE 'USAGE' END
                    AND EXISTS (SELECT FROM held h WHERE h.grantee OPERATOR(pg_catalog.=) g.grantee
                        AND (h.needed OPERATOR(pg_catalog.=) g.needed OR g.needed OPERATOR(pg_catalog.=) 'any'))
            END AND g.part OPERATOR(pg_catalog.=) '' AS is_given
        FROM granted g
    )
    SELECT j.name AS object, j.grantee_name AS grantee, pg_catalog.concat(j.privilege_type, j.part) AS privilege, j.is_grantable AS grantable,
        pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(j.grantor)) AS grantor, j.needed AS "right", j.is_given AND NOT j.is_grantable AS expected,
        pg_catalog.format('REVOKE %s%s%s ON %s FROM %s CASCADE', CASE WHEN j.is_given THEN 'GRANT OPTION FOR ' END, j.privilege_type, j.part, j.name, j.grantee_name) AS revoke
    FROM judged j;
COMMENT ON VIEW envcrypt.grants IS
    'Every privilege on the extension''s objects that another than their owner has, and whether it is expected: given by CREATE EXTENSION, or by grant_access() with a right that the role holds, and not to be passed on. right is the one that goes with the object (any: each). revoke is the statement that takes back what is not expected. Names are written as in GRANT.';

-- Default privileges of the role that creates the extension may have added to the privileges of what was made above, or taken
-- from them. So all are taken back here, and PUBLIC is given what it needs: to compare values, to cast them, to ask who it is.
DO $$
DECLARE
    given record;
    name text;
BEGIN
    FOR given IN SELECT DISTINCT g.object, g.grantee FROM envcrypt.grants g LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', given.object, given.grantee);
    END LOOP;
    FOREACH name IN ARRAY '{encrypted,probe}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format('GRANT USAGE ON TYPE envcrypt.%I TO PUBLIC', name);
    END LOOP;
    FOR given IN SELECT p.oid::pg_catalog.regprocedure AS function FROM pg_catalog.pg_proc p
        WHERE p.pronamespace OPERATOR(pg_catalog.=) 'envcrypt'::pg_catalog.regnamespace
        AND (p.oid OPERATOR(pg_catalog.=) 'envcrypt.encrypted(envcrypt.encrypted, integer, boolean)'::pg_catalog.regprocedure
            OR p.proname OPERATOR(pg_catalog.=) ANY ('{
                encrypted_in,encrypted_out,encrypted_recv,encrypted_send,encrypted_typmod_in,encrypted_typmod_out,
                probe_in,probe_out,probe_recv,probe_send,probe_eqsel,probe_neqsel,probe_eqjoinsel,
                encrypted_lt,encrypted_le,encrypted_eq,encrypted_ne,encrypted_ge,encrypted_gt,encrypted_cmp,encrypted_hash,
                vault_validator,aws_validator,gcp_validator,azure_validator,local_validator,
                guard_command,guard_servers,guard_unique,
                current_tenant,declaration,forget_keys,raise_error,reads_table,view_ddl,written_here}'::pg_catalog.name[]))
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', given.function);
    END LOOP;
END $$;
