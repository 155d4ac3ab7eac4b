-- What CREATE EXTENSION makes: functions and who may call them, casts, the tables' shape, and that everything says what it is for.
\set ECHO none
\getenv dir ENVCRYPT_TEST_DIR
\set setup :dir '/setup.sql'
\set teardown :dir '/teardown.sql'
\i :setup
\set ECHO all
-- every function: volatility, parallel safety; none leakproof, none SECURITY DEFINER, none with settings of its own
SELECT p.oid::regprocedure AS function, provolatile AS volatile, proparallel AS parallel, proisstrict AS strict,
    has_function_privilege('pg_monitor', p.oid, 'EXECUTE') AS public
    FROM pg_proc p WHERE pronamespace = 'envcrypt'::regnamespace ORDER BY p.oid::regprocedure::text;
SELECT count(*) FROM pg_proc WHERE pronamespace = 'envcrypt'::regnamespace AND (proleakproof OR prosecdef OR proconfig IS NOT NULL);
SELECT count(*) FROM pg_proc WHERE pronamespace = 'envcrypt'::regnamespace AND provolatile = 'i' AND proname ~ '^(encrypt|decrypt|bytea|inspect)$';

-- the casts; no other pair of types, so none to text, varchar, name, json or jsonb
SELECT castsource::regtype, casttarget::regtype, castcontext, castmethod FROM pg_cast
    WHERE 'envcrypt.encrypted'::regtype IN (castsource, casttarget) OR castfunc IN (SELECT oid FROM pg_proc WHERE pronamespace = 'envcrypt'::regnamespace)
    ORDER BY castsource::regtype::text, casttarget::regtype::text;

-- the type
SELECT typname, typlen, typbyval, typalign, typstorage, typcategory, typispreferred, typarray::regtype, typcollation FROM pg_type
    WHERE oid = 'envcrypt.encrypted'::regtype;

-- everything says what it is for
SELECT pg_describe_object(classid, objid, objsubid) AS "without comment" FROM (
    SELECT 'pg_proc'::regclass, oid, 0 FROM pg_proc WHERE pronamespace = 'envcrypt'::regnamespace
    UNION ALL SELECT 'pg_class', oid, 0 FROM pg_class WHERE relnamespace = 'envcrypt'::regnamespace AND relkind IN ('r', 'v')
    UNION ALL SELECT 'pg_type', oid, 0 FROM pg_type WHERE typnamespace = 'envcrypt'::regnamespace AND typtype = 'b' AND typelem = 0
    UNION ALL SELECT 'pg_foreign_data_wrapper', oid, 0 FROM pg_foreign_data_wrapper WHERE fdwname LIKE 'envcrypt%') o(classid, objid, objsubid)
    WHERE coalesce(obj_description(objid, classid::regclass::name), '') = '' ORDER BY 1;

-- the key tables: owner-only, no foreign keys, text compared by bytes, all their rows dumped, triggers that nothing turns off
SELECT relname, relkind, relacl IS NULL OR relacl::text !~ '(\{|,)=' AS "not PUBLIC's", relrowsecurity FROM pg_class
    WHERE relnamespace = 'envcrypt'::regnamespace AND relkind IN ('r', 'v') ORDER BY 1;
SELECT count(*) FROM pg_constraint WHERE connamespace = 'envcrypt'::regnamespace AND contype = 'f';
SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
    WHERE relnamespace = 'envcrypt'::regnamespace AND relkind = 'r' AND atttypid = 'text'::regtype AND attcollation <> '"C"'::regcollation;
SELECT c.relname, condition FROM pg_extension, unnest(extconfig, extcondition) u(relation, condition) JOIN pg_class c ON c.oid = relation
    WHERE extname = 'envcrypt' ORDER BY 1;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger WHERE tgrelid IN ('envcrypt.tenant'::regclass, 'envcrypt.data_key'::regclass, 'envcrypt.wrapped_key'::regclass) ORDER BY 1, 2;
-- nobody but PUBLIC has anything, and PUBLIC no table
SELECT grantee, privilege, grantable, expected, split_part(object, ' ', 1) AS kind, count(*) FROM envcrypt.grants GROUP BY 1, 2, 3, 4, 5 ORDER BY 5;
SELECT evtname, evtevent, evtenabled FROM pg_event_trigger WHERE evtname LIKE 'envcrypt%' ORDER BY 1;
SELECT fdwname, fdwacl IS NULL AS "superuser's" FROM pg_foreign_data_wrapper WHERE fdwname LIKE 'envcrypt%' ORDER BY 1;
-- all of it belongs to the extension
SELECT count(*) FROM pg_proc p WHERE pronamespace = 'envcrypt'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e');

-- internal functions are of no use to a caller
SELECT error_of('SELECT envcrypt.encrypted_in($$x$$)'), error_of('SELECT envcrypt.guard_command()'), error_of('SELECT envcrypt.keys_changed()');
CREATE TABLE t (v envcrypt.encrypted(text));
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION envcrypt.keys_changed();
INSERT INTO t VALUES ('x'::text);

-- a superuser's, in its own schema, which it keeps
CREATE ROLE regress_user;
GRANT EXECUTE ON FUNCTION error_of(text) TO regress_user;
SELECT error_of('ALTER EXTENSION envcrypt SET SCHEMA public');
DROP TABLE t;
\set ECHO none
\i :teardown
\set ECHO all
\set VERBOSITY terse
GRANT CREATE ON DATABASE :"DBNAME" TO regress_user;
SET ROLE regress_user;
CREATE EXTENSION envcrypt;
RESET ROLE;
CREATE EXTENSION envcrypt SCHEMA public;
\set VERBOSITY default
DROP OWNED BY regress_user;
DROP ROLE regress_user;

-- dropped and made again within a session: the new tables are followed as the old ones were
\set ECHO none
\i :setup
\set ECHO all
CREATE TABLE t AS SELECT envcrypt.encrypt('made again') AS v;
SELECT envcrypt.decrypt(v) FROM t;
UPDATE envcrypt.tenant SET state = 'disabled';
SELECT error_of('SELECT envcrypt.decrypt(v) FROM t');
DROP TABLE t;
\set ECHO none
\i :teardown

-- a schema of that name that another role made is not adopted: its owner would own what protects the keys
CREATE ROLE regress_other;
CREATE SCHEMA envcrypt AUTHORIZATION regress_other;
\set SHOW_CONTEXT never
\set ECHO all
CREATE EXTENSION envcrypt;
\set ECHO none
DROP SCHEMA envcrypt;
DROP ROLE regress_other;
