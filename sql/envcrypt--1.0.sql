\echo Use "CREATE EXTENSION envcrypt" to load this file. \quit

-- Everything here lies in the schema envcrypt. What touches keys is nobody's until grant_access() says so.

-- Whoever owned the schema could put functions into it that stand before ours.
DO $$
BEGIN
    IF (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'envcrypt')
            OPERATOR(pg_catalog.<>) (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
        RAISE EXCEPTION 'schema envcrypt belongs to another role'
            USING HINT = 'Drop it, or give it to the role that creates the extension.';
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
    created_at         timestamptz NOT NULL,
    PRIMARY KEY (key_id, server, group_key)
);
COMMENT ON TABLE envcrypt.wrapped_key IS
    'Each key wrapped, once for each place: the KMS server or the group key that wraps it, and the master key and version that the KMS named.';

REVOKE ALL ON envcrypt.tenant, envcrypt.data_key, envcrypt.wrapped_key FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('envcrypt.tenant', '');
SELECT pg_catalog.pg_extension_config_dump('envcrypt.data_key', '');
SELECT pg_catalog.pg_extension_config_dump('envcrypt.wrapped_key', '');

-- Changes by DML, restore and logical apply reach every backend's cache: row triggers, since apply fires no others.
CREATE FUNCTION envcrypt.keys_changed() RETURNS trigger
    AS 'MODULE_PATHNAME', 'envcrypt_keys_changed' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.keys_changed() IS 'Tells every backend, at commit, that keys have changed.';
REVOKE ALL ON FUNCTION envcrypt.keys_changed() FROM PUBLIC;

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
    'OpenBao or HashiCorp Vault, transit engine, derived keys. Server options: endpoint, master_key, mount, namespace, ca_file, proxy, client_cert_file, client_key_file. User mapping options: auth (token, approle, kubernetes, jwt, cert), auth_mount, token, role_id, secret_id, role, jwt.';
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
    'A value encrypted with AES-256-GCM (NIST SP 800-38D) under its tenant''s data key; declared encrypted(text) or encrypted(bytea). Its text form is ec1: and base64 (RFC 4648): never plaintext. Overhead 42 bytes; at most 500 MiB of plaintext. Format: doc/format.md.';
COMMENT ON FUNCTION envcrypt.encrypted_in(cstring, oid, integer) IS 'Input: an encrypted value in its text form, never plaintext. Errors: 22P02.';
COMMENT ON FUNCTION envcrypt.encrypted_out(envcrypt.encrypted) IS 'Output: ec1: and base64.';
COMMENT ON FUNCTION envcrypt.encrypted_recv(internal, oid, integer) IS 'Binary input: the bytes of an encrypted value. Errors: 22P03.';
COMMENT ON FUNCTION envcrypt.encrypted_send(envcrypt.encrypted) IS 'Binary output: the bytes of the encrypted value.';
COMMENT ON FUNCTION envcrypt.encrypted_typmod_in(cstring[]) IS 'Reads a declaration such as (text).';
COMMENT ON FUNCTION envcrypt.encrypted_typmod_out(integer) IS 'Shows a declaration such as (text).';

CREATE FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_coerce' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean) IS
    'Lets a value into a column of this declaration, or raises 22000.';
CREATE CAST (envcrypt.encrypted AS envcrypt.encrypted)
    WITH FUNCTION envcrypt.encrypted(envcrypt.encrypted, integer, boolean) AS IMPLICIT;

