# Java: pgjdbc in its modes, and Hibernate by the recipe of the documentation. test/drivers/java holds the programs.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Pooler;
use Envcrypt::Test;

# test/run counts its absence as a failure
plan skip_all => 'ENVCRYPT_JAVA is not set' if !length($ENV{ENVCRYPT_JAVA} // '');

# pgjdbc speaks TCP only
my $node = new_cluster('java', conf => "listen_addresses = '127.0.0.1'\nlog_statement = none\nlog_min_error_statement = panic\n");
my $key_file = write_secret(PostgreSQL::Test::Utils::tempdir() . '/key', '5a' x 32);
my $dba = Envcrypt::Session->new($node);
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
	SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('other', 'kms');
	CREATE ROLE app LOGIN;
	CREATE USER MAPPING FOR app SERVER kms;
	GRANT USAGE ON FOREIGN SERVER kms TO app;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt,search}');
	ALTER ROLE app SET client_min_messages = error;
	ALTER ROLE app SET envcrypt.tenant_scope = transaction;
	ALTER ROLE app SET session_preload_libraries = 'envcrypt';
	CREATE TABLE typed (id int PRIMARY KEY, ssn envcrypt.encrypted(text, searchable, ssn), born envcrypt.encrypted(date, born),
		pay envcrypt.encrypted(numeric, searchable, pay), visits envcrypt.encrypted(int8, searchable, visit), scan envcrypt.encrypted(bytea),
		doc envcrypt.encrypted(jsonb), tags envcrypt.encrypted('text[]'), device envcrypt.encrypted(uuid), seen envcrypt.encrypted(timestamptz),
		active envcrypt.encrypted(boolean), score envcrypt.encrypted(float8), any_type envcrypt.encrypted);
	CREATE INDEX ON typed (ssn);
	GRANT SELECT, INSERT, UPDATE, DELETE ON typed TO app;
	GRANT TEMPORARY ON DATABASE postgres TO app;
	CREATE TABLE patient (id bigint PRIMARY KEY, name text, ssn envcrypt.encrypted(text, searchable, ssn), born envcrypt.encrypted(date, born));
	CREATE INDEX ON patient (ssn);
	GRANT SELECT, INSERT, UPDATE, DELETE ON patient TO app");

# Runs a program; each of its lines is a test.
sub java
{
	my ($how, @arguments) = @_;
	my ($out, $err) = ('', '');
	my $ended = IPC::Run::run([ 'java', '-Xmx256m', '-XX:+UseSerialGC', '-Duser.home=' . PostgreSQL::Test::Utils::tempdir(),
		'-cp', $ENV{ENVCRYPT_JAVA}, @arguments ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180));
	for (split /\n/, $out) { ok(!$1, "$how: $2") if /^(not )?ok (.*)/; }
	ok($ended && $out =~ /^done$/m, "$how: to its end") or diag($err);
	return $out;
}

my $url = 'jdbc:postgresql://127.0.0.1:' . $node->port . '/postgres?user=app';
for my $mode ('prepareThreshold=5', 'prepareThreshold=-1', 'binaryTransfer=false', 'preferQueryMode=simple', 'preferQueryMode=extendedForPrepared',
	'stringtype=unspecified', 'reWriteBatchedInserts=true', 'logServerErrorDetail=false')
{
	java($mode, 'Jdbc', $url, $mode);
}

# behind a pooler, where statements may not be named
my $pooler = Envcrypt::Pooler->start($node, roles => ['app'], tcp => 1, settings => "server_reset_query = RESET envcrypt.tenant\nserver_reset_query_always = 1\n"
	  . "ignore_startup_parameters = extra_float_digits\n");
java('behind PgBouncer', 'Jdbc', 'jdbc:postgresql://127.0.0.1:' . $pooler->port . '/postgres?user=app', 'prepareThreshold=0');
$pooler->stop;

java('Hibernate', 'Orm', $url);
# as it writes a boolean function, and as its queries are prepared
like($dba->value("SET envcrypt.tenant = 'acme'; SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;
	PREPARE find(varchar) AS SELECT id FROM patient WHERE envcrypt.matches(ssn, \$1) = true; EXPLAIN (COSTS OFF) EXECUTE find('x')"),
	qr/Index Cond: .*ssn OPERATOR\(envcrypt\.=\)/, "Hibernate: the search uses its index");

holds_none(log_of($node), { ssn => '123-45-6789', secret => 'the secret', staged => "\tstaged" }, 'the log holds no plaintext');
done_testing();
