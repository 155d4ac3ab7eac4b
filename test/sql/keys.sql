-- Tenants and their keys: made, cached, forgotten, changed behind the scenes, and what transactions do to them.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
-- names
SELECT name, split_part(error_of(format('SELECT envcrypt.create_tenant(%L, %L)', name, 'kms')), E'\n', 1) FROM unnest(ARRAY[
    '', ' ', 'a b', 'ä', 'a''b', 'acme', 'ACME', 'patient:42', 'a@b/c+d=e-f_g.h']) name;
SELECT error_of(format('SELECT envcrypt.create_tenant(%L, %L)', repeat('x', 128), 'kms')), split_part(error_of(format('SELECT envcrypt.create_tenant(%L, %L)', repeat('x', 129), 'kms')), E'\n', 1);
SELECT error_of($$SELECT envcrypt.create_tenant('acme', 'kms')$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'nowhere')$$);
SELECT error_of($$SELECT envcrypt.create_tenant(NULL, 'kms')$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', NULL)$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms', 'own')$$);
SELECT count(*) FROM envcrypt.tenant WHERE name = 'new';
-- no two keys alike
SELECT count(DISTINCT key_id) = count(*) AS ids, count(DISTINCT commitment) = count(*) AS commitments FROM envcrypt.data_key;
SELECT count(DISTINCT wrapped) = count(*) AS wrapped FROM envcrypt.wrapped_key;

-- the cache
SELECT envcrypt.forget_keys() >= 0, envcrypt.forget_keys();
SELECT envcrypt.encrypt('x') IS NOT NULL, envcrypt.encrypt('x', 'other') IS NOT NULL;
SELECT tenant, server, open_for >= '0' AS open, expires_in BETWEEN interval '4 min' AND interval '5 min' AS expires FROM envcrypt.cache ORDER BY 1;
SELECT envcrypt.forget_keys();
SET envcrypt.cache_size = 1;
SELECT envcrypt.encrypt('x') IS NOT NULL, envcrypt.encrypt('x', 'other') IS NOT NULL;
SELECT count(*) FROM envcrypt.cache;
SELECT bool_and(envcrypt.decrypt(envcrypt.encrypt(n::text, CASE n % 2 WHEN 0 THEN 'acme' ELSE 'other' END)) = n::text) FROM generate_series(1, 100) n;
RESET envcrypt.cache_size;
SET envcrypt.cache_ttl = '1s';
SELECT envcrypt.forget_keys() > 0;
SELECT envcrypt.encrypt('x') IS NOT NULL;
DO $$
BEGIN
    FOR i IN 1..200 LOOP
        EXIT WHEN (SELECT count(*) FROM envcrypt.cache) = 0;
        PERFORM pg_sleep(0.05);
    END LOOP;
END $$;
SELECT count(*) AS after_its_time FROM envcrypt.cache;
RESET envcrypt.cache_ttl;
SELECT envcrypt.encrypt('x') IS NOT NULL;
\set ECHO none
DISCARD ALL;
\set ECHO all
SELECT count(*) AS after_discard_all FROM envcrypt.cache;
SET envcrypt.tenant = 'acme';
SELECT name, setting, unit, context, min_val, max_val FROM pg_settings WHERE name LIKE 'envcrypt.%' ORDER BY name;
CREATE ROLE regress_user;
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_user;
SET ROLE regress_user;
SELECT setting, error_of('SET ' || setting) FROM unnest('{envcrypt.cache_ttl = 1,envcrypt.cache_size = 1,envcrypt.require_mlock = on,envcrypt.kms_timeout = 1000,envcrypt.nothing = 1}'::text[]) setting;
RESET ROLE;
DROP OWNED BY regress_user;
DROP ROLE regress_user;
RESET envcrypt.kms_timeout;

