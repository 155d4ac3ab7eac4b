-- PostgreSQL keeps what some expressions yield, and computes them as another role: there keys are of no use.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (id int PRIMARY KEY, v envcrypt.encrypted(text), b envcrypt.encrypted(bytea));
INSERT INTO t SELECT n, ('plaintext ' || n)::text, '\x00ff'::bytea FROM generate_series(1, 100) n;
-- what a user must not say, and PostgreSQL believes
CREATE FUNCTION sneaky(envcrypt.encrypted) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT envcrypt.decrypt($1)';
CREATE FUNCTION sneaky_bytea(envcrypt.encrypted) RETURNS bytea IMMUTABLE LANGUAGE sql AS 'SELECT $1::bytea';
CREATE FUNCTION sneaky_encrypt(int) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT envcrypt.encrypt($1::text)::text';
CREATE FUNCTION sneaky_cast(int) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1::text::envcrypt.encrypted::text';
-- extended statistics
CREATE STATISTICS s (mcv) ON (envcrypt.decrypt(v)), (b::bytea) FROM t;
SELECT error_of('ANALYZE t');
SELECT count(*) FROM pg_statistic_ext_data;
DROP STATISTICS s;
CREATE STATISTICS s ON (envcrypt.decrypt(v)) FROM t;
SELECT split_part(error_of('ANALYZE t'), E'\n', 1);
DROP STATISTICS s;
CREATE STATISTICS s ON (envcrypt.encrypt(id::text)::text) FROM t;
SELECT split_part(error_of('ANALYZE t'), E'\n', 1);
DROP STATISTICS s;
-- indexes
SELECT statement, split_part(error_of(statement), E'\n', 1) FROM unnest(ARRAY[
    'CREATE INDEX ON t (sneaky(v))', 'CREATE INDEX ON t (sneaky_bytea(b))', 'CREATE INDEX ON t (id) WHERE sneaky(v) <> $$$$',
    'CREATE INDEX ON t (sneaky_encrypt(id))', 'CREATE INDEX ON t (sneaky_cast(id))', 'CREATE UNIQUE INDEX ON t USING btree ((left(sneaky(v), 3)))']) statement;
SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass;
-- on an empty table there is nothing to keep yet, but REINDEX and CLUSTER will meet it
CREATE TABLE later (v envcrypt.encrypted(text));
CREATE INDEX later_index ON later (sneaky(v));
\set VERBOSITY terse
INSERT INTO later VALUES ('x'::text);
REINDEX INDEX later_index;
CLUSTER later USING later_index;
VACUUM FULL later;
\set VERBOSITY default
DROP TABLE later;
-- materialized views
SELECT statement, split_part(error_of(statement), E'\n', 1) FROM unnest(ARRAY[
    'CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t', 'CREATE MATERIALIZED VIEW m AS SELECT b::bytea FROM t',
    'CREATE MATERIALIZED VIEW m AS SELECT id FROM t WHERE envcrypt.decrypt(v) = $$x$$', 'CREATE MATERIALIZED VIEW m AS SELECT envcrypt.encrypt($$x$$)',
    'CREATE MATERIALIZED VIEW m AS SELECT id::text::envcrypt.encrypted FROM t', 'CREATE MATERIALIZED VIEW m AS SELECT sneaky(v) FROM t']) statement;
CREATE MATERIALIZED VIEW m AS SELECT id, envcrypt.decrypt(v) FROM t WITH NO DATA;
CREATE UNIQUE INDEX ON m (id);
SELECT error_of('REFRESH MATERIALIZED VIEW m');
DROP MATERIALIZED VIEW m;
-- by way of EXPLAIN, which PostgreSQL itself does not restrict, in parallel workers too
SELECT error_of('EXPLAIN ANALYZE CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t');
-- nor where that very statement loads the library, by itself or from within another
\set QUIET on
\c -
\set VERBOSITY terse
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t;
\c -
DO $$ BEGIN EXECUTE 'EXPLAIN ANALYZE CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t'; END $$;
\c -
\set QUIET off
INSERT INTO t (id, v) VALUES (9999, envcrypt.encrypt('first', 'acme'));
DELETE FROM t WHERE id = 9999;
\set VERBOSITY default
SET envcrypt.tenant = 'acme';
ALTER TABLE t SET (parallel_workers = 2);
BEGIN;
SET LOCAL client_min_messages = error;
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL parallel_leader_participation = off;
SELECT split_part(error_of('EXPLAIN ANALYZE CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t'), E'\n', 1);
SELECT split_part(error_of('CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t'), E'\n', 1);
SELECT count(envcrypt.decrypt(v)) FROM t;
ROLLBACK;
-- a materialized view of ciphertext is harmless, and so are a view and a table that somebody makes of the plaintext
CREATE MATERIALIZED VIEW m AS SELECT id, v, (envcrypt.inspect(v)).tenant FROM t;
REFRESH MATERIALIZED VIEW m;
SELECT envcrypt.decrypt(v), tenant FROM m WHERE id = 1;
CREATE VIEW plain AS SELECT id, envcrypt.decrypt(v) AS v FROM t;
CREATE TABLE copied AS SELECT * FROM plain;
SELECT v FROM copied WHERE id = 2;
-- ANALYZE of ciphertext, too
ANALYZE t, m;
VACUUM ANALYZE t;
-- the session goes on as before
SELECT envcrypt.decrypt(v), b::bytea, envcrypt.decrypt(envcrypt.encrypt('after')) FROM t WHERE id = 3;
DROP MATERIALIZED VIEW m;
DROP VIEW plain;
DROP TABLE t, copied;
DROP FUNCTION sneaky, sneaky_bytea, sneaky_encrypt, sneaky_cast;
\set ECHO none
\i :teardown
