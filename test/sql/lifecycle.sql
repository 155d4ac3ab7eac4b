-- The life of a key: rotated, its tenant disabled and enabled; what is written down of it; who may.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, v envcrypt.encrypted(text, searchable, v)); CREATE INDEX ON t (v);
CREATE FUNCTION written() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(envcrypt.decrypt(v) || ' ' || (envcrypt.inspect(v)).key_version, ', ' ORDER BY id) FROM t $$;
INSERT INTO t (v) VALUES ('one'::text);

-- a new version encrypts once it is committed; older ones go on decrypting
SELECT envcrypt.rotate_key('acme');
INSERT INTO t (v) VALUES ('two'::text); SELECT written();
BEGIN; SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('amid'::text); SELECT written(); COMMIT;
INSERT INTO t (v) VALUES ('three'::text); SELECT written();
SELECT count(*) FROM t WHERE envcrypt.matches(v, 'one') OR envcrypt.matches(v, 'three');
SELECT version, state FROM envcrypt.keys WHERE tenant = 'acme' AND purpose = 'data' ORDER BY version;

-- taken back by a rollback, a savepoint, an exception
BEGIN; SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('lost'::text); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('lost'::text); ROLLBACK TO s; INSERT INTO t (v) VALUES ('three again'::text); COMMIT;
DO $$ BEGIN PERFORM envcrypt.rotate_key('acme'); RAISE 'no'; EXCEPTION WHEN OTHERS THEN INSERT INTO t (v) VALUES ('three still'::text); END $$;
SELECT written();
-- within a subtransaction that is released; twice at once; of a tenant made in this transaction
BEGIN; SAVEPOINT s; SELECT envcrypt.rotate_key('acme'), envcrypt.rotate_key('acme'); RELEASE s; INSERT INTO t (v) VALUES ('three yet'::text); COMMIT;
INSERT INTO t (v) VALUES ('five'::text); SELECT written();
BEGIN; SELECT envcrypt.create_tenant('new', 'kms'); SELECT envcrypt.rotate_key('new'); SELECT envcrypt.encrypt('first', 'new') AS v \gset
SELECT (envcrypt.inspect(:'v')).key_version; COMMIT; SELECT envcrypt.decrypt(:'v'), (envcrypt.inspect(envcrypt.encrypt('x', 'new'))).key_version;
BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT written() IS NOT NULL; SELECT envcrypt.rotate_key('acme'); COMMIT;
BEGIN; SELECT envcrypt.rotate_key('acme'); SELECT error_of('PREPARE TRANSACTION ''p'''); ROLLBACK;
BEGIN; SELECT envcrypt.disable_tenant('acme'); PREPARE TRANSACTION 'p';
BEGIN; UPDATE envcrypt.tenant SET state = state; PREPARE TRANSACTION 'p';
-- a parallel query knows nothing of what its leader's transaction made
CREATE TABLE big AS SELECT g FROM generate_series(1, 20000) g; ALTER TABLE big SET (parallel_workers = 2); ANALYZE big; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
BEGIN; SELECT envcrypt.rotate_key('acme') > 0 AS rotated; SELECT count(envcrypt.encrypt(g::text, 'acme')) FROM big; ROLLBACK;
DROP TABLE big; RESET parallel_setup_cost; RESET parallel_tuple_cost; RESET min_parallel_table_scan_size;

