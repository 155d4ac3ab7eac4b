# A backend, or the postmaster, is killed at every step of every lifecycle act, and the cluster recovers: every value that was
# written before decrypts, every key that is active opens from what is wrapped, and the act can be done again.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
# commits reach the disk late, unless somebody insists
my $node = new_cluster('kill', conf => "restart_after_crash = on\nsynchronous_commit = off\nwal_writer_delay = '10s'\n");
my $dba = Envcrypt::Session->new($node);
my $tenants = 40;
$dba->value($kms->create_server('a') . $kms->create_server('b'));
$dba->value("SELECT envcrypt.create_tenant('t' || i, 'a') FROM generate_series(1, $tenants) i; SELECT envcrypt.create_group_key('group', 'a')");
$dba->value("CREATE TABLE t AS SELECT 't' || i AS tenant, envcrypt.encrypt('plain ' || i, 't' || i) AS v FROM generate_series(1, $tenants) i");
$dba->value("CREATE TABLE exported AS SELECT envcrypt.export_keys('t40') AS keys");
$dba->value('CHECKPOINT');

sub crash
{
	my ($what, $victim, @others) = @_;
	my $postmaster = $node->{_pid};
	my @children = children_of($postmaster);
	# the victim first, as long as it waits for what the others hold
	$node->kill9 if $what eq 'postmaster';
	kill 'KILL', $victim if defined $victim;
	$_->close for $dba, @others;
	if ($what eq 'postmaster')
	{
		start_again($node, @children);
	}
	else
	{
		wait_until('all processes were ended', sub { !grep { is_alive($_) } @children });
		wait_until('the cluster has recovered', sub { $node->psql('postgres', 'SELECT 1') == 0 });
	}
	$dba = Envcrypt::Session->new($node);
	return;
}

