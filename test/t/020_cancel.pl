# A statement that waits for a KMS ends at once when it is cancelled, times out, its backend is terminated or the
# postmaster dies, in whatever phase it waits; and a thousand cancelled calls leave nothing behind.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

use Envcrypt::Kms;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_SLOW_RESOLVER is not set' if !$ENV{ENVCRYPT_SLOW_RESOLVER};

my $kms = Envcrypt::Kms->start;

# Each phase has a server of its own, whose tenant was made while it worked.
my %endpoint = (
	resolving => $kms->url('good', 'kms.slow.test'),
	connecting => $kms->url('full'),
	TLS => $kms->url('silent'),
	waiting => $kms->url('good'));
my %phase_words = (
	resolving => 'resolving the name of',
	connecting => 'connecting to',
	TLS => 'negotiating TLS with',
	waiting => 'waiting for an answer from');
my @phases = qw(resolving connecting TLS waiting);

# A resolver that answers long after every test here is over.
my $node = do {
	local $ENV{LD_PRELOAD} = $ENV{ENVCRYPT_SLOW_RESOLVER};
	local $ENV{ENVCRYPT_RESOLVER_DELAY} = 6;
	new_cluster('cancel');
};
my $admin = Envcrypt::Session->new($node);
my %value;
for my $phase (@phases)
{
	my $server = lc "kms_$phase";
	$admin->value($kms->create_server($server));
	$admin->value("SELECT envcrypt.create_tenant('$phase', '$server')");
	$value{$phase} = $admin->value("SELECT envcrypt.encrypt('secret of $phase'::text, tenant => '$phase')");
	$admin->value("ALTER SERVER $server OPTIONS (SET endpoint '$endpoint{$phase}', SET mount 'stall')");
}

my %took;    # what => phase => milliseconds

sub decrypt_in { my ($phase) = @_; return "SELECT envcrypt.decrypt('$value{$phase}')"; }

sub took
{
	my ($what, $phase, $seconds) = @_;
	$took{$what}{$phase} = $seconds * 1000;
	cmp_ok($seconds, '<', 1, "$what while $phase: at once");
	return;
}

# The same session opens a key of a KMS that works.
$admin->value($kms->create_server('kms_good'));
$admin->value("SELECT envcrypt.create_tenant('good', 'kms_good')");
my $good = $admin->value("SELECT envcrypt.encrypt('still there'::text, tenant => 'good')");

sub lives_on
{
	my ($session, $what) = @_;
	$session->value('SELECT envcrypt.forget_keys()');
	works($session, "SELECT envcrypt.decrypt('$good')", 'still there', "$what: the session works on");
	return;
}

my $session = Envcrypt::Session->new($node);
for my $phase (@phases)
{
	# that it is this phase says the error of envcrypt's own timeout
	$session->value("SET envcrypt.kms_timeout = '300ms'");
	fails_with($session, decrypt_in($phase), { state => '08006', message => qr/^could not unwrap a key with KMS "[^"]+": timeout while $phase_words{$phase}/ },
		"kms_timeout while $phase");
	$session->value('RESET envcrypt.kms_timeout');

	my $start = time;
	my $got = $session->ask("SET statement_timeout = '200ms'; " . decrypt_in($phase));
	took('statement_timeout', $phase, $got->{ended} - $start - 0.2);
	fails_with($session, $got, { state => '57014', message => 'canceling statement due to statement timeout' },
		"statement_timeout while $phase: SQLSTATE");
	$session->value('RESET statement_timeout');
	lives_on($session, "statement_timeout while $phase");

	$session->begin(decrypt_in($phase));
	wait_for_kms($admin, $session);
	$start = time;
	$admin->value('SELECT pg_cancel_backend(' . $session->pid . ')');
	$got = $session->result;
	took('pg_cancel_backend', $phase, $got->{ended} - $start);
	fails_with($session, $got, { state => '57014', message => 'canceling statement due to user request' },
		"pg_cancel_backend while $phase: SQLSTATE");
	lives_on($session, "pg_cancel_backend while $phase");

	# with an exception block around it, a cancel is no other error
	fails_with($session, "SET statement_timeout = '200ms'; DO \$\$ BEGIN PERFORM envcrypt.decrypt('$value{$phase}');
		EXCEPTION WHEN OTHERS THEN RAISE EXCEPTION 'caught %', SQLSTATE; END \$\$", { state => '57014' },
		"statement_timeout while $phase: WHEN OTHERS does not catch it");
	$session->value('RESET statement_timeout');

	my $victim = Envcrypt::Session->new($node);
	$victim->begin(decrypt_in($phase));
	wait_for_kms($admin, $victim);
	$start = time;
	$admin->value('SELECT pg_terminate_backend(' . $victim->pid . ')');
	$got = $victim->result;
	wait_until('the terminated backend has ended', sub { !is_alive($victim->pid) });
	took('pg_terminate_backend', $phase, time - $start);
	is($got->{error}, '57P01', "pg_terminate_backend while $phase: SQLSTATE");
}

