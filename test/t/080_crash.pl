# A backend or the postmaster is killed while create_tenant waits for each of its KMS calls, and right after its COMMIT:
# no half-made key is left, the tenant can be made, and what was encrypted decrypts.
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
my $node = new_cluster('crash', conf => "restart_after_crash = on\nsynchronous_commit = off\nwal_writer_delay = '10s'\n");
my $dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('kms'));
$dba->value("SELECT envcrypt.create_tenant('old', 'kms')");
my $old = $dba->value("SELECT envcrypt.encrypt('of old'::text, tenant => 'old')");
$dba->value("ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (SET auth 'approle', ADD auth_mount 'approle', ADD role_id 'fault',
	ADD secret_id 'file:$kms->{secret_id_file}', DROP token)");
$dba->value('CHECKPOINT');

# kill -9 of the postmaster or of one backend; returns when the cluster works again
sub crash
{
	my ($what, $victim) = @_;
	my $postmaster = $node->{_pid};
	my @children = children_of($postmaster);
	$dba->close;
	if ($what eq 'postmaster')
	{
		$node->kill9;
		start_again($node, @children);
	}
	else
	{
		kill 'KILL', $victim;
		wait_until('all processes were ended', sub { !grep { is_alive($_) } @children });
		wait_until('the cluster has recovered', sub { $node->psql('postgres', 'SELECT 1') == 0 });
	}
	$dba = Envcrypt::Session->new($node);
	return;
}

sub all_is_well
{
	my ($tenants, $name) = @_;
	works($dba, "SELECT string_agg(name, ',' ORDER BY name) FROM envcrypt.tenant", $tenants, "$name: the tenants");
	works($dba, "SELECT count(*) FROM envcrypt.tenant t FULL JOIN envcrypt.data_key d ON d.tenant = t.name
		FULL JOIN envcrypt.wrapped_key w USING (key_id) WHERE t.name IS NULL OR w.server IS NULL OR d.state IS DISTINCT FROM 'active'", '0',
		"$name: each has its key, active and wrapped");
	works($dba, "SELECT envcrypt.decrypt('$old')", 'of old', "$name: older values decrypt");
	return;
}

# --- in each call that create_tenant makes
my $tenants = 'old';
my $round = 0;
for my $what ('backend', 'postmaster')
{
	for my $operation (qw(login datakey decrypt verify))
	{
		my $name = "$what killed in $operation";
		my $new = 'new' . ++$round;
		my $stall = "stall.$operation/$round";
		$dba->value($operation eq 'login' ? "ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (SET auth_mount '$stall')"
			: "ALTER SERVER kms OPTIONS (SET mount '$stall')");
		my $victim = Envcrypt::Session->new($node);
		$victim->begin("SELECT envcrypt.create_tenant('$new', 'kms')");
		wait_until("create_tenant is in its call $operation", sub { $kms->count("^\Q$stall\E:$operation\$") });
		wait_for_kms($dba, $victim);
		my $pid = $victim->pid;
		crash($what, $pid);
		is($victim->result->{state}, 'gone', "$name: the session is gone");
		$victim->close;
		$dba->value("ALTER SERVER kms OPTIONS (SET mount 'transit'); ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (SET auth_mount 'approle')");
		all_is_well($tenants, $name);
		works($dba, "SELECT envcrypt.create_tenant('$new', 'kms'); SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, tenant => '$new'))",
			"\nx", "$name: the tenant can be made");
		$tenants = join ',', sort split(/,/, $tenants), $new;
	}
}

# --- right after COMMIT, which insists on the disk although other commits here do not
$dba->value("CREATE TABLE lazy (i int)");
$dba->value('CHECKPOINT');
$dba->value("SELECT envcrypt.create_tenant('durable', 'kms')");
my $durable = $dba->value("SELECT envcrypt.encrypt('of durable'::text, tenant => 'durable')");
$dba->value('INSERT INTO lazy VALUES (1)');
crash('postmaster');
$tenants = join ',', sort split(/,/, $tenants), 'durable';
all_is_well($tenants, 'killed right after COMMIT');
works($dba, "SELECT envcrypt.decrypt('$durable')", 'of durable', 'killed right after COMMIT: what a client holds decrypts');
note('the lazy commit ' . ($dba->value('SELECT count(*) FROM lazy') ? 'was not lost either' : 'was lost, as it may be'));

# --- in a transaction that was not committed: the value that its client holds is of no use, and says so
my $victim = Envcrypt::Session->new($node);
$victim->value("BEGIN; SELECT envcrypt.create_tenant('lost', 'kms')");
my $lost = $victim->value("SELECT envcrypt.encrypt('of lost'::text, tenant => 'lost')");
crash('backend', $victim->pid);
all_is_well($tenants, 'killed before COMMIT');
fails_with($dba, "SELECT envcrypt.decrypt('$lost')", { state => '42704', message => qr/^key [0-9a-f]{16} does not exist$/ }, 'killed before COMMIT: its key is gone');

$_->close for $dba, $victim;
$node->stop;
done_testing();
