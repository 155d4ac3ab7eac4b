-- Keys under a newer master key, under another KMS, under two, in groups, in another database: no value is touched, and every
-- value decrypts at each step.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set second :key_file '.second'
\set rotated :key_file '.rotated'
SET client_min_messages = error;
CREATE SERVER second FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file :'second'); CREATE USER MAPPING FOR CURRENT_USER SERVER second;
RESET client_min_messages;
\set ECHO all
CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, v envcrypt.encrypted(text, searchable, v)); CREATE INDEX ON t (v);
INSERT INTO t (v) VALUES ('one'::text); SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('two'::text), (envcrypt.encrypt('three'::text, 'other', 'v', 'searchable'));
CREATE TABLE before AS SELECT id, v::text AS bytes FROM t;
-- from the KMSs alone, whatever was open
CREATE FUNCTION reads() RETURNS text LANGUAGE sql AS $$ SELECT envcrypt.forget_keys(); SELECT string_agg(envcrypt.decrypt(v), ' ' ORDER BY id) || CASE WHEN bool_and(v::text = b.bytes) THEN '' ELSE ' (changed!)' END FROM t JOIN before b USING (id) $$;
CREATE VIEW wrapped AS SELECT tenant, purpose, version, string_agg(coalesce(server, 'group ' || group_key) || CASE WHEN own_master_key THEN ' own' ELSE '' END, ', ' ORDER BY created_at) AS at
    FROM envcrypt.wrappings GROUP BY 1, 2, 3;

-- rewrapped where they are: the newest version is found by asking; what is under it is left alone
CALL envcrypt.rewrap_keys('kms');
SELECT outdated, count(*) FROM envcrypt.wrappings GROUP BY 1;
\set QUIET on
ALTER SERVER kms OPTIONS (SET key_file :'rotated');
\set QUIET off
CALL envcrypt.rewrap_keys('kms');
SELECT outdated, count(*), count(DISTINCT master_key_version) AS versions, bool_and(wrapped_at > created_at) AS anew FROM envcrypt.wrappings GROUP BY 1; SELECT reads();
CALL envcrypt.rewrap_keys('kms');
SELECT act, server, to_server, tenant, role = current_user AS by_me, state, total, done, left_over, started_at <= updated_at AS times FROM envcrypt.progress;
SELECT tenant, jsonb_array_length(details->'keys') AS keys, details->'keys'->0->>'server' AS server, details->'keys'->0 ? 'master_key_version' AS version FROM envcrypt.journal WHERE act = 'rewrap_keys' ORDER BY 1;

