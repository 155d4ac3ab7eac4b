-- The open keys of a session: seen, forgotten, limited in number and time; and that no change of what they rest on goes unnoticed.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t AS SELECT envcrypt.encrypt('acme') v, envcrypt.encrypt('other', 'other') w;
SELECT envcrypt.forget_keys() >= 0 AS some, envcrypt.forget_keys() AS none;
SELECT count(*) FROM envcrypt.cache;
SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM t;
SELECT tenant, server, key_id = (envcrypt.inspect(v)).key_id AS acme, key_id = (envcrypt.inspect(w)).key_id AS other,
    open_for >= '0' AS open, expires_in BETWEEN interval '4 min' AND interval '5 min' AS expires FROM envcrypt.cache, t ORDER BY 1;
SELECT envcrypt.decrypt(v), envcrypt.encrypt('x') IS NOT NULL AS encrypted FROM t;
SELECT count(*) AS "one entry for all uses of a key" FROM envcrypt.cache;
SELECT envcrypt.forget_keys();
SELECT envcrypt.decrypt(v) FROM t;
-- forgotten within a statement that uses the key before and after it
SELECT n, envcrypt.decrypt(v), envcrypt.forget_keys() FROM t, generate_series(1, 3) n;

-- no more than cache_size, and none is lost to whom uses it
SET envcrypt.cache_size = 1;
SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM t;
SELECT count(*), min(tenant) FROM envcrypt.cache;
SELECT bool_and(envcrypt.decrypt(v) = 'acme' AND envcrypt.decrypt(w) = 'other') FROM t, generate_series(1, 100);
SELECT bool_and(envcrypt.decrypt(envcrypt.encrypt(n::text, CASE n % 2 WHEN 0 THEN 'acme' ELSE 'other' END)) = n::text) FROM generate_series(1, 100) n;
SELECT count(*) FROM envcrypt.cache;
RESET envcrypt.cache_size;
-- many keys at once
SELECT count(*) FROM (SELECT envcrypt.create_tenant('many:' || n, 'kms') FROM generate_series(1, 200) n) s;
CREATE TABLE many AS SELECT n, envcrypt.encrypt('plaintext ' || n, 'many:' || n) AS v FROM generate_series(1, 200) n;
SELECT envcrypt.forget_keys();
SET envcrypt.cache_size = 50;
SELECT count(*) FROM many WHERE envcrypt.decrypt(v) = 'plaintext ' || n;
SELECT count(*) FROM many WHERE envcrypt.decrypt(v) = 'plaintext ' || n;
SELECT count(*) FROM envcrypt.cache;
RESET envcrypt.cache_size;
DROP TABLE many;

-- not longer than cache_ttl
SET envcrypt.cache_ttl = '1s';
SELECT envcrypt.forget_keys() > 0;
SELECT envcrypt.decrypt(v) FROM t;
SELECT coalesce(max(expires_in), '0') <= '1s' AS soon FROM envcrypt.cache;
DO $$
BEGIN
    FOR i IN 1..200 LOOP
        EXIT WHEN (SELECT count(*) FROM envcrypt.cache) = 0;
        PERFORM pg_sleep(0.05);
    END LOOP;
END $$;
SELECT count(*) AS after_its_time FROM envcrypt.cache;
SELECT envcrypt.decrypt(v) FROM t;
RESET envcrypt.cache_ttl;
SELECT envcrypt.forget_keys() >= 0;

-- DISCARD ALL gives the session to somebody else; lesser ones do not
SELECT envcrypt.decrypt(v) FROM t;
DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES;
SELECT count(*) > 0 AS kept FROM envcrypt.cache;
DISCARD ALL;
SELECT count(*) AS after_discard_all FROM envcrypt.cache;
SHOW envcrypt.tenant;
SET envcrypt.tenant = 'acme';

-- a changed key table moves the epoch, whatever changed it: what is not usable any more is not used, cached or not
SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t'), error_of($$SELECT envcrypt.encrypt('x')$$), envcrypt.decrypt(w) FROM t;
UPDATE envcrypt.tenant SET state = 'active';
SELECT envcrypt.decrypt(v) FROM t;
-- within a statement, too: from a volatile function
CREATE FUNCTION disable() RETURNS text LANGUAGE sql AS $$UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme' RETURNING ''$$;
SELECT error_of('SELECT envcrypt.decrypt(v) || disable() || envcrypt.decrypt(v) FROM t, generate_series(1, 2)');
SELECT envcrypt.decrypt(v) FROM t;
-- a prepared statement keeps nothing that it may not
PREPARE p AS SELECT envcrypt.decrypt(v), envcrypt.encrypt('x') IS NOT NULL AS encrypted FROM t;
EXECUTE p;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('EXECUTE p');
UPDATE envcrypt.tenant SET state = 'active';
SELECT envcrypt.forget_keys() > 0;
EXECUTE p;
-- nor does a cursor
BEGIN;
DECLARE c CURSOR FOR SELECT envcrypt.decrypt(v) FROM t, generate_series(1, 3);
FETCH c;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('FETCH c');
UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme';
SELECT envcrypt.decrypt(v) FROM t;
COMMIT;
-- triggers do not depend on session_replication_role
SET session_replication_role = replica;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
RESET session_replication_role;
UPDATE envcrypt.tenant SET state = 'active';
-- rows and tables that are gone
BEGIN;
DELETE FROM envcrypt.tenant WHERE name = 'acme';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;
BEGIN;
TRUNCATE envcrypt.tenant;
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;
BEGIN;
TRUNCATE envcrypt.data_key;
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;
BEGIN;
TRUNCATE envcrypt.wrapped_key;
SELECT regexp_replace(error_of('SELECT envcrypt.decrypt(v) FROM t'), '[0-9a-f]{16}', 'ID');
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;

-- servers and mappings: another version of either is another identity, whose key is opened anew
SELECT envcrypt.forget_keys() > 0;
SELECT envcrypt.decrypt(v) FROM t;
DROP USER MAPPING FOR CURRENT_USER SERVER kms;
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
SELECT envcrypt.decrypt(v) FROM t;
BEGIN;
ALTER SERVER kms OPTIONS (SET key_file '/nonexistent/key');
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
ROLLBACK;
SELECT envcrypt.decrypt(v) FROM t;

-- settings: their ranges, and whose they are
SELECT name, setting, unit, context, min_val, max_val FROM pg_settings WHERE name LIKE 'envcrypt.%' ORDER BY name;
SELECT setting, split_part(error_of('SET ' || setting), ' ', 1) FROM unnest(ARRAY['envcrypt.cache_size = 0', 'envcrypt.cache_size = 1000001',
    'envcrypt.cache_ttl = 0', 'envcrypt.cache_ttl = ''2 d''', 'envcrypt.kms_timeout = 99', 'envcrypt.kms_timeout = ''11 min''', 'envcrypt.require_mlock = maybe']) setting;
CREATE ROLE regress_user;
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_user;
SET ROLE regress_user;
SELECT setting, error_of('SET ' || setting) FROM unnest(ARRAY['envcrypt.cache_ttl = 1', 'envcrypt.cache_size = 1', 'envcrypt.require_mlock = on',
    'envcrypt.kms_timeout = 1000', 'envcrypt.tenant = ''other''', 'envcrypt.nothing = 1']) setting;
SELECT error_of('SELECT * FROM envcrypt.cache');
RESET ROLE;
\set ECHO none
\i :teardown
DROP TABLE t;
DROP FUNCTION disable;
DROP OWNED BY regress_user;
DROP ROLE regress_user;
