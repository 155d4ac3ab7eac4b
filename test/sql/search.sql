-- Searching: tokens in values, matches() through ordinary indexes, what cannot get into a searchable column, what equality is.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE p (id int PRIMARY KEY, ssn envcrypt.encrypted(text, searchable, ssn), mail envcrypt.encrypted(text, searchable_nocase, mail),
    phone envcrypt.encrypted(text, searchable_digits, phone), born envcrypt.encrypted(date, searchable, born), salary envcrypt.encrypted(numeric, searchable, pay),
    amount envcrypt.encrypted(int4, searchable, amnt), other envcrypt.encrypted(text, label));
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'p'::regclass AND attnum > 1 ORDER BY attnum;
INSERT INTO p SELECT n, (n % 100)::text, 'User' || n % 100 || '@Example.com', '+1 (555) ' || n % 100, date '1970-01-01' + n % 100, (n % 100) * 1.10, n % 100, 'x'::text
    FROM generate_series(1, 1000) n;
SELECT (envcrypt.inspect(ssn)).search, (envcrypt.inspect(mail)).search, (envcrypt.inspect(phone)).search, (envcrypt.inspect(other)).search FROM p LIMIT 1;
CREATE INDEX p_ssn ON p (ssn); CREATE INDEX p_mail ON p USING hash (mail); CREATE INDEX p_phone ON p (phone); CREATE INDEX p_born ON p (born);
CREATE INDEX p_salary ON p (salary); CREATE INDEX p_amount ON p (amount);
ANALYZE p;

