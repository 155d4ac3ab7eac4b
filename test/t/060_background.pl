# Where no client asks: autovacuum, the postmaster under shared_preload_libraries, parallel workers, a hot standby; and
# snapshots older than a key or than its end.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
my $node = new_cluster('primary', init => { allows_streaming => 1 }, conf => "autovacuum = off\nautovacuum_naptime = '1s'\n");
my $dba = Envcrypt::Session->new($node);

# --- the postmaster has the library and nothing else of it
sub descriptors_by_kind
{
	my ($pid) = @_;
	my %count;
	for my $link (glob "/proc/$pid/fd/*")
	{
		my $kind = readlink $link // next;
		$kind =~ s/\[\d+\]|\d+//g if $kind !~ /^anon_inode/;
		$count{$kind}++;
	}
	return join ' ', map { "$_=$count{$_}" } sort keys %count;
}
my $without = descriptors_by_kind($node->{_pid});
$dba->close;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'envcrypt'");
$node->restart;
$dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('kms'));
$dba->value("SELECT envcrypt.create_tenant('acme', 'kms')");
is(threads($node->{_pid}), 1, 'shared_preload_libraries: the postmaster has one thread');
is(descriptors_by_kind($node->{_pid}), $without, 'shared_preload_libraries: and no descriptors more than without');
like(slurp_file("/proc/$node->{_pid}/maps"), qr/envcrypt\.so/, 'shared_preload_libraries: it has the library');

$dba->value("CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER kms TO app;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt}')");
$dba->value($kms->create_login('kms', 'app'));
$dba->value("CREATE TABLE patient (id int PRIMARY KEY, ssn envcrypt.encrypted(text));
	GRANT SELECT ON patient TO app;
	INSERT INTO patient SELECT i, envcrypt.encrypt('plaintext-' || i, tenant => 'acme') FROM generate_series(1, 2000) i;
	ALTER TABLE patient SET (parallel_workers = 2)");
my $app = Envcrypt::Session->new($node, role => 'app');
my $decrypt = 'SELECT envcrypt.decrypt(ssn) FROM patient WHERE id = 1';
works($app, $decrypt, 'plaintext-1', 'shared_preload_libraries: decrypts');

# --- parallel workers
my $parallel = 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
	SET parallel_leader_participation = off; SET max_parallel_workers_per_gather = 2';
$app->value("$parallel; SET envcrypt.tenant = 'acme'");
my $sum = "SELECT count(*) FROM patient WHERE envcrypt.decrypt(ssn) = 'plaintext-' || id";
my $asked = $kms->count('^transit:decrypt$');
my $plan = $app->value("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sum");
like($plan, qr/Workers Launched: [12]/, 'parallel: workers decrypt') or diag($plan);
works($app, $sum, '2000', 'parallel: and all is right');
cmp_ok($kms->count('^transit:decrypt$') - $asked, '>=', 2, 'parallel: each worker opens the key for itself');
works($app, "SELECT count(*) FROM (SELECT envcrypt.decrypt(envcrypt.encrypt(id::text)) = id::text AS same, id FROM patient OFFSET 0) x WHERE same",
	'2000', 'parallel: encrypt');
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'sealed')");
fails_with($app, $sum, { state => '08006', message => 'could not unwrap a key with KMS "kms"', hint => qr/unseal/ },
	"parallel: a worker's error reaches the client whole");
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'stall')");
$app->begin($sum);
wait_until('a worker waits for the KMS', sub {
	$dba->value("SELECT count(*) FROM pg_stat_activity WHERE leader_pid = " . $app->pid . " AND wait_event IN ('Extension', 'EnvcryptKms')") > 0;
});
$dba->value('SELECT pg_cancel_backend(' . $app->pid . ')');
fails_with($app, $app->result, { state => '57014' }, 'parallel: a cancel reaches the workers');
is($dba->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'"), '0', 'parallel: none is left');
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'transit')");
works($app, $sum, '2000', 'parallel: works on');

