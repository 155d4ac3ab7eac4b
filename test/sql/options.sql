-- Options of servers and user mappings: what is legal is said, secrets are references, and only superusers set them.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (end_point 'https://x')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_local OPTIONS (endpoint 'https://x')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint 'http://x')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (master_key '../sys/seal')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (ca_file 'ca.pem')$$);
SELECT error_of($$ALTER FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (ADD endpoint 'https://x')$$);
CREATE SERVER vault FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint 'https://127.0.0.1:1', master_key 'app');
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (auth 'approle', secret_id 'hvs.the-secret-itself')$$);
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (auth 'password')$$);
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (endpoint 'https://x')$$);
SELECT error_of($$CREATE USER MAPPING FOR PUBLIC SERVER kms OPTIONS (token 'file:/x')$$);
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (user 'me')$$);
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (auth 'token', token 'file:relative')$$);
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (auth 'token', token '')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file 'relative')$$);
SELECT error_of($$CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '')$$);
SELECT options, split_part(error_of(format('CREATE SERVER s FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (%s); DROP SERVER s', options)), E'\n', 1) FROM unnest(ARRAY[
    $$endpoint ''$$, $$endpoint 'x'$$, $$endpoint 'HTTP://x'$$, $$endpoint 'ftp://x'$$, $$endpoint 'file:///etc/passwd'$$, $$endpoint 'https://'$$,
    $$endpoint 'https://user:secret@x'$$, $$endpoint 'https://x/?a=b'$$, $$endpoint 'https://x/#a'$$, $$endpoint E'https://x\r\nHost: y'$$, $$endpoint 'https://x y'$$,
    $$endpoint 'http://169.254.169.254'$$, $$mount '../auth'$$, $$mount ''$$, $$mount '/a'$$, $$mount 'a//b'$$, $$mount 'a/b'$$, $$mount 'a b'$$, $$mount 'a%2e'$$, $$master_key 'a/../b'$$, $$master_key 'a?b'$$, $$master_key 'a#b'$$, $$master_key ''$$, $$master_key 'app-1_b'$$,
    $$insecure 'true'$$, $$verify 'off'$$, $$"ENDPOINT" 'https://x'$$, $$key_file '/x'$$, $$token 'file:/x'$$]) options;
-- a secret given by value is not repeated
SELECT error_of($$CREATE USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (auth 'token', token 'hvs.the-secret-itself')$$) !~ 'hvs' AS silent;
SELECT count(*) FROM pg_user_mappings WHERE srvname = 'vault';
-- what is missing is said at use
CREATE USER MAPPING FOR CURRENT_USER SERVER vault;
SELECT error_of($$SELECT envcrypt.check_server('vault')$$);
ALTER USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (ADD auth 'token');
SELECT error_of($$SELECT envcrypt.check_server('vault')$$);
ALTER USER MAPPING FOR CURRENT_USER SERVER vault OPTIONS (ADD token 'file:/nonexistent/token');
SELECT ok, identity, sqlstate, error, hint FROM envcrypt.check_server('vault');
ALTER SERVER vault OPTIONS (DROP master_key);
SELECT error_of($$SELECT envcrypt.check_server('vault')$$);
CREATE SERVER bare FOREIGN DATA WRAPPER envcrypt_local;
CREATE USER MAPPING FOR CURRENT_USER SERVER bare;
SELECT error_of($$SELECT envcrypt.check_server('bare')$$);
SELECT error_of($$SELECT envcrypt.check_server('nowhere')$$);
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER no_kms FOREIGN DATA WRAPPER regress_other;
SELECT error_of($$SELECT envcrypt.check_server('no_kms')$$);
-- key files
CREATE FUNCTION with_file(contents text, mode text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE path text := current_setting('data_directory') || '/regress_key';
    result record;
BEGIN
    EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', format('cat >/dev/null; rm -rf %1$s; printf ''%2$s'' > %1$s; chmod %3$s %1$s', path, contents, mode));
    SELECT * INTO result FROM envcrypt.check_server('bare');
    RETURN concat_ws(' ', result.ok, result.sqlstate, replace(result.error, path, 'FILE'), result.hint);
END $$;
DO $$ BEGIN EXECUTE format('ALTER SERVER bare OPTIONS (ADD key_file %L)', current_setting('data_directory') || '/regress_key'); END $$;
SELECT with_file(repeat('a', 64), '600');
SELECT with_file(repeat('a', 64) || '\n', '400');
SELECT with_file(repeat('a', 64), '640');
SELECT with_file(repeat('a', 64), '604');
SELECT with_file(repeat('a', 63), '600');
SELECT with_file('', '600');
SELECT with_file(repeat('a', 64) || '\n\n' || repeat('b', 64), '600');
DO $$ BEGIN EXECUTE format('ALTER SERVER bare OPTIONS (SET key_file %L)', current_setting('data_directory')); END $$;
SELECT ok, sqlstate, replace(error, current_setting('data_directory'), 'DIR') FROM envcrypt.check_server('bare');

-- only superusers set options, whoever owns the server or may use it
CREATE ROLE regress_owner;
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_owner;
ALTER SERVER vault OWNER TO regress_owner;
GRANT USAGE ON FOREIGN DATA WRAPPER envcrypt_vault TO regress_owner;
SET ROLE regress_owner;
SELECT error_of($$ALTER SERVER vault OPTIONS (SET endpoint 'https://evil')$$);
SELECT error_of($$ALTER SERVER vault OPTIONS (DROP endpoint)$$);
SELECT error_of($$CREATE SERVER mine FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint 'https://evil')$$);
SELECT error_of($$CREATE USER MAPPING FOR regress_owner SERVER vault OPTIONS (auth 'token', token 'file:/etc/shadow')$$);
RESET ROLE;
SET client_min_messages = warning;
DROP SERVER vault, bare, no_kms CASCADE;
RESET client_min_messages;
DROP FOREIGN DATA WRAPPER regress_other;
DROP FUNCTION with_file;
REVOKE USAGE ON FOREIGN DATA WRAPPER envcrypt_vault FROM regress_owner;
\set ECHO none
\i :teardown
DROP ROLE regress_owner;
