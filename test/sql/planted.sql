-- Rows that somebody wrote to the key tables without a right or a login at the KMS: an open key serves only what it was
-- opened as, in the session that has it open (a pooled one) as in a new one.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
CREATE ROLE regress_planter;
GRANT USAGE ON SCHEMA envcrypt TO regress_planter;
GRANT SELECT, INSERT, UPDATE, DELETE ON envcrypt.tenant, envcrypt.data_key, envcrypt.wrapped_key TO regress_planter;
-- SQLSTATE and message of a statement, without key ids
CREATE FUNCTION fault_of(statement text) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace(split_part(error_of(statement), E'\n', 1), '[0-9a-f]{16}', 'ID', 'g');
$$;
CREATE TABLE told AS SELECT tenant, envcrypt.encrypt(tenant || '''s secret', tenant, label => 's', search => 'searchable') v
    FROM unnest('{acme,other}'::text[]) tenant;
CREATE FUNCTION reads(OUT acme text, OUT other text) LANGUAGE sql AS $$
    SELECT (SELECT coalesce(nullif(fault_of($q$SELECT envcrypt.decrypt(v, label => 's') FROM told WHERE tenant = 'acme'$q$), 'no error'), 'reads')),
        (SELECT coalesce(nullif(fault_of($q$SELECT envcrypt.decrypt(v, label => 's') FROM told WHERE tenant = 'other'$q$), 'no error'), 'reads'));
$$;
\set ECHO all
SELECT * FROM reads();

-- another tenant's key, open in this session, becomes the newest of the tenant: nothing is encrypted under it
SET ROLE regress_planter;
UPDATE envcrypt.data_key SET tenant = 'acme', version = 9 WHERE tenant = 'other' AND purpose = 'data';
RESET ROLE;
SELECT fault_of($$SELECT envcrypt.encrypt('planted', 'acme')$$), fault_of($$INSERT INTO told VALUES ('acme', envcrypt.encrypt('planted', 'acme'))$$);
SELECT * FROM reads();
\c -
SELECT fault_of($$SELECT envcrypt.encrypt('planted', 'acme')$$);
SELECT * FROM reads();
SET ROLE regress_planter;
UPDATE envcrypt.data_key SET tenant = 'other', version = 1 WHERE version = 9;
RESET ROLE;
SELECT * FROM reads();

-- a search key, open, becomes a data key, and a data key a search key
SET envcrypt.tenant = 'acme';
SELECT cardinality(envcrypt.search('x', 's', 'searchable'));
UPDATE envcrypt.data_key SET purpose = 'data', version = 9 WHERE tenant = 'acme' AND purpose = 'search';
SELECT fault_of($$SELECT envcrypt.encrypt('planted', 'acme')$$), fault_of($$SELECT envcrypt.search('x', 's', 'searchable')$$);
UPDATE envcrypt.data_key SET purpose = 'search', version = 1 WHERE tenant = 'acme' AND version = 9;
UPDATE envcrypt.data_key SET purpose = 'search', version = 9 WHERE tenant = 'acme' AND purpose = 'data';
SELECT fault_of($$SELECT envcrypt.search('x', 's', 'searchable')$$);
UPDATE envcrypt.data_key SET purpose = 'data', version = 1 WHERE tenant = 'acme' AND version = 9;
SELECT cardinality(envcrypt.search('x', 's', 'searchable'));
SELECT * FROM reads();

-- another commitment
UPDATE envcrypt.data_key SET commitment = set_byte(commitment, 0, get_byte(commitment, 0) # 1) WHERE tenant = 'acme' AND purpose = 'data';
SELECT * FROM reads();
UPDATE envcrypt.data_key SET commitment = set_byte(commitment, 0, get_byte(commitment, 0) # 1) WHERE tenant = 'acme' AND purpose = 'data';
SELECT * FROM reads();

-- versions that envcrypt does not write
SELECT purpose, version, fault_of(format($$UPDATE envcrypt.data_key SET version = %s WHERE tenant = 'acme' AND purpose = %L; SELECT envcrypt.search('x', 's', 'searchable'), envcrypt.encrypt('x')$$, version, purpose))
    FROM (VALUES ('search', 0), ('search', -1), ('search', 64), ('data', 0), ('data', 1000001)) v(purpose, version);
SELECT * FROM reads();

-- a destroyed tenant does not come back where a session that has its key open did not look meanwhile
CREATE EXTENSION dblink;
SELECT envcrypt.create_tenant('gone', 'kms');
INSERT INTO told VALUES ('gone', envcrypt.encrypt('shredded', 'gone'));
SELECT tenant FROM envcrypt.cache WHERE tenant = 'gone';
SELECT dblink_connect('elsewhere', format('host=%s port=%s dbname=%s', current_setting('unix_socket_directories'), current_setting('port'), current_database())) \gset
SELECT * FROM dblink('elsewhere', $$SELECT envcrypt.destroy_tenant('gone', 'gone')->>'tenant'$$) AS destroyed(tenant text);
SELECT dblink_exec('elsewhere', $$UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'gone'$$), dblink_exec('elsewhere', $$UPDATE envcrypt.data_key SET state = 'active' WHERE tenant = 'gone'$$),
    dblink_exec('elsewhere', $$INSERT INTO envcrypt.wrapped_key SELECT key_id, 'kms', '', '\x01', 'any', '1', '', false, now(), now() FROM envcrypt.data_key WHERE tenant = 'gone'$$);
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'gone';
SELECT fault_of($$SELECT envcrypt.decrypt(v) FROM told WHERE tenant = 'gone'$$), fault_of($$SELECT envcrypt.encrypt('x', 'gone')$$);
SELECT dblink_disconnect('elsewhere');

-- a wrapping by a group that the tenant is not in
SELECT envcrypt.create_group_key('few', 'kms'); SELECT envcrypt.create_tenant('member', 'kms', group_key => 'few');
INSERT INTO told VALUES ('member', envcrypt.encrypt('in the group', 'member'));
UPDATE envcrypt.tenant SET group_key = '' WHERE name = 'member';
SELECT regexp_replace(error_of($$SELECT envcrypt.decrypt(v) FROM told WHERE tenant = 'member'$$), '[0-9a-f]{16}', 'ID');
SELECT fault_of($$SELECT envcrypt.try_decrypt(v) FROM told WHERE tenant = 'member'$$);
UPDATE envcrypt.tenant SET group_key = 'few' WHERE name = 'member';
SELECT envcrypt.decrypt(v) FROM told WHERE tenant = 'member';
UPDATE envcrypt.wrapped_key SET server = 'kms' WHERE group_key = 'few';
SELECT fault_of($$SELECT envcrypt.decrypt(v) FROM told WHERE tenant = 'member'$$);
UPDATE envcrypt.wrapped_key SET server = '' WHERE group_key = 'few';
UPDATE envcrypt.data_key SET version = 2 WHERE tenant = 'few';
SELECT fault_of($$SELECT envcrypt.create_tenant('another', 'kms', group_key => 'few')$$);
UPDATE envcrypt.data_key SET version = 1 WHERE tenant = 'few';

-- where new keys are wrapped is told when it is another place
\getenv key_file ENVCRYPT_KEY_FILE
\set second :key_file '.second'
CREATE SERVER second FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file :'second');
CREATE USER MAPPING FOR CURRENT_USER SERVER second;
SELECT envcrypt.rotate_key('acme');
UPDATE envcrypt.tenant SET server = 'second' WHERE name = 'acme';
\set VERBOSITY terse
SELECT envcrypt.rotate_key('acme');
UPDATE envcrypt.tenant SET group_key = 'few' WHERE name = 'other';
SELECT envcrypt.rotate_key('other');
\set VERBOSITY default

-- a wrapping by a server that does not exist is an error of the tables, and no key that is not available now
UPDATE envcrypt.wrapped_key SET server = 'nowhere' WHERE key_id = (SELECT key_id FROM envcrypt.data_key WHERE tenant = 'acme' AND purpose = 'data' AND version = 1);
SELECT fault_of($$SELECT envcrypt.try_decrypt(v, label => 's') FROM told WHERE tenant = 'acme'$$);

-- values that are too short to name a key are counted
CREATE TABLE damaged (v bytea);
INSERT INTO damaged VALUES (''), ('\x01'), ('\x010102030405060708'), (NULL);
INSERT INTO damaged SELECT envcrypt.encrypted_send(v) FROM told WHERE tenant = 'other' LIMIT 1;
SET allow_system_table_mods = on;
UPDATE pg_attribute SET atttypid = 'envcrypt.encrypted'::regtype WHERE attrelid = 'damaged'::regclass AND attname = 'v';
RESET allow_system_table_mods;
\c -
SELECT tenant, key_version, key_id IS NULL AS "no id", "values" FROM envcrypt.count_values('damaged', 'v') ORDER BY 1;
SELECT count(*) FROM (SELECT fault_of(format('SELECT envcrypt.inspect(v), envcrypt.decrypt(v) FROM damaged WHERE ctid = %L', ctid)) AS fault FROM damaged) f WHERE fault ~ '^22P03';

\set ECHO none
DROP TABLE damaged;
DROP EXTENSION dblink;
DROP TABLE told;
DROP FUNCTION reads, fault_of;
DROP OWNED BY regress_planter;
DROP ROLE regress_planter;
DELETE FROM envcrypt.wrapped_key;
\i :teardown
DROP SERVER IF EXISTS second CASCADE;
