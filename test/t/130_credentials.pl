# An identity that a session brings itself: whom it serves, when it ends, that nothing of it stays or is shared, and that no
# parallel worker misses it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
my $token = Envcrypt::Kms::token();
my $node = new_cluster('credentials', conf => "log_statement = none\nlog_min_error_statement = panic\n");
my $dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('kms') . "
	CREATE ROLE app LOGIN;
	CREATE ROLE other LOGIN;
	GRANT app TO other;
	GRANT USAGE ON FOREIGN SERVER kms TO app, other;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt}'), envcrypt.grant_access('other', '{encrypt,decrypt}');
	SELECT envcrypt.create_tenant('acme', 'kms');
	CREATE TABLE kept AS SELECT n, envcrypt.encrypt('plaintext ' || n, 'acme') v FROM generate_series(1, 2000) n;
	GRANT SELECT ON kept TO app, other;
	ALTER TABLE kept SET (parallel_workers = 2)");
my $app = Envcrypt::Session->new($node, role => 'app');
my $decrypt = 'SELECT envcrypt.decrypt(v) FROM kept WHERE n = 1';
my $set = sub { my ($session) = @_; return "SELECT envcrypt.set_credential('kms', '{\"auth\": \"token\", \"token\": \"$token\"}'" . ($session ? ', true)' : ')'); };
my %no_identity = (state => '42501', message => 'role app has no identity at KMS "kms"');

fails_with($app, $decrypt, {%no_identity}, 'no mapping, no identity');
works($app, "BEGIN; " . $set->(0) . "; $decrypt; SELECT count(*) FROM kept WHERE envcrypt.decrypt(v) = 'plaintext ' || n", "\nplaintext 1\n2000", 'it serves the transaction');
is($app->value('SELECT envcrypt.forget_keys() > 0'), 't', 'its keys are cached meanwhile');
$app->value("$decrypt; COMMIT");
fails_with($app, $decrypt, {%no_identity}, 'and ends with it, its keys too');
$app->value('BEGIN; ' . $set->(0) . "; $decrypt; ROLLBACK");
fails_with($app, $decrypt, {%no_identity}, 'or with its rollback');
$app->value($set->(0));
fails_with($app, $decrypt, {%no_identity}, 'a statement of its own is a transaction of its own');
$app->value('BEGIN; ' . $set->(1) . '; ROLLBACK');
fails_with($app, $decrypt, {%no_identity}, 'one for the session is taken back with the transaction that brought it');
$app->value('BEGIN; SAVEPOINT s; ' . $set->(1) . '; ROLLBACK TO s; COMMIT');
fails_with($app, $decrypt, {%no_identity}, 'and with the savepoint');
$app->value('BEGIN; SAVEPOINT s; ' . $set->(1) . '; RELEASE s; COMMIT');
works($app, $decrypt, 'plaintext 1', 'one for the session stays');
works($app, "BEGIN; $decrypt; COMMIT; $decrypt", "plaintext 1\nplaintext 1", 'over transactions');
$app->value("BEGIN; SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT");
works($app, $decrypt, 'plaintext 1', "and another's savepoint");
$app->value("SELECT envcrypt.clear_credential('kms')");
fails_with($app, $decrypt, {%no_identity}, 'until it is cleared');
$app->value($set->(1));
$app->value('DISCARD ALL');
fails_with($app, $decrypt, {%no_identity}, 'or the session is given to somebody else');

# one for the transaction hides one for the session, and a rollback brings it back
my $wrong = "SELECT envcrypt.set_credential('kms', '{\"auth\": \"token\", \"token\": \"s.wrong\"}'";
$app->value($set->(1));
fails_with($app, "BEGIN; $wrong); $decrypt", { state => '42501', message => qr/^could not unwrap/ }, 'one for the transaction goes before one for the session');
$app->value('ROLLBACK');
works($app, $decrypt, 'plaintext 1', 'which serves again after it');
$app->value("BEGIN; SAVEPOINT s; $wrong, true); ROLLBACK TO s; COMMIT");
works($app, $decrypt, 'plaintext 1', 'and after a savepoint that brought another');
$app->value("BEGIN; $wrong, true); COMMIT");
fails_with($app, $decrypt, { state => '42501', message => qr/^could not unwrap/ }, 'another one for the session takes its place');
$app->value("SELECT envcrypt.clear_credential('kms')");
fails_with($app, $decrypt, {%no_identity}, 'and clearing leaves none');
fails_with($app, "SELECT envcrypt.set_credential('kms', NULL)", { state => '22004' }, 'NULL is no credential');
fails_with($app, "SELECT envcrypt.clear_credential(NULL)", { state => '22004' }, 'and no server');

# --- whom it serves
my $other = Envcrypt::Session->new($node, role => 'other');
$other->value($set->(1));
works($other, $decrypt, 'plaintext 1', 'the role that brought it');
fails_with($other, "SET ROLE app; $decrypt", {%no_identity}, 'no other role of the same session');
works($other, "RESET ROLE; $decrypt", 'plaintext 1', 'and the first one again');
fails_with(Envcrypt::Session->new($node, role => 'other'), $decrypt, { state => '42501' }, 'no other session of the same role');

