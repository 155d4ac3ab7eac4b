-- What every regression test ends with.
\set QUIET on
RESET ROLE;
SET client_min_messages = error;
DELETE FROM envcrypt.wrapped_key;
DROP EXTENSION envcrypt CASCADE;
DROP SCHEMA envcrypt;
DROP FUNCTION error_of(text);
