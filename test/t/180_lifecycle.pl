# The life of a key beyond one database: what the server's log is told, a standby that follows and is promoted, a restore
# from before a destruction, and a session that a scan, a COPY and a thousand writes keep busy meanwhile.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

my $node = new_cluster('lifecycle', init => { allows_streaming => 1 });
my $dba = Envcrypt::Session->new($node);
my $key_file = PostgreSQL::Test::Utils::tempdir() . '/key';
write_secret($key_file, '5a' x 32 . "\n");
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file'); CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
	SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('doomed', 'kms'); ALTER DATABASE postgres SET envcrypt.tenant = 'acme'");
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, v envcrypt.encrypted(text)); INSERT INTO t (v) VALUES ('acme'::text), (envcrypt.encrypt('doomed', 'doomed'))");
my $read = "SELECT string_agg(envcrypt.decrypt(v), ',' ORDER BY id) FROM t";
my $acme = "$read WHERE (envcrypt.inspect(v)).tenant = 'acme'";

# --- a standby follows, and refuses to act
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
my $there = Envcrypt::Session->new($standby);
works($there, $read, 'acme,doomed', 'a standby decrypts');
for my $act ("rotate_key('acme')", "disable_tenant('acme')", "enable_tenant('acme')", "destroy_tenant('acme', 'acme')", "create_tenant('x', 'kms')")
{
	fails_with($there, "SELECT envcrypt.$act", { state => '25006', message => qr/in a read-only transaction|during recovery/ }, "a standby refuses: $act");
}
fails_with($there, "CALL envcrypt.rotate_keys('0 s')", { state => '25006' }, 'a standby refuses: rotate_keys');
$dba->value("SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('new'::text)");
$node->wait_for_catchup($standby);
works($there, $read, 'acme,doomed,new', 'a standby follows a rotation');
$dba->value("SELECT envcrypt.disable_tenant('acme')");
$node->wait_for_catchup($standby);
fails_with($there, $read, { state => '55000', message => 'tenant "acme" is disabled' }, 'a standby follows a disable');
$dba->value("SELECT envcrypt.enable_tenant('acme')");
$node->wait_for_catchup($standby);
works($there, $read, 'acme,doomed,new', 'and an enable');

