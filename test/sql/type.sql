-- The type: declarations, input and output, what fits into a column and what does not.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (id int, a envcrypt.encrypted(text), b envcrypt.encrypted(bytea), c envcrypt.encrypted, l envcrypt.encrypted(text)[]);
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 1 ORDER BY attnum;
SELECT attname, attstorage FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'a';
-- declarations that are none
SELECT error_of('CREATE TABLE x (v envcrypt.encrypted(date))');
SELECT error_of('CREATE TABLE x (v envcrypt.encrypted(text, bytea))');
SELECT error_of($$CREATE TABLE x (v envcrypt.encrypted(''))$$);
SELECT error_of('CREATE TABLE x (v envcrypt.encrypted(7))');

-- assignment encrypts, from each type that may
INSERT INTO t VALUES
    (1, 'text'::text, '\x0001ff'::bytea, 'any'::text, NULL),
    (2, 'varchar'::varchar, NULL, '\x02'::bytea, NULL),
    (3, 'char(10)'::char(10), ''::bytea, NULL, NULL),
    (4, ''::text, ''::bytea, ''::text, NULL),
    (5, NULL::text, NULL::bytea, NULL, NULL);
SELECT id, envcrypt.decrypt(a) a, envcrypt.decrypt(b) b, b::bytea, envcrypt.decrypt(c) c FROM t ORDER BY id;
PREPARE p(int, text) AS INSERT INTO t (id, a) VALUES ($1, $2);
EXECUTE p(6, 'parameter');
INSERT INTO t (id, a) SELECT 7, 'select ' || n FROM generate_series(1, 1) n;
UPDATE t SET a = 'updated'::text WHERE id = 7;
DO $$ DECLARE v text := 'plpgsql'; BEGIN INSERT INTO t (id, a) VALUES (8, v); END $$;
SELECT id, envcrypt.decrypt(a) FROM t WHERE id >= 6 ORDER BY id;
-- a value keeps its bytes on its way through columns, arrays, domains
CREATE DOMAIN d AS envcrypt.encrypted(text);
CREATE TABLE t2 (a envcrypt.encrypted(text), x d, l envcrypt.encrypted(text)[]);
INSERT INTO t2 SELECT a, a, ARRAY[a, NULL] FROM t WHERE id = 1;
SELECT t2.a::text = t.a::text AS same, t2.x::text = t.a::text AS in_domain, t2.l[1]::text = t.a::text AS in_array,
    envcrypt.decrypt(t2.x), envcrypt.decrypt(t2.l[1]) FROM t, t2 WHERE id = 1;

-- text and binary forms
SELECT a::text ~ '^ec1:[A-Za-z0-9+/]+=*$' AS form FROM t WHERE id = 1;
SELECT format('SELECT %L::envcrypt.encrypted::text = %L AS back', a, a) FROM t WHERE id = 1 \gset
:format;
-- the text form as a text is a text like any other, and encrypted once more
SELECT envcrypt.decrypt(a::text::envcrypt.encrypted) = a::text AS twice FROM t WHERE id = 1;
SELECT text, split_part(error_of(format('SELECT %L::envcrypt.encrypted', text)), E'\n', 1) AS error FROM (VALUES
    (''), ('ec1:'), ('123-45-6789'), ('ec2:AAAA'), ('ec1:====') , ('ec1:AAA'), ('ec1: AAAA'), ('EC1:AAAA'), ('ec1:AAAA')) v(text);
SELECT error_of(format('SELECT %L::envcrypt.encrypted', a::text || ' ')) FROM t WHERE id = 1;
SELECT format('COPY (SELECT a, b, c FROM t WHERE id < 5 ORDER BY id) TO %L (FORMAT binary)', current_setting('data_directory') || '/type.bin') AS write,
    format('COPY t2b FROM %L (FORMAT binary)', current_setting('data_directory') || '/type.bin') AS read \gset
CREATE TABLE t2b (a envcrypt.encrypted(text), b envcrypt.encrypted(bytea), c envcrypt.encrypted);
:write;
:read;
SELECT envcrypt.decrypt(a), envcrypt.decrypt(b), envcrypt.decrypt(c) FROM t2b ORDER BY 1;
-- plaintext is let in by no door but the casts
SELECT error_of($$INSERT INTO t (a) VALUES ('123-45-6789')$$);
SELECT error_of($$UPDATE t SET a = '123-45-6789'$$);
\set VERBOSITY terse
COPY t (id, a) FROM stdin;
9	123-45-6789
\.
COPY t (id, a) FROM stdin (FORMAT csv);
9,"123-45-6789"
\.
\set VERBOSITY default
PREPARE untyped AS INSERT INTO t (id, a) VALUES (9, $1);
SELECT error_of($$EXECUTE untyped('123-45-6789')$$);
SELECT count(*) FROM t WHERE id = 9;
-- what does not fit
SELECT error_of($$INSERT INTO t (b) VALUES ('text'::text)$$);
SELECT error_of($$INSERT INTO t (a) VALUES ('\x01'::bytea)$$);
SELECT error_of('INSERT INTO t (b) SELECT a FROM t WHERE id = 1');
SELECT error_of(format('INSERT INTO t (b) VALUES (%L)', a::text)) FROM t WHERE id = 1;
SELECT error_of('INSERT INTO t (a) SELECT c FROM t WHERE id = 2');
SELECT error_of('ALTER TABLE t ALTER c TYPE envcrypt.encrypted(text)');
SELECT error_of($$INSERT INTO t (a) VALUES (7)$$);
SELECT error_of($$INSERT INTO t (a) VALUES (date '2000-01-01')$$);
-- whoever calls the cast functions may give any number for a declaration
SELECT n, split_part(error_of(format('SELECT envcrypt.encrypted(%L::text, %s, true)', 'x', (n::bigint << 26)::bit(32)::int)), E'\n', 1)
    FROM unnest('{0,16,17,31,-31}'::int[]) n;
-- a column of plaintext becomes one of ciphertext
CREATE TABLE old (tenant text, ssn text);
INSERT INTO old VALUES ('acme', '1'), ('other', '2');
ALTER TABLE old ALTER ssn TYPE envcrypt.encrypted(text) USING envcrypt.encrypt(ssn, tenant => tenant);
SELECT tenant, envcrypt.decrypt(ssn), (envcrypt.inspect(ssn)).tenant FROM old ORDER BY 1;
-- PostgreSQL itself refuses to keep what a decrypting expression yields
SELECT error_of('CREATE INDEX ON t (envcrypt.decrypt(a))');
SELECT error_of('CREATE TABLE g (a envcrypt.encrypted(text), p text GENERATED ALWAYS AS (envcrypt.decrypt(a)) STORED)');
SELECT error_of('CREATE TABLE g (a envcrypt.encrypted(text)) PARTITION BY LIST (envcrypt.decrypt(a))');
DROP TABLE t, t2, t2b, old;
DROP DOMAIN d;
\set ECHO none
\i :teardown
