-- decrypt() and encrypt(): associated data, tenants, and every way in which a value can be wrong.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
SELECT envcrypt.decrypt(envcrypt.encrypt('literal')), envcrypt.decrypt(envcrypt.encrypt('\xff00'::bytea)),
    envcrypt.decrypt(envcrypt.encrypt('')), envcrypt.decrypt(envcrypt.encrypt(''::bytea));
SELECT envcrypt.decrypt(envcrypt.encrypt('Grüße, 世界'));
SET bytea_output = 'escape';
SELECT envcrypt.decrypt(envcrypt.encrypt('\x610062'::bytea));
RESET bytea_output;
SELECT envcrypt.encrypt(NULL::text) IS NULL, envcrypt.encrypt(NULL::bytea) IS NULL, envcrypt.decrypt(NULL) IS NULL,
    (NULL::envcrypt.encrypted)::bytea IS NULL;
-- equal plaintexts have different values
SELECT count(DISTINCT envcrypt.encrypt('same')::text) FROM generate_series(1, 1000);
-- sizes: 42 bytes over the plaintext
SELECT octet_length(envcrypt.encrypted_send(envcrypt.encrypt(repeat('x', n)))) - n AS overhead FROM unnest('{0,1,11,100000}'::int[]) n;
SELECT md5(envcrypt.decrypt(envcrypt.encrypt(repeat('0123456789', 10000000)))) = md5(repeat('0123456789', 10000000)) AS "100 MB";

-- 500 MiB are the limit
SELECT error_of($$SELECT length(envcrypt.encrypt(repeat(repeat('x', 524289), 1000))::text)$$);
SELECT octet_length(envcrypt.decrypt(envcrypt.encrypt(convert_to(repeat('x', 10000), 'UTF8')))) AS "in hex", octet_length(envcrypt.encrypt(convert_to(repeat('x', 10000), 'UTF8'))::bytea);

-- associated data
CREATE TABLE t AS SELECT id, envcrypt.encrypt('row ' || id, associated_data => id::text) AS v FROM generate_series(1, 2) id;
SELECT envcrypt.decrypt(v, associated_data => id::text) FROM t ORDER BY id;
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
SELECT error_of($$SELECT envcrypt.decrypt(v, '3') FROM t$$);
SELECT error_of($$SELECT envcrypt.decrypt(a.v, b.id::text) FROM t a, t b WHERE a.id <> b.id$$);
SELECT error_of($$SELECT envcrypt.decrypt(envcrypt.encrypt('x'), '1')$$);
SELECT error_of($$SELECT envcrypt.encrypt('x', associated_data => NULL)$$);
SELECT error_of($$SELECT envcrypt.decrypt(v, NULL) FROM t$$);
-- a NULL column as an option is a mistake even where the value is NULL; a NULL value is NULL without any key
SELECT error_of($$SELECT envcrypt.encrypt(NULL::text, tenant => NULL)$$);
SELECT error_of($$SELECT envcrypt.decrypt(NULL, NULL)$$);
SELECT envcrypt.encrypt(NULL::text, 'nobody') IS NULL, envcrypt.decrypt(NULL, '1') IS NULL;
SELECT error_of($$SELECT envcrypt.encrypt('x', associated_data => '1')::bytea$$);
SELECT error_of($$SELECT envcrypt.encrypt('\x01'::bytea, associated_data => '1')::bytea$$);
SELECT envcrypt.decrypt(envcrypt.encrypt('long', associated_data => repeat('a', 10000)), associated_data => repeat('a', 10000));
SELECT (envcrypt.inspect(v)).bound FROM t;

-- tenants
SELECT (envcrypt.inspect(envcrypt.encrypt('x'))).tenant, (envcrypt.inspect(envcrypt.encrypt('x', 'other'))).tenant;
SELECT error_of($$SELECT envcrypt.encrypt('x', tenant => NULL)$$);
SELECT error_of($$SELECT envcrypt.encrypt('x', 'nobody')$$);
SELECT error_of($$SELECT envcrypt.encrypt('x', 'no body')$$);
SELECT error_of(format('SELECT envcrypt.encrypt(%L, %L)', 'x', repeat('a', 129)));
SET envcrypt.tenant = 'nobody';
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
SET envcrypt.tenant = '';
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
RESET envcrypt.tenant;
SELECT error_of($$SELECT envcrypt.encrypt('x')$$);
SELECT error_of($$SET envcrypt.tenant = 'no body'$$);
BEGIN;
SELECT set_config('envcrypt.tenant', 'other', true);
SELECT (envcrypt.inspect(envcrypt.encrypt('x'))).tenant;
COMMIT;
SHOW envcrypt.tenant;
SET envcrypt.tenant = 'acme';
-- many tenants in one scan
SELECT count(*) FROM (SELECT envcrypt.decrypt(envcrypt.encrypt(n::text, CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'other' END)) = n::text AS ok
    FROM generate_series(1, 1000) n) s WHERE ok;