# --- autovacuum
$dba->value("CREATE TABLE watched (id int, ssn envcrypt.encrypted(text));
	ALTER TABLE watched SET (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0);
	CREATE STATISTICS decrypted ON (envcrypt.decrypt(ssn)), id FROM watched;
	INSERT INTO watched SELECT id, ssn FROM patient;
	CREATE TABLE plain_columns (LIKE watched);
	ALTER TABLE plain_columns SET (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0);
	INSERT INTO plain_columns SELECT id, ssn FROM patient");
fails_with($dba, 'ANALYZE watched', { state => '55000', message => 'keys cannot be used within a security-restricted operation',
	hint => qr/statistics/ }, 'ANALYZE of a decrypting expression');
$dba->value('ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()');
wait_until('autovacuum has met the decrypting expression', sub {
	log_of($node) =~ /ERROR:  keys cannot be used within a security-restricted operation\n(?:.*\n){0,6}?.*CONTEXT:  automatic analyze of table "postgres\.public\.watched"/;
});
pass('autovacuum: an error in the log');
wait_until('autovacuum has analyzed the other table', sub {
	$dba->value("SELECT count(*) FROM pg_stat_user_tables WHERE relname = 'plain_columns' AND last_autoanalyze IS NOT NULL") eq '1';
});
my $statistics = $dba->value("SELECT s::text FROM pg_statistic s WHERE starelid IN ('watched'::regclass, 'plain_columns'::regclass);
	SELECT d::text FROM pg_statistic_ext_data d; SELECT s::text FROM pg_stats s WHERE tablename IN ('watched', 'plain_columns')");
like($statistics, qr/^\(public,plain_columns,ssn,/m, 'autovacuum: the column itself has statistics');
holds_none($statistics, { plaintext => 'plaintext-' }, 'autovacuum: no plaintext in any statistics');
$dba->value('ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf()');

# --- snapshots: keys are seen as they are now, not as they were
$app->value("SET max_parallel_workers_per_gather = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; $decrypt");
$dba->value("SELECT envcrypt.create_tenant('late', 'kms')");
my $late = $dba->value("SELECT envcrypt.encrypt('of late'::text, tenant => 'late')");
works($app, "SELECT envcrypt.decrypt('$late')", 'of late', 'REPEATABLE READ: a key of a later commit opens');
works($app, "SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, tenant => 'late'))", 'x', 'REPEATABLE READ: and encrypts');
works($app, $decrypt, 'plaintext-1', 'REPEATABLE READ: so does a cached one');
$dba->value("UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme'");
fails_with($app, $decrypt, { state => '55000', message => 'tenant "acme" is disabled' }, 'REPEATABLE READ: a tenant that is disabled later is disabled');
$app->value('ROLLBACK');
$dba->value("UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme'");
works($app, $decrypt, 'plaintext-1', 'enabled again');

# --- a hot standby
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
sub replayed { $node->wait_for_catchup($standby, 'replay', $node->lsn('insert')); return; }
replayed();
my $reader = Envcrypt::Session->new($standby, role => 'app');
works($reader, $decrypt, 'plaintext-1', 'standby: decrypts');
works($reader, "SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, tenant => 'late'))", 'x', 'standby: encrypts');
$dba->value("SELECT envcrypt.create_tenant('later', 'kms')");
my $later = $dba->value("SELECT envcrypt.encrypt('of later'::text, tenant => 'later')");
replayed();
works($reader, "SELECT envcrypt.decrypt('$later')", 'of later', 'standby: a new key of the primary');
$reader->value("BEGIN ISOLATION LEVEL REPEATABLE READ; $decrypt");
$dba->value("UPDATE envcrypt.tenant SET state = 'disabled' WHERE name = 'acme'");
replayed();
fails_with($reader, $decrypt, { state => '55000', message => 'tenant "acme" is disabled' },
	'standby: a disabled tenant is disabled as soon as that is replayed, cached or not');
$reader->value('ROLLBACK');
$dba->value("UPDATE envcrypt.tenant SET state = 'active' WHERE name = 'acme'");
replayed();
works($reader, $decrypt, 'plaintext-1', 'standby: enabled again');
my $standby_dba = Envcrypt::Session->new($standby);
fails_with($standby_dba, "SELECT envcrypt.create_tenant('x', 'kms')", { state => '25006' }, 'standby: no new tenant');
works($standby_dba, "SELECT ok FROM envcrypt.check_server('kms')", 't', 'standby: check_server');
$node->stop;
works($reader, $decrypt, 'plaintext-1', 'standby: decrypts without the primary');
$standby->promote;
works($standby_dba, "SELECT envcrypt.create_tenant('after', 'kms'); SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, tenant => 'after'))",
	"\nx", 'promoted: a new tenant');
works($reader, $decrypt, 'plaintext-1', 'promoted: the same session decrypts');

$_->close for $dba, $app, $reader, $standby_dba;
$standby->stop;
done_testing();
