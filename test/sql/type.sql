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
SELECT words, error_of('CREATE TABLE x (v envcrypt.encrypted(' || words || '))') FROM unnest(ARRAY['money', '7', $$''$$, 'text, searchable',
    'text, toolong', 'text, SSN2', $$text, 'SSN'$$, 'text, ssn, searchable', 'text, searchable, ssn, again', 'text, searchable_upper, ssn',
    'boolean, searchable, flag', 'jsonb, searchable, doc', 'float8, searchable, temp', 'date, searchable_nocase, born', 'text, $$, $$']) words;

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
SELECT error_of('SELECT a::text::envcrypt.encrypted FROM t WHERE id = 1'), error_of('SELECT envcrypt.encrypt(a::text) FROM t WHERE id = 1');
SELECT text, split_part(error_of(format('SELECT %L::envcrypt.encrypted', text)), E'\n', 1) AS error FROM (VALUES
    (''), ('ec1:'), ('123-45-6789'), ('ec2:AAAA'), ('ec1:====') , ('ec1:AAA'), ('ec1: AAAA'), ('EC1:AAAA'), ('ec1:AAAA')) v(text);
SELECT error_of(format('SELECT %L::envcrypt.encrypted', a::text || ' ')) FROM t WHERE id = 1;
SELECT format('COPY (SELECT a, b, c FROM t WHERE id < 5 ORDER BY id) TO %L (FORMAT binary)', current_setting('data_directory') || '/type.bin') AS write,
    format('COPY t2b FROM %L (FORMAT binary)', current_setting('data_directory') || '/type.bin') AS read \gset
