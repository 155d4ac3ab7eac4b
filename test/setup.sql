-- What every regression test starts with: the extension, a local KMS, the tenants acme and other, and error_of().
\set QUIET on
SET client_min_messages = error;
\getenv key_file ENVCRYPT_KEY_FILE
CREATE EXTENSION envcrypt;
CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file :'key_file');
CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
SELECT count(*) AS tenants FROM (SELECT envcrypt.create_tenant(name, 'kms') FROM unnest('{acme,other}'::text[]) name) t \gset
-- SQLSTATE, message, detail and hint of what a statement raises
CREATE FUNCTION error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text; detail text; hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n', SQLSTATE || ' ' || message, nullif(detail, ''), nullif(hint, ''));
END $$;
SET envcrypt.tenant = 'acme';
RESET client_min_messages;
\pset format unaligned
\pset footer off
\set QUIET off
