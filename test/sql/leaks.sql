-- Nothing that PostgreSQL does by itself shows plaintext: the word to look for is Zanzibar.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (id int PRIMARY KEY, v envcrypt.encrypted(text) NOT NULL CHECK (v IS NOT NULL), w envcrypt.encrypted(text));
INSERT INTO t SELECT n, ('Zanzibar ' || n)::text, ('Zanzibar ' || n)::text FROM generate_series(1, 500) n;
CREATE FUNCTION shows(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; seen boolean := false; ciphertext boolean := false;
    message text; detail text; hint text; context text;
BEGIN
    BEGIN
        FOR line IN EXECUTE statement LOOP
            seen := seen OR line ~* 'zanzibar'; ciphertext := ciphertext OR line ~ 'ec1:';
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
        line := concat_ws(' ', message, detail, hint, context);
        RETURN SQLSTATE || CASE WHEN line ~* 'zanzibar' THEN ' PLAINTEXT' ELSE '' END || CASE WHEN line ~ 'ec1:' THEN ' ciphertext' ELSE '' END;
    END;
    RETURN CASE WHEN seen THEN 'PLAINTEXT' WHEN ciphertext THEN 'ciphertext' ELSE 'nothing' END;
END $$;
SELECT shows('SELECT envcrypt.decrypt(v) FROM t') AS "decrypt, to show that shows() sees";
SELECT expression, shows(format('SELECT %s FROM t', expression)) FROM unnest(ARRAY[
    'v::text', 'v::varchar', '(v)::name', $$'x' || v$$, $$v || 'x'$$, 'quote_literal(v)', 'quote_nullable(v)', $$format('%s %L', v, v)$$,
    'concat(v)', $$concat_ws(',', v, v)$$, 'to_jsonb(v)', 'to_jsonb(t)::text', 'row_to_json(t)', 't::text', 'ROW(v)::text', 'ARRAY[v]::text',
    'json_build_object(1, v)', 'json_agg(v)', 'array_agg(v)::text', $$string_agg(v::text, ',')$$, 'upper(v::text)',
    'v::json', 'v::jsonb', 'encode(v::bytea, $$escape$$)', 'hstore(t)', 'md5(v)', 'lower(v)', 'min(v)', 'v::envcrypt.encrypted(text)::text',
    'coalesce(v, w)::text', 'pg_column_size(v)::text']) expression;
SELECT shows('EXPLAIN (VERBOSE, ANALYZE, COSTS off, TIMING off) SELECT * FROM t WHERE envcrypt.decrypt(v) = $$x$$');
SELECT shows(format('EXPLAIN VERBOSE SELECT * FROM t WHERE v::text = %L', v::text)) FROM t WHERE id = 1;
-- error details show rows
SELECT shows('INSERT INTO t SELECT id, v, w FROM t LIMIT 1 RETURNING id::text');
SELECT shows('INSERT INTO t SELECT 1000, NULL, w FROM t LIMIT 1 RETURNING id::text');
SELECT error_of('ALTER TABLE t ADD CONSTRAINT c CHECK (id < 10)');
SELECT shows('SELECT v::int FROM t');
SELECT shows('UPDATE t SET v = w, id = 1 RETURNING id::text');
DO $$ BEGIN RAISE NOTICE '%', (SELECT v::text !~ 'Zanzibar' FROM t LIMIT 1); END $$;
SELECT format('COPY t TO %L', current_setting('data_directory') || '/leaks') AS copy, current_setting('data_directory') || '/leaks' AS file \gset
:copy;
SELECT pg_read_file(:'file') ~ 'Zanzibar' AS plaintext, pg_read_file(:'file') ~ 'ec1:' AS ciphertext;
-- statistics
ANALYZE t;
SELECT count(*) FROM pg_statistic WHERE starelid = 't'::regclass AND concat_ws(' ', stavalues1::text, stavalues2::text, stavalues3::text, stavalues4::text, stavalues5::text) ~ 'Zanzibar';
SELECT count(*) FROM pg_stats WHERE tablename = 't' AND concat_ws(' ', most_common_vals::text, histogram_bounds::text) ~ 'Zanzibar';
-- PL/pgSQL converts what it assigns: a cast that is made explicitly only is none that it makes
DO $$
DECLARE as_text text; as_varchar varchar(20); as_bytea bytea; as_json jsonb; as_record record; as_row t%ROWTYPE;
BEGIN
    SELECT * INTO as_row FROM t WHERE id = 1;
    as_text := as_row.v; as_bytea := as_row.v; as_json := to_jsonb(as_row);
    SELECT as_row.v, as_row.w INTO as_record;
    RAISE NOTICE 'text %, bytea %, json %, record %, row %', as_text ~ '^ec1:', encode(as_bytea, 'escape') ~ '^ec1:', as_json ->> 'v' ~ '^ec1:',
        as_record::text ~ '^\(ec1:', as_row::text ~ '^\(1,ec1:';
    BEGIN
        as_varchar := as_row.v;
    EXCEPTION WHEN string_data_right_truncation THEN RAISE NOTICE 'ciphertext is longer than varchar(20)';
    END;
    RAISE NOTICE '%', left(format('%s %s', as_row.v, as_row), 4);
    RAISE EXCEPTION USING MESSAGE = 'of a row: ' || left(as_row.v::text, 4);
EXCEPTION WHEN raise_exception THEN RAISE NOTICE '%', SQLERRM;
END $$;
-- columns of plaintext types take ciphertext or nothing
CREATE TABLE plain (t text, b bytea, j jsonb, c varchar);
SELECT statement, shows(statement || ' RETURNING plain::text') FROM unnest(ARRAY['INSERT INTO plain (t) SELECT v FROM t', 'INSERT INTO plain (c) SELECT v FROM t',
    'INSERT INTO plain (b) SELECT v FROM t', 'INSERT INTO plain (j) SELECT v FROM t', 'INSERT INTO plain (t) SELECT t FROM t']) statement;
CREATE FUNCTION takes_text(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION takes_any(anyelement) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION returns_text(envcrypt.encrypted) RETURNS text LANGUAGE sql AS 'SELECT $1';
SELECT call, shows('SELECT ' || call || ' FROM t') FROM unnest(ARRAY['takes_text(v)', 'takes_any(v)', 'returns_text(v)', 'takes_text(v::text)']) call;
SELECT shows($$SELECT 'before ' || v || ' after' FROM t UNION ALL SELECT id::text FROM t$$);
SELECT shows('SELECT CASE WHEN true THEN v ELSE ''x'' END FROM t');
SELECT shows('SELECT v FROM t UNION ALL SELECT ''x''::text');
-- a trigger sees ciphertext as it comes and goes
CREATE TABLE log (line text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log VALUES (to_jsonb(NEW)::text), (NEW::text), (row_to_json(OLD)::text);
    RETURN NEW;
END $$;
CREATE TRIGGER audit BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION audit();
UPDATE t SET v = 'Zanzibar once more'::text WHERE id < 3;
SELECT count(*), count(*) FILTER (WHERE line ~ 'Zanzibar') AS plaintext, count(*) FILTER (WHERE line ~ 'ec1:') AS ciphertext FROM log;
-- an index and its error are of ciphertext
CREATE UNIQUE INDEX ON t ((v::text));
SELECT shows('INSERT INTO t SELECT 2000, v, w FROM t WHERE id = 5 RETURNING id::text');
SELECT shows('EXPLAIN VERBOSE SELECT * FROM t ORDER BY v::text');
-- the planner may compute decrypt() of a constant, for an estimate, but does not show it
ALTER TABLE plain ADD id int;
INSERT INTO plain (t, id) SELECT 'Zanzibar ' || n, n FROM generate_series(1, 100) n;
ANALYZE plain;
SELECT shows(format('EXPLAIN (VERBOSE, ANALYZE, COSTS off, TIMING off) SELECT id FROM plain WHERE t = envcrypt.decrypt(%L)', v)) FROM t WHERE id = 7;
PREPARE find(envcrypt.encrypted) AS SELECT id FROM plain WHERE t = envcrypt.decrypt($1);
SELECT shows(format('EXPLAIN (VERBOSE, COSTS off) EXECUTE find(%L)', v)) FROM t WHERE id = 7;
DROP TABLE plain, log;
DROP FUNCTION takes_text, takes_any, returns_text;
DROP TABLE t;
DROP FUNCTION shows, audit;
\set ECHO none
\i :teardown