# --- dumped before a destruction, restored after it
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
command_ok([ 'pg_dump', '-Fd', '-j2', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$dba->value("BEGIN; SELECT envcrypt.destroy_tenant('doomed', 'doomed'); ROLLBACK; BEGIN; SAVEPOINT s; SELECT envcrypt.destroy_tenant('doomed', 'doomed'); ROLLBACK TO s; COMMIT");
my $lines = sub { return scalar(() = slurp_file($node->logfile) =~ /LOG:  (?:00000: )?envcrypt: destroy_tenant \{.*"tenant": "doomed"/g) };
is($lines->(), 0, 'what is rolled back is not told');
my $receipt = $dba->value("SELECT envcrypt.destroy_tenant('doomed', confirm => 'doomed')");
is($lines->(), 1, 'what is committed is told to the log, once');
fails_with($dba, $read, { state => '55000', message => qr/of tenant "doomed" is destroyed/ }, 'destroyed');
works($dba, $acme, 'acme,new', 'the other tenant goes on');
$node->wait_for_catchup($standby);
fails_with($there, $read, { state => '55000', message => qr/of tenant "doomed" is destroyed/ }, 'on the standby, too');
$dba->value('CREATE DATABASE restored');
command_ok([ 'pg_restore', '-j2', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
my $restored = Envcrypt::Session->new($node, database => 'restored');
works($restored, $read, 'acme,doomed,new', 'a backup from before decrypts');
works($restored, "SELECT count(*) FROM envcrypt.journal", 5, 'the journal is restored');
works($restored, "SELECT envcrypt.apply_receipt('$receipt')", 't', 'until the receipt is applied');
fails_with($restored, $read, { state => '55000', message => qr/of tenant "doomed" is destroyed/ }, 'then not any more');
works($restored, "$acme; SELECT envcrypt.rotate_key('acme')", "acme,new\n3", 'and goes on');

# --- promoted, the standby goes on by itself
$standby->promote;
works($there, "SELECT envcrypt.rotate_key('acme'); INSERT INTO t (v) VALUES ('promoted'::text); $acme", "3\nacme,new,promoted", 'promoted, it rotates');

# --- rotations beside writers: every value decrypts, and no write fails
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/write.sql", "INSERT INTO t (v) VALUES ('busy'::text);\n");
append_to_file("$dir/rotate.sql", "SELECT envcrypt.rotate_key('acme');\n");
my ($out, $err) = ('', '');
IPC::Run::run([ 'pgbench', '-n', '-c', 4, '-j', 4, '-t', 300, '-f', "$dir/write.sql\@20", '-f', "$dir/rotate.sql\@1", $node->connstr('postgres') ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180));
like($out, qr{actually processed: 1200/1200}, 'rotations beside writers') or diag($out, $err);
my $counted = $dba->value("SELECT count(*) = count(envcrypt.decrypt(v)), count(DISTINCT (envcrypt.inspect(v)).key_version) > 3 FROM t WHERE (envcrypt.inspect(v)).tenant = 'acme'");
is($counted, 't|t', 'every value decrypts, under many versions');
is($dba->value("SELECT count(*) FROM envcrypt.keys WHERE tenant = 'acme' AND purpose = 'data' AND state = 'active'"), 1, 'one version is active');
is($dba->value("SELECT count(*) FROM (SELECT version, row_number() OVER (ORDER BY version) AS n FROM envcrypt.keys WHERE tenant = 'acme' AND purpose = 'data') v WHERE version <> n"), 0,
	'no version is missing or there twice');

# --- one that cannot be rotated is told of, and keeps no other from it; two CALLs at once rotate each tenant once; nothing grows
$dba->value("CREATE SERVER broken FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file'); CREATE USER MAPPING FOR CURRENT_USER SERVER broken;
	SELECT envcrypt.create_tenant('stuck', 'broken'); SELECT envcrypt.create_tenant('r' || i, 'kms') FROM generate_series(1, 300) i;
	ALTER SERVER broken OPTIONS (SET key_file '/nowhere'); UPDATE envcrypt.data_key SET created_at = created_at - interval '2 days' WHERE tenant ~ '^(stuck|r[0-9])'");
my $rotated = "SELECT version, count(*) FROM envcrypt.keys WHERE tenant ~ '^r[0-9]' AND purpose = 'data' AND state = 'active' GROUP BY 1";
my ($one, $two) = map { Envcrypt::Session->new($node) } 1 .. 2;
$_->value('SET client_min_messages = warning') for $one, $two;
$_->begin("CALL envcrypt.rotate_keys('1 day')") for $one, $two;
my @said = map { $_->result } $one, $two;
is($_->{state}, '55000', 'one was not rotated') for @said;
like($said[0]{text}, qr/WARNING: .*tenant "stuck" was not rotated: .*could not read/, 'which, and why');
works($dba, $rotated, '2|300', 'all others were, once');
like(log_of($node), qr/envcrypt: rotate_key failed \{"of": "stuck", /, 'and the log tells of it');
my $resident = resident_kb($one->pid);
$dba->value("UPDATE envcrypt.data_key SET created_at = created_at - interval '2 days' WHERE tenant ~ '^r[0-9]'");
$one->ask("CALL envcrypt.rotate_keys('1 day')");
cmp_ok(resident_kb($one->pid) - $resident, '<', 4096, 'the memory of a CALL does not grow with the tenants');
works($dba, "BEGIN; SELECT count(envcrypt.disable_tenant(name)) FROM envcrypt.tenant WHERE name ~ '^r[0-9]'; SELECT count(*) <= 2 * 1024 FROM pg_locks WHERE locktype = 'object'; ROLLBACK", "300\nt", 'nor do its locks');
$_->close for $one, $two;

# --- what is told at COMMIT cannot fail there, whatever the client speaks
$dba->value("CREATE ROLE \"\xc5\x82ukasz\" LOGIN; SELECT envcrypt.grant_access('\"\xc5\x82ukasz\"', '{manage}'); SELECT envcrypt.create_tenant('told', 'kms')");
my $other = Envcrypt::Session->new($node, environment => { PGCLIENTENCODING => 'UTF8' });
my $told = $other->ask("SET ROLE \"\xc5\x82ukasz\"; SET client_encoding = LATIN1; SET client_min_messages = log; SELECT envcrypt.destroy_tenant('told', 'told') IS NOT NULL; SET client_min_messages = error");
like("$told->{state} $told->{rows}", qr/^00000 .*^t$/ms, 'destroyed by a role whose name the client cannot show');
works($other, 'SELECT 1', '1', 'the session lives on');
like(log_of($node), qr/envcrypt: destroy_tenant \{.*"tenant": "told".*, committed at WAL/, 'and the log has it');
$other->close;

# --- a disable ends a scan and a COPY under way
$dba->value("CREATE TABLE many AS SELECT envcrypt.encrypt('x', 'acme') AS v FROM generate_series(1, 3000)");
for my $statement ('SELECT count(envcrypt.decrypt(v)) FROM (SELECT v, pg_sleep(0.01) FROM many OFFSET 0) m', 'COPY (SELECT envcrypt.decrypt(v), pg_sleep(0.01) FROM many) TO \'/dev/null\'')
{
	my $busy = Envcrypt::Session->new($node);
	$busy->begin($statement);
	wait_until('the scan runs', sub { $dba->value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") > 0 });
	$dba->value("SELECT envcrypt.disable_tenant('acme')");
	is($busy->result->{state}, '55000', "ended: $statement");
	$dba->value("SELECT envcrypt.enable_tenant('acme')");
	$busy->close;
}

done_testing();