-- a second KMS wraps them too; new keys of all kinds go to both
CALL envcrypt.add_wrapping('second', 'acme'); SELECT * FROM wrapped ORDER BY 1, 2, 3; SELECT reads();
CALL envcrypt.add_wrapping('second'); SELECT DISTINCT at FROM wrapped;
CALL envcrypt.add_wrapping('second');
SELECT envcrypt.rotate_key('acme'); SELECT * FROM wrapped WHERE tenant = 'acme' AND version = 3; SELECT servers FROM envcrypt.keys WHERE version = 3;
-- the first one is dropped: the tenants go on at the other
CALL envcrypt.drop_wrapping('kms', 'acme'); SELECT name, server FROM envcrypt.tenants ORDER BY 1; SELECT * FROM wrapped ORDER BY 1, 2, 3; SELECT reads();
CALL envcrypt.drop_wrapping('kms'); SELECT DISTINCT at FROM wrapped; SELECT reads(); SELECT envcrypt.rotate_key('other'); SELECT DISTINCT at FROM wrapped;
-- never the last one
CALL envcrypt.drop_wrapping('kms');
\set VERBOSITY sqlstate
CALL envcrypt.drop_wrapping('second', 'acme');
CALL envcrypt.drop_wrapping('second');
\set VERBOSITY default
SELECT DISTINCT at FROM wrapped; SELECT state, count(*) FROM envcrypt.progress GROUP BY 1 ORDER BY 1;
-- never an unverified one: what the other place holds is unwrapped first
CALL envcrypt.add_wrapping('kms', 'acme');
UPDATE envcrypt.wrapped_key SET wrapped = set_byte(wrapped, 70, get_byte(wrapped, 70) # 1) WHERE server = 'kms' AND key_id IN (SELECT key_id FROM envcrypt.data_key WHERE tenant = 'acme' AND version = 2);
SET client_min_messages = error; CALL envcrypt.drop_wrapping('second', 'acme'); RESET client_min_messages; SELECT state, done, left_over FROM envcrypt.progress WHERE act = 'drop_wrapping' AND server = 'second' AND tenant = 'acme';
SELECT version, at FROM wrapped WHERE tenant = 'acme' AND at ~ 'second'; SELECT reads();
UPDATE envcrypt.wrapped_key SET wrapped = set_byte(wrapped, 70, get_byte(wrapped, 70) # 1) WHERE server = 'kms' AND key_id IN (SELECT key_id FROM envcrypt.data_key WHERE tenant = 'acme' AND version = 2);
CALL envcrypt.drop_wrapping('second', 'acme'); SELECT DISTINCT at FROM wrapped WHERE tenant = 'acme'; SELECT reads();

-- moved in one go
CALL envcrypt.rewrap_keys('second', to_server => 'kms'); SELECT DISTINCT at FROM wrapped; SELECT name, server FROM envcrypt.tenants ORDER BY 1; SELECT reads();
-- gone on with where it was interrupted between: what is there already is verified, not wrapped again
CALL envcrypt.add_wrapping('second', 'other'); CALL envcrypt.rewrap_keys('kms', 'second'); SELECT DISTINCT at FROM wrapped; CALL envcrypt.rewrap_keys('kms', 'second'); SELECT reads();
CALL envcrypt.rewrap_keys('second', 'kms');

-- groups: one key wraps those of many tenants
SELECT envcrypt.create_group_key('many', 'kms'), envcrypt.move_tenant('acme', 'many'), envcrypt.move_tenant('other', 'many'), envcrypt.create_tenant('third', 'kms', group_key => 'many');
SELECT * FROM wrapped ORDER BY 1, 2, 3; SELECT reads(); SELECT name, server, group_key FROM envcrypt.tenants ORDER BY 1; SELECT DISTINCT servers, group_key FROM envcrypt.keys ORDER BY 2;
INSERT INTO t (v) VALUES (envcrypt.encrypt('third'::text, 'third', 'v', 'searchable')); INSERT INTO before SELECT id, v::text FROM t ORDER BY id DESC LIMIT 1;
SELECT envcrypt.rotate_key('acme'); SELECT count(*) FROM t WHERE envcrypt.matches(v, 'one'); SELECT reads();
SELECT tenant, server FROM envcrypt.cache ORDER BY 1, 2;
-- the group key is what is wrapped anew, moved and wrapped twice
CALL envcrypt.rewrap_keys('kms', 'second'); SELECT name, server FROM envcrypt.tenants ORDER BY 1; SELECT reads();
CALL envcrypt.add_wrapping('kms'); CALL envcrypt.drop_wrapping('second'); SELECT * FROM wrapped WHERE purpose = 'group'; SELECT reads(); SELECT name, server FROM envcrypt.tenants ORDER BY 1;
-- disabled and destroyed one by one, in and out of a group
SELECT envcrypt.disable_tenant('other'); SELECT error_of('SELECT reads()'); SELECT envcrypt.enable_tenant('other'); SELECT reads();
SELECT envcrypt.create_group_key('few', 'kms'), envcrypt.move_tenant('third', 'few'), envcrypt.move_tenant('acme', ''), envcrypt.move_tenant('acme', ''); SELECT * FROM wrapped WHERE tenant IN ('acme', 'third') ORDER BY 1, 2, 3; SELECT reads();
SELECT envcrypt.destroy_tenant('third', 'third')->'keys'->0->'wrapped_by' AS by; SELECT regexp_replace(error_of('SELECT reads()'), 'key [0-9a-f]{16}', 'key ID'); DELETE FROM t WHERE v::text = (SELECT bytes FROM before ORDER BY id DESC LIMIT 1); SELECT reads();
-- in however little memory
SET envcrypt.cache_size = 1; SELECT envcrypt.move_tenant('acme', 'few'), envcrypt.move_tenant('acme', 'many'), envcrypt.move_tenant('acme', ''), envcrypt.load_keys('acme', 'other'); SELECT count(*) FROM envcrypt.cache; SELECT reads();
CALL envcrypt.add_wrapping('second'); CALL envcrypt.drop_wrapping('second'); INSERT INTO t (v) VALUES ('gone'::text); SELECT count(*) FROM t WHERE envcrypt.matches(v, 'gone'); DELETE FROM t WHERE envcrypt.matches(v, 'gone'); RESET envcrypt.cache_size;
-- a group moves as a tenant does
CALL envcrypt.add_wrapping('second', 'few'); CALL envcrypt.drop_wrapping('kms', 'few'); SELECT tenant, at FROM wrapped WHERE purpose = 'group' ORDER BY 1; CALL envcrypt.rewrap_keys('second', 'kms');
-- a tenant of a group's name is another thing
SELECT envcrypt.create_tenant('many', 'kms'); SELECT envcrypt.destroy_tenant('many', 'many') IS NOT NULL AS destroyed; SELECT reads();
BEGIN; SELECT envcrypt.move_tenant('other', ''); SELECT reads(); ROLLBACK; SELECT reads(); SELECT * FROM wrapped WHERE tenant = 'other';
BEGIN; SAVEPOINT s; SELECT envcrypt.move_tenant('acme', 'few'); ROLLBACK TO s; SELECT reads(); COMMIT;
SELECT error_of(statement) FROM unnest(ARRAY['SELECT envcrypt.create_group_key(''many'', ''kms'')', 'SELECT envcrypt.create_group_key(''not a name'', ''kms'')', 'SELECT envcrypt.move_tenant(''acme'', ''nobody'')', 'SELECT envcrypt.move_tenant(''nobody'', ''many'')',
    'SELECT envcrypt.move_tenant(''third'', ''few'')', 'SELECT envcrypt.create_tenant(''x'', ''kms'', group_key => ''nobody'')', 'SELECT envcrypt.create_tenant(''x'', ''kms'', master_key => ''own'', group_key => ''many'')', 'SELECT envcrypt.move_tenant(NULL, ''many'')',
    'SELECT envcrypt.create_tenant(''x'', ''kms'', master_key => ''own'')']) statement;
CALL envcrypt.add_wrapping('second', 'other');

-- what cannot be
BEGIN; CALL envcrypt.rewrap_keys('kms'); ROLLBACK;
BEGIN; CALL envcrypt.add_wrapping('kms'); ROLLBACK;
CALL envcrypt.rewrap_keys('kms', 'kms');
CALL envcrypt.rewrap_keys('nowhere');
CALL envcrypt.rewrap_keys('kms', 'nowhere');
CALL envcrypt.add_wrapping('nowhere');
CALL envcrypt.add_wrapping('second', 'nobody');
CALL envcrypt.add_wrapping('second', master_key => 'own');
CALL envcrypt.add_wrapping(NULL);
CALL envcrypt.drop_wrapping('kms', 'nobody');
CALL envcrypt.drop_wrapping('nowhere');

-- out and in again: still wrapped, checked, and only what is missing
SELECT envcrypt.export_keys('acme') AS export \gset
SELECT :'export'::jsonb - 'keys' AS export, jsonb_array_length(:'export'::jsonb->'keys') AS keys, envcrypt.import_keys(:'export') AS imported;
CREATE TABLE saved AS SELECT * FROM envcrypt.tenant WHERE name = 'acme'; CREATE TABLE saved_keys AS SELECT * FROM envcrypt.data_key WHERE tenant = 'acme'; CREATE TABLE saved_wrapped AS SELECT w.* FROM envcrypt.wrapped_key w JOIN saved_keys USING (key_id);
CREATE FUNCTION lose() RETURNS void LANGUAGE sql AS $$ DELETE FROM envcrypt.wrapped_key WHERE key_id IN (SELECT key_id FROM saved_keys); DELETE FROM envcrypt.data_key WHERE tenant = 'acme'; DELETE FROM envcrypt.tenant WHERE name = 'acme' $$;
SELECT lose(); SELECT regexp_replace(error_of('SELECT reads()'), 'key [0-9a-f]{16}', 'key ID') ~ '^42704';
SELECT envcrypt.import_keys(:'export') AS imported; SELECT reads();
SELECT count(*) AS same FROM saved_keys s JOIN envcrypt.data_key k USING (key_id, tenant, purpose, version, state, commitment, created_at); SELECT count(*) FROM saved JOIN envcrypt.tenant USING (name, state, server, master_key, group_key, search_tenant);
INSERT INTO t (v) VALUES ('four'::text); SELECT count(*) FROM t WHERE envcrypt.matches(v, 'four'); DELETE FROM t WHERE envcrypt.matches(v, 'four');
DELETE FROM envcrypt.wrapped_key WHERE key_id IN (SELECT key_id FROM saved_keys WHERE version = 1 AND purpose = 'data'); DELETE FROM envcrypt.data_key WHERE tenant = 'acme' AND purpose = 'data' AND version = 1;
SELECT envcrypt.import_keys(:'export') AS "the one that is missing"; SELECT reads();
-- a place that was dropped since does not come back with an older export
CALL envcrypt.rewrap_keys('kms', 'second'); SELECT envcrypt.import_keys(:'export') AS imported; SELECT DISTINCT at FROM wrapped WHERE tenant = 'acme'; CALL envcrypt.rewrap_keys('second', 'kms');
-- rotated in both databases
SELECT regexp_replace(error_of(format('SELECT envcrypt.import_keys(%L)', replace(:'export', :'export'::jsonb->'keys'->0->>'key_id', '0123456789abcdef'))), 'version [0-9]', 'version N');
-- a newer version, as a subscriber gets it
SELECT envcrypt.rotate_key('acme'); SELECT envcrypt.export_keys('acme') AS newer \gset
SELECT lose(), envcrypt.import_keys(:'export') AS imported; SELECT envcrypt.import_keys(:'newer') AS imported; SELECT version, state FROM envcrypt.keys WHERE tenant = 'acme' AND purpose = 'data' ORDER BY 1;
SELECT envcrypt.import_keys(:'export') AS imported; SELECT version, state FROM envcrypt.keys WHERE tenant = 'acme' AND purpose = 'data' AND state = 'active'; SELECT reads();
-- with its group
SELECT envcrypt.export_keys('other') AS grouped \gset
SELECT jsonb_array_length(:'grouped'::jsonb->'group') AS group, :'grouped'::jsonb->'keys'->0->'wrapped_by'->0->>'group_key' AS in_group;
CREATE TABLE gone AS SELECT * FROM envcrypt.data_key WHERE tenant IN ('other', 'many') AND state <> 'destroyed'; DELETE FROM envcrypt.wrapped_key WHERE key_id IN (SELECT key_id FROM gone); DELETE FROM envcrypt.data_key WHERE key_id IN (SELECT key_id FROM gone); DELETE FROM envcrypt.tenant WHERE name = 'other';
SELECT error_of(format('SELECT envcrypt.import_keys(%L)', jsonb_set(:'grouped'::jsonb, path::text[], value))) FROM (VALUES ('{group,0,version}', '2'::jsonb), ('{keys,0,wrapped_by,0,group_key}', '"few"'), ('{group_key}', '"not a name"'), ('{group_key}', '""'), ('{master_key}', '"own"'), ('{search_tenant}', '"third"')) v(path, value);
SELECT envcrypt.import_keys(:'grouped') AS imported; SELECT reads(); SELECT * FROM wrapped WHERE tenant IN ('other', 'many') ORDER BY 1, 2;
-- a group of that name which is another
SELECT regexp_replace(error_of(format('SELECT envcrypt.import_keys(%L)', replace(:'grouped', :'grouped'::jsonb->'group'->0->>'key_id', '0123456789abcdef'))), 'key [0-9a-f]{16}', 'key ID');
-- taken back, nothing is left of it, and nothing that it encrypts outlives it
SELECT lose(); BEGIN; SELECT envcrypt.import_keys(:'export') AS imported; SELECT reads(); SELECT error_of('SELECT envcrypt.encrypt(''x''::text, ''acme'')'); ROLLBACK; SELECT count(*) FROM envcrypt.cache WHERE tenant = 'acme'; SELECT envcrypt.import_keys(:'newer') AS imported;
BEGIN; SELECT lose(); SELECT envcrypt.import_keys(:'export') AS imported; ROLLBACK; SELECT reads();
-- what is no export, or not what it says, changes nothing
SELECT lose();
SELECT regexp_replace(regexp_replace(error_of(format('SELECT envcrypt.import_keys(%L)', e)), 'key [0-9a-f]{16}', 'key ID'), E'\nGive it as .*', '') FROM (VALUES ('1'::jsonb), ('[]'), ('{}'), ('{"act": "export_keys"}'), ('{"act": "export_keys", "envcrypt": 2}'), (:'export'::jsonb - 'tenant'), (:'export'::jsonb || '{"tenant": "not a name"}'), (:'export'::jsonb || '{"state": "destroyed"}'),
    (:'export'::jsonb - 'keys'), (:'export'::jsonb || '{"keys": []}'), (:'export'::jsonb || '{"keys": [1]}'), (:'export'::jsonb - 'group'), (:'export'::jsonb || '{"group": [{}]}'), (:'export'::jsonb || '{"server": 1}'), (:'export'::jsonb || '{"server": "nowhere"}'), (:'export'::jsonb || '{"search_tenant": "nobody"}'),
    (:'export'::jsonb || '{"tenant": "acme2"}')) v(e);
SELECT regexp_replace(regexp_replace(error_of(format('SELECT envcrypt.import_keys(%L)', jsonb_set(:'export'::jsonb, ('{keys,0,' || path || '}')::text[], value))), 'key [0-9a-f]{16}', 'key ID'), E'\n(Give it as|It was altered|The wrapped key) .*', '') FROM (VALUES ('key_id', '"12"'::jsonb), ('key_id', '"0123456789abcdef"'), ('key_id', '1'), ('commitment', '"00"'), ('commitment', to_jsonb(repeat('00', 32))),
    ('purpose', '"group"'), ('purpose', '"other"'), ('version', '0'), ('version', '1.5'), ('version', '9999999999'), ('version', '"1"'), ('state', '"pending"'), ('created_at', '"never"'), ('created_at', '"infinity"'), ('version', '1000001'), ('wrapped_by', '[]'), ('wrapped_by', '[1]'), ('wrapped_by,0,wrapped', '"###"'), ('wrapped_by,0,wrapped', '""'), ('wrapped_by,0,wrapped', '"AAAA"'),
    ('wrapped_by,0,server', '""'), ('wrapped_by,0,group_key', '"many"'), ('wrapped_by,0,own_master_key', '1'), ('wrapped_by,0,attestation', 'null'), ('wrapped_by,0,master_key', 'null')) v(path, value);
SELECT count(*) FROM envcrypt.tenant WHERE name = 'acme'; SELECT count(*) FROM envcrypt.data_key WHERE tenant = 'acme';
SELECT envcrypt.import_keys(:'newer') AS imported; SELECT reads();
SELECT regexp_replace(error_of(format('SELECT envcrypt.import_keys(%L)', jsonb_set(:'export'::jsonb, '{keys,0,version}', '77'))), 'key [0-9a-f]{16}', 'key ID');
SELECT error_of('SELECT envcrypt.export_keys(''nobody'')'), error_of('SELECT envcrypt.export_keys(''third'')'), error_of(format('SELECT envcrypt.import_keys(%L)', :'export'::jsonb || '{"tenant": "third"}'));

-- the name of a server
SELECT envcrypt.rename_server('kms', 'main'); SELECT DISTINCT at FROM wrapped ORDER BY 1; SELECT name, server FROM envcrypt.tenants WHERE state = 'active' ORDER BY 1; SELECT reads(); SELECT envcrypt.rotate_key('acme') > 0 AS rotated;
SELECT error_of('SELECT envcrypt.rename_server(''main'', ''second'')'), error_of('SELECT envcrypt.rename_server(''kms'', ''x'')'), error_of('SELECT envcrypt.rename_server(''main'', '''')'), error_of('ALTER SERVER main RENAME TO x');
BEGIN; SELECT envcrypt.rename_server('main', 'x') > 0 AS renamed; SELECT reads(); ROLLBACK; SELECT reads();
CREATE SERVER store FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint 'https://127.0.0.1:1'); CREATE SERVER reader FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint 'https://127.0.0.1:1');
CREATE USER MAPPING FOR CURRENT_USER SERVER store OPTIONS (auth 'token', token 'file:/t'); CREATE USER MAPPING FOR CURRENT_USER SERVER reader OPTIONS (auth 'token', token 'vault-kv:store:secret/a#b');
SELECT error_of('SELECT envcrypt.rename_server(''store'', ''x'')');
DROP SERVER store, reader CASCADE;

-- try_decrypt: NULL for what is not available now, an error for what is wrong
SELECT envcrypt.disable_tenant('acme'); SELECT id, envcrypt.try_decrypt(v) FROM t ORDER BY id; SELECT envcrypt.enable_tenant('acme'); SELECT id, envcrypt.try_decrypt(v) FROM t ORDER BY id;
SELECT envcrypt.try_decrypt(NULL) IS NULL AS "NULL", error_of('SELECT envcrypt.try_decrypt(v, label => ''x'') FROM t'), error_of('SELECT envcrypt.try_decrypt(v, ''data'') FROM t'), error_of('SELECT envcrypt.try_decrypt(v, NULL) FROM t');
CREATE ROLE regress_reader; GRANT SELECT ON t TO regress_reader; SELECT envcrypt.grant_access('regress_reader', '{decrypt}'); SET ROLE regress_reader;
SELECT id, envcrypt.try_decrypt(v) FROM t ORDER BY id; RESET ROLE; REVOKE SELECT ON t FROM regress_reader;

-- whose it is
SET ROLE regress_reader;
CALL envcrypt.rewrap_keys('main');
CALL envcrypt.add_wrapping('main');
CALL envcrypt.drop_wrapping('main');
SELECT public.error_of(format('SELECT envcrypt.%s', f)) FROM unnest(ARRAY['create_group_key(''x'', ''main'')', 'move_tenant(''acme'', ''many'')', 'export_keys(''acme'')', 'import_keys(''{}'')', 'rename_server(''main'', ''x'')']) f;
SELECT public.error_of('SELECT FROM envcrypt.progress');
RESET ROLE; SELECT envcrypt.grant_access('regress_reader', '{manage}'); SET ROLE regress_reader;
CALL envcrypt.rewrap_keys('main');
SELECT public.error_of('SELECT envcrypt.rename_server(''main'', ''x'')'), (SELECT count(*) > 0 FROM envcrypt.progress) AS sees;
RESET ROLE; SELECT envcrypt.revoke_access('regress_reader', '{decrypt,manage}'); DROP ROLE regress_reader;

-- what is written down
SELECT act, tenant, details - 'keys' AS details, jsonb_array_length(details->'keys') AS keys FROM envcrypt.journal WHERE act IN ('create_group_key', 'move_tenant', 'export_keys', 'import_keys', 'rename_server') ORDER BY at;
SELECT act, count(DISTINCT tenant) AS tenants FROM envcrypt.journal WHERE act ~ '_wrapping|rewrap' GROUP BY 1 ORDER BY 1;
-- the tables' rows are written without a query: nothing may hang on one
SELECT error_of(s) FROM unnest(ARRAY['CREATE INDEX ON envcrypt.journal ((details->>''tenant''))', 'CREATE INDEX ON envcrypt.journal (tenant) WHERE act = ''x''', 'CREATE UNIQUE INDEX ON envcrypt.journal (at)', 'ALTER TABLE envcrypt.journal ADD CHECK (act <> '''')',
    'CREATE TRIGGER x AFTER INSERT ON envcrypt.journal FOR EACH ROW EXECUTE FUNCTION envcrypt.keys_changed()']) s;
CREATE INDEX mine ON envcrypt.journal (act); SELECT envcrypt.disable_tenant('other'), envcrypt.enable_tenant('other'); DROP INDEX envcrypt.mine;
DROP VIEW wrapped; DROP FUNCTION reads, lose; DROP TABLE t, before, saved, saved_keys, saved_wrapped, gone;
\set ECHO none
SET client_min_messages = error;
DELETE FROM envcrypt.wrapped_key; DROP SERVER second CASCADE;
\i :teardown