# --- create_tenant and check_server are cancelled like the rest, and leave nothing
for my $call ("envcrypt.create_tenant('new', 'kms_waiting')", "envcrypt.check_server('kms_waiting')")
{
	$session->begin("SELECT $call");
	wait_for_kms($admin, $session);
	$admin->value('SELECT pg_cancel_backend(' . $session->pid . ')');
	fails_with($session, $session->result, { state => '57014' }, "cancelled: $call");
	lives_on($session, $call);
}
is($admin->value("SELECT count(*) FROM envcrypt.tenant WHERE name = 'new'"), '0', 'no tenant of the cancelled call');

# --- a thousand cancelled calls

# Runs statements under a statement_timeout of 1 to `longest` milliseconds; returns how many were cancelled.
sub cancel_many
{
	my ($sql, $count, $longest) = @_;
	my $done = $session->ask(join ";\n", map { 'SET statement_timeout = ' . (1 + $_ % $longest) . "; $sql" } 1 .. $count);
	my $cancelled = () = $done->{text} =~ /^ERROR:  57014:/mg;
	wait_until('RESET is not cancelled itself', sub { $session->ask('RESET statement_timeout')->{state} eq '00000' });
	return $cancelled;
}

sub memory_contexts
{
	return $session->value('SELECT sum(total_bytes) FROM pg_backend_memory_contexts');
}

# a hundred each first: caches and pools reach their size
cancel_many(decrypt_in($_), 100, 5) for @phases;
cancel_many("SELECT envcrypt.check_server('kms_good')", 100, 20);
wait_until('resolver threads have ended', sub { threads($session->pid) == 1 });
lives_on($session, 'before the thousand');
my ($contexts, $descriptors, $resident) =
  (memory_contexts(), open_descriptors($session->pid), resident_kb($session->pid));

my $cancelled = 0;
for my $phase (@phases)
{
	my $here = cancel_many(decrypt_in($phase), 250, 5);
	cmp_ok($here, '>=', 250, "250 calls cancelled while $phase");    # and perhaps a SET
	$cancelled += $here;
}
# against a KMS that answers fast: cancelled wherever it happens to be, also while it is read
my $anywhere = cancel_many("SELECT envcrypt.check_server('kms_good')", 500, 4);
cmp_ok($anywhere, '>=', 50, "$anywhere of 500 calls cancelled somewhere between the start and the last answer");
note(threads($session->pid) - 1 . ' resolver threads are left at the end of the loop');
wait_until('resolver threads have ended', sub { threads($session->pid) == 1 });
pass('the resolver threads have ended');
lives_on($session, 'after ' . ($cancelled + $anywhere) . ' cancelled calls');

is(open_descriptors($session->pid), $descriptors, "descriptors: $descriptors as before");
my $contexts_after = memory_contexts();
cmp_ok($contexts_after - $contexts, '<', 32768, "memory contexts: $contexts_after bytes, $contexts before");
my $resident_after = resident_kb($session->pid);
cmp_ok($resident_after - $resident, '<', 8192, "resident memory: $resident_after kB, $resident before");

# --- the postmaster dies
for my $phase (@phases)
{
	my $victim = Envcrypt::Session->new($node);
	my $watcher = Envcrypt::Session->new($node);
	$victim->begin(decrypt_in($phase));
	wait_for_kms($watcher, $victim);
	my @children = children_of($node->{_pid});
	ok(scalar(grep { $_ == $victim->pid } @children), "$phase: the backend is the postmaster's child");
	my $start = time;
	$node->kill9;
	wait_until('the orphaned backend has ended', sub { !is_alive($victim->pid) });
	took('postmaster death', $phase, time - $start);
	$_->close for $victim, $watcher;
	local $ENV{LD_PRELOAD} = $ENV{ENVCRYPT_SLOW_RESOLVER};
	local $ENV{ENVCRYPT_RESOLVER_DELAY} = 6;
	start_again($node, @children);
}
my $after = Envcrypt::Session->new($node);
works($after, "SELECT envcrypt.decrypt('$good')", 'still there', 'after the crashes values decrypt');

for my $what ('statement_timeout', 'pg_cancel_backend', 'pg_terminate_backend', 'postmaster death')
{
	diag(sprintf '%-20s %s', $what, join '  ', map { sprintf '%s %.1f ms', $_, $took{$what}{$_} } @phases);
}
$_->close for $after, $session, $admin;
$node->stop;
done_testing();
