-- Keys are not lost by accident: no command that would drop the extension, or a server that wraps keys, while there are any.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SET client_min_messages = warning;
SELECT split_part(error_of(command), E'\n', 1) FROM unnest(ARRAY[
    'DROP EXTENSION envcrypt', 'DROP EXTENSION envcrypt CASCADE', 'DROP EXTENSION IF EXISTS envcrypt CASCADE', 'DROP SCHEMA envcrypt CASCADE',
    'DROP OWNED BY CURRENT_USER', 'DROP SERVER kms', 'DROP SERVER kms CASCADE', 'ALTER SERVER kms RENAME TO other',
    'DROP FOREIGN DATA WRAPPER envcrypt_local CASCADE', 'DROP TABLE envcrypt.wrapped_key', 'DROP TYPE envcrypt.encrypted CASCADE']) command;
SELECT error_of('DROP EXTENSION envcrypt CASCADE');
SELECT error_of('DROP SERVER kms CASCADE');
-- not even where triggers are off
SET session_replication_role = replica;
SELECT split_part(error_of(command), E'\n', 1) FROM unnest(ARRAY['DROP EXTENSION envcrypt CASCADE', 'DROP SERVER kms CASCADE', 'ALTER SERVER kms RENAME TO other']) command;
RESET session_replication_role;
-- nor is the extension taken apart, or what finds the keys renamed
SELECT command, split_part(error_of(command), E'\n', 1) FROM unnest(ARRAY['ALTER SCHEMA envcrypt RENAME TO other', 'ALTER TABLE envcrypt.wrapped_key RENAME TO other',
    'ALTER TABLE envcrypt.data_key RENAME COLUMN tenant TO other', 'ALTER TABLE envcrypt.tenant SET SCHEMA public', 'ALTER INDEX envcrypt.wrapped_key_pkey RENAME TO other',
    'ALTER TABLE envcrypt.wrapped_key DROP COLUMN wrapped', 'ALTER TABLE envcrypt.tenant ADD COLUMN note text', 'ALTER TABLE envcrypt.wrapped_key SET UNLOGGED', 'ALTER TABLE envcrypt.wrapped_key ALTER wrapped TYPE bytea USING NULL', 'ALTER TABLE envcrypt.data_key DROP CONSTRAINT data_key_pkey',
    'ALTER TABLE envcrypt.data_key RENAME CONSTRAINT data_key_pkey TO other', 'ALTER EXTENSION envcrypt DROP TABLE envcrypt.wrapped_key']) command;
BEGIN;
ALTER EVENT TRIGGER envcrypt_guard_command DISABLE;
ALTER TABLE envcrypt.data_key ADD COLUMN more int;
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
ROLLBACK;
BEGIN;
ALTER TABLE envcrypt.data_key ALTER commitment DROP NOT NULL;
UPDATE envcrypt.data_key SET commitment = NULL;
SELECT split_part(error_of($$SELECT envcrypt.encrypt('x')$$), E'\n', 1);
ROLLBACK;
-- the owner of the schema would take the extension along
CREATE ROLE regress_owner SUPERUSER;
CREATE ROLE regress_server_owner;
ALTER SCHEMA envcrypt OWNER TO regress_owner;
SELECT split_part(error_of('DROP OWNED BY regress_owner'), E'\n', 1);
SELECT split_part(error_of('DROP OWNED BY regress_owner CASCADE'), E'\n', 1);
ALTER SCHEMA envcrypt OWNER TO CURRENT_USER;
DROP OWNED BY regress_owner;
DROP ROLE regress_owner;
-- the owner of the server alone
GRANT USAGE ON FOREIGN DATA WRAPPER envcrypt_local TO regress_server_owner;
ALTER SERVER kms OWNER TO regress_server_owner;
SELECT split_part(error_of('DROP OWNED BY regress_server_owner'), E'\n', 1), split_part(error_of('DROP OWNED BY regress_server_owner CASCADE'), E'\n', 1);
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_server_owner;
SET ROLE regress_server_owner;
SELECT split_part(error_of('DROP SERVER kms CASCADE'), E'\n', 1), split_part(error_of('ALTER SERVER kms RENAME TO other'), E'\n', 1);
RESET ROLE;
ALTER SERVER kms OWNER TO CURRENT_USER;
DROP OWNED BY regress_server_owner;
DROP ROLE regress_server_owner;
-- nor is a part of it, nor by a command that names others too
SELECT command, split_part(error_of(command), E'\n', 1) FROM unnest(ARRAY['ALTER EXTENSION envcrypt DROP FUNCTION envcrypt.forget_keys()',
    'DROP SCHEMA IF EXISTS regress_nothing, envcrypt CASCADE', 'DROP SERVER IF EXISTS regress_nothing, kms CASCADE']) command;
SELECT error_of('ALTER SCHEMA envcrypt RENAME TO other');
SELECT count(*) FROM envcrypt.tenant JOIN envcrypt.data_key ON tenant = name JOIN envcrypt.wrapped_key USING (key_id);
-- others are none of its business
CREATE SCHEMA regress_schema;
ALTER SCHEMA regress_schema RENAME TO regress_renamed;
CREATE TABLE regress_renamed.tenant (a int);
ALTER TABLE regress_renamed.tenant RENAME a TO b;
ALTER TABLE regress_renamed.tenant RENAME TO t;
DROP SCHEMA regress_renamed CASCADE;
CREATE FOREIGN DATA WRAPPER regress_fdw;
CREATE SERVER regress_server FOREIGN DATA WRAPPER regress_fdw;
ALTER SERVER regress_server RENAME TO regress_renamed;
DROP SERVER regress_renamed;
CREATE SERVER unused FOREIGN DATA WRAPPER envcrypt_local;
ALTER SERVER unused RENAME TO unused_too;
DROP SERVER unused_too;
DROP FOREIGN DATA WRAPPER regress_fdw;
-- without keys everything goes
DELETE FROM envcrypt.wrapped_key;
BEGIN;
ALTER SERVER kms RENAME TO renamed;
SET LOCAL client_min_messages = error;
DROP SERVER renamed CASCADE;
DROP EXTENSION envcrypt CASCADE;
ROLLBACK;
\set ECHO none
\i :teardown