# --- parallel workers: nothing fails for want of the credential
my $parallel = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off";
my $count = 'SELECT count(*) FROM kept WHERE envcrypt.decrypt(v) LIKE \'plaintext%\'';
$other->value($parallel);
my $plan = sub { return $other->value("EXPLAIN (COSTS OFF) $_[0]"); };
unlike($plan->($count), qr/Gather/, 'a session with a credential of its own plans no workers');
works($other, $count, '2000', 'and its query works');
$other->value("SELECT envcrypt.clear_credential('kms')");
like($plan->($count), qr/Gather/, 'without one it does');
$other->value("PREPARE p AS $count; SET plan_cache_mode = force_generic_plan; EXPLAIN EXECUTE p");
like($other->value('EXPLAIN (COSTS OFF) EXECUTE p'), qr/Gather/, 'a statement prepared before it, with workers');
$other->value($set->(1));
works($other, 'EXECUTE p', '2000', 'is planned anew');
unlike($other->value('EXPLAIN (COSTS OFF) EXECUTE p'), qr/Gather/, 'without workers');

# --- what may not be brought
my $bring = sub { my ($server, $credential) = @_; return "SELECT envcrypt.set_credential('$server', '$credential')"; };
$dba->value("CREATE SERVER aws FOREIGN DATA WRAPPER envcrypt_aws OPTIONS (region 'us-east-1', master_key 'alias/app');
	CREATE SERVER gcp FOREIGN DATA WRAPPER envcrypt_gcp OPTIONS (master_key 'projects/p/locations/l/keyRings/r/cryptoKeys/k');
	CREATE SERVER azure FOREIGN DATA WRAPPER envcrypt_azure OPTIONS (endpoint 'https://vault.test', master_key 'app', attestation_key 'a');
	CREATE SERVER local FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '/nonexistent');
	GRANT USAGE ON FOREIGN SERVER aws, gcp, azure, local TO app");
for my $case (
	[ 'aws', '{"auth": "instance"}', 'the identity of the host' ], [ 'aws', '{"auth": "container"}', 'that of the container' ],
	[ 'gcp', '{"auth": "metadata"}', 'that of the machine' ], [ 'gcp', '{"auth": "external_account", "credentials_file": "{}"}', 'a file that names files' ],
	[ 'azure', '{"auth": "managed_identity"}', 'a managed identity' ], [ 'kms', '{"auth": "cert", "role": "x"}', "the server's certificate" ],
	[ 'local', '{}', 'a KMS without identities' ], [ 'kms', '{}', 'nothing' ], [ 'kms', '{"auth": "token", "nothing": "x"}', 'an unknown option' ],
	[ 'kms', '{"auth": "token", "token": ""}', 'a value that is none' ],
	[ 'kms', '{"auth": "approle", "auth_mount": "cert", "role_id": "x", "secret_id": "y"}', "a mount, where the server's certificate could log in" ])
{
	my ($server, $credential, $name) = @$case;
	fails_with($app, $bring->($server, $credential), { state => 'HV000', hint => qr/./ }, "what a session may not bring: $name");
}
fails_with($app, $bring->('kms', $_), { state => '22023', message => 'credential must be an object of strings' }, "no object of strings: $_")
  for '[]', '1', '{"auth": 1}', '{"auth": ["token"]}', '{"auth": {"a": "token"}}';
fails_with($app, $bring->('nowhere', '{}'), { state => '42704' }, 'no such server');
# what is given is the secret itself: a path is no way to another role's file
my $file = $kms->{token_file};
fails_with($app, 'BEGIN; ' . $bring->('kms', "{\"auth\": \"token\", \"token\": \"file:$file\"}") . "; $decrypt", { state => '42501', message => qr/^could not unwrap/ }, 'a path is no secret');
$app->value('ROLLBACK');
fails_with($app, 'BEGIN; ' . $bring->('aws', "{\"auth\": \"profile\", \"credentials_file\": \"[default]\\nrole_arn = arn:x\\nweb_identity_token_file = $file\"}")
	  . "; SELECT envcrypt.encrypt_envelope('aws', 'x')", { state => '42501', detail => qr/neither files nor identities/ }, 'a profile that names a file of the host');
$app->value('ROLLBACK');
fails_with($app, 'BEGIN; ' . $bring->('aws', "{\"auth\": \"profile\", \"credentials_file\": \"[default]\\nrole_arn = arn:x\\ncredential_source = Ec2InstanceMetadata\"}")
	  . "; SELECT envcrypt.encrypt_envelope('aws', 'x')", { state => '42501', detail => qr/neither files nor identities/ }, 'or borrows its identity');
$app->value('ROLLBACK');
# rights
$dba->value("CREATE ROLE stranger LOGIN");
fails_with(Envcrypt::Session->new($node, role => 'stranger'), $set->(0), { state => '42501' }, 'no right at all');
$dba->value("REVOKE USAGE ON FOREIGN SERVER kms FROM app");
fails_with($app, $set->(0), { state => '42501', message => 'permission denied for KMS "kms"' }, 'no USAGE');
holds_none(log_of($node), { token => $token }, 'the log does not hold it');
like($dba->value('SELECT count(*) FROM pg_user_mapping'), qr/^1$/, 'no catalog does');
done_testing();
