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
    'ALTER TABLE envcrypt.wrapped_key DROP COLUMN wrapped', 'ALTER TABLE envcrypt.wrapped_key ALTER wrapped TYPE bytea USING NULL', 'ALTER TABLE envcrypt.data_key DROP CONSTRAINT data_key_pkey',
    'ALTER TABLE envcrypt.data_key RENAME CONSTRAINT data_key_pkey TO other', 'ALTER EXTENSION envcrypt DROP TABLE envcrypt.wrapped_key']) command;
BEGIN;
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
ALTER SCHEMA envcrypt OWNER TO regress_owner;
SELECT split_part(error_of('DROP OWNED BY regress_owner'), E'\n', 1);
SELECT split_part(error_of('DROP OWNED BY regress_owner CASCADE'), E'\n', 1);
ALTER SCHEMA envcrypt OWNER TO CURRENT_USER;
DROP OWNED BY regress_owner;
DROP ROLE regress_owner;
-- others are none of its business
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