# From the KMS alone: every value decrypts, every live key opens, and what encrypts decrypts.
sub all_is_well
{
	my ($name) = @_;
	works($dba, "ALTER SERVER a OPTIONS (SET mount 'transit'); ALTER SERVER b OPTIONS (SET mount 'transit');
		SELECT count(*) FROM t WHERE envcrypt.decrypt(v) <> 'plain ' || substr(tenant, 2); SELECT count(*) = (SELECT count(*) FROM t) FROM (SELECT DISTINCT tenant FROM t WHERE envcrypt.decrypt(v) IS NOT NULL) x;
		SELECT envcrypt.load_keys(VARIADIC array_agg(name)) = (SELECT count(*) FROM envcrypt.keys WHERE state IN ('active', 'decrypt_only') AND purpose <> 'group') FROM envcrypt.tenants WHERE state = 'active';
		SELECT count(*) FROM envcrypt.tenants WHERE state = 'active' AND envcrypt.decrypt(envcrypt.encrypt(name, name)) <> name;
		SELECT count(*) FROM envcrypt.keys WHERE state = 'pending' OR state <> 'destroyed' AND servers = '{}' AND group_key IS NULL;
		SELECT count(*) FROM (SELECT 1 FROM envcrypt.keys WHERE state = 'active' AND purpose = 'data' GROUP BY tenant HAVING count(*) > 1) x", "0\nt\nt\n0\n0\n0", $name);
	return;
}

# Kills where the statement waits for an operation of the KMS, and does it again afterwards.
my ($round, $tried) = (0, 0);
sub kill_at
{
	my ($sql, $server, $operation, $again) = @_;
	for my $what ('backend', 'postmaster')
	{
		my $name = "$what killed: $sql, in $operation of $server";
		my $stall = "stall.$operation/" . ++$round;
		$dba->value("ALTER SERVER $server OPTIONS (SET mount '$stall')");
		my $victim = Envcrypt::Session->new($node);
		$victim->begin("SET envcrypt.kms_timeout = '10min'; $sql");
		wait_until("it waits ($name)", sub { $kms->count("^\Q$stall\E:$operation\$") });
		wait_for_kms($dba, $victim);
		crash($what, $victim->pid);
		is($victim->result->{state}, 'gone', "$name: the session is gone");
		$victim->close;
		all_is_well($name);
		++$tried;
	}
	$again //= $sql;
	is($dba->ask($again)->{state}, '00000', "done again: $again");
	all_is_well("done again: $again");
	return;
}

# The same where it waits for a table that another session has locked: the steps without a KMS.
sub kill_before_writing
{
	my ($sql, @tables) = @_;
	for my $table (@tables)
	{
		my $what = $tried % 2 ? 'backend' : 'postmaster';
		my $name = "$what killed: $sql, before it writes $table";
		my $holder = Envcrypt::Session->new($node);
		$holder->value("BEGIN; LOCK TABLE envcrypt.$table IN SHARE MODE");
		my $victim = Envcrypt::Session->new($node);
		$victim->begin($sql);
		my $pid = $victim->pid;
		wait_until("it waits ($name)", sub { $dba->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'") });
		crash($what, $pid, $holder);
		$victim->result;
		$victim->close;
		all_is_well($name);
		++$tried;
	}
	is($dba->ask($sql)->{state}, '00000', "done again: $sql");
	all_is_well("done again: $sql");
	return;
}

# --- rotate: made, unwrapped from what was persisted, proved; and before each write
kill_at("SELECT envcrypt.rotate_key('t1')", 'a', $_) for qw(datakey decrypt verify);
kill_before_writing("SELECT envcrypt.rotate_key('t2')", qw(data_key wrapped_key journal));
# --- rewrap: the master key proved, rewrapped, unwrapped; and before each write
for my $operation (qw(datakey verify rewrap))
{
	$kms->rotate;
	kill_at("CALL envcrypt.rewrap_keys('a')", 'a', $operation);
}
$kms->rotate;
kill_before_writing("CALL envcrypt.rewrap_keys('a')", qw(wrapped_key journal run));
# --- a second wrapping, and one dropped: wrapped there, unwrapped there
kill_at("CALL envcrypt.add_wrapping('b')", 'b', 'encrypt', 'SELECT 1');
kill_at("CALL envcrypt.add_wrapping('b')", 'b', 'decrypt');
kill_at("CALL envcrypt.drop_wrapping('a', 't3')", 'b', 'decrypt');
kill_at("SELECT envcrypt.rotate_key('t4')", 'b', 'encrypt');
kill_before_writing("CALL envcrypt.drop_wrapping('a', 't4')", qw(wrapped_key tenant journal));
$dba->value("CALL envcrypt.add_wrapping('a')");
$dba->value("CALL envcrypt.drop_wrapping('b')");
# --- a move: unwrapped here, wrapped there, unwrapped there
kill_at("CALL envcrypt.rewrap_keys('a', 'b')", 'a', 'decrypt', 'SELECT 1');
kill_at("CALL envcrypt.rewrap_keys('a', 'b')", 'b', $_, 'SELECT 1') for qw(datakey encrypt decrypt);
kill_before_writing("CALL envcrypt.rewrap_keys('a', 'b')", qw(wrapped_key tenant journal));
# --- into a group and out of it
kill_at("SELECT envcrypt.create_group_key('group2', 'b')", 'b', 'datakey');
kill_at("SELECT envcrypt.move_tenant('t5', 'group')", 'b', 'decrypt', "SELECT envcrypt.move_tenant('t5', 'group')");
kill_at("SELECT envcrypt.move_tenant('t5', '')", 'b', 'encrypt');
kill_before_writing("SELECT envcrypt.move_tenant('t6', 'group')", qw(wrapped_key tenant journal));
# --- import: each key unwrapped before it is used
$dba->value("CALL envcrypt.rewrap_keys('b', 'a')");
$dba->value("DELETE FROM envcrypt.wrapped_key w USING envcrypt.data_key d WHERE d.key_id = w.key_id AND d.tenant = 't40'; DELETE FROM envcrypt.data_key WHERE tenant = 't40'; DELETE FROM envcrypt.tenant WHERE name = 't40';
	CREATE TABLE of_t40 AS SELECT * FROM t WHERE tenant = 't40'; DELETE FROM t WHERE tenant = 't40'; CHECKPOINT");
$kms->rotate;
kill_at("SELECT envcrypt.import_keys(keys) FROM exported", 'a', $_, 'SELECT 1') for qw(datakey verify decrypt);
kill_before_writing("SELECT envcrypt.import_keys(keys) FROM exported", qw(tenant data_key wrapped_key journal));
works($dba, "INSERT INTO t SELECT * FROM of_t40; SELECT count(envcrypt.decrypt(v)) FROM t WHERE tenant = 't40'", '1', 'imported at last, its values decrypt');
# --- disable and destroy
kill_before_writing("SELECT envcrypt.disable_tenant('t7'), envcrypt.enable_tenant('t7')", qw(tenant journal));
# what is destroyed is destroyed as a whole or not at all
for my $table (qw(wrapped_key data_key tenant journal))
{
	my $holder = Envcrypt::Session->new($node);
	$holder->value("BEGIN; LOCK TABLE envcrypt.$table IN SHARE MODE");
	my $victim = Envcrypt::Session->new($node);
	$victim->begin("SELECT envcrypt.destroy_tenant('t8', 't8')");
	my $pid = $victim->pid;
	wait_until('it waits', sub { $dba->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'") });
	crash($table eq 'tenant' ? 'backend' : 'postmaster', $pid, $holder);
	$victim->result;
	$victim->close;
	all_is_well("killed: destroy_tenant, before it writes $table");
	++$tried;
}
$dba->value("DELETE FROM t WHERE tenant = 't8'; SELECT envcrypt.destroy_tenant('t8', 't8')");
crash('postmaster');
works($dba, "SELECT count(*) FROM envcrypt.wrappings WHERE tenant = 't8'; SELECT state FROM envcrypt.tenants WHERE name = 't8'; SELECT count(*) FROM envcrypt.journal WHERE act = 'destroy_tenant'", "0\ndestroyed\n1", 'killed right after its COMMIT: it is destroyed');
all_is_well('killed right after COMMIT of destroy_tenant');
# --- what was committed is on disk at once
works($dba, "SELECT envcrypt.rotate_key('t9')", '2', 'rotated');
my $durable = $dba->value("SELECT envcrypt.encrypt('durable'::text, 't9')");
crash('postmaster');
works($dba, "SELECT envcrypt.decrypt('$durable')", 'durable', 'killed right after COMMIT: what a client holds of the new key decrypts');
note("$tried kill points");

$dba->close;
$node->stop;
done_testing();