CREATE TABLE t2b (a envcrypt.encrypted(text), b envcrypt.encrypted(bytea), c envcrypt.encrypted);
:write;
:read;
SELECT envcrypt.decrypt(a), envcrypt.decrypt(b), envcrypt.decrypt(c) FROM t2b ORDER BY 1;
-- what is received in binary form is checked as well
CREATE TABLE bytes (v bytea);
CREATE FUNCTION received(value bytea, declaration text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE file text := current_setting('data_directory') || '/regress_type.bin';
    state text;
BEGIN
    TRUNCATE bytes;
    INSERT INTO bytes VALUES (value);
    EXECUTE format('COPY bytes TO %L (FORMAT binary)', file);
    EXECUTE 'CREATE TABLE received_as (v ' || declaration || ')';
    BEGIN
        EXECUTE format('COPY received_as FROM %L (FORMAT binary)', file);
        state := 'received';
    EXCEPTION WHEN OTHERS THEN state := SQLSTATE || ' ' || SQLERRM;
    END;
    DROP TABLE received_as;
    RETURN state;
END $$;
SELECT received(envcrypt.encrypted_send(a), 'envcrypt.encrypted'), received(envcrypt.encrypted_send(a), 'envcrypt.encrypted(text)'),
    received(envcrypt.encrypted_send(a), 'envcrypt.encrypted(bytea)') FROM t WHERE id = 1;
SELECT received('', 'envcrypt.encrypted'), received('plaintext', 'envcrypt.encrypted'), received('ec1:', 'envcrypt.encrypted');
SELECT received(substr(envcrypt.encrypted_send(a), 1, n), 'envcrypt.encrypted'), min(n), max(n) FROM t, generate_series(0, 46) n WHERE id = 1 GROUP BY 1 ORDER BY 2;
DROP TABLE bytes;
DROP FUNCTION received;
-- plaintext is let in by no door but the casts
SELECT statement, split_part(error_of(statement), E'\n', 1) FROM unnest(ARRAY[$$INSERT INTO t (a) SELECT '123-45-6789'$$, $$INSERT INTO t (a) VALUES ('1'), ('2'::text)$$,
    $$INSERT INTO t (a) SELECT (jsonb_populate_record(NULL::t, '{"a": "123-45-6789"}')).a$$, $$ALTER TABLE t ADD x envcrypt.encrypted(text) DEFAULT '123-45-6789'$$,
    $$SELECT '123-45-6789'::envcrypt.encrypted$$, $$SELECT '{123-45-6789}'::envcrypt.encrypted[]$$, $$SELECT '(1,123-45-6789,,,)'::t$$, $$SELECT coalesce(a, '123-45-6789') FROM t$$,
    $$DO 'DECLARE v envcrypt.encrypted; BEGIN v := ''123-45-6789''; END'$$, $$DO 'DECLARE v envcrypt.encrypted; BEGIN v := 7; END'$$,
    $$SELECT json_populate_record(NULL::t, '{"l": ["123-45-6789"]}')$$, $$SELECT * FROM json_to_record('{"v": "123-45-6789"}') AS x(v envcrypt.encrypted(text))$$]) statement;
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
SELECT error_of($$SELECT 'x'::text::envcrypt.encrypted(bytea)$$);
SELECT error_of($$SELECT '\x01'::bytea::envcrypt.encrypted(text)$$);
SELECT split_part(error_of('INSERT INTO t (l) SELECT ARRAY[b] FROM t WHERE id = 1'), E'\n', 1);
SELECT split_part(error_of('INSERT INTO t2 (x) SELECT b FROM t WHERE id = 1'), E'\n', 1);
-- from 16 on, what does not fit is said softly where that is asked for
SELECT format($$SELECT pg_input_is_valid('plaintext', 'envcrypt.encrypted') OR pg_input_is_valid('ec1:AAAA', 'envcrypt.encrypted')
    OR pg_input_is_valid(%L, 'envcrypt.encrypted(bytea)') AS valid$$, envcrypt.encrypt('x')) AS soft,
    current_setting('server_version_num')::int >= 160000 AS has_soft_errors \gset
\if :has_soft_errors
\else
\set soft 'SELECT false AS valid'
\endif
\set ECHO none
:soft;
\set ECHO all
-- it has no order and no equality yet
SELECT statement, split_part(error_of(statement), E'\n', 1) FROM unnest(ARRAY['SELECT DISTINCT a FROM t', 'SELECT a FROM t ORDER BY a', 'SELECT FROM t WHERE a = a',
    'SELECT FROM t x JOIN t y USING (a)', 'SELECT max(a) FROM t', 'CREATE INDEX ON t (a)', 'SELECT a FROM t UNION SELECT a FROM t', 'SELECT FROM t WHERE t = t']) statement;
-- no function takes plaintext for it, or it for plaintext
CREATE FUNCTION takes_encrypted(envcrypt.encrypted) RETURNS boolean LANGUAGE sql AS 'SELECT $1 IS NOT NULL';
SELECT split_part(error_of($$SELECT takes_encrypted('x'::text)$$), E'\n', 1), split_part(error_of($$SELECT takes_encrypted('x')$$), E'\n', 1), takes_encrypted('x'::text::envcrypt.encrypted);
DROP FUNCTION takes_encrypted;
-- declarations in views, functions, domains and defaults are shown as they were written
CREATE VIEW shown AS SELECT c::envcrypt.encrypted(text) AS narrowed, a, 'x'::text::envcrypt.encrypted(text) AS made FROM t;
SELECT regexp_replace(pg_get_viewdef('shown'), '\mt\.', '', 'g') AS shown;
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'shown'::regclass AND attnum > 0 ORDER BY attnum;
SELECT error_of('SELECT count(narrowed::text) FROM shown WHERE narrowed IS NOT NULL');
CREATE DOMAIN narrow AS envcrypt.encrypted(text) CHECK (VALUE IS NOT NULL);
SELECT format_type(typbasetype, typtypmod) FROM pg_type WHERE typname = 'narrow';
CREATE TABLE defaults (id int, a envcrypt.encrypted(text) DEFAULT 'from the default'::text, b envcrypt.encrypted(bytea) NOT NULL DEFAULT '\x01'::bytea, n narrow);
SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'defaults'::regclass ORDER BY adnum;
INSERT INTO defaults (id, n) SELECT id, a FROM t WHERE id = 1;
ALTER TABLE defaults ADD x envcrypt.encrypted(text) DEFAULT 'added'::text;
INSERT INTO defaults (id, n) VALUES (2, 'into a domain'::text);
SELECT id, envcrypt.decrypt(a), b::bytea, envcrypt.decrypt(n), envcrypt.decrypt(x) FROM defaults ORDER BY 1;
SELECT error_of('UPDATE defaults SET n = NULL');
SELECT split_part(error_of('INSERT INTO defaults (b, n) SELECT NULL, a FROM t WHERE id = 1'), E'\n', 1);
-- a trigger encrypts, and copies
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE plain text := 'by the trigger';
BEGIN
    NEW.a := plain; NEW.x := NEW.a;
    RETURN NEW;
END $$;
CREATE TRIGGER fill BEFORE INSERT ON defaults FOR EACH ROW EXECUTE FUNCTION fill();
INSERT INTO defaults (id, n) VALUES (3, 'n'::text);
SELECT envcrypt.decrypt(a), a::text = x::text AS same FROM defaults WHERE id = 3;
-- inheritance, rows, MERGE and ON CONFLICT: values keep their bytes
CREATE TABLE child () INHERITS (defaults);
INSERT INTO child SELECT * FROM defaults WHERE id = 1;
SELECT count(*), count(DISTINCT a::text), min(envcrypt.decrypt(a)) FROM defaults WHERE id = 1;
CREATE TABLE keyed (id int PRIMARY KEY, a envcrypt.encrypted(text));
INSERT INTO keyed VALUES (1, 'first'::text);
INSERT INTO keyed VALUES (1, 'second'::text) ON CONFLICT (id) DO UPDATE SET a = excluded.a RETURNING envcrypt.decrypt(a);
MERGE INTO keyed k USING (VALUES (1, 'third'), (2, 'fourth')) s(id, plain) ON k.id = s.id
    WHEN MATCHED THEN UPDATE SET a = plain WHEN NOT MATCHED THEN INSERT VALUES (s.id, plain);
SELECT id, envcrypt.decrypt(a) FROM keyed ORDER BY id;
SELECT (jsonb_populate_record(NULL::keyed, to_jsonb(k))).a::text = a::text AS through_json, (k::text::keyed).a::text = a::text AS through_a_row FROM keyed k;
-- long values lie outside the row as they are, short ones inside
INSERT INTO keyed SELECT 3, repeat('x', 1000000);
SELECT id, pg_column_size(a) - length(envcrypt.decrypt(a)) AS overhead FROM keyed ORDER BY id;
UPDATE keyed SET id = 4 WHERE id = 3;
SELECT envcrypt.decrypt(a) = repeat('x', 1000000) FROM keyed WHERE id = 4;
SELECT format('COPY keyed TO %L', current_setting('data_directory') || '/regress_type.txt') AS write, format('COPY keyed FROM %L', current_setting('data_directory') || '/regress_type.txt') AS read \gset
CREATE TEMP TABLE before AS TABLE keyed;
:write;
TRUNCATE keyed;
:read;
SELECT count(*) FROM keyed JOIN before USING (id) WHERE keyed.a::text = before.a::text;
DROP TABLE before, keyed, child, defaults;
DROP DOMAIN narrow;
DROP FUNCTION fill;
DROP VIEW shown;
-- a column of plaintext becomes one of ciphertext
CREATE TABLE old (tenant text, ssn text);
INSERT INTO old VALUES ('acme', '1'), ('other', '2');
ALTER TABLE old ALTER ssn TYPE envcrypt.encrypted(text) USING envcrypt.encrypt(ssn, tenant => tenant);
SELECT tenant, envcrypt.decrypt(ssn), (envcrypt.inspect(ssn)).tenant FROM old ORDER BY 1;
-- and back; text, varchar and char(n) without USING, by the assignment cast
ALTER TABLE old ALTER ssn TYPE text USING envcrypt.decrypt(ssn);
SELECT * FROM old ORDER BY 1;
ALTER TABLE old ALTER ssn TYPE envcrypt.encrypted(text), ADD c char(5), ADD v varchar(5);
UPDATE old SET c = 'c', v = 'v ';
ALTER TABLE old ALTER c TYPE envcrypt.encrypted(text), ALTER v TYPE envcrypt.encrypted(text);
SELECT envcrypt.decrypt(ssn), envcrypt.decrypt(c), '<' || envcrypt.decrypt(v) || '>' AS v, (envcrypt.inspect(ssn)).tenant FROM old ORDER BY tenant;
-- PostgreSQL itself refuses to keep what a decrypting expression yields
SELECT error_of('CREATE INDEX ON t (envcrypt.decrypt(a))');
SELECT error_of('CREATE TABLE g (a envcrypt.encrypted(text), p text GENERATED ALWAYS AS (envcrypt.decrypt(a)) STORED)');
SELECT error_of('CREATE TABLE g (a envcrypt.encrypted(text)) PARTITION BY LIST (envcrypt.decrypt(a))');
DROP TABLE t, t2, t2b, old;
DROP DOMAIN d;
\set ECHO none
\i :teardown
