-- Rows of the key tables changed by hand: what they say holds at once, and what was altered or moved is never used.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
-- of the data keys; those of search are in search.sql
DELETE FROM envcrypt.wrapped_key WHERE key_id IN (SELECT key_id FROM envcrypt.data_key WHERE purpose = 'search');
DELETE FROM envcrypt.data_key WHERE purpose = 'search';
-- changes by hand are seen at once
CREATE TABLE t AS SELECT envcrypt.encrypt('acme') v, envcrypt.encrypt('other', 'other') w;
SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
SELECT envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'destroyed' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme';
UPDATE envcrypt.data_key SET state = 'decrypt_only' WHERE tenant = 'acme';
SELECT envcrypt.decrypt(v), error_of($$SELECT envcrypt.encrypt('x')$$) FROM t;
UPDATE envcrypt.data_key SET state = 'pending' WHERE tenant = 'acme';
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
UPDATE envcrypt.data_key SET state = 'strange' WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.data_key SET state = 'active', purpose = 'search' WHERE tenant = 'acme';
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
UPDATE envcrypt.data_key SET purpose = 'data', suite = 2 WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
UPDATE envcrypt.data_key SET suite = 1 WHERE tenant = 'acme';
SELECT envcrypt.decrypt(v) FROM t;
-- what was altered or moved among the wrapped keys is noticed; nothing is decrypted with it
SELECT envcrypt.forget_keys() > 0;
BEGIN;
UPDATE envcrypt.wrapped_key w SET wrapped = o.wrapped FROM envcrypt.wrapped_key o JOIN envcrypt.data_key k ON k.key_id = o.key_id AND k.tenant = 'other'
    WHERE w.key_id = (SELECT key_id FROM envcrypt.data_key WHERE tenant = 'acme');
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.data_key SET commitment = decode(repeat('00', 32), 'hex') WHERE tenant = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET wrapped = set_byte(wrapped, 5, get_byte(wrapped, 5) # 1);
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET wrapped = substr(wrapped, 2);
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
UPDATE envcrypt.wrapped_key SET server = 'gone';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
BEGIN;
TRUNCATE envcrypt.wrapped_key;
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;
DROP TABLE t;
\set ECHO none
\i :teardown