---------------------------------------------------------------- into the type
-- STABLE, although each result is another: within a statement they are equal in what they decrypt to, and PostgreSQL still
-- calls for each row. The defaults of typmod and explicit are for callers that know only the value (Citus).
CREATE FUNCTION envcrypt.encrypted(text, integer DEFAULT -1, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_cast_from_text' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted(varchar, integer DEFAULT -1, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_cast_from_text' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted(bpchar, integer DEFAULT -1, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_cast_from_bpchar' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypted(bytea, integer DEFAULT -1, boolean DEFAULT false) RETURNS envcrypt.encrypted
    AS 'MODULE_PATHNAME', 'envcrypt_cast_from_bytea' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE CAST (text AS envcrypt.encrypted) WITH FUNCTION envcrypt.encrypted(text, integer, boolean) AS ASSIGNMENT;
CREATE CAST (varchar AS envcrypt.encrypted) WITH FUNCTION envcrypt.encrypted(varchar, integer, boolean) AS ASSIGNMENT;
CREATE CAST (bpchar AS envcrypt.encrypted) WITH FUNCTION envcrypt.encrypted(bpchar, integer, boolean) AS ASSIGNMENT;
CREATE CAST (bytea AS envcrypt.encrypted) WITH FUNCTION envcrypt.encrypted(bytea, integer, boolean) AS ASSIGNMENT;
COMMENT ON FUNCTION envcrypt.encrypted(text, integer, boolean) IS
    'The assignment cast: encrypts under the newest key of the tenant that envcrypt.tenant names. Needs the right encrypt. May ask the KMS.';
COMMENT ON FUNCTION envcrypt.encrypted(varchar, integer, boolean) IS 'As for text.';
COMMENT ON FUNCTION envcrypt.encrypted(bpchar, integer, boolean) IS 'As for text, without trailing blanks.';
COMMENT ON FUNCTION envcrypt.encrypted(bytea, integer, boolean) IS 'As for text, as a value of type bytea.';

CREATE FUNCTION envcrypt.encrypt(value text, tenant text DEFAULT '', associated_data text DEFAULT '')
    RETURNS envcrypt.encrypted AS 'MODULE_PATHNAME', 'envcrypt_encrypt_text' LANGUAGE C STABLE PARALLEL SAFE;
CREATE FUNCTION envcrypt.encrypt(value bytea, tenant text DEFAULT '', associated_data text DEFAULT '')
    RETURNS envcrypt.encrypted AS 'MODULE_PATHNAME', 'envcrypt_encrypt_bytea' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.encrypt(text, text, text) IS
    'Encrypts a text of at most 500 MiB under the newest committed key of the tenant ('''': that of envcrypt.tenant), bound to the associated data where given. NULL gives NULL; a NULL option raises 22004. Needs the right encrypt, USAGE on the KMS server and a user mapping there. May ask the KMS. Errors: 42704 no tenant, 42501 no right or denied, 55000 out of use, 08006 unreachable, 53400 throttled, HV000 misconfigured, 54000 too long.';
COMMENT ON FUNCTION envcrypt.encrypt(bytea, text, text) IS 'As encrypt(text), as a value of type bytea.';

---------------------------------------------------------------- out of the type
CREATE FUNCTION envcrypt.decrypt(value envcrypt.encrypted, associated_data text DEFAULT '') RETURNS text
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.decrypt(envcrypt.encrypted, text) IS
    'The plaintext in its type''s text form. associated_data must be what the value was encrypted with, and be left out where it was not. NULL gives NULL. Needs the right decrypt, USAGE on the KMS server and a user mapping there. May ask the KMS. Errors: 22000 altered or bound to something else, 42704 no such key, 42501 no right or denied, 55000 out of use, 08006 unreachable, 53400 throttled, 08P01 and HV000 the KMS, XX001 corrupt key.';
CREATE FUNCTION envcrypt.bytea(envcrypt.encrypted) RETURNS bytea
    AS 'MODULE_PATHNAME', 'envcrypt_cast_to_bytea' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.bytea(envcrypt.encrypted) IS
    'The explicit cast: the plaintext of a value of type bytea, as decrypt() with its rights and errors.';
CREATE CAST (envcrypt.encrypted AS bytea) WITH FUNCTION envcrypt.bytea(envcrypt.encrypted);

CREATE FUNCTION envcrypt.inspect(value envcrypt.encrypted,
        OUT format integer, OUT algorithm text, OUT key_id text, OUT tenant text, OUT key_version integer,
        OUT type text, OUT label text, OUT search text, OUT bound boolean, OUT plaintext_bytes bigint)
    AS 'MODULE_PATHNAME', 'envcrypt_inspect' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION envcrypt.inspect(envcrypt.encrypted) IS
    'What can be read of a value without its key. tenant and key_version are NULL where the key is not in this database; bound says whether associated data is needed.';

REVOKE ALL ON FUNCTION
    envcrypt.encrypted(text, integer, boolean), envcrypt.encrypted(varchar, integer, boolean),
    envcrypt.encrypted(bpchar, integer, boolean), envcrypt.encrypted(bytea, integer, boolean),
    envcrypt.encrypt(text, text, text), envcrypt.encrypt(bytea, text, text),
    envcrypt.decrypt(envcrypt.encrypted, text), envcrypt.bytea(envcrypt.encrypted),
    envcrypt.inspect(envcrypt.encrypted)
    FROM PUBLIC;

---------------------------------------------------------------- administration
CREATE FUNCTION envcrypt.grant_access(role regrole, rights text[]) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_grant_access' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.grant_access(regrole, text[]) IS
    'Gives a role rights (encrypt, decrypt, search, manage) by GRANT. Superusers only. The role also needs USAGE on the KMS server and a user mapping there.';
CREATE FUNCTION envcrypt.revoke_access(role regrole, rights text[]) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_revoke_access' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.revoke_access(regrole, text[]) IS 'Takes rights back from a role by REVOKE. Superusers only.';

CREATE FUNCTION envcrypt.check_server(server text,
        OUT ok boolean, OUT milliseconds double precision, OUT identity text, OUT master_key text,
        OUT master_key_version text, OUT sqlstate text, OUT error text, OUT hint text)
    AS 'MODULE_PATHNAME', 'envcrypt_check_server' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.check_server(text) IS
    'Has the KMS wrap a key that is thrown away and unwrap it again, proves that it refuses another context, and says how long all of that took, as whom, under which master key; or the error. Needs the right manage. Asks the KMS.';

CREATE FUNCTION envcrypt.create_tenant(name text, server text, master_key text DEFAULT '') RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_create_tenant' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.create_tenant(text, text, text) IS
    'Makes a tenant and its first data key, wrapped by the server''s master key or by the tenant''s own in that KMS. The name matches [A-Za-z0-9._:@/+=-]{1,128}, appears in the KMS''s log and is never used again. Needs the right manage. Asks the KMS. Errors: 42710 exists, 42602 name, and those of the KMS.';

---------------------------------------------------------------- an identity that a session brings
CREATE FUNCTION envcrypt.set_credential(server text, credential jsonb, session boolean DEFAULT false) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_set_credential' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.set_credential(text, jsonb, boolean) IS
    'Has this session use an identity of its own at the server, in place of the role''s user mapping: an object of the mapping''s option names, with the contents of secrets and files in place of references and paths. Until the end of the transaction, or of the session; for the current role. Never stored; pass it as a parameter, since PostgreSQL may log statements. Needs USAGE on the server and any right. Errors: HV000 options.';
REVOKE ALL ON FUNCTION envcrypt.set_credential(text, jsonb, boolean) FROM PUBLIC;
CREATE FUNCTION envcrypt.clear_credential(server text) RETURNS void
    AS 'MODULE_PATHNAME', 'envcrypt_clear_credential' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.clear_credential(text) IS
    'Forgets what set_credential() brought for the server, and every key that was opened with it.';
REVOKE ALL ON FUNCTION envcrypt.clear_credential(text) FROM PUBLIC;

---------------------------------------------------------------- the article's own format
CREATE FUNCTION envcrypt.encrypt_envelope(server text, plaintext text,
        OUT encrypted_dek bytea, OUT nonce bytea, OUT ciphertext bytea)
    AS 'MODULE_PATHNAME', 'envcrypt_encrypt_envelope_text' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.encrypt_envelope(text, text) IS
    'One value under a data key of its own, as boto3''s generate_data_key(KeySpec=''AES_256'') and AESGCM(key).encrypt(nonce, plaintext, None) of Python make it: the wrapped key, a nonce of 12 bytes, ciphertext and 16-byte tag. Bound to no tenant. At most 500 MiB. Asks the KMS at each call. Needs the right encrypt.';
REVOKE ALL ON FUNCTION envcrypt.encrypt_envelope(text, text) FROM PUBLIC;
CREATE FUNCTION envcrypt.encrypt_envelope(server text, plaintext bytea,
        OUT encrypted_dek bytea, OUT nonce bytea, OUT ciphertext bytea)
    AS 'MODULE_PATHNAME', 'envcrypt_encrypt_envelope_bytea' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.encrypt_envelope(text, bytea) IS
    'One value under a data key of its own, as boto3''s generate_data_key(KeySpec=''AES_256'') and AESGCM(key).encrypt(nonce, plaintext, None) of Python make it: the wrapped key, a nonce of 12 bytes, ciphertext and 16-byte tag. Bound to no tenant. At most 500 MiB. Asks the KMS at each call. Needs the right encrypt.';
REVOKE ALL ON FUNCTION envcrypt.encrypt_envelope(text, bytea) FROM PUBLIC;
CREATE FUNCTION envcrypt.decrypt_envelope(server text, encrypted_dek bytea, nonce bytea, ciphertext bytea) RETURNS bytea
    AS 'MODULE_PATHNAME', 'envcrypt_decrypt_envelope' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.decrypt_envelope(text, bytea, bytea, bytea) IS
    'The plaintext of an envelope, whoever made it. Asks the KMS at each call. Needs the right decrypt. Errors: 22023 lengths, XX001 no key of this master key, 22000 the tag does not fit.';
REVOKE ALL ON FUNCTION envcrypt.decrypt_envelope(text, bytea, bytea, bytea) FROM PUBLIC;

CREATE FUNCTION envcrypt.load_keys(VARIADIC tenants text[]) RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_load_keys' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION envcrypt.load_keys(text[]) IS
    'Opens the data keys of all these tenants in this session, with up to envcrypt.kms_concurrency calls to the KMSs under way (OpenBao and Vault: 128 keys a call), and returns how many keys are open then. What others had opened by then stays open where one fails, but not what a denied identity opened. Errors: 42704 no such tenant, 42501 denied, 08006 unreachable, 55000 disabled, XX001 corrupt.';
REVOKE ALL ON FUNCTION envcrypt.load_keys(text[]) FROM PUBLIC;
CREATE FUNCTION envcrypt.forget_keys() RETURNS integer
    AS 'MODULE_PATHNAME', 'envcrypt_forget_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.forget_keys() IS
    'Wipes this session''s open keys and credentials; returns how many keys there were.';

CREATE FUNCTION envcrypt.cached_keys(OUT key_id text, OUT tenant text, OUT server text, OUT open_for interval,
        OUT expires_in interval) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'envcrypt_cached_keys' LANGUAGE C STRICT;
COMMENT ON FUNCTION envcrypt.cached_keys() IS 'The rows of the view cache.';
CREATE VIEW envcrypt.cache AS SELECT * FROM envcrypt.cached_keys();
COMMENT ON VIEW envcrypt.cache IS
    'The keys that this session holds unwrapped, since when, and for how long before the KMS is asked again.';

REVOKE ALL ON FUNCTION
    envcrypt.grant_access(regrole, text[]), envcrypt.revoke_access(regrole, text[]),
    envcrypt.check_server(text), envcrypt.create_tenant(text, text, text), envcrypt.cached_keys()
    FROM PUBLIC;
REVOKE ALL ON envcrypt.cache FROM PUBLIC;

---------------------------------------------------------------- guards
CREATE FUNCTION envcrypt.guard_command() RETURNS event_trigger
    AS 'MODULE_PATHNAME', 'envcrypt_guard_command' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.guard_command() IS
    'Refuses to drop the extension, or take it apart, while keys exist, and to rename a server that wraps keys.';
CREATE FUNCTION envcrypt.guard_servers() RETURNS event_trigger
    AS 'MODULE_PATHNAME', 'envcrypt_guard_servers' LANGUAGE C;
COMMENT ON FUNCTION envcrypt.guard_servers() IS 'Refuses to drop a server that wraps keys.';
CREATE EVENT TRIGGER envcrypt_guard_command ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED', 'ALTER SERVER', 'ALTER EXTENSION', 'ALTER SCHEMA',
        'ALTER TABLE', 'ALTER INDEX')
    EXECUTE FUNCTION envcrypt.guard_command();
ALTER EVENT TRIGGER envcrypt_guard_command ENABLE ALWAYS;
CREATE EVENT TRIGGER envcrypt_guard_servers ON sql_drop EXECUTE FUNCTION envcrypt.guard_servers();
ALTER EVENT TRIGGER envcrypt_guard_servers ENABLE ALWAYS;