-- each form, by its index
-- (which of PostgreSQL's ways to scan an index is none of ours)
CREATE FUNCTION plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE line text; lines text[] := '{}';
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        lines := lines || CASE WHEN line ~ 'Index Cond' THEN regexp_replace(ltrim(line), '(''[^'']*''::text(\[\])?|[0-9]{4,})', 'X', 'g')
            WHEN line ~ 'Index (Only )?Scan' THEN 'index ' || substring(line FROM '(?:using|Bitmap Index Scan on) ([a-z0-9_]+)')
            WHEN line ~ 'Seq Scan on p' THEN 'Seq Scan' WHEN line ~ 'Nested Loop' THEN 'Nested Loop' END;
    END LOOP;
    RETURN QUERY SELECT DISTINCT l FROM unnest(lines) l WHERE l IS NOT NULL ORDER BY 1;
END $$;
SET enable_seqscan = off;
SELECT plan_of('SELECT * FROM p WHERE envcrypt.matches(ssn, ''42'')');
SELECT plan_of('SELECT * FROM p WHERE envcrypt.matches(mail, ''user42@example.COM'')');
SELECT plan_of('SELECT * FROM p WHERE envcrypt.matches_any(ssn, ''{41,42}''::text[])');
SELECT plan_of('SELECT * FROM p WHERE ssn OPERATOR(envcrypt.=) ANY (envcrypt.search(''42'', ''ssn'', ''searchable''))');
SELECT count(*), min(id) FROM p WHERE envcrypt.matches(ssn, '42');
SELECT count(*) FROM p WHERE envcrypt.matches(ssn, '420');
SELECT count(*) FROM p WHERE envcrypt.matches(mail, 'user42@example.COM');
SELECT count(*) FROM p WHERE envcrypt.matches(phone, '1.555.42');
SELECT count(*) FROM p WHERE envcrypt.matches(born, date '1970-01-01' + 42);
SELECT count(*) FROM p WHERE envcrypt.matches_any(ssn, ARRAY['41', '42', NULL, 'no']);
SELECT count(*) FROM p WHERE envcrypt.matches(ssn, NULL::text);
SELECT count(*) FROM p WHERE ssn OPERATOR(envcrypt.=) ANY (envcrypt.search('42', 'ssn', 'searchable'));
SELECT count(*) FROM p WHERE NOT envcrypt.matches(ssn, '42');
-- numbers that SQL calls equal, and those that no value of the column can be
SELECT (SELECT count(*) FROM p WHERE envcrypt.matches(salary, v)) FROM unnest(ARRAY[46.2, 46.20, 46.2000, 46.21, 0, 0.00, 'NaN']::numeric[]) v;
SELECT (SELECT count(*) FROM p WHERE envcrypt.matches(salary, 11)), (SELECT count(*) FROM p WHERE envcrypt.matches(salary, 11::int8));
SELECT (SELECT count(*) FROM p WHERE envcrypt.matches(amount, v)) FROM unnest(ARRAY[42, 42.0, 42.5, 5000000000, 1e30, -42, 0, 'NaN', 'Infinity']::numeric[]) v;
SELECT (SELECT count(*) FROM p WHERE envcrypt.matches(amount, 42::int8)), (SELECT count(*) FROM p WHERE envcrypt.matches(amount, 42::int2)),
    (SELECT count(*) FROM p WHERE envcrypt.matches(amount, 5000000000)), (SELECT count(*) FROM p WHERE envcrypt.matches_any(amount, ARRAY[41, 42, 5000000000]));

-- generic plans, nested loops, partitions, row-level security
SET plan_cache_mode = force_generic_plan;
CREATE TABLE unlike AS SELECT n AS id, n::text::envcrypt.encrypted(text, searchable, ssn) AS ssn FROM generate_series(1, 3000) n;
CREATE INDEX ON unlike (ssn); ANALYZE unlike;
PREPARE find(text) AS SELECT id FROM unlike WHERE envcrypt.matches(ssn, $1);
EXECUTE find('42');
SELECT plan_of('EXECUTE find(''42'')');
RESET plan_cache_mode;
SET enable_hashjoin = off; SET enable_mergejoin = off;
SELECT plan_of('SELECT * FROM (VALUES (''1''), (''2'')) w (v) JOIN p ON envcrypt.matches(p.ssn, w.v)');
SELECT count(*) FROM (VALUES ('1'), ('2'), (NULL)) w (v) JOIN p ON envcrypt.matches(p.ssn, w.v);
RESET enable_hashjoin; RESET enable_mergejoin;
CREATE TABLE parts (id int, tenant text, ssn envcrypt.encrypted(text, searchable, ssn)) PARTITION BY HASH (id);
CREATE TABLE parts0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE parts1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX ON parts (ssn);
INSERT INTO parts SELECT n, 'acme', (n % 100)::text FROM generate_series(1, 1000) n;
ANALYZE parts;
SELECT plan_of('SELECT * FROM parts WHERE envcrypt.matches(ssn, ''42'')');
CREATE ROLE regress_clerk; CREATE USER MAPPING FOR regress_clerk SERVER kms; GRANT USAGE ON FOREIGN SERVER kms TO regress_clerk;
GRANT SELECT ON p, parts TO regress_clerk;
SELECT envcrypt.grant_access('regress_clerk', '{search}');
ALTER TABLE parts ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON parts USING (tenant = current_setting('envcrypt.tenant'));
SET ROLE regress_clerk;
SELECT public.plan_of('SELECT count(*) FROM parts WHERE envcrypt.matches(ssn, ''42'')');
SELECT count(*) FROM parts WHERE envcrypt.matches(ssn, '42');
-- who may search may not decrypt
SELECT public.error_of('SELECT envcrypt.decrypt(ssn) FROM p');
RESET ROLE;
SELECT envcrypt.revoke_access('regress_clerk', '{search}'), envcrypt.grant_access('regress_clerk', '{encrypt,decrypt}');
SET ROLE regress_clerk;
SELECT public.error_of('SELECT count(*) FROM p WHERE envcrypt.matches(ssn, ''42'')');
SELECT public.error_of('EXPLAIN SELECT count(*) FROM p WHERE ssn OPERATOR(envcrypt.=) ANY (envcrypt.search(''42'', 2))');
-- and writing a token needs the right to search
SELECT public.error_of('SELECT ''x''::text::envcrypt.encrypted(text, searchable, ssn)'), public.error_of('SELECT envcrypt.encrypt(''x'', label => ''ssn'', search => ''searchable'')');
RESET ROLE;

-- estimates are as good as for plaintext
RESET enable_seqscan;
CREATE TABLE plain AS SELECT n AS id, (n % 100)::text AS ssn FROM generate_series(1, 1000) n; ANALYZE plain;
CREATE FUNCTION rows_of(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE plan jsonb;
BEGIN EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan; RETURN plan->0->'Plan'->'Plan Rows'; END $$;
SELECT rows_of('SELECT * FROM plain WHERE ssn = ''42''') AS plaintext, rows_of('SELECT * FROM p WHERE envcrypt.matches(ssn, ''42'')') AS encrypted;
SELECT rows_of('SELECT * FROM plain WHERE ssn = ANY (''{41,42,43}'')') AS plaintext, rows_of('SELECT * FROM p WHERE envcrypt.matches_any(ssn, ''{41,42,43}''::text[])') AS encrypted;
-- of a generic plan and its negation, and of a join, within a factor of three
CREATE FUNCTION ratio_of(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN RETURN rows_of(a)::numeric / rows_of(b)::numeric BETWEEN 0.3 AND 3; END $$;
SET plan_cache_mode = force_generic_plan;
PREPARE plain_not(text) AS SELECT FROM plain WHERE ssn <> $1; PREPARE encrypted_not(text) AS SELECT FROM p WHERE NOT envcrypt.matches(ssn, $1);
PREPARE plain_yes(text) AS SELECT FROM plain WHERE ssn = $1; PREPARE encrypted_yes(text) AS SELECT FROM p WHERE envcrypt.matches(ssn, $1);
SELECT ratio_of('EXECUTE plain_not(''42'')', 'EXECUTE encrypted_not(''42'')') AS "not", ratio_of('EXECUTE plain_yes(''42'')', 'EXECUTE encrypted_yes(''42'')') AS "yes",
    ratio_of('SELECT FROM plain a JOIN plain b ON a.ssn = b.ssn', 'SELECT FROM plain a JOIN p b ON envcrypt.matches(b.ssn, a.ssn)') AS "join";
RESET plan_cache_mode; DEALLOCATE ALL; DROP FUNCTION ratio_of;

-- UNIQUE, GROUP BY, DISTINCT, joins, foreign keys
SELECT count(*) FROM (SELECT ssn FROM p GROUP BY ssn) g; SELECT count(DISTINCT mail) FROM p;
SELECT count(*) FROM p a JOIN p b ON a.ssn OPERATOR(envcrypt.=) b.ssn WHERE a.id <= 10;
CREATE TABLE u (ssn envcrypt.encrypted(text, searchable, ssn) UNIQUE);
INSERT INTO u SELECT n::text FROM generate_series(0, 99) n;
SELECT regexp_replace(error_of('INSERT INTO u VALUES (''42''::text)'), '\(ec1:[^)]*\)', '(VALUE)');
INSERT INTO u VALUES ('42'::text) ON CONFLICT (ssn) DO NOTHING;
ALTER TABLE p ADD FOREIGN KEY (ssn) REFERENCES u (ssn);
SELECT split_part(error_of('INSERT INTO p (id, ssn) VALUES (2001, ''200''::text)'), E'\n', 1);
INSERT INTO p (id, ssn) VALUES (2001, '99'::text);

-- a value without the right token cannot get in by any door, nor one with a token where none is declared
SELECT error_of(statement) FROM unnest(ARRAY[
    'INSERT INTO u VALUES (envcrypt.encrypt(''x'', label => ''ssn''))', 'INSERT INTO u VALUES (envcrypt.encrypt(''x'', label => ''ssn'', search => ''searchable_nocase''))',
    'UPDATE p SET ssn = other', 'UPDATE p SET other = ssn', 'UPDATE p SET ssn = mail', 'INSERT INTO u SELECT envcrypt.search(''x'', ''ssn'', ''searchable'')',
    'INSERT INTO u SELECT (envcrypt.search(''x'', ''ssn'', ''searchable''))[1]', 'INSERT INTO u VALUES (NULL::envcrypt.probe)',
    'INSERT INTO u SELECT envcrypt.encrypt(''x'')::text::envcrypt.encrypted', 'ALTER TABLE p ALTER other TYPE envcrypt.encrypted(text, searchable, label)',
    'ALTER TABLE p ALTER mail TYPE envcrypt.encrypted(text, searchable, mail)']) statement;
-- but one that is bound to nothing is given its token
INSERT INTO u VALUES (envcrypt.encrypt('free'));
SELECT count(*) FROM u WHERE envcrypt.matches(ssn, 'free');

-- calls that make no sense
SELECT error_of(query) FROM unnest(ARRAY[
    'SELECT FROM p WHERE envcrypt.matches(other, ''x'')', 'SELECT FROM p WHERE envcrypt.matches(ssn, 42)', 'SELECT FROM p WHERE envcrypt.matches(born, ''1970-01-01'')',
    'SELECT FROM p WHERE envcrypt.matches(amount, ''42'')', 'SELECT envcrypt.matches(envcrypt.encrypt(''x''), ''x'')', 'SELECT FROM p WHERE envcrypt.matches_any(ssn, ''{1}''::int[])',
    'SELECT envcrypt.search(''x'', '''', ''searchable'')', 'SELECT envcrypt.search(''x'', ''ssn'', ''sometimes'')', 'SELECT envcrypt.search(1, ''ssn'', ''searchable_digits'')',
    'SELECT envcrypt.search(''x'', NULL, ''searchable'')', 'SELECT envcrypt.search(''x'', ''ssn'', ''searchable'', ''{nobody}'')', 'SELECT envcrypt.search(''x'', ''ssn'', ''searchable'', ''{NULL}'')',
    'SELECT envcrypt.search(''x'', -1)', 'SELECT FROM p WHERE ssn = ''x''', 'SELECT envcrypt.encrypt(1.5::float8, label => ''a'', search => ''searchable'')',
    'SELECT ''ep1:x''::envcrypt.probe', 'SELECT ''''::envcrypt.probe']) query;
SET envcrypt.tenant = 'nobody';
SELECT error_of('SELECT FROM p WHERE envcrypt.matches(ssn, ''42'')');
SET envcrypt.tenant = '';
SELECT error_of('SELECT FROM p WHERE envcrypt.matches(ssn, ''42'')');
SET envcrypt.tenant = 'acme';
SELECT p OPERATOR(envcrypt.=) p::text::envcrypt.probe AS same, p::text ~ '^ep1:[A-Za-z0-9+/]{23}=$' AS text FROM unnest(envcrypt.search('x', 'ssn', 'searchable')) p;

-- tenants: each has tokens of its own, unless one searches with another's key
SET envcrypt.tenant = 'other';
SELECT count(*) FROM p WHERE envcrypt.matches(ssn, '42');
SELECT count(*) FROM p WHERE ssn OPERATOR(envcrypt.=) ANY (envcrypt.search('42', 'ssn', 'searchable', '{acme,other}'));
SELECT envcrypt.create_tenant('patient:1', 'kms', search_tenant => 'acme'), envcrypt.create_tenant('patient:2', 'kms', search_tenant => 'acme');
SELECT tenant, purpose FROM envcrypt.data_key WHERE tenant LIKE 'patient%' ORDER BY 1;
SELECT error_of('SELECT envcrypt.create_tenant(''z'', ''kms'', search_tenant => ''patient:1'')'), error_of('SELECT envcrypt.create_tenant(''z'', ''kms'', search_tenant => ''nobody'')');
SET envcrypt.tenant = 'patient:1'; INSERT INTO p (id, mail) VALUES (3001, 'same@x'::text);
SET envcrypt.tenant = 'patient:2'; INSERT INTO p (id, mail) VALUES (3002, 'SAME@x'::text);
SET envcrypt.tenant = 'acme';
SELECT id, (envcrypt.inspect(mail)).tenant FROM p WHERE envcrypt.matches(mail, 'same@X') ORDER BY id;
-- a tenant that is disabled is neither searched nor written
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('SELECT FROM p WHERE envcrypt.matches(ssn, ''42'')');
SET envcrypt.tenant = 'patient:1';
SELECT error_of('SELECT FROM p WHERE envcrypt.matches(ssn, ''42'')');
UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme';
SET envcrypt.tenant = 'acme';

-- a value that the column cannot hold matches nothing, and a NULL row neither yes nor no
CREATE TABLE small (n envcrypt.encrypted(int2, searchable, n)); INSERT INTO small VALUES (7), (NULL); CREATE INDEX ON small (n);
SELECT n IS NULL AS null, envcrypt.matches(n, 70000) AS one, envcrypt.matches_any(n, '{70000}'::int[]) AS any, envcrypt.matches_any(n, '{70000,7}'::int[]) AS some FROM small ORDER BY 1;
SELECT count(*) FROM small WHERE NOT envcrypt.matches(n, 70000); DROP TABLE small;

-- a unique index on what is not searchable enforces nothing
CREATE TABLE unlike_itself (a envcrypt.encrypted(text, aa), b envcrypt.encrypted, c int, d envcrypt.encrypted(text, searchable, dd));
CREATE UNIQUE INDEX ON unlike_itself (c, b); ALTER TABLE unlike_itself ADD PRIMARY KEY (a); CREATE TEMP TABLE x (k envcrypt.encrypted(date) UNIQUE);
CREATE UNIQUE INDEX ON unlike_itself (d); CREATE INDEX ON unlike_itself (a); CREATE UNIQUE INDEX ON unlike_itself (c) INCLUDE (b);
DROP TABLE unlike_itself, x;

-- a probe is no plaintext, as text neither
SELECT error_of('SELECT envcrypt.encrypt((envcrypt.search(''x''::text, ''ssn'', ''searchable''))[1]::text)'),
    envcrypt.decrypt(envcrypt.encrypt('ep1:'::text)), envcrypt.decrypt(envcrypt.encrypt('ep1:bm8gcHJvYmU='::text));

-- a column of a domain's type
CREATE DOMAIN number AS envcrypt.encrypted(text, searchable, ssn); CREATE DOMAIN numbers AS number;
CREATE TABLE domains (a number, b numbers); INSERT INTO domains SELECT n::text, n::text FROM generate_series(1, 1000) n; CREATE INDEX ON domains (a); CREATE INDEX ON domains (b); ANALYZE domains;
SELECT count(*) FROM domains WHERE envcrypt.matches(a, '7') AND envcrypt.matches(b, '7');
SELECT bool_or(line ~ 'domains_a_idx') AS by_index FROM plan_of($$SELECT FROM domains WHERE envcrypt.matches(a, '7')$$) line;
SELECT bool_or(line ~ 'domains_b_idx') AS by_index FROM plan_of($$SELECT FROM domains WHERE envcrypt.matches_any(b, '{7,8}'::text[])$$) line;
DROP TABLE domains; DROP DOMAIN numbers, number;

-- a nested loop under row-level security: search() is not leakproof, so the values are gathered first
CREATE TABLE guarded (id int, ssn envcrypt.encrypted(text, searchable, ssn)); INSERT INTO guarded SELECT n, n::text FROM generate_series(1, 5000) n;
CREATE INDEX guarded_ssn ON guarded (ssn); ANALYZE guarded; ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON guarded USING (id > 0);
CREATE TABLE sought (v text); INSERT INTO sought VALUES ('7'), ('8'), (NULL); ANALYZE sought; GRANT SELECT ON guarded, sought TO regress_clerk;
SELECT envcrypt.grant_access('regress_clerk', '{search}'); GRANT EXECUTE ON FUNCTION plan_of TO regress_clerk;
SET ROLE regress_clerk;
SELECT count(*) FROM public.guarded WHERE envcrypt.matches_any(ssn, (SELECT array_agg(v) FROM public.sought));
SELECT bool_or(line ~ 'guarded_ssn') AS by_index FROM public.plan_of($$SELECT FROM public.guarded WHERE envcrypt.matches_any(ssn, '{7,8}'::text[])$$) line;
SET plan_cache_mode = force_generic_plan; PREPARE sought(text[]) AS SELECT count(*) FROM public.guarded WHERE envcrypt.matches_any(ssn, $1); EXECUTE sought('{7,8,NULL}');
SELECT bool_or(line ~ 'guarded_ssn') AS by_index FROM public.plan_of($$EXECUTE sought('{7,8}')$$) line; DEALLOCATE sought; RESET plan_cache_mode;
RESET ROLE; SELECT envcrypt.revoke_access('regress_clerk', '{search}'); REVOKE EXECUTE ON FUNCTION plan_of FROM regress_clerk;
DROP TABLE guarded, sought;

-- what is asked for each row is searched once, until something else is asked or the keys change
CREATE TABLE plain_scan (v envcrypt.encrypted(text, searchable, ssn), t text); INSERT INTO plain_scan SELECT n::text, (n % 3)::text FROM generate_series(1, 30) n;
SELECT count(*) FROM plain_scan WHERE envcrypt.matches(v, t);
SELECT count(*) FROM plain_scan a JOIN plain_scan b ON envcrypt.matches(a.v, b.t);
SELECT count(*) FROM plain_scan a, plain_scan b WHERE envcrypt.matches_any(a.v, ARRAY[b.t, '30']);
SELECT count(*) FROM plain_scan WHERE envcrypt.matches(v, '7') AND (envcrypt.forget_keys() >= 0 OR envcrypt.matches(v, '8'));
DROP TABLE plain_scan;

-- long values take no locked memory
SET envcrypt.require_mlock = on;
SELECT length(envcrypt.encrypt(repeat('x', 20000000), label => 'lv', search => 'searchable')::text) > 20000000 AS exact,
    length(envcrypt.encrypt(repeat('X', 20000000), label => 'lv', search => 'searchable_nocase')::text) > 20000000 AS nocase;
SELECT envcrypt.forget_keys() > 0 AS forgot, envcrypt.decrypt(envcrypt.encrypt('after'::text));
RESET envcrypt.require_mlock;

-- too long for a btree
CREATE TABLE wide (v envcrypt.encrypted(text, searchable, wide));
INSERT INTO wide VALUES (repeat('x', 100000));
CREATE INDEX wide_hash ON wide USING hash (v);
SELECT count(*) FROM wide WHERE envcrypt.matches(v, repeat('x', 100000));
INSERT INTO wide SELECT repeat('y', n) FROM generate_series(2628, 2640) n;
DELETE FROM wide WHERE octet_length(envcrypt.encrypted_send(v)) > 62 + 2630;
CREATE INDEX wide_btree ON wide (v);
INSERT INTO wide VALUES (repeat('z', 2630));
SELECT error_of('INSERT INTO wide VALUES (repeat(''z'', 2631))');
DROP INDEX wide_btree;
INSERT INTO wide VALUES (repeat('z', 2631));

-- maintenance needs no key
SET envcrypt.tenant = 'nobody'; SELECT envcrypt.forget_keys() > 0 AS forgot;
REINDEX TABLE p; ANALYZE p; VACUUM p; CREATE INDEX p_again ON p (ssn); CLUSTER p USING p_again;
SELECT count(*) FROM envcrypt.cache;
SELECT amvalidate(oid) FROM pg_opclass WHERE opcnamespace = 'envcrypt'::regnamespace ORDER BY oid;
SELECT proname, count(*) FROM pg_proc WHERE pronamespace = 'envcrypt'::regnamespace AND proleakproof GROUP BY 1 ORDER BY 1;
DROP TABLE p, parts, plain, u, wide, unlike; DROP FUNCTION plan_of, rows_of;
DROP OWNED BY regress_clerk; DROP ROLE regress_clerk;
\set ECHO none
\i :teardown
