-- Placement: a labelled value decrypts only where its label says, associated data binds a row, and a column takes nothing that
-- it does not declare; by whatever way it comes.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (id int PRIMARY KEY, ssn envcrypt.encrypted(text, ssn), name envcrypt.encrypted(text, name), free envcrypt.encrypted(text),
    any_ envcrypt.encrypted, born envcrypt.encrypted(date, born), keyword envcrypt.encrypted(text, 'order'));
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 1 ORDER BY attnum;
INSERT INTO t VALUES (1, 'ssn one'::text, 'name one'::text, 'free one'::text, 'any one'::text, date '1970-01-01', 'kw'::text),
    (2, 'ssn two'::text, 'name two'::text, 'free two'::text, 2, date '1980-02-02', 'kw'::text);
SELECT id, envcrypt.decrypt(ssn), envcrypt.decrypt(name), envcrypt.decrypt(free), envcrypt.decrypt(any_), born::date, envcrypt.decrypt(keyword) FROM t ORDER BY id;
SELECT (envcrypt.inspect(ssn)).label, (envcrypt.inspect(born)).label, (envcrypt.inspect(free)).label FROM t WHERE id = 1;

-- the declaration is known through views, subqueries, CTEs, joins and unions
CREATE VIEW v AS SELECT id, ssn AS number FROM t;
SELECT envcrypt.decrypt(number) FROM v ORDER BY id;
WITH c AS MATERIALIZED (SELECT * FROM t) SELECT envcrypt.decrypt(c.ssn), envcrypt.decrypt(x.name) FROM c JOIN (SELECT * FROM t) x USING (id) ORDER BY id;
SELECT envcrypt.decrypt(ssn) FROM (SELECT ssn FROM t WHERE id = 1 UNION ALL SELECT ssn FROM t WHERE id = 2) u ORDER BY 1;
-- and not in variables, aggregates, window functions, domains, arrays: there the label must be said
CREATE DOMAIN number AS envcrypt.encrypted(text, ssn);
CREATE FUNCTION in_plpgsql(label text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE v envcrypt.encrypted;
BEGIN
    SELECT ssn INTO v FROM t WHERE id = 1;
    RETURN envcrypt.decrypt(v, label => label);
END $$;
SELECT error_of('SELECT in_plpgsql('''')'), in_plpgsql('ssn');
SELECT error_of('SELECT envcrypt.decrypt((array_agg(ssn))[1]) FROM t'), error_of('SELECT envcrypt.decrypt(lag(ssn) OVER (ORDER BY id)) FROM t'),
    error_of('SELECT envcrypt.decrypt(ssn::number) FROM t'), error_of('SELECT envcrypt.decrypt(u) FROM t, unnest(ARRAY[ssn]) u');
SELECT count(envcrypt.decrypt(u, label => 'ssn')) FROM t, unnest(ARRAY[ssn]) u;
SELECT envcrypt.decrypt((array_agg(ssn ORDER BY id))[1], label => 'ssn'), envcrypt.decrypt_as((array_agg(born ORDER BY id))[1], NULL::date, label => 'born') FROM t;
SELECT envcrypt.decrypt(ssn::number, label => 'ssn') FROM t WHERE id = 1;

-- a tenant that is expected
SELECT envcrypt.decrypt(ssn, tenant => 'acme'), envcrypt.decrypt_as(born, NULL::date, tenant => 'acme') FROM t WHERE id = 1;
SELECT error_of('SELECT envcrypt.decrypt(ssn, tenant => ''other'') FROM t'), error_of('SELECT envcrypt.decrypt_as(born, NULL::date, tenant => ''other'') FROM t'),
    error_of('SELECT envcrypt.decrypt(ssn, tenant => NULL) FROM t');
-- of each row its own: what was moved between tenants is found
CREATE TABLE tenants (tenant text, v envcrypt.encrypted(text, v)); INSERT INTO tenants SELECT n, envcrypt.encrypt('of ' || n, n, 'v') FROM unnest('{acme,other}'::text[]) n;
SELECT tenant, envcrypt.decrypt(v, tenant => tenant) FROM tenants ORDER BY 1;
UPDATE tenants SET v = (SELECT v FROM tenants WHERE tenant = 'other');
SELECT error_of('SELECT envcrypt.decrypt(v, tenant => tenant) FROM tenants'); DROP TABLE tenants;

-- from plaintext, by the tenant of the row, back, and back from what ALTER … TYPE text leaves
CREATE TABLE migrated (tenant text, ssn text, born date); INSERT INTO migrated VALUES ('acme', 'one', '1970-01-01'), ('other', NULL, NULL), ('other', 'two', '1980-02-02');
CREATE INDEX ON migrated (ssn);
ALTER TABLE migrated ALTER born TYPE envcrypt.encrypted(date);
ALTER TABLE migrated ALTER ssn TYPE envcrypt.encrypted(text, searchable, ssn) USING envcrypt.encrypt(ssn, tenant => tenant, label => 'ssn', search => 'searchable');
SELECT tenant, envcrypt.decrypt(ssn, tenant => tenant), born::date, (envcrypt.inspect(born)).tenant AS born_of FROM migrated ORDER BY 1, 2;
ALTER TABLE migrated ALTER ssn TYPE text;
SELECT count(*) FROM migrated WHERE ssn LIKE 'ec1:%';
SELECT error_of('ALTER TABLE migrated ALTER ssn TYPE envcrypt.encrypted(text, searchable, ssn)');
ALTER TABLE migrated ALTER ssn TYPE envcrypt.encrypted(text, searchable, ssn) USING envcrypt.encrypted_in(textout(ssn), 0, -1);
SELECT tenant, envcrypt.decrypt(ssn) FROM migrated ORDER BY 1, 2;
ALTER TABLE migrated ALTER ssn TYPE text USING envcrypt.decrypt(ssn), ALTER born TYPE date USING born::date; SELECT * FROM migrated ORDER BY 1, 2; DROP TABLE migrated;

-- a label that is wrong, missing or one too many
SELECT error_of('SELECT envcrypt.decrypt(ssn, label => ''name'') FROM t'), error_of('SELECT envcrypt.decrypt(free, label => ''ssn'') FROM t'),
    error_of('SELECT envcrypt.decrypt(ssn, label => ''SSN'') FROM t'), error_of('SELECT envcrypt.decrypt(ssn, label => NULL) FROM t');
SELECT error_of('SELECT envcrypt.decrypt(ssn::text::envcrypt.encrypted) FROM t'), error_of('SELECT envcrypt.encrypt(''x'', label => ''toolong'')');

-- ciphertext that is moved: between columns, by SQL, by COPY, by plpgsql, in an update from another row
SELECT error_of(statement) FROM unnest(ARRAY[
    'UPDATE t SET ssn = name', 'UPDATE t SET free = ssn', 'UPDATE t a SET name = b.ssn FROM t b', 'INSERT INTO t (id, name) SELECT 9, ssn FROM t LIMIT 1',
    'UPDATE t SET born = ssn', 'UPDATE t SET name = (SELECT (array_agg(ssn))[1] FROM t)', 'UPDATE t SET name = ssn::text::envcrypt.encrypted(text, name)',
    'DO $x$ DECLARE v envcrypt.encrypted; BEGIN SELECT ssn INTO v FROM t LIMIT 1; UPDATE t SET name = v; END $x$',
    'DO $x$ DECLARE v envcrypt.encrypted(text, name); BEGIN SELECT ssn INTO v FROM t LIMIT 1; END $x$',
    'UPDATE t SET ssn = CASE WHEN id = 1 THEN name ELSE ssn END', 'UPDATE t SET ssn = coalesce(name, ssn)',
    'INSERT INTO t (id, ssn) VALUES (9, envcrypt.encrypt(''x'', label => ''name''))',
    'INSERT INTO t (id, ssn) VALUES (9, envcrypt.encrypt(1, label => ''ssn''))',
    'INSERT INTO t (id, ssn) VALUES (9, envcrypt.encrypt(''x'', label => ''ssn'', search => ''searchable''))']) statement;
CREATE TEMP TABLE texts AS SELECT id, ssn::text AS ssn, name::text AS name FROM t;
SELECT error_of('INSERT INTO t (id, name) SELECT 9, ssn::envcrypt.encrypted(text, name) FROM texts LIMIT 1');
-- into a column without declaration all goes, and stays what it was
UPDATE t SET any_ = ssn;
SELECT error_of('SELECT envcrypt.decrypt(any_) FROM t'), (SELECT envcrypt.decrypt(any_, label => 'ssn') FROM t WHERE id = 1);
UPDATE t SET ssn = any_ WHERE id = 1;
SELECT envcrypt.decrypt(ssn) FROM t WHERE id = 1;
-- between rows of a column nothing but associated data binds
UPDATE t a SET ssn = b.ssn FROM t b WHERE a.id = 2 AND b.id = 1;
SELECT envcrypt.decrypt(ssn) FROM t ORDER BY id;
UPDATE t SET ssn = envcrypt.encrypt('bound ' || id, label => 'ssn', associated_data => id::text);
SELECT envcrypt.decrypt(ssn, associated_data => id::text) FROM t ORDER BY id;
SELECT error_of('SELECT envcrypt.decrypt(ssn) FROM t'), error_of('SELECT envcrypt.decrypt(ssn, associated_data => (3 - id)::text) FROM t'),
    error_of('SELECT envcrypt.decrypt(name, associated_data => id::text) FROM t');

-- a value that is bound to no column is sealed again as the column declares, under the key of its own tenant
UPDATE t SET ssn = envcrypt.encrypt('of other', tenant => 'other') WHERE id = 1;
SELECT envcrypt.decrypt(ssn), (envcrypt.inspect(ssn)).tenant, (envcrypt.inspect(ssn)).label FROM t WHERE id = 1;
UPDATE t SET ssn = free WHERE id = 2;
SELECT envcrypt.decrypt(ssn), (envcrypt.inspect(ssn)).tenant FROM t WHERE id = 2;
SELECT error_of('UPDATE t SET ssn = envcrypt.encrypt(''x'', associated_data => ''1'')'), error_of('UPDATE t SET ssn = envcrypt.encrypt(1)');
-- that needs the rights to decrypt and to encrypt
CREATE ROLE regress_clerk; CREATE USER MAPPING FOR regress_clerk SERVER kms; GRANT USAGE ON FOREIGN SERVER kms TO regress_clerk;
GRANT SELECT, UPDATE ON t TO regress_clerk;
SELECT envcrypt.grant_access('regress_clerk', '{encrypt}');
SET ROLE regress_clerk;
SELECT public.error_of('UPDATE t SET ssn = free');
UPDATE t SET ssn = 'written'::text;
RESET ROLE;
SELECT envcrypt.revoke_access('regress_clerk', '{encrypt}'), envcrypt.grant_access('regress_clerk', '{decrypt}');
SET ROLE regress_clerk;
SELECT public.error_of('UPDATE t SET ssn = free');
UPDATE t SET ssn = ssn;
SELECT envcrypt.decrypt(ssn) FROM t ORDER BY id;
RESET ROLE;
-- ALTER TYPE between declarations: what fits, goes
DROP VIEW v;
ALTER TABLE t ALTER free TYPE envcrypt.encrypted(text, free);
SELECT envcrypt.decrypt(free), (envcrypt.inspect(free)).label FROM t ORDER BY id;
SELECT error_of('ALTER TABLE t ALTER ssn TYPE envcrypt.encrypted(text, other)'), error_of('ALTER TABLE t ALTER ssn TYPE envcrypt.encrypted(text)'),
    error_of('ALTER TABLE t ALTER ssn TYPE envcrypt.encrypted(bytea, ssn)');
ALTER TABLE t ALTER ssn TYPE envcrypt.encrypted(text, other) USING envcrypt.decrypt(ssn);
SELECT envcrypt.decrypt(ssn), (envcrypt.inspect(ssn)).label FROM t ORDER BY id;
DROP TABLE t; DROP DOMAIN number; DROP FUNCTION in_plpgsql;
DROP OWNED BY regress_clerk; DROP USER MAPPING IF EXISTS FOR regress_clerk SERVER kms; DROP ROLE regress_clerk;
\set ECHO none
\i :teardown
