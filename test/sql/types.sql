-- The 16 types: written by assignment, by encrypt() and from narrower kin, read by decrypt(), decrypt_as() and casts, exactly.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SET extra_float_digits = 1;
CREATE TABLE every (
    a envcrypt.encrypted(text), b envcrypt.encrypted(bytea), c envcrypt.encrypted(boolean), d envcrypt.encrypted(int2),
    e envcrypt.encrypted(int4), f envcrypt.encrypted(int8), g envcrypt.encrypted(float8), h envcrypt.encrypted(numeric),
    i envcrypt.encrypted(date), j envcrypt.encrypted(timestamp), k envcrypt.encrypted(timestamptz), l envcrypt.encrypted(interval),
    m envcrypt.encrypted(uuid), n envcrypt.encrypted(inet), o envcrypt.encrypted(jsonb), p envcrypt.encrypted('text[]'));
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'every'::regclass AND attnum > 0 ORDER BY attnum;
-- the names of SQL are the same
CREATE TABLE alias (a envcrypt.encrypted(integer), b envcrypt.encrypted(bigint), c envcrypt.encrypted(smallint), d envcrypt.encrypted(bool),
    e envcrypt.encrypted('double precision'), f envcrypt.encrypted(decimal), g envcrypt.encrypted('timestamp with time zone'));
SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'alias'::regclass AND attnum > 0 ORDER BY attnum;

