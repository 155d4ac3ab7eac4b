-- Who may do what: rights, servers, mappings; SET ROLE reaches nobody else's keys.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SET client_min_messages = error;
DROP ROLE IF EXISTS regress_app, regress_reader, regress_boss, "regress Strange";
RESET client_min_messages;
CREATE ROLE regress_app; CREATE ROLE regress_reader; CREATE ROLE regress_boss; CREATE ROLE "regress Strange";
CREATE TABLE t (a envcrypt.encrypted(text));
INSERT INTO t VALUES ('secret'::text);
GRANT SELECT, INSERT ON t TO PUBLIC;
GRANT EXECUTE ON FUNCTION error_of(text) TO PUBLIC;

-- nothing that touches keys is PUBLIC's
SELECT p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'envcrypt'::regnamespace
    AND has_function_privilege('regress_app', p.oid, 'EXECUTE') ORDER BY oid::regprocedure::text;
SELECT relname FROM pg_class WHERE relnamespace = 'envcrypt'::regnamespace AND relkind IN ('r', 'v') AND has_table_privilege('regress_app', oid, 'SELECT');
SET ROLE regress_app;
SELECT a::text ~ '^ec1:' FROM t;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;

-- the right alone is not enough: USAGE on the server, then a mapping
SELECT envcrypt.grant_access('regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER kms TO regress_app;
SET ROLE regress_app;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;
CREATE USER MAPPING FOR regress_app SERVER kms;
SET ROLE regress_app;
SELECT envcrypt.decrypt(a) FROM t;
INSERT INTO t VALUES ('by app'::text);
SELECT envcrypt.decrypt(a) FROM t;
SELECT error_of($$SELECT envcrypt.create_tenant('x', 'kms')$$);
SELECT error_of($$SELECT envcrypt.grant_access('regress_app', '{manage}')$$);
SELECT error_of('SELECT * FROM envcrypt.wrapped_key');
-- another role in the same session has nothing of it
SET ROLE regress_reader;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;
SELECT envcrypt.grant_access('regress_reader', '{decrypt}');
GRANT USAGE ON FOREIGN SERVER kms TO regress_reader;
SET ROLE regress_reader;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;
CREATE USER MAPPING FOR PUBLIC SERVER kms;
SET ROLE regress_reader;
SELECT count(envcrypt.decrypt(a)) FROM t;
SELECT error_of($$INSERT INTO t VALUES ('x'::text)$$);
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
SELECT tenant FROM envcrypt.inspect((SELECT a FROM t LIMIT 1));
RESET ROLE;
-- each has an entry of its own in the cache
SELECT count(*) AS entries, count(DISTINCT key_id) AS keys FROM envcrypt.cache;

-- what is taken away is gone at the next statement, cached or not
DROP USER MAPPING FOR PUBLIC SERVER kms;
SET ROLE regress_reader;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
SET ROLE regress_app;
SELECT count(envcrypt.decrypt(a)) FROM t;
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER kms FROM regress_app;
SET ROLE regress_app;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER kms TO regress_app;
SELECT envcrypt.revoke_access('regress_app', '{decrypt}');
SET ROLE regress_app;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
SELECT envcrypt.encrypt('x') IS NOT NULL;
RESET ROLE;
SELECT envcrypt.revoke_access('regress_app', '{encrypt}');
SELECT has_schema_privilege('regress_app', 'envcrypt', 'USAGE');
-- rights come by membership, and go with it
GRANT regress_reader TO regress_app;
CREATE USER MAPPING FOR regress_reader SERVER kms;
SET ROLE regress_app;
SELECT count(envcrypt.decrypt(a)) FROM t;
RESET ROLE;
REVOKE regress_reader FROM regress_app;
SET ROLE regress_app;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;

-- nor do they linger in an expression that was prepared as another role, in an open cursor, or in an aggregate
CREATE FUNCTION kept(v envcrypt.encrypted) RETURNS text LANGUAGE plpgsql AS $$ DECLARE x text; BEGIN x := envcrypt.decrypt(v); RETURN x; END $$;
SELECT envcrypt.grant_access('regress_app', '{encrypt}');
BEGIN;
SET ROLE regress_reader;
SELECT kept(a) FROM t LIMIT 1;
SET ROLE regress_app;
SELECT error_of('SELECT kept(a) FROM t LIMIT 1');
SET ROLE regress_reader;
DECLARE c CURSOR FOR SELECT envcrypt.decrypt(a) FROM t;
FETCH c;
SET ROLE regress_app;
SELECT error_of('FETCH c');
ROLLBACK;
DROP FUNCTION kept;
-- SECURITY DEFINER uses the owner's keys, by design
CREATE FUNCTION read_all() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(envcrypt.decrypt(a)) FROM t';
SET ROLE regress_boss;
SELECT read_all();
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
RESET ROLE;

-- a manager makes tenants without being a superuser
SELECT envcrypt.grant_access('regress_boss', '{manage}');
GRANT USAGE ON FOREIGN SERVER kms TO regress_boss;
CREATE USER MAPPING FOR regress_boss SERVER kms;
SET ROLE regress_boss;
SELECT envcrypt.create_tenant('boss', 'kms');
SELECT ok, identity, sqlstate FROM envcrypt.check_server('kms');
SELECT count(*) FROM envcrypt.cache;
SELECT error_of($$SELECT envcrypt.encrypt('x', 'boss')$$);
RESET ROLE;
SELECT tenant, purpose, version, state, suite, length(commitment) FROM envcrypt.data_key ORDER BY tenant;
SELECT k.tenant, w.server, w.master_key, length(w.wrapped) FROM envcrypt.wrapped_key w JOIN envcrypt.data_key k USING (key_id) ORDER BY 1;

-- a view runs nothing as its owner but the reading of tables: not the decrypting
CREATE VIEW seen AS SELECT envcrypt.decrypt(a) FROM t;
GRANT SELECT ON seen TO regress_boss, regress_reader;
SET ROLE regress_boss;
SELECT error_of('SELECT * FROM seen');
SET ROLE regress_reader;
SELECT count(*) FROM seen;
RESET ROLE;
-- nor does a policy that decrypts, which is the reader's
CREATE TABLE guarded (a envcrypt.encrypted(text), n int);
INSERT INTO guarded VALUES ('yours'::text, 1), ('another''s'::text, 2);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON guarded USING (envcrypt.decrypt(a) = 'yours');
GRANT SELECT ON guarded TO regress_boss, regress_reader;
SET ROLE regress_boss;
SELECT error_of('SELECT n FROM guarded');
SET ROLE regress_reader;
SELECT n, envcrypt.decrypt(a) FROM guarded;
RESET ROLE;
DROP TABLE guarded;
-- one prepared statement in turns
PREPARE p AS SELECT count(envcrypt.decrypt(a)) FROM t;
EXECUTE p;
SET ROLE regress_boss;
SELECT error_of('EXECUTE p');
SET ROLE regress_reader;
EXECUTE p;
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER kms FROM regress_reader;
SET ROLE regress_reader;
SELECT error_of('EXECUTE p');
RESET ROLE;
EXECUTE p;
GRANT USAGE ON FOREIGN SERVER kms TO regress_reader;
-- a role that is a superuser has every right, but no identity without a mapping
CREATE ROLE regress_dba SUPERUSER;
SET ROLE regress_dba;
SELECT error_of('SELECT envcrypt.decrypt(a) FROM t');
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
RESET ROLE;
DROP ROLE regress_dba;

-- what each right gives, alone
CREATE ROLE regress_right;
CREATE FUNCTION allowed() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT p.oid::regprocedure::text FROM pg_proc p WHERE pronamespace = 'envcrypt'::regnamespace
        AND has_function_privilege('regress_right', p.oid, 'EXECUTE') AND NOT has_function_privilege('pg_monitor', p.oid, 'EXECUTE') ORDER BY 1 $$;
DO $$
DECLARE given text; function text;
BEGIN
    FOREACH given IN ARRAY '{encrypt,decrypt,search,manage}'::text[] LOOP
        PERFORM envcrypt.grant_access('regress_right', ARRAY[given]);
        RAISE NOTICE '% (schema: %, cache: %)', given, has_schema_privilege('regress_right', 'envcrypt', 'USAGE'), has_table_privilege('regress_right', 'envcrypt.cache', 'SELECT');
        FOR function IN SELECT allowed() LOOP RAISE NOTICE '    %', function; END LOOP;
        PERFORM envcrypt.revoke_access('regress_right', ARRAY[given]);
        RAISE NOTICE '    revoked: %', ARRAY(SELECT allowed());
    END LOOP;
END $$;
-- twice is once; one taken back leaves the other
SELECT envcrypt.grant_access('regress_right', '{decrypt,decrypt}'), envcrypt.grant_access('regress_right', '{decrypt,encrypt}');
SELECT envcrypt.revoke_access('regress_right', '{encrypt}');
SELECT allowed();
SELECT has_schema_privilege('regress_right', 'envcrypt', 'USAGE');
SELECT envcrypt.revoke_access('regress_right', '{encrypt,manage}');
SELECT allowed();
SELECT envcrypt.revoke_access('regress_right', '{decrypt}'), envcrypt.revoke_access('regress_right', '{decrypt}');
SELECT allowed();
SELECT count(*) FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = 'regress_right'::regrole AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database());
DROP ROLE regress_right;
DROP FUNCTION allowed;

