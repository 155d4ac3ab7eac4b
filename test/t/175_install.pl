# What waits for CREATE EXTENSION: a schema with planted functions, default privileges. And dumps into clusters of another
# superuser, and roles without rights that would queue others behind their commands.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Session;
use Envcrypt::Test;

my $key_file = $ENV{ENVCRYPT_KEY_FILE};
my $node = new_cluster('install', extension => 0);
$node->safe_psql('postgres', 'CREATE ROLE dba SUPERUSER LOGIN; CREATE ROLE attacker LOGIN; CREATE ROLE webapp LOGIN; CREATE ROLE app LOGIN');

sub new_database
{
	my ($name, $owner) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0" . ($owner ? " OWNER $owner" : ''));
	return Envcrypt::Session->new($node, database => $name);
}

# Functions that a script without schemas would call before those of pg_catalog, which take VARIADIC "any". They do what was
# asked, and one thing besides.
my $planted = join ";\n", 'SET check_function_bodies = off', map {
	my ($name, $count) = @$_;
	my $others = join ', ', map { "\$$_" } 2 .. $count;
	"CREATE FUNCTION envcrypt.$name(" . join(', ', ('text') x $count) . ") RETURNS text LANGUAGE plpgsql AS
		'BEGIN ALTER ROLE attacker SUPERUSER; RETURN pg_catalog.$name(\$1, VARIADIC ARRAY[$others]); END'"
} map { [ 'format', $_ ], [ 'concat', $_ ] } 2 .. 9;
my $refused = { state => '55000', message => 'extension envcrypt cannot use the existing schema "envcrypt"', hint => 'Drop the schema: CREATE EXTENSION makes it.' };

sub nobody_rose
{
	my ($name) = @_;
	is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'attacker'"), 'f', "$name: nothing planted was run");
	return;
}

# --- a schema of the database's owner
my $dba = new_database('planted', 'attacker');
my $attacker = Envcrypt::Session->new($node, database => 'planted', role => 'attacker');
$attacker->value("CREATE SCHEMA envcrypt; $planted");
fails_with($dba, 'CREATE EXTENSION envcrypt', { %$refused, detail => 'The schema belongs to role "attacker", which is not a superuser.' },
	'the schema of a role that is no superuser is refused');