-- the cast gives bytea only where it is bytea
SELECT envcrypt.encrypt('\x01'::bytea)::bytea;
SELECT error_of($$SELECT envcrypt.encrypt('x')::bytea$$);
SELECT error_of($$SELECT envcrypt.encrypt('\x01'::bytea)::int$$);

-- a labelled value decrypts only where its label is said; a type that this version does not know
SELECT error_of($$SELECT envcrypt.decrypt('ec1:ESEAAAAAAAAAAWr6XgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA')$$);
-- a value of a key that is not here
SELECT error_of($$SELECT envcrypt.decrypt('ec1:EQEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA')$$);
SELECT * FROM envcrypt.inspect('ec1:EQEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA');
SELECT format, algorithm, tenant, key_version, type, label, search, bound, plaintext_bytes, key_id ~ '^[0-9a-f]{16}$' AS id
    FROM envcrypt.inspect(envcrypt.encrypt('12345'));

-- every bit of a value counts
CREATE FUNCTION state_of(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE plaintext text;
BEGIN
    EXECUTE format('SELECT envcrypt.decrypt(%L)', 'ec1:' || translate(encode(bytes, 'base64'), E'\n', '')) INTO plaintext;
    RETURN 'opened: ' || plaintext;
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
CREATE TABLE v AS SELECT envcrypt.encrypted_send(envcrypt.encrypt('plaintext')) AS bytes;
SELECT state_of(bytes) FROM v;
-- (a flag more may find a label in the random bytes that follow, or may not)
CREATE FUNCTION flipped(bytes bytea) RETURNS TABLE (place text, state text, bits bigint) LANGUAGE sql AS $$
    SELECT CASE WHEN bit < 16 THEN 'format and flags' WHEN bit < 80 THEN 'key id' ELSE 'the rest' END,
        CASE WHEN bit < 16 AND state IN ('22000', '22P02') THEN '22000 or 22P02' ELSE state END, count(*)
        FROM generate_series(0, 8 * length(bytes) - 1) bit, state_of(set_bit(bytes, bit, 1 - get_bit(bytes, bit))) state GROUP BY 1, 2 ORDER BY 1, 2 $$;
SELECT f.* FROM v, flipped(bytes) f;
SELECT state_of(substr(bytes, 1, n)) AS state, count(*) FROM v, generate_series(0, length(bytes) - 1) n GROUP BY 1 ORDER BY 1;
SELECT state_of(bytes || '\x00') FROM v;
-- the same of a bound value: without its flag it is another value, not an unbound one
CREATE TABLE bound AS SELECT envcrypt.encrypted_send(envcrypt.encrypt('plaintext', associated_data => '1')) AS bytes;
CREATE OR REPLACE FUNCTION state_of(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE plaintext text;
BEGIN
    EXECUTE format('SELECT envcrypt.decrypt(%L, %L)', 'ec1:' || translate(encode(bytes, 'base64'), E'\n', ''), '1') INTO plaintext;
    RETURN 'opened: ' || plaintext;
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
SELECT state_of(bytes) FROM bound;
SELECT f.* FROM bound, flipped(bytes) f;
SELECT error_of(format('SELECT envcrypt.decrypt(%L)', 'ec1:' || translate(encode(set_bit(bytes, 15, 0), 'base64'), E'\n', ''))) FROM bound;
-- parts of two values of one key make no third: a header and salt are alike, then come nonce, ciphertext and tag
CREATE TABLE two AS SELECT envcrypt.encrypted_send(envcrypt.encrypt('plaintext a')) AS a, envcrypt.encrypted_send(envcrypt.encrypt('plaintext b')) AS b;
CREATE OR REPLACE FUNCTION state_of(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE plaintext text;
BEGIN
    EXECUTE format('SELECT envcrypt.decrypt(%L)', 'ec1:' || translate(encode(bytes, 'base64'), E'\n', '')) INTO plaintext;
    RETURN 'opened: ' || plaintext;
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
SELECT n, state_of(substr(a, 1, n) || substr(b, n + 1)) AS state FROM two, unnest('{0,14,26,37,53}'::int[]) n;
-- another tenant's key id on it
SELECT state_of(overlay(a PLACING substr(envcrypt.encrypted_send(envcrypt.encrypt('x', 'other')), 3, 8) FROM 3)) FROM two;
DROP TABLE bound, two;
DROP TABLE t, v;
DROP FUNCTION flipped, state_of;
\set ECHO none
\i :teardown
