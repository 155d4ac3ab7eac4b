# Copies of a database that go on by themselves: logical subscribers, restores to a point in time, clones for tests. What
# decrypts there, from when on, and what is not to any more.
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
my $node = new_cluster('origin', init => { allows_streaming => 'logical', has_archiving => 1 });
my $dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('kms'));
$dba->value("SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('other', 'kms'), envcrypt.create_tenant('doomed', 'kms')");
$dba->value("CREATE TABLE t (id int PRIMARY KEY, v envcrypt.encrypted(text, searchable, v)); CREATE INDEX ON t (v);
	INSERT INTO t SELECT i, envcrypt.encrypt(tenant || ' ' || i, tenant, 'v', 'searchable') FROM generate_series(1, 30) i, LATERAL (SELECT (ARRAY['acme', 'other', 'doomed'])[1 + i % 3] AS tenant) x");
my $count = "SELECT count(envcrypt.decrypt(v)) FROM t WHERE (envcrypt.inspect(v)).tenant";
my $bytes = 'SELECT md5(string_agg(v::text, \',\' ORDER BY id)) FROM t';

# --- a logical subscriber that gets the values, and its keys by hand
my $subscriber = new_cluster('subscriber');
for my $database (qw(by_hand following))
{
	$subscriber->safe_psql('postgres', "CREATE DATABASE $database");
	$subscriber->safe_psql($database, 'CREATE EXTENSION envcrypt; CREATE TABLE t (id int PRIMARY KEY, v envcrypt.encrypted(text, searchable, v)); CREATE INDEX ON t (v); ' . $kms->create_server('kms'));
}
$dba->value('CREATE PUBLICATION of_values FOR TABLE t');
$dba->value('CREATE PUBLICATION of_keys FOR TABLE envcrypt.tenant, envcrypt.data_key, envcrypt.wrapped_key');
my $origin = $node->connstr . ' dbname=postgres';
my $by_hand = Envcrypt::Session->new($subscriber, database => 'by_hand');
$by_hand->value("CREATE SUBSCRIPTION by_hand CONNECTION '$origin' PUBLICATION of_values");
$subscriber->wait_for_subscription_sync($node, 'by_hand', 'by_hand');
is($by_hand->value($bytes), $dba->value($bytes), 'a subscriber has the same bytes');
fails_with($by_hand, 'SELECT envcrypt.decrypt(v) FROM t', { state => '42704', message => qr/^key [0-9a-f]{16} does not exist$/ }, 'and no keys');
my $import = sub { my ($tenant) = @_; return "SELECT envcrypt.import_keys('" . $dba->value("SELECT envcrypt.export_keys('$tenant')") . "')"; };
works($by_hand, $import->('acme') . "; $count = 'acme'", "2\n10", 'until they are imported');
works($by_hand, "SET envcrypt.tenant = 'acme'; SELECT id FROM t WHERE envcrypt.matches(v, 'acme 3')", '3', 'and are found');
$dba->value("SELECT envcrypt.rotate_key('acme'); INSERT INTO t VALUES (31, envcrypt.encrypt('acme 31', 'acme', 'v', 'searchable'))");
$node->wait_for_catchup('by_hand');
fails_with($by_hand, "$count IS NULL OR id = 31", { state => '42704' }, 'a new version is to be imported again');
works($by_hand, $import->('acme') . "; $count = 'acme'", "1\n11", 'and is');

# --- one that gets the key tables, too, and follows what happens to them
my $following = Envcrypt::Session->new($subscriber, database => 'following');
$following->value("CREATE SUBSCRIPTION following CONNECTION '$origin' PUBLICATION of_values, of_keys");
$subscriber->wait_for_subscription_sync($node, 'following', 'following');
works($following, 'SELECT count(envcrypt.decrypt(v)) FROM t', '31', 'all decrypts, once the keys are there');
my $applied = sub { $node->wait_for_catchup('following'); };
$dba->value("SELECT envcrypt.disable_tenant('other')");
$applied->();
fails_with($following, "$count = 'other'", { state => '55000', message => 'tenant "other" is disabled' }, 'a disable is followed when it is applied, with the key open');
$dba->value("SELECT envcrypt.enable_tenant('other'); SELECT envcrypt.rotate_key('other'); INSERT INTO t VALUES (32, envcrypt.encrypt('other 32', 'other', 'v', 'searchable'))");
$applied->();
works($following, "$count = 'other'", '11', 'an enable, a rotation and a value under the new key');
$kms->rotate;
$dba->value("CALL envcrypt.rewrap_keys('kms')");
$applied->();
works($following, "SELECT count(DISTINCT master_key_version) FROM envcrypt.wrappings; SELECT envcrypt.forget_keys() > 0; SELECT count(envcrypt.decrypt(v)) FROM t", "1\nt\n32", 'a rewrapping');

# --- restored to before a rotation, and to before a destruction
$node->backup('base');
my $lsn = sub { return $dba->value('SELECT pg_current_wal_insert_lsn()'); };
my $before_rotation = $lsn->();
$dba->value("SELECT envcrypt.rotate_key('acme'); INSERT INTO t VALUES (33, envcrypt.encrypt('acme 33', 'acme', 'v', 'searchable'))");
my $before_destruction = $lsn->();
my $receipt = $dba->value("SELECT envcrypt.destroy_tenant('doomed', confirm => 'doomed')");
my ($committed) = log_of($node) =~ m{envcrypt: destroy_tenant \{.*"tenant": "doomed".*, committed at WAL ([0-9A-F]+/[0-9A-F]+)};
ok($committed, 'the log tells where it was committed');
works($dba, "SELECT '$committed'::pg_lsn >= ('$receipt'::jsonb->>'wal')::pg_lsn", 't', 'after the position of the receipt');
$dba->value('SELECT pg_switch_wal()');
wait_until('the WAL is archived', sub { $dba->value("SELECT last_archived_wal >= pg_walfile_name('$committed') FROM pg_stat_archiver") eq 't' });
fails_with($dba, "$count = 'doomed'", { state => '55000', message => qr/of tenant "doomed" is destroyed/ }, 'destroyed');
$applied->();
fails_with($following, "$count = 'doomed'", { state => '55000' }, 'on the subscriber that follows, too');

my $restored_to = sub {
	my ($name, $target) = @_;
	my $restored = PostgreSQL::Test::Cluster->new($name);
	$restored->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
	$restored->append_conf('postgresql.conf', "recovery_target_lsn = '$target'\nrecovery_target_action = 'promote'\nrecovery_target_timeline = 'current'\narchive_mode = off\nmax_logical_replication_workers = 0\n");
	$restored->start;
	$restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	return $restored;
};
my $early = $restored_to->('early', $before_rotation);
my $there = Envcrypt::Session->new($early);
works($there, "SELECT max(version) FROM envcrypt.keys WHERE tenant = 'acme'; SELECT count(envcrypt.decrypt(v)) FROM t", "2\n32", 'before the rotation: all decrypts');
works($there, "SELECT envcrypt.rotate_key('acme'); INSERT INTO t VALUES (40, envcrypt.encrypt('acme 40', 'acme', 'v', 'searchable')); SELECT count(envcrypt.decrypt(v)) FROM t", "3\n33", 'and it goes on with a version of its own');
fails_with($there, "SELECT envcrypt.decrypt('" . $dba->value('SELECT v::text FROM t WHERE id = 33') . "', label => 'v')", { state => '42704' }, 'a value of after is of another key');
$there->close;
$early->stop;
my $late = $restored_to->('late', $before_destruction);
$there = Envcrypt::Session->new($late);
works($there, "$count = 'doomed'; SELECT count(envcrypt.decrypt(v)) FROM t", "10\n33", 'before the destruction: all decrypts');
works($there, "SELECT envcrypt.apply_receipt('$receipt'), envcrypt.apply_receipt('$receipt')", 't|f', 'until the receipt is applied');
fails_with($there, "$count = 'doomed'", { state => '55000', message => qr/of tenant "doomed" is destroyed/ }, 'then not any more');
works($there, "SELECT count(*) FROM envcrypt.wrappings WHERE tenant = 'doomed'; $count = 'acme'", "0\n12", 'and nothing of it is left, and the others go on');

# --- cloned into a test environment: with the KMS out of reach it holds nothing but ciphertext
$there->value("ALTER SERVER kms OPTIONS (SET endpoint 'https://127.0.0.1:1')");
fails_with($there, "SELECT envcrypt.forget_keys(); $count = 'acme'", { state => '08006' }, 'a clone that has no KMS decrypts nothing');
works($there, "SELECT envcrypt.forget_keys() >= 0; SELECT count(*), count(envcrypt.try_decrypt(v)) FROM t WHERE (envcrypt.inspect(v)).tenant = 'acme'", "t\n12|0", 'and its reports say so');

$_->close for $dba, $there, $following, $by_hand;
$_->stop for $late, $subscriber, $node;
done_testing();