-- changes by hand are seen at once
CREATE TABLE t AS SELECT envcrypt.encrypt('acme') v, envcrypt.encrypt('other', 'other') w;
SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
SELECT envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'destroyed' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme';
UPDATE envcrypt.data_key SET state = 'decrypt_only' WHERE tenant = 'acme';
SELECT envcrypt.decrypt(v), error_of($$SELECT envcrypt.encrypt('x')$$) FROM t;
UPDATE envcrypt.data_key SET state = 'pending' WHERE tenant = 'acme';
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
UPDATE envcrypt.data_key SET state = 'strange' WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.data_key SET state = 'active', purpose = 'search' WHERE tenant = 'acme';
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
UPDATE envcrypt.data_key SET purpose = 'data', suite = 2 WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.data_key SET suite = 1 WHERE tenant = 'acme';
SELECT envcrypt.decrypt(v) FROM t;
-- what was altered or moved among the wrapped keys is noticed; nothing is decrypted with it
SELECT envcrypt.forget_keys() > 0;
BEGIN;
UPDATE envcrypt.wrapped_key w SET wrapped = o.wrapped FROM envcrypt.wrapped_key o JOIN envcrypt.data_key k ON k.key_id = o.key_id AND k.tenant = 'other'
    WHERE w.key_id = (SELECT key_id FROM envcrypt.data_key WHERE tenant = 'acme');
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.data_key SET commitment = decode(repeat('00', 32), 'hex') WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET wrapped = set_byte(wrapped, 5, get_byte(wrapped, 5) # 1);
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET wrapped = substr(wrapped, 2);
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET server = 'gone';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
TRUNCATE envcrypt.wrapped_key;
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;

-- a key may be used before its commit only where nothing but the whole transaction takes it back
BEGIN;
SELECT envcrypt.create_tenant('tx', 'kms');
INSERT INTO t SELECT envcrypt.encrypt('in its transaction', 'tx');
SELECT envcrypt.decrypt(v) FROM t ORDER BY 1;
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'tx';
ROLLBACK;
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'tx';
SELECT split_part(error_of($$SELECT envcrypt.encrypt('x', 'tx')$$), E'\n', 1);
BEGIN;
SAVEPOINT s;
SELECT envcrypt.create_tenant('tx', 'kms');
\set VERBOSITY terse
SELECT envcrypt.encrypt('x', 'tx');
\set VERBOSITY default
ROLLBACK TO s;
SELECT envcrypt.create_tenant('tx', 'kms');
RELEASE s;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS released;
SAVEPOINT s2;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS in_a_later_savepoint;
ROLLBACK TO s2;
COMMIT;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS committed;
DO $$
BEGIN
    BEGIN
        PERFORM envcrypt.create_tenant('block', 'kms');
        PERFORM envcrypt.encrypt('x', 'block');
    EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE NOTICE '%', SQLERRM;
    END;
    RAISE NOTICE 'tenants: %', (SELECT count(*) FROM envcrypt.tenant WHERE name = 'block');
    BEGIN
        PERFORM envcrypt.create_tenant('block', 'kms');
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    RAISE NOTICE 'encrypts: %', envcrypt.encrypt('x', 'block') IS NOT NULL;
END $$;
-- a parallel worker does not know how its leader made a key, and refuses it
CREATE TABLE p AS SELECT 'x'::text AS v FROM generate_series(1, 10);
BEGIN;
SAVEPOINT s;
SELECT envcrypt.create_tenant('worker', 'kms');
SELECT set_config(name, CASE WHEN name = 'parallel_leader_participation' THEN 'off' WHEN name LIKE 'max%' THEN '2' WHEN name LIKE 'min%' THEN '0' ELSE '0' END, true) IS NOT NULL AS set
    FROM unnest('{parallel_leader_participation,max_parallel_workers_per_gather,min_parallel_table_scan_size,parallel_setup_cost,parallel_tuple_cost}'::text[]) name;
SELECT count(envcrypt.encrypt(v, 'worker')) FROM p;
ROLLBACK;
DROP TABLE p;
-- a read-only transaction encrypts, but makes no keys
BEGIN READ ONLY;
SELECT envcrypt.encrypt('x') IS NOT NULL;
\set VERBOSITY terse
SELECT envcrypt.create_tenant('ro', 'kms');
ROLLBACK;
-- every function, type, table and view says what it is for
SELECT p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'envcrypt'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.relname FROM pg_class c WHERE relnamespace = 'envcrypt'::regnamespace AND relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL;
DROP TABLE t;
\set ECHO none
\i :teardown
