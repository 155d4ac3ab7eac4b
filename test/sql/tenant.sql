-- Tenants: their names, who makes them and where, and what a key of theirs is.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
-- names
SELECT name, split_part(error_of(format('SELECT envcrypt.create_tenant(%L, %L)', name, 'kms')), E'\n', 1) FROM unnest(ARRAY[
    '', ' ', 'a b', 'ä', 'a''b', 'a"b', 'a*b', E'a\nb', 'acme', 'ACME', 'patient:42', 'a@b/c+d=e-f_g.h', '-', '..']) name;
SELECT error_of(format('SELECT envcrypt.create_tenant(%L, %L)', repeat('x', 128), 'kms'));
SELECT error_of(format('SELECT envcrypt.create_tenant(%L, %L)', repeat('x', 129), 'kms'));
SELECT error_of($$SELECT envcrypt.create_tenant('acme', 'kms')$$);
SELECT error_of($$SELECT envcrypt.create_tenant(NULL, 'kms')$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', NULL)$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms', NULL)$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms', 'own')$$);
-- a name is compared by its bytes
SELECT (envcrypt.inspect(envcrypt.encrypt('x', 'ACME'))).tenant, (envcrypt.inspect(envcrypt.encrypt('x', 'acme'))).tenant;
-- where
CREATE FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER regress_server FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER lost FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '/nonexistent/key');
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'nowhere')$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'regress_server')$$);
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'lost')$$);
CREATE USER MAPPING FOR CURRENT_USER SERVER lost;
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'lost')$$);
DROP SERVER lost CASCADE;
DROP FOREIGN DATA WRAPPER regress_wrapper CASCADE;
-- nothing is left of what failed
SELECT count(*) FROM envcrypt.tenant WHERE name = 'new';
SELECT count(*) FROM envcrypt.data_key WHERE tenant = 'new' OR state = 'pending';
SELECT count(*) FROM envcrypt.wrapped_key WHERE server <> 'kms';
-- one active key each, wrapped once; no two alike
SELECT t.state, k.purpose, k.version, k.state, k.suite, length(k.commitment), w.server, w.group_key, length(w.wrapped), length(w.attestation), count(*)
    FROM envcrypt.tenant t JOIN envcrypt.data_key k ON k.tenant = t.name JOIN envcrypt.wrapped_key w USING (key_id) GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
SELECT count(DISTINCT key_id) = count(*) AS ids, count(DISTINCT commitment) = count(*) AS commitments, count(DISTINCT wrapped) = count(*) AS wrapped
    FROM envcrypt.data_key JOIN envcrypt.wrapped_key USING (key_id);

-- who: the right, USAGE on the server and a mapping there; then nobody need be a superuser
CREATE ROLE regress_boss;
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_boss;
SET ROLE regress_boss;
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms')$$);
RESET ROLE;
SELECT envcrypt.grant_access('regress_boss', '{encrypt,decrypt}');
SET ROLE regress_boss;
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms')$$);
RESET ROLE;
SELECT envcrypt.grant_access('regress_boss', '{manage}');
SET ROLE regress_boss;
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms')$$);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER kms TO regress_boss;
SET ROLE regress_boss;
SELECT error_of($$SELECT envcrypt.create_tenant('new', 'kms')$$);
RESET ROLE;
CREATE USER MAPPING FOR regress_boss SERVER kms;
SET ROLE regress_boss;
SELECT envcrypt.create_tenant('new', 'kms');
SELECT envcrypt.decrypt(envcrypt.encrypt('by the boss', 'new'));
SELECT error_of('SELECT * FROM envcrypt.tenant'), error_of('SELECT * FROM envcrypt.data_key'), error_of('SELECT * FROM envcrypt.wrapped_key');
SELECT error_of($$UPDATE envcrypt.tenant SET state = 'active'$$), error_of('TRUNCATE envcrypt.data_key');
SELECT ok, identity, sqlstate, error, hint FROM envcrypt.check_server('kms');
RESET ROLE;
SELECT (envcrypt.inspect(envcrypt.encrypt('x', 'new'))).tenant;
\set ECHO none
\i :teardown
DROP OWNED BY regress_boss;
DROP ROLE regress_boss;