-- exact round trips, through the column and through encrypt()
CREATE FUNCTION round_trip(type text, written text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    stored text; explicit text; as_type text; casted text;
BEGIN
    EXECUTE format('CREATE TEMP TABLE one (v envcrypt.encrypted(%L))', type);
    EXECUTE format('INSERT INTO one VALUES (%L::%s)', written, type);
    EXECUTE 'SELECT envcrypt.decrypt(v) FROM one' INTO stored;
    EXECUTE format('SELECT envcrypt.decrypt_as(v, NULL::%s)::text FROM one', type) INTO as_type;
    EXECUTE format('SELECT envcrypt.decrypt(envcrypt.encrypt(%L::%s))', written, type) INTO explicit;
    EXECUTE format('SELECT (%L::%s)::text, (%L::%s)::text', stored, type, explicit, type) INTO stored, explicit;
    IF type NOT IN ('text', 'jsonb') THEN
        EXECUTE format('SELECT (v::%s)::text FROM one', type) INTO casted;
    END IF;
    DROP TABLE one;
    RETURN concat(stored, CASE WHEN stored = as_type AND stored = explicit AND (casted IS NULL OR casted = stored) THEN ' (thrice the same)'
        ELSE format(' / %s / %s / %s', as_type, explicit, casted) END);
END $$;
SELECT type, round_trip(type, written) FROM (VALUES
    ('text', ''), ('text', 'a  '), ('text', 'Grüße, 世界 🔑'),
    ('bytea', ''), ('bytea', '\x00ff'),
    ('boolean', 'true'), ('boolean', 'false'),
    ('int2', '-32768'), ('int2', '32767'), ('int4', '-2147483648'), ('int4', '2147483647'), ('int8', '-9223372036854775808'), ('int8', '9223372036854775807'),
    ('float8', '-0'), ('float8', 'NaN'), ('float8', 'Infinity'), ('float8', '-Infinity'), ('float8', '5e-324'), ('float8', '1.7976931348623157e+308'), ('float8', '0.1'),
    ('numeric', '0'), ('numeric', '0.000'), ('numeric', '1.10'), ('numeric', '-123456789012345678901234567890.123456789'), ('numeric', '1e100'), ('numeric', 'NaN'),
    ('numeric', 'Infinity'), ('numeric', '-Infinity'), ('numeric', '0.00001'),
    ('date', '4713-01-01 BC'), ('date', '5874897-12-31'), ('date', 'infinity'), ('date', '-infinity'), ('date', '2000-02-29'),
    ('timestamp', '2024-02-29 23:59:59.999999'), ('timestamp', 'infinity'), ('timestamp', '4713-01-01 00:00:00 BC'),
    ('timestamptz', '2024-03-10 02:30:00 America/New_York'), ('timestamptz', '-infinity'), ('timestamptz', '294276-12-31 23:59:59.999999+00'),
    ('interval', '24 hours'), ('interval', '1 day'), ('interval', '1 month'), ('interval', '30 days'), ('interval', '-1 year 2 months -3 days 04:05:06.000007'),
    ('uuid', '00000000-0000-0000-0000-000000000000'), ('uuid', 'ffffffff-ffff-4fff-bfff-ffffffffffff'),
    ('inet', '10.0.0.1'), ('inet', '10.0.0.1/8'), ('inet', '::1'), ('inet', 'fe80::1/64'),
    ('jsonb', '{"b": 1, "a": [null, true, 1.10, "x"], "aa": {}}'), ('jsonb', '"text"'), ('jsonb', 'null'), ('jsonb', '1e10'), ('jsonb', '"\u00e9\t\\"'),
    ('text[]', '{}'), ('text[]', '{a,NULL,"",b c}'), ('text[]', '{{a,b},{c,d}}'), ('text[]', '[0:1]={x,y}'), ('text[]', '{é}')) t (type, written);
SELECT round_trip('interval', '24 hours') = round_trip('interval', '1 day') AS same;

-- the session's ways of writing and reading change nothing of what is stored
INSERT INTO every (i, k, l) VALUES (date '2024-02-03', timestamptz '2024-02-03 12:00+00', interval '1 day 02:00');
SET DateStyle = 'SQL, DMY'; SET IntervalStyle = iso_8601; SET TimeZone = 'Asia/Tokyo'; SET client_encoding = LATIN1;
SELECT envcrypt.decrypt(i), envcrypt.decrypt(k), envcrypt.decrypt(l) FROM every;
INSERT INTO every (o, p) VALUES (jsonb '"e"', '{e}'::text[]);
RESET client_encoding; RESET DateStyle; RESET IntervalStyle; RESET TimeZone;
SELECT envcrypt.decrypt(o), envcrypt.decrypt(p) FROM every WHERE o IS NOT NULL;
DELETE FROM every;

-- from narrower kin and between numbers, as PostgreSQL assigns them; everything else raises
INSERT INTO every (a) VALUES ('varchar'::varchar), ('char '::char(8));
CREATE TEMP TABLE lists (a envcrypt.encrypted('text[]')); INSERT INTO lists VALUES ('{x,NULL,"y z"}'::varchar[]); SELECT a::text[] FROM lists;
INSERT INTO every (d, e, f, h) VALUES (1::int8, 2::numeric, 3::int2, 4::int8), (1::int4, 2::int2, 3::numeric, 4::int2), (1.4, 2::int8, 3::int4, 4::int4);
INSERT INTO every (g) VALUES (1.5), (2), (3::int8), (4::int2), (0.1::float4), (1e300::numeric);
INSERT INTO every (g) VALUES (0::numeric), ('infinity'::numeric), ('-infinity'::numeric), ('NaN'::numeric), (1e-320::numeric);
INSERT INTO every (n) VALUES (cidr '10.0.0.0/8');
SELECT envcrypt.decrypt(a) a, envcrypt.decrypt(d) d, envcrypt.decrypt(e) e, envcrypt.decrypt(f) f, envcrypt.decrypt(h) h, envcrypt.decrypt(g) g, envcrypt.decrypt(n) n FROM every;
SELECT error_of('INSERT INTO every (' || col || ') VALUES (' || value || ')') FROM (VALUES
    ('d', '32768'), ('e', '2147483648'), ('e', '2147483648::numeric'), ('e', '1.5::float8'), ('h', '1.5::float8'), ('a', '1'), ('a', 'date ''2024-01-01'''),
    ('i', '''2024-01-01''::text'), ('i', 'timestamp ''2024-01-01'''), ('k', 'timestamp ''2024-01-01'''), ('c', '1'), ('o', '''{}''::json'), ('o', '''{}''::text'),
    ('m', '''x''::text'), ('b', '''x''::text'), ('p', '''{1}''::int[]'), ('n', 'macaddr ''08:00:2b:01:02:03'''), ('f', '1e400::numeric'), ('g', '1234567890123::numeric * 10::numeric ^ 400'), ('g', '-7::numeric * 10::numeric ^ 400'), ('g', '7e-400::numeric'), ('e', '''NaN''::numeric')) t (col, value);
-- plaintext that holds a value, as text of any kind: the column was worked on without being decrypted
CREATE TEMP TABLE held (a envcrypt.encrypted(text), o envcrypt.encrypted(jsonb), p envcrypt.encrypted('text[]')); INSERT INTO held VALUES ('x'::text, '{}'::jsonb, '{}'::text[]);
SELECT error_of(statement) FROM unnest(ARRAY['UPDATE held SET a = a || '', more''', 'UPDATE held SET a = concat(''x'', a)', 'UPDATE held SET a = trim(a::text)',
    'UPDATE held SET o = to_jsonb(held)', 'UPDATE held SET p = ARRAY[''x'', a::text]', 'UPDATE held SET a = ''no ec1:value''::text']) statement;
-- without a declaration the type is that of what was written
CREATE TABLE anything (v envcrypt.encrypted);
INSERT INTO anything VALUES (1), ('x'::text), (date '2024-01-01'), (1.50), (true), ('{}'::jsonb);
SELECT (envcrypt.inspect(v)).type, envcrypt.decrypt(v) FROM anything;

-- another type than the value's is not made of it
SELECT error_of(format('SELECT envcrypt.encrypt(1)::%s', type)) FROM unnest('{int8,int2,numeric,bytea,date,text[]}'::text[]) type;
SELECT error_of('SELECT envcrypt.decrypt_as(envcrypt.encrypt(1), NULL::text)'), error_of('SELECT envcrypt.decrypt_as(envcrypt.encrypt(1), NULL::regclass)');
-- and there is no way to text, json or jsonb that PostgreSQL's own functions take
SELECT error_of('SELECT envcrypt.encrypt(''{}''::jsonb)::jsonb'), envcrypt.encrypt(1)::text LIKE 'ec1:%' AS ciphertext,
    to_jsonb(envcrypt.encrypt(1))::text LIKE '"ec1:%' AS ciphertext, concat(envcrypt.encrypt(true)) LIKE 'ec1:%' AS ciphertext;
-- NULL is NULL
SELECT envcrypt.encrypt(NULL::int) IS NULL, envcrypt.decrypt(NULL) IS NULL, envcrypt.decrypt_as(NULL, NULL::date) IS NULL, NULL::envcrypt.encrypted::date IS NULL;
-- how long each is, beside what is encrypted
SELECT type, pg_column_size(v) - 4 AS bytes FROM (VALUES ('boolean', envcrypt.encrypt(true)), ('int4', envcrypt.encrypt(1)), ('int8', envcrypt.encrypt(1::int8)),
    ('date', envcrypt.encrypt(date '2024-01-01')), ('uuid', envcrypt.encrypt('ffffffff-ffff-4fff-bfff-ffffffffffff'::uuid)), ('numeric', envcrypt.encrypt(1.5)),
    ('text', envcrypt.encrypt('123-45-6789')), ('labelled', envcrypt.encrypt('123-45-6789', label => 'ssn')),
    ('searchable', envcrypt.encrypt('123-45-6789', label => 'ssn', search => 'searchable'))) t (type, v);
DROP TABLE every, alias, anything;
DROP FUNCTION round_trip;
\set ECHO none
\i :teardown