$dba->value('ALTER SCHEMA envcrypt OWNER TO CURRENT_USER');
fails_with($dba, 'CREATE EXTENSION envcrypt', { %$refused, detail => qr/^The schema contains function \w+\(/ }, 'and is refused once it is given to a superuser');
nobody_rose('a schema given away');
$dba->value('DROP SCHEMA envcrypt CASCADE; CREATE EXTENSION envcrypt');
nobody_rose('after the hint');
$_->close for $attacker, $dba;

# --- a superuser's schema in which another may create
$dba = new_database('granted');
$dba->value('CREATE SCHEMA envcrypt; GRANT USAGE, CREATE ON SCHEMA envcrypt TO attacker');
$attacker = Envcrypt::Session->new($node, database => 'granted', role => 'attacker');
$attacker->value($planted);
fails_with($dba, 'CREATE EXTENSION envcrypt', $refused, "a superuser's schema with planted functions is refused");
$dba->value('REVOKE ALL ON SCHEMA envcrypt FROM attacker');
fails_with($dba, 'CREATE EXTENSION envcrypt', $refused, 'also once nobody else may create in it');
nobody_rose("a superuser's schema");
$dba->value('DROP SCHEMA envcrypt CASCADE; CREATE SCHEMA envcrypt; GRANT CREATE ON SCHEMA envcrypt TO attacker');
fails_with($dba, 'CREATE EXTENSION envcrypt', { %$refused, detail => 'Role "attacker" may create objects in the schema.' }, 'one in which another may create is refused while it is empty');
$dba->value('REVOKE CREATE ON SCHEMA envcrypt FROM attacker; GRANT CREATE ON SCHEMA envcrypt TO PUBLIC');
fails_with($dba, 'CREATE EXTENSION envcrypt', { %$refused, detail => 'PUBLIC may create objects in the schema.' }, 'and one in which all may');
$dba->value('DROP SCHEMA envcrypt');
# one of each kind
my %contents = (
	table => 'CREATE TABLE envcrypt.t (a int)', view => 'CREATE VIEW envcrypt.v AS SELECT 1', sequence => 'CREATE SEQUENCE envcrypt.s',
	'composite type' => 'CREATE TYPE envcrypt.c AS (a int)', 'shell type' => 'CREATE TYPE envcrypt.encrypted', domain => 'CREATE DOMAIN envcrypt.d AS int',
	'operator' => 'CREATE OPERATOR envcrypt.+ (FUNCTION = pg_catalog.int4pl, LEFTARG = int, RIGHTARG = int)',
	'operator family' => 'CREATE OPERATOR FAMILY envcrypt.f USING btree', collation => 'CREATE COLLATION envcrypt.c FROM "C"',
	conversion => "CREATE CONVERSION envcrypt.c FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
	'text search dictionary' => 'CREATE TEXT SEARCH DICTIONARY envcrypt.d (TEMPLATE = simple)',
	'statistics object' => 'CREATE TABLE public.t (a int, b int); CREATE STATISTICS envcrypt.s ON a, b FROM public.t',
	'default privileges' => 'ALTER DEFAULT PRIVILEGES IN SCHEMA envcrypt GRANT SELECT ON TABLES TO webapp',
	publication => 'CREATE PUBLICATION p FOR TABLES IN SCHEMA envcrypt', extension => 'CREATE EXTENSION citext SCHEMA envcrypt');
for my $kind (sort keys %contents)
{
	next if $kind eq 'extension' && !$dba->value("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'");
	$dba->value("BEGIN; CREATE SCHEMA envcrypt; $contents{$kind}");
	fails_with($dba, 'CREATE EXTENSION envcrypt', { %$refused, detail => qr/^The schema contains / }, "a schema with contents is refused: $kind");
	$dba->value('ROLLBACK');
}
# what is harmless
$dba->value('CREATE SCHEMA envcrypt AUTHORIZATION dba; GRANT USAGE ON SCHEMA envcrypt TO webapp');
works($dba, 'CREATE EXTENSION envcrypt', '', 'an empty schema of another superuser is used');
works($dba, 'SELECT count(*) FROM envcrypt.grants WHERE NOT expected', '0', 'and nobody else has anything of it');
$_->close for $attacker, $dba;

# --- default privileges
my $poison = join ";\n", map { "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO webapp WITH GRANT OPTION" } qw(TABLES SEQUENCES FUNCTIONS TYPES SCHEMAS);
my $all_grants = "SELECT object, grantee, privilege, grantable, expected FROM envcrypt.grants ORDER BY object, grantee, privilege";
my $members = join ' UNION ALL ', (map { "SELECT $_->[1]::text || ': ' || acl FROM (SELECT *, a::text AS acl FROM pg_$_->[0], unnest($_->[2]) a) o
	WHERE acl LIKE 'webapp=%' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_$_->[0]'::regclass AND d.objid = o.oid AND d.deptype = 'e')" }
	[ 'class', 'oid::regclass', 'relacl' ], [ 'proc', 'oid::regprocedure', 'proacl' ], [ 'type', 'oid::regtype', 'typacl' ], [ 'foreign_data_wrapper', 'fdwname', 'fdwacl' ]),
	"SELECT 'schema' WHERE has_schema_privilege('webapp', 'envcrypt', 'USAGE') OR has_schema_privilege('webapp', 'envcrypt', 'CREATE')";
my $plain = new_database('plain');
$plain->value('CREATE EXTENSION envcrypt');
my $as_ever = $plain->value($all_grants);
like($as_ever, qr/^ROUTINE envcrypt\.current_tenant\(\)\|public\|EXECUTE\|f\|t$/m, 'what PUBLIC has is expected');
unlike($as_ever, qr/\|f$/m, 'and there is nothing else');

$dba = new_database('poisoned');
$dba->value($poison);
works($dba, 'CREATE EXTENSION envcrypt', '', 'default privileges that give');
is($dba->value($members), '', 'give nothing of the extension');
works($dba, $all_grants, $as_ever, 'and the grants are those of any other database');
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms; CREATE USER MAPPING FOR webapp SERVER kms; GRANT USAGE ON FOREIGN SERVER kms TO webapp;
	SELECT envcrypt.create_tenant('acme', 'kms'); SELECT envcrypt.grant_access('webapp', '{encrypt}')");
my $webapp = Envcrypt::Session->new($node, database => 'poisoned', role => 'webapp');
$webapp->value("SET envcrypt.tenant = 'acme'");
works($webapp, "SELECT envcrypt.encrypt('x') IS NOT NULL", 't', 'who may encrypt does');
fails_with($webapp, $_, { state => '42501' }, "and nothing else: $_") for
  "SELECT envcrypt.decrypt(envcrypt.encrypt('x'))", "SELECT envcrypt.export_keys('acme')", "SELECT envcrypt.destroy_tenant('acme', 'acme')",
  'UPDATE envcrypt.wrapped_key SET wrapped = wrapped', 'DELETE FROM envcrypt.journal', 'SELECT * FROM envcrypt.tenants', 'TRUNCATE envcrypt.tenant';
works($dba, 'SELECT count(*) FROM envcrypt.grants WHERE NOT expected', '0', 'what grant_access gave is expected');

# what is granted past grant_access is listed, with what takes it back, and revoke_access takes all of it
my $beside = 'GRANT ALL ON ALL TABLES IN SCHEMA envcrypt TO webapp WITH GRANT OPTION; GRANT SELECT (wrapped) ON envcrypt.wrapped_key TO webapp, PUBLIC;
	GRANT EXECUTE ON ALL ROUTINES IN SCHEMA envcrypt TO webapp WITH GRANT OPTION; GRANT ALL ON SCHEMA envcrypt TO webapp; GRANT USAGE ON TYPE envcrypt.encrypted TO webapp;
	GRANT USAGE ON FOREIGN DATA WRAPPER envcrypt_local TO webapp; GRANT EXECUTE ON FUNCTION envcrypt.check_server(text) TO PUBLIC';
$dba->value($beside);
my @revokes = split /\n/, $dba->value('SELECT revoke FROM envcrypt.grants WHERE NOT expected');
for my $revoke ('REVOKE SELECT (wrapped) ON TABLE envcrypt.wrapped_key FROM public CASCADE', 'REVOKE DELETE ON TABLE envcrypt.journal FROM webapp CASCADE',
	'REVOKE EXECUTE ON ROUTINE envcrypt.check_server(server text, OUT ok boolean, OUT milliseconds double precision, OUT identity text, OUT master_key text, OUT master_key_version text, OUT sqlstate text, OUT error text, OUT hint text) FROM public CASCADE',
	'REVOKE CREATE ON SCHEMA envcrypt FROM webapp CASCADE', 'REVOKE USAGE ON FOREIGN DATA WRAPPER envcrypt_local FROM webapp CASCADE',
	'REVOKE USAGE ON TYPE envcrypt.encrypted FROM webapp CASCADE', 'REVOKE GRANT OPTION FOR EXECUTE ON ROUTINE envcrypt.load_keys(VARIADIC tenants text[]) FROM webapp CASCADE', 'REVOKE EXECUTE ON ROUTINE envcrypt.forget_keys() FROM webapp CASCADE')
{
	ok((grep { $_ eq $revoke } @revokes), "listed: $revoke") or diag(join "\n", grep { /check_server|forget_keys/ } @revokes);
}
$dba->value("BEGIN; " . join('; ', @revokes));
works($dba, 'SELECT count(*) FROM envcrypt.grants WHERE NOT expected', '0', 'the statements that it lists take all of that back');
works($dba, "SELECT has_function_privilege('webapp', 'envcrypt.encrypt(text, text, text, text, text)', 'EXECUTE')", 't', 'and leave the rights');
$dba->value('ROLLBACK');
$dba->value("SELECT envcrypt.revoke_access('webapp', '{manage}')");
works($dba, "SELECT count(*) FROM envcrypt.grants WHERE grantee = 'webapp' AND \"right\" = 'manage'", '0', 'revoke_access takes everything that goes with a right');
$webapp->value('GRANT EXECUTE ON FUNCTION envcrypt.encrypt(text, text, text, text, text) TO app');
$dba->value("SELECT envcrypt.revoke_access('webapp', '{encrypt,decrypt,search,manage}')");
is($dba->value($members), '', 'with the last right revoke_access takes everything');
works($dba, "SELECT count(*) FROM envcrypt.grants WHERE grantee IN ('app', 'webapp')", '0', 'also what the role had passed on');
# a grant by another than the owner outlives a REVOKE
$dba->value('GRANT EXECUTE ON FUNCTION envcrypt.rotate_key(text) TO webapp WITH GRANT OPTION; GRANT USAGE ON SCHEMA envcrypt TO webapp');
$webapp->value('GRANT EXECUTE ON FUNCTION envcrypt.rotate_key(text) TO app');
fails_with($dba, "SELECT envcrypt.revoke_access('app', '{manage}')", { state => '2BP01', message => 'could not revoke all privileges of role app',
	detail => 'Role webapp granted it EXECUTE on ROUTINE envcrypt.rotate_key(tenant text).', hint => 'Revoke the privileges of role webapp first.' }, 'what cannot be revoked is an error');
$dba->value("SELECT envcrypt.revoke_access('webapp', '{manage}'); SELECT envcrypt.grant_access('webapp', '{encrypt,manage}')");
my $managed = Envcrypt::Session->new($node, database => 'poisoned', role => 'webapp');
works($managed, 'SELECT DISTINCT grantee FROM envcrypt.grants WHERE NOT expected', 'public', 'who may manage keys reads the list');
$managed->close;
$_->close for $webapp;

# default privileges that take
my $taking = new_database('taking');
$taking->value('ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC; CREATE EXTENSION envcrypt');
works($taking, $all_grants, $as_ever, 'default privileges that take leave PUBLIC what it needs');
$taking->close;

# --- dumps of databases that another superuser made
my $made = new_database('made');
$made->value("ALTER DATABASE made OWNER TO dba; SET ROLE dba; CREATE EXTENSION envcrypt;
	CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file'); CREATE USER MAPPING FOR PUBLIC SERVER kms;
	GRANT USAGE ON FOREIGN SERVER kms TO app; SELECT envcrypt.create_tenant('acme', 'kms'); SELECT envcrypt.grant_access('app', '{decrypt}');
	CREATE TABLE patient (id int PRIMARY KEY, ssn envcrypt.encrypted(text)); GRANT SELECT ON patient TO app;
	INSERT INTO patient SELECT i, envcrypt.encrypt('plaintext ' || i, tenant => 'acme') FROM generate_series(1, 100) i");
my $dumps = PostgreSQL::Test::Utils::tempdir();
my $other = new_cluster('other', extension => 0);
$other->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE webapp');
$node->command_ok([ 'pg_dump', '-Fp', '-f', "$dumps/plain", '-d', $node->connstr('made') ], 'pg_dump');
$node->command_ok([ 'pg_dump', '-Fp', '--no-owner', '-f', "$dumps/ownerless", '-d', $node->connstr('made') ], 'pg_dump --no-owner');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", '-d', $node->connstr('made') ], 'pg_dump -Fc');
my @psql = ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f');
for my $case ([ $node, 'as_dumped', 'with its owner', @psql, "$dumps/plain" ], [ $node, 'in_parallel', 'with its owner, in parallel', 'pg_restore', '-e', '-j2', "$dumps/custom" ],
	[ $other, 'ownerless', 'without its owner', @psql, "$dumps/ownerless" ], [ $other, 'ownerless_too', 'without its owner, in parallel', 'pg_restore', '-e', '-j2', '--no-owner', "$dumps/custom" ])
{
	my ($cluster, $database, $how, @command) = @$case;
	$cluster->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");
	# USAGE on schemas, not CREATE: that is refused
	my $given = join ";\n", map { "ALTER DEFAULT PRIVILEGES GRANT $_ TO webapp" } 'ALL ON TABLES', 'ALL ON FUNCTIONS', 'ALL ON TYPES', 'USAGE ON SCHEMAS';
	$cluster->safe_psql($database, $given) if $database ne 'as_dumped';
	$cluster->command_ok([ @command, '-d', $cluster->connstr($database) ], "restored by another superuser $how");
	my $reader = Envcrypt::Session->new($cluster, database => $database, role => 'app');
	works($reader, "SELECT count(*) FROM patient WHERE envcrypt.decrypt(ssn) = 'plaintext ' || id", '100', "$how: its values decrypt");
	fails_with($reader, "SELECT envcrypt.encrypt('x')", { state => '42501' }, "$how: rights are what they were");
	my $owner = Envcrypt::Session->new($cluster, database => $database);
	works($owner, 'SELECT count(*) FROM envcrypt.grants WHERE NOT expected', '0', "$how: nobody has more");
	works($owner, "SELECT count(*) FROM envcrypt.grants WHERE grantee = 'webapp'", '0', "$how: default privileges give nothing");
	$_->close for $reader, $owner;
}

# where default privileges would let another create in the schema that the dump makes
$other->safe_psql('postgres', "CREATE DATABASE $_ TEMPLATE template0"), $other->safe_psql($_, 'ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO webapp') for qw(at_once in_steps);
$other->command_fails_like([ 'pg_restore', '-e', '--no-owner', '-d', $other->connstr('in_steps'), "$dumps/custom" ],
	qr/Role "webapp" may create objects in the schema/, 'a dump is not restored where another may create in the schema meanwhile');
$other->command_ok([ 'pg_restore', '-e', '--no-owner', '--single-transaction', '-d', $other->connstr('at_once'), "$dumps/custom" ], 'but in one transaction it is');
is($other->safe_psql('at_once', "SELECT count(*) FROM envcrypt.grants WHERE grantee = 'webapp'"), '0', 'and nobody has anything of it');

# --- a role without rights queues nobody
my $writer = Envcrypt::Session->new($node, database => 'made');
$writer->value("SET envcrypt.tenant = 'acme'; BEGIN; SELECT envcrypt.create_tenant('uncommitted', 'kms')");
my $nobody = Envcrypt::Session->new($node, database => 'made', role => 'attacker');
$nobody->value("SET lock_timeout = '2s'");
fails_with($nobody, $_->[0], { state => '42501', message => $_->[1] }, "refused at once: $_->[0]") for
  [ 'DROP EXTENSION envcrypt CASCADE', 'must be owner of extension envcrypt' ], [ 'DROP EXTENSION IF EXISTS envcrypt', 'must be owner of extension envcrypt' ],
  [ 'DROP SCHEMA envcrypt CASCADE', 'must be owner of schema envcrypt' ], [ 'ALTER EXTENSION envcrypt DROP TABLE envcrypt.run', 'must be owner of extension envcrypt' ],
  [ 'DROP OWNED BY dba', qr/^permission denied to drop objects$/ ], [ 'ALTER SERVER kms RENAME TO other', 'must be owner of foreign server kms' ],
  [ 'DROP SERVER IF EXISTS nothing, kms CASCADE', 'must be owner of foreign server kms' ];
# one who may manage keys, but does not own the server
$made->value("SELECT envcrypt.grant_access('attacker', '{manage}'); GRANT USAGE ON FOREIGN SERVER kms TO attacker");
fails_with($nobody, "SELECT envcrypt.rename_server('kms', 'other')", { state => '42501', message => 'must be owner of foreign server kms' }, 'rename_server is refused at once');
# the owner waits, as before
$made->value("SET lock_timeout = '100ms'");
fails_with($made, $_, { state => '55P03' }, "the owner waits for the key that is made: $_") for 'DROP EXTENSION envcrypt CASCADE', 'ALTER SERVER kms RENAME TO other', 'DROP SERVER kms CASCADE';
$writer->value('ROLLBACK');

$_->close for $writer, $nobody, $made, $plain, $dba;
$_->stop for $node, $other;
done_testing();
