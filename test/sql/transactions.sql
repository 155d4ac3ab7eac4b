-- What is encrypted outlives a rollback in a client or a variable: so a key is used before its commit only where nothing but the
-- whole transaction takes it back.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
CREATE TABLE t (v envcrypt.encrypted(text));
-- a tenant made in this transaction is of use to it
BEGIN;
SELECT envcrypt.create_tenant('tx', 'kms');
INSERT INTO t SELECT envcrypt.encrypt('in its transaction', 'tx');
SELECT envcrypt.decrypt(v) FROM t;
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'tx';
ROLLBACK;
-- and gone with it, from the cache too
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'tx';
SELECT split_part(error_of($$SELECT envcrypt.encrypt('x', 'tx')$$), E'\n', 1);
SELECT count(*) FROM envcrypt.data_key WHERE tenant = 'tx';
-- the value of a key that rolled back
BEGIN;
SELECT envcrypt.create_tenant('tx', 'kms');
SELECT envcrypt.encrypt('lost', 'tx') AS lost \gset
ROLLBACK;
SELECT regexp_replace(error_of(format('SELECT envcrypt.decrypt(%L)', :'lost')), '[0-9a-f]{16}', 'ID');

-- not in a savepoint that is open; released, it is the transaction's
BEGIN;
SAVEPOINT s;
SELECT envcrypt.create_tenant('tx', 'kms');
SELECT error_of($$SELECT envcrypt.encrypt('x', 'tx')$$);
SAVEPOINT deeper;
SELECT error_of($$SELECT envcrypt.encrypt('x', 'tx')$$);
RELEASE deeper;
ROLLBACK TO s;
SELECT split_part(error_of($$SELECT envcrypt.encrypt('x', 'tx')$$), E'\n', 1);
SELECT envcrypt.create_tenant('tx', 'kms');
RELEASE s;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS released;
SAVEPOINT s2;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS in_a_later_savepoint;
ROLLBACK TO s2;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS after_it;
COMMIT;
SELECT envcrypt.encrypt('x', 'tx') IS NOT NULL AS committed;
-- released into a savepoint that is open itself
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT envcrypt.create_tenant('two', 'kms');
RELEASE b;
SELECT split_part(error_of($$SELECT envcrypt.encrypt('x', 'two')$$), E'\n', 1) AS still_in_a;
RELEASE a;
SELECT envcrypt.encrypt('x', 'two') IS NOT NULL AS encrypted;
ROLLBACK;
SELECT count(*) FROM envcrypt.cache WHERE tenant = 'two';

-- blocks with an exception handler are subtransactions
DO $$
BEGIN
    BEGIN
        PERFORM envcrypt.create_tenant('block', 'kms');
        PERFORM envcrypt.encrypt('x', 'block');
    EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE NOTICE '%', SQLERRM;
    END;
    RAISE NOTICE 'tenants: %', (SELECT count(*) FROM envcrypt.tenant WHERE name = 'block');
    BEGIN
        PERFORM envcrypt.create_tenant('block', 'kms');
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    RAISE NOTICE 'encrypts: %', envcrypt.encrypt('x', 'block') IS NOT NULL;
    BEGIN
        RAISE NOTICE 'encrypts in a later block: %', envcrypt.encrypt('x', 'block') IS NOT NULL;
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    RAISE NOTICE 'encrypts after it: %', envcrypt.encrypt('x', 'block') IS NOT NULL;
END $$;
-- a procedure that commits
DO $$
DECLARE v envcrypt.encrypted;
BEGIN
    PERFORM envcrypt.create_tenant('procedure', 'kms');
    v := envcrypt.encrypt('kept', 'procedure');
    COMMIT;
    RAISE NOTICE '%', envcrypt.decrypt(v);
    PERFORM envcrypt.create_tenant('procedure:2', 'kms');
    v := envcrypt.encrypt('rolled back', 'procedure:2');
    ROLLBACK;
    BEGIN
        RAISE NOTICE '%', envcrypt.decrypt(v);
    EXCEPTION WHEN undefined_object THEN RAISE NOTICE 'no such key';
    END;
END $$;

-- states follow savepoints, too
SELECT envcrypt.encrypt('acme') AS acme \gset
BEGIN;
SELECT envcrypt.decrypt(:'acme');
SAVEPOINT s;
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SELECT split_part(error_of(format('SELECT envcrypt.decrypt(%L)', :'acme')), E'\n', 1);
ROLLBACK TO s;
SELECT envcrypt.decrypt(:'acme');
UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme';
SAVEPOINT s;
UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme';
SELECT envcrypt.decrypt(:'acme');
ROLLBACK TO s;
SELECT split_part(error_of(format('SELECT envcrypt.decrypt(%L)', :'acme')), E'\n', 1);
ROLLBACK;
SELECT envcrypt.decrypt(:'acme');

-- a prepared transaction would outlive its session, which alone knows of the key
\set VERBOSITY terse
BEGIN;
SELECT envcrypt.create_tenant('prepared', 'kms');
PREPARE TRANSACTION 'regress';
SELECT count(*) FROM pg_prepared_xacts;
-- a read-only transaction encrypts and decrypts, but makes no keys
BEGIN READ ONLY;
SELECT envcrypt.forget_keys() > 0;
SELECT envcrypt.decrypt(envcrypt.encrypt('read only'));
SELECT ok FROM envcrypt.check_server('kms');
SELECT envcrypt.create_tenant('ro', 'kms');
ROLLBACK;
-- an aborted transaction decrypts nothing; the next one does
BEGIN;
SELECT 1 / 0;
SELECT envcrypt.decrypt(:'acme');
ROLLBACK;
SELECT envcrypt.decrypt(:'acme');
\set VERBOSITY default
SELECT name FROM envcrypt.tenant ORDER BY 1;
DROP TABLE t;
\set ECHO none
\i :teardown
