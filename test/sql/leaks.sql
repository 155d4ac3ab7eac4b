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
-- statistics, extended statistics, materialized views, indexes
ANALYZE t;
SELECT count(*) FROM pg_statistic WHERE starelid = 't'::regclass AND concat_ws(' ', stavalues1::text, stavalues2::text, stavalues3::text, stavalues4::text, stavalues5::text) ~ 'Zanzibar';
CREATE STATISTICS s ON (envcrypt.decrypt(v)), (envcrypt.decrypt(w)) FROM t;
SELECT error_of('ANALYZE t');
DROP STATISTICS s;
SELECT error_of('CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t');
CREATE MATERIALIZED VIEW m AS SELECT envcrypt.decrypt(v) FROM t WITH NO DATA;
SELECT error_of('REFRESH MATERIALIZED VIEW m');
SELECT error_of($$CREATE MATERIALIZED VIEW m2 AS SELECT envcrypt.encrypt('x')$$);
SELECT error_of($$CREATE MATERIALIZED VIEW m2 AS SELECT envcrypt.encrypt('\x00'::bytea)::bytea$$);
SELECT error_of('EXPLAIN ANALYZE CREATE MATERIALIZED VIEW m2 AS SELECT envcrypt.decrypt(v) FROM t');
SELECT envcrypt.decrypt(v) FROM t WHERE id = 1;
CREATE FUNCTION sneaky(envcrypt.encrypted) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT envcrypt.decrypt($1)';
SELECT error_of('CREATE INDEX ON t (sneaky(v))');
-- no cast out but to bytea, none to text or json
SELECT castsource::regtype, casttarget::regtype, castcontext FROM pg_cast
    WHERE castsource = 'envcrypt.encrypted'::regtype OR casttarget = 'envcrypt.encrypted'::regtype ORDER BY castsource::regtype::text, casttarget::regtype::text;
-- nothing that decrypts is leakproof or immutable
SELECT oid::regprocedure, provolatile, proparallel, proleakproof FROM pg_proc
    WHERE pronamespace = 'envcrypt'::regnamespace AND proname ~ '^(encrypt|decrypt|bytea|inspect)' AND proname !~ '_' ORDER BY oid::regprocedure::text;
DROP MATERIALIZED VIEW m;
DROP TABLE t;
DROP FUNCTION shows, sneaky;
\set ECHO none
\i :teardown
