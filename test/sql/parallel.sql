-- Parallel workers open keys for themselves, as the role and for the tenant of the session that they work for.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SET client_min_messages = error;
CREATE TABLE t AS SELECT n AS id, CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'other' END AS tenant, envcrypt.encrypt('plaintext ' || n, CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'other' END) AS v,
    envcrypt.encrypt(decode(lpad(to_hex(n), 8, '0'), 'hex')) AS b FROM generate_series(1, 2000) n;
ALTER TABLE t SET (parallel_workers = 2);
ANALYZE t;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
SET parallel_leader_participation = off;
-- whether workers ran; so that the rest of this file is about them
CREATE FUNCTION workers(statement text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE plan json;
BEGIN
    EXECUTE 'EXPLAIN (ANALYZE, FORMAT json) ' || statement INTO plan;
    RETURN substring(plan::text FROM '"Workers Launched": (\d+)')::int > 0;
END $$;
SELECT statement, workers(statement) FROM unnest(ARRAY['SELECT count(*) FROM t WHERE envcrypt.decrypt(v) = ''plaintext '' || id', 'SELECT envcrypt.decrypt(v) FROM t',
    'SELECT envcrypt.encrypt(id::text) FROM t', 'SELECT b::bytea FROM t']) statement;
SELECT count(*) FROM t WHERE envcrypt.decrypt(v) = 'plaintext ' || id;
SELECT count(DISTINCT envcrypt.decrypt(v)), min(envcrypt.decrypt(v)) FROM t;
SELECT count(*) FROM t WHERE b::bytea = decode(lpad(to_hex(id), 8, '0'), 'hex');
SELECT count(*) FROM t x JOIN t y ON envcrypt.decrypt(x.v) = envcrypt.decrypt(y.v);
-- no two workers seal alike: all values differ, and are read by whom did not write them
CREATE TABLE u AS SELECT id, envcrypt.encrypt('same', tenant) AS v FROM t;
SELECT count(*), count(DISTINCT v::text) FROM u;
SELECT count(*) FROM u WHERE envcrypt.decrypt(v) = 'same';
-- the tenant of the session
SELECT tenant, count(*) FROM (SELECT (envcrypt.inspect(envcrypt.encrypt(id::text))).tenant FROM t) s GROUP BY 1;
BEGIN;
SELECT set_config('envcrypt.tenant', 'other', true);
SELECT tenant, count(*) FROM (SELECT (envcrypt.inspect(envcrypt.encrypt(id::text))).tenant FROM t) s GROUP BY 1;
ROLLBACK;
-- nothing stays behind in the session that did not decrypt itself
SELECT envcrypt.forget_keys() >= 0;
SELECT count(envcrypt.decrypt(v)) FROM t;
SELECT count(*) FROM envcrypt.cache;
-- errors come through as they are
UPDATE t SET v = envcrypt.encrypt('bound', associated_data => '1') WHERE id = 1000;
SELECT error_of('SELECT count(envcrypt.decrypt(v)) FROM t');
UPDATE t SET v = envcrypt.encrypt('plaintext 1000') WHERE id = 1000;
-- the role of the session: its rights, its identity
CREATE ROLE regress_app;
GRANT EXECUTE ON FUNCTION error_of(text), workers(text) TO regress_app;
GRANT SELECT ON t TO regress_app;
SET ROLE regress_app;
SELECT error_of('SELECT count(envcrypt.decrypt(v)) FROM t');
RESET ROLE;
SELECT envcrypt.grant_access('regress_app', '{decrypt}');
GRANT USAGE ON FOREIGN SERVER kms TO regress_app;
SET ROLE regress_app;
SELECT error_of('SELECT count(envcrypt.decrypt(v)) FROM t');
RESET ROLE;
CREATE USER MAPPING FOR regress_app SERVER kms;
SET ROLE regress_app;
SELECT workers('SELECT count(envcrypt.decrypt(v)) FROM t'), count(envcrypt.decrypt(v)) FROM t;
RESET ROLE;
CREATE FUNCTION by_owner() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT count(envcrypt.decrypt(v)) FROM t';
DROP USER MAPPING FOR regress_app SERVER kms;
SET ROLE regress_app;
SELECT by_owner(), error_of('SELECT count(envcrypt.decrypt(v)) FROM t');
RESET ROLE;
-- what the session changed and has not committed holds for them
BEGIN;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'other';
SELECT error_of('SELECT count(envcrypt.decrypt(v)) FROM t');
ROLLBACK;
-- a key that a savepoint could take back is not used by them either
BEGIN;
SAVEPOINT s;
SELECT envcrypt.create_tenant('tx', 'kms');
SELECT split_part(error_of($$SELECT count(envcrypt.encrypt(id::text, 'tx')) FROM t$$), E'\n', 1);
RELEASE s;
ROLLBACK;
DROP TABLE t, u;
DROP FUNCTION workers, by_owner;
\set ECHO none
\i :teardown
DROP OWNED BY regress_app;
DROP ROLE regress_app;
