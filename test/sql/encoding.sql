-- Text is stored as UTF-8 whatever the server encoding: a value of a LATIN1 database is the same bytes elsewhere.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\set old_database :DBNAME
\i :setup
SELECT envcrypt.encrypt('ten €') AS euro, envcrypt.encrypt('Grüße') AS greetings \gset
SELECT current_setting('data_directory') || '/regress_tenant' AS tenant_file, current_setting('data_directory') || '/regress_data_key' AS key_file_,
    current_setting('data_directory') || '/regress_wrapped_key' AS wrapped_file \gset
COPY envcrypt.tenant TO :'tenant_file';
COPY envcrypt.data_key TO :'key_file_';
COPY envcrypt.wrapped_key TO :'wrapped_file';
\i :teardown
CREATE DATABASE regress_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
CREATE DATABASE regress_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0;
\c regress_latin1
\encoding UTF8
\i :setup
\set ECHO all
SELECT envcrypt.decrypt(envcrypt.encrypt('Grüße')) = 'Grüße' AS same, (envcrypt.inspect(envcrypt.encrypt('Grüße'))).plaintext_bytes AS utf8_bytes, octet_length('Grüße');
SELECT envcrypt.decrypt(envcrypt.encrypt('x', associated_data => 'Größe'), associated_data => 'Größe');
-- values and keys of a UTF-8 database
TRUNCATE envcrypt.tenant, envcrypt.data_key, envcrypt.wrapped_key;
COPY envcrypt.tenant FROM :'tenant_file';
COPY envcrypt.data_key FROM :'key_file_';
COPY envcrypt.wrapped_key FROM :'wrapped_file';
SELECT envcrypt.decrypt(:'greetings') = 'Grüße' AS same;
-- what has no place in LATIN1 is not shown in the error
SELECT error_of(format('SELECT envcrypt.decrypt(%L)', :'euro'));
\set ECHO none
\i :teardown
\c regress_ascii
\i :setup
\set ECHO all
SELECT envcrypt.decrypt(envcrypt.encrypt('Gr\303\274\303\237e'::bytea::text)) IS NOT NULL;
SELECT error_of($$SELECT envcrypt.encrypt(E'\xff\xfe')$$);
SELECT error_of($$SELECT envcrypt.encrypt('x', associated_data => E'\xff')$$);
\set ECHO none
\i :teardown
\c :old_database
DROP DATABASE regress_latin1;
DROP DATABASE regress_ascii;