-- what cannot be
SELECT error_of('SELECT envcrypt.rotate_key(''nobody'')'), error_of('SELECT envcrypt.rotate_key('''')'), envcrypt.rotate_key(NULL) IS NULL AS nothing;
BEGIN READ ONLY; SELECT error_of('SELECT envcrypt.rotate_key(''acme'')'), error_of('SELECT envcrypt.disable_tenant(''acme'')'); COMMIT;
BEGIN; CALL envcrypt.rotate_keys('0'); ROLLBACK;
SELECT error_of('CALL envcrypt.rotate_keys(''0'')');
CALL envcrypt.rotate_keys(NULL);
CALL envcrypt.rotate_keys('-1 day');

-- all that are old enough
CALL envcrypt.rotate_keys('1 day');
SELECT name, key_version FROM envcrypt.tenants ORDER BY 1;
SELECT envcrypt.disable_tenant('new');
CALL envcrypt.rotate_keys('0 s');
SELECT name, state, key_version FROM envcrypt.tenants ORDER BY 1;
SELECT envcrypt.enable_tenant('new');

-- disabled: nothing is encrypted, decrypted or searched, warm or cold
SELECT envcrypt.disable_tenant('acme');
SELECT error_of('SELECT written()'), error_of('SELECT count(*) FROM t WHERE envcrypt.matches(v, ''one'')'), error_of('INSERT INTO t (v) VALUES (''x''::text)'),
    error_of('SELECT envcrypt.rotate_key(''acme'')'), error_of('SELECT envcrypt.load_keys(''acme'')');
SELECT envcrypt.forget_keys() >= 0; SELECT error_of('SELECT written()');
SELECT envcrypt.disable_tenant('acme'), error_of('SELECT envcrypt.disable_tenant(''nobody'')');
BEGIN; SELECT envcrypt.enable_tenant('acme'); SELECT written() IS NOT NULL AS "reads again"; ROLLBACK;
SELECT error_of('SELECT written()');
SELECT envcrypt.enable_tenant('acme'); SELECT written() IS NOT NULL AS "reads again";
UPDATE envcrypt.tenant SET state = 'destroyed' WHERE name = 'new';
SELECT error_of('SELECT envcrypt.enable_tenant(''new'')'), error_of('SELECT envcrypt.disable_tenant(''new'')'), error_of('SELECT envcrypt.rotate_key(''new'')');

-- destroyed: every wrapped copy is gone, nothing of the tenant is used again, not even its name
CREATE TABLE doomed (v envcrypt.encrypted(text, searchable, v)); SELECT envcrypt.create_tenant('doomed', 'kms'), envcrypt.create_tenant('user', 'kms', search_tenant => 'doomed');
SET envcrypt.tenant = 'doomed'; INSERT INTO doomed VALUES ('one'::text); SELECT envcrypt.rotate_key('doomed'); INSERT INTO doomed VALUES ('two'::text);
CREATE TABLE backup AS SELECT * FROM envcrypt.tenant WHERE name = 'doomed'; CREATE TABLE backup_keys AS SELECT * FROM envcrypt.data_key WHERE tenant = 'doomed';
CREATE TABLE backup_wrapped AS SELECT w.* FROM envcrypt.wrapped_key w JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'doomed';
SELECT error_of('SELECT envcrypt.destroy_tenant(''doomed'', ''acme'')'), error_of('SELECT envcrypt.destroy_tenant(''doomed'', ''doomed'')'), error_of('SELECT envcrypt.destroy_tenant(''nobody'', ''nobody'')');
SELECT envcrypt.destroy_tenant('user', 'user') IS NOT NULL AS destroyed;
BEGIN; SELECT envcrypt.destroy_tenant('doomed', 'doomed') IS NOT NULL AS destroyed; SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM doomed'), 'key [0-9a-f]{16}', 'key ID'); ROLLBACK;
SELECT count(envcrypt.decrypt(v)) FROM doomed;
SELECT envcrypt.destroy_tenant('doomed', confirm => 'doomed') AS receipt \gset
SELECT :'receipt'::jsonb - 'keys' - 'at' - 'wal' - 'role' - 'session_role' AS receipt, :'receipt'::jsonb->>'role' = current_user AS by, (:'receipt'::jsonb->>'at')::timestamptz > now() - interval '1 hour' AS at,
    (:'receipt'::jsonb->>'wal')::pg_lsn <= pg_current_wal_insert_lsn() AS wal;
SELECT k->>'purpose' AS purpose, k->>'version' AS version, k->'wrapped_by'->0->>'server' AS server, k->>'key_id' = b.key_id::text OR lpad(to_hex(b.key_id), 16, '0') = k->>'key_id' AS id, encode(b.commitment, 'hex') = k->>'commitment' AS commitment
    FROM jsonb_array_elements(:'receipt'::jsonb->'keys') k JOIN backup_keys b ON b.purpose = k->>'purpose' AND b.version::text = k->>'version' ORDER BY 1, 2;
SELECT count(*) FROM envcrypt.wrapped_key w JOIN envcrypt.data_key d USING (key_id) WHERE d.tenant IN ('doomed', 'user');
SELECT name, state FROM envcrypt.tenants WHERE name IN ('doomed', 'user') ORDER BY 1; SELECT DISTINCT state FROM envcrypt.keys WHERE tenant = 'doomed';
SELECT regexp_replace(error_of(statement), 'key [0-9a-f]{16}', 'key ID') FROM unnest(ARRAY['SELECT envcrypt.decrypt(v) FROM doomed', 'INSERT INTO doomed VALUES (''x''::text)', 'SELECT FROM doomed WHERE envcrypt.matches(v, ''one'')', 'SELECT envcrypt.load_keys(''doomed'')',
    'SELECT envcrypt.rotate_key(''doomed'')', 'SELECT envcrypt.enable_tenant(''doomed'')', 'SELECT envcrypt.destroy_tenant(''doomed'', ''doomed'')', 'SELECT envcrypt.create_tenant(''doomed'', ''kms'')']) statement;
SELECT details = :'receipt'::jsonb AS journaled FROM envcrypt.journal WHERE act = 'destroy_tenant' AND tenant = 'doomed';
-- restored from before: decrypts, until the receipt is applied
DELETE FROM envcrypt.tenant WHERE name = 'doomed'; DELETE FROM envcrypt.data_key WHERE tenant = 'doomed';
SELECT envcrypt.apply_receipt(:'receipt') AS "not there";
INSERT INTO envcrypt.tenant SELECT * FROM backup; INSERT INTO envcrypt.data_key SELECT * FROM backup_keys; INSERT INTO envcrypt.wrapped_key SELECT * FROM backup_wrapped;
SELECT count(envcrypt.decrypt(v)) AS restored FROM doomed;
SELECT regexp_replace(error_of(format('SELECT envcrypt.apply_receipt(%L)', r)), 'key [0-9a-f]{16}', 'key ID') FROM (VALUES ('{}'::jsonb), (:'receipt'::jsonb || '{"envcrypt": 2}'), (:'receipt'::jsonb || '{"keys": []}'), (:'receipt'::jsonb - 'keys'), (:'receipt'::jsonb || '{"keys": [1]}'), (jsonb_set(:'receipt'::jsonb, '{keys,0,key_id}', '"XY"')),
    (jsonb_set(:'receipt'::jsonb, '{keys,0,commitment}', to_jsonb(repeat('00', 32)))), ('[]'), ('1'), ('{"act": "destroy_tenant"}'), ('{"act": "destroy_tenant", "tenant": 1}'), ('{"act": "rotate_key", "tenant": "doomed"}'),
    ('{"act": "destroy_tenant", "tenant": "not a name"}'), (jsonb_set(:'receipt'::jsonb, '{keys,0}', '{}')), (jsonb_set(:'receipt'::jsonb, '{tenant}', '"acme"'))) v(r);
-- not while the restore is under way, however little of it is there
BEGIN; DELETE FROM envcrypt.tenant WHERE name = 'doomed'; SELECT error_of(format('SELECT envcrypt.apply_receipt(%L)', :'receipt')); ROLLBACK;
BEGIN; DELETE FROM envcrypt.data_key WHERE tenant = 'doomed'; SELECT error_of(format('SELECT envcrypt.apply_receipt(%L)', :'receipt')); ROLLBACK;
BEGIN; DELETE FROM envcrypt.wrapped_key USING backup_keys b WHERE wrapped_key.key_id = b.key_id; SELECT error_of(format('SELECT envcrypt.apply_receipt(%L)', :'receipt')); ROLLBACK;
-- a version that was made since the restore goes with it
SELECT envcrypt.rotate_key('doomed');
SELECT envcrypt.apply_receipt(:'receipt') AS applied, envcrypt.apply_receipt(:'receipt') AS again;
-- wrapped keys alone that came back are destroyed again, either way
INSERT INTO envcrypt.wrapped_key SELECT * FROM backup_wrapped; SELECT envcrypt.apply_receipt(:'receipt') AS applied, envcrypt.apply_receipt(:'receipt') AS again;
INSERT INTO envcrypt.wrapped_key SELECT * FROM backup_wrapped; SELECT envcrypt.destroy_tenant('doomed', 'doomed') IS NOT NULL AS destroyed, error_of('SELECT envcrypt.destroy_tenant(''doomed'', ''doomed'')');
SELECT count(*) FROM pg_stats WHERE schemaname = 'envcrypt' AND tablename = 'wrapped_key' AND attname IN ('wrapped', 'attestation');
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM doomed'), 'key [0-9a-f]{16}', 'key ID'); SELECT count(*) FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'doomed';
DROP TABLE doomed, backup, backup_keys, backup_wrapped; SET envcrypt.tenant = 'acme';

-- what is written down: committed acts only
SELECT act, tenant, role = current_user AND session_role = session_user AS "by me", at > now() - interval '1 hour' AS "just now", CASE WHEN act !~ 'destroy|receipt' THEN details - 'keys' END AS details,
    jsonb_array_length(details->'keys') AS keys, details->'keys'->0->>'server' AS server, details->'keys'->0->>'key_id' ~ '^[0-9a-f]{16}$' AS id FROM envcrypt.journal ORDER BY tenant, at;
SELECT count(*) FROM envcrypt.journal j, jsonb_array_elements(j.details->'keys') made JOIN envcrypt.keys k ON k.key_id = made->>'key_id' WHERE k.tenant = j.tenant;
SELECT purpose, server, master_key_version ~ '^[0-9a-f]{16}$' AS version, outdated, count(*) FROM envcrypt.wrappings GROUP BY 1, 2, 3, 4 ORDER BY 1;
SELECT count(*) FROM envcrypt.keys WHERE servers <> '{kms}';

-- whose it is
CREATE ROLE regress_officer; CREATE USER MAPPING FOR regress_officer SERVER kms; GRANT USAGE ON FOREIGN SERVER kms TO regress_officer;
SELECT envcrypt.grant_access('regress_officer', '{encrypt,decrypt,search}');
SET ROLE regress_officer;
SELECT public.error_of(format('SELECT envcrypt.%s(''acme'')', f)) FROM unnest('{rotate_key,disable_tenant,enable_tenant}'::text[]) f;
SELECT public.error_of('SELECT envcrypt.destroy_tenant(''acme'', ''acme'')'), public.error_of('SELECT envcrypt.apply_receipt(''{}'')');
CALL envcrypt.rotate_keys('0 s');
SELECT public.error_of(format('SELECT count(*) FROM envcrypt.%s', v)) FROM unnest('{tenants,keys,wrappings,journal}'::text[]) v;
RESET ROLE;
SELECT envcrypt.grant_access('regress_officer', '{manage}');
SET ROLE regress_officer;
SELECT envcrypt.rotate_key('acme') > 1 AS rotated, envcrypt.disable_tenant('other'), envcrypt.enable_tenant('other');
CALL envcrypt.rotate_keys('1 day');
SELECT role, act, tenant FROM envcrypt.journal ORDER BY at DESC LIMIT 3;
SELECT public.error_of(statement) FROM unnest(ARRAY['DELETE FROM envcrypt.journal', 'UPDATE envcrypt.journal SET act = ''x''', 'INSERT INTO envcrypt.journal SELECT * FROM envcrypt.journal',
    'TRUNCATE envcrypt.journal']) statement;
RESET ROLE;
DROP USER MAPPING FOR regress_officer SERVER kms; REVOKE USAGE ON FOREIGN SERVER kms FROM regress_officer; SELECT envcrypt.revoke_access('regress_officer', '{encrypt,decrypt,search,manage}'); DROP ROLE regress_officer;
DROP FUNCTION written; DROP TABLE t;
\set ECHO none
\i :teardown