-- bad calls
SET ROLE regress_reader;
SELECT error_of($$SELECT envcrypt.revoke_access('regress_reader', '{decrypt}')$$);
RESET ROLE;
SELECT envcrypt.grant_access(NULL, '{decrypt}') IS NULL AS nothing, envcrypt.grant_access('regress_reader', NULL) IS NULL AS neither;
SELECT error_of($$SELECT envcrypt.grant_access('regress_app', '{decrypt,read}')$$);
SELECT has_function_privilege('regress_app', 'envcrypt.decrypt(envcrypt.encrypted, text)', 'EXECUTE') AS "granted in part";
SELECT error_of($$SELECT envcrypt.grant_access('regress_app', '{read}')$$);
SELECT error_of($$SELECT envcrypt.grant_access('regress_app', '{}')$$);
SELECT error_of($$SELECT envcrypt.grant_access('regress_app', '{NULL}')$$);
SELECT error_of($$SELECT envcrypt.grant_access('regress_nobody', '{encrypt}')$$);
SELECT envcrypt.grant_access('"regress Strange"', '{encrypt,decrypt,search,manage}');
SELECT has_function_privilege('regress Strange', 'envcrypt.decrypt(envcrypt.encrypted, text)', 'EXECUTE');
SELECT envcrypt.revoke_access('"regress Strange"', '{encrypt,decrypt,search,manage}');
SELECT count(*) FROM pg_proc, aclexplode(proacl) a WHERE a.grantee = '"regress Strange"'::regrole;

DROP VIEW seen;
DROP TABLE t;
DROP FUNCTION read_all();
\set ECHO none
\i :teardown
DROP ROLE regress_app, regress_reader, regress_boss, "regress Strange";
