# rewrap_keys() and its kin at a KMS that loses answers, hands back other keys, denies in the middle, and beside rotations and
# other sessions: what was done is kept, what was not is as it was, another CALL goes on, and every value decrypts.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
my $node = new_cluster('moves');
my $dba = Envcrypt::Session->new($node);
my $tenants = 100;
$dba->value($kms->create_server('a') . $kms->create_server('b'));
$dba->value("SELECT envcrypt.create_tenant('t' || i, 'a') FROM generate_series(1, $tenants) i");
$dba->value("CREATE TABLE t AS SELECT 't' || i AS tenant, envcrypt.encrypt('plain ' || i, 't' || i) AS v FROM generate_series(1, $tenants) i; CREATE TABLE before AS SELECT tenant, v::text AS bytes FROM t");
my $keys = 2 * $tenants;
# from the KMS alone: every value decrypts, and none has changed
my $all = "SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.load_keys(VARIADIC array_agg(tenant)) FROM t; SELECT count(*) FROM t JOIN before USING (tenant) WHERE envcrypt.decrypt(v) = 'plain ' || substr(tenant, 2) AND v::text = bytes";
my $well = "t\n$keys\n$tenants";
my $versions = "SELECT string_agg(master_key_version || ':' || n, ' ' ORDER BY master_key_version) FROM (SELECT master_key_version, count(*) AS n FROM envcrypt.wrappings GROUP BY 1) v";
my $progress = 'SELECT act, state, total, done, left_over FROM envcrypt.progress ORDER BY updated_at DESC LIMIT 1';
sub mount { my ($server, $mount) = @_; $dba->value("ALTER SERVER $server OPTIONS (SET mount '$mount')"); return; }
# batches of 64
$dba->value('SET envcrypt.kms_concurrency = 2');

# --- the first batch is done, then something goes wrong; a batch is three requests of items
my %wrong = (
	'status/403' => { state => '42501', message => qr/^could not rewrap a key with KMS "a"/ },
	'last' => undef,    # a connection that ends after the answer is nothing
	'half' => { state => '08006', message => qr/^could not rewrap a key with KMS "a"/ },
	'close' => { state => '08006', message => qr/^could not rewrap a key with KMS "a"/ },
	'sealed' => { state => '08006', message => qr/^could not rewrap a key with KMS "a"/ },
	'badjson' => { state => '08006', message => qr/^could not rewrap a key with KMS "a"|nonsense|KMS "a"/ },
	'swapped' => { state => 'XX001', message => 'KMS "a" did not return the key it was asked for' });
my ($round, $version) = (0, 1);
for my $what (sort keys %wrong)
{
	++$round;
	$kms->rotate;
	my $old = $version++;
	mount('a', "after.rewrap/64/$what" . ($what =~ m{/} ? '' : "/$round"));
	if (!$wrong{$what})
	{
		works($dba, "CALL envcrypt.rewrap_keys('a'); $progress", "rewrap_keys|finished|$keys|$keys|0", "$what: nothing");
		mount('a', 'transit');
		next;
	}
	fails_with($dba, "CALL envcrypt.rewrap_keys('a')", $wrong{$what}, "$what: an error");
	mount('a', 'transit');
	works($dba, $progress, "rewrap_keys|interrupted|$keys|64|" . ($keys - 64), "$what: the first batch is kept");
	works($dba, $versions, join(' ', sort("$old:" . ($keys - 64), "$version:64")), "$what: and the others are as they were");
	works($dba, $all, $well, "$what: every value decrypts");
	works($dba, "CALL envcrypt.rewrap_keys('a'); $progress; $versions", "rewrap_keys|finished|$keys|" . ($keys - 64) . "|0\n$version:$keys", "$what: another CALL does the rest");
}
works($dba, $all, $well, 'every value decrypts');

# --- the same of a move: what the destination wraps is unwrapped there before the source's goes
for my $case ([ 'b', 'after.encrypt/64/swapped', { state => 'XX001', message => 'KMS "b" did not return the key it was asked for' } ],
	[ 'b', 'after.encrypt/64/status/403', { state => '42501', message => qr/^could not wrap a key with KMS "b"/ } ],
	[ 'b', 'after.decrypt/65/sealed', { state => '08006', message => qr/^could not unwrap a key with KMS "b"/ } ],
	[ 'a', 'after.decrypt/64/wrongkey', { state => 'XX001', message => 'KMS "a" did not return the key it was asked for' } ])
{
	my ($server, $mount, $error) = @$case;
	mount($server, $mount);
	fails_with($dba, "SELECT envcrypt.forget_keys(); CALL envcrypt.rewrap_keys('a', to_server => 'b')", $error, "$mount: an error");
	mount($server, 'transit');
	works($dba, "SELECT server, count(*) FROM envcrypt.wrappings GROUP BY 1 ORDER BY 1", 'a|' . ($keys - 64) . "\nb|64", "$mount: the first batch is at its new place, the others at the old");
	works($dba, $all, $well, "$mount: every value decrypts");
	works($dba, "CALL envcrypt.rewrap_keys('a', to_server => 'b'); SELECT server, count(*) FROM envcrypt.wrappings GROUP BY 1; $all", "b|$keys\n$well", "$mount: another CALL does the rest");
	works($dba, "CALL envcrypt.rewrap_keys('b', to_server => 'a'); SELECT server, count(*) FROM envcrypt.wrappings GROUP BY 1", "a|$keys", 'and back');
}
is($dba->value("SELECT count(DISTINCT server) FROM envcrypt.tenants"), 1, 'the tenants are where they were');

# --- only one of a kind at once; others see how far it is, and one that is cancelled is gone on with
$kms->rotate; ++$version;
mount('a', 'after.rewrap/64/stall');
my $busy = Envcrypt::Session->new($node);
$busy->value('SET envcrypt.kms_concurrency = 2');
$busy->begin("CALL envcrypt.rewrap_keys('a')");
wait_until('the second batch is under way', sub { $dba->value($progress) eq "rewrap_keys|running|$keys|64|" . ($keys - 64) });
wait_for_kms($dba, $busy);
pass('others see how far it is');
fails_with($dba, "CALL envcrypt.rewrap_keys('a')", { state => '55006', message => 'another session is at this rewrap_keys already', hint => qr/envcrypt\.progress/ }, 'one at a time');
# what others do meanwhile is not held up, and not undone
works($dba, "SELECT envcrypt.disable_tenant('t1'), envcrypt.enable_tenant('t1'); SELECT envcrypt.destroy_tenant('t100', 't100') IS NOT NULL", "|\nt", 'tenants are disabled and destroyed meanwhile');
$dba->value('SELECT pg_cancel_backend(' . $busy->pid . ')');
is($busy->result->{state}, '57014', 'cancelled');
works($dba, $progress, "rewrap_keys|interrupted|$keys|64|" . ($keys - 64), 'interrupted');
mount('a', 'transit');
$keys -= 2;
works($dba, "CALL envcrypt.rewrap_keys('a'); $progress; $versions", "rewrap_keys|finished|$keys|" . ($keys - 64) . "|0\n$version:$keys", 'gone on with');
$dba->value("DELETE FROM t WHERE tenant = 't100'");
--$tenants;
$well = "t\n$keys\n$tenants";
works($dba, $all, $well, 'every value decrypts');

# --- what others do while a KMS is at work on the same keys is not held up, and not undone
$kms->rotate; ++$version;
mount('a', 'slow/0.02');
$busy->begin("CALL envcrypt.rewrap_keys('a')");
wait_until('the rewrapping has begun', sub { $kms->count('^slow/0.02:rewrap') });
mount('a', 'transit');
works($dba, "SELECT envcrypt.destroy_tenant('t99', 't99') IS NOT NULL, envcrypt.rotate_key('t1')", 't|2', 'a destruction and a rotation of what is being rewrapped');
ok(!$busy->{psql}->pumpable || $busy->{out} !~ /@@@/, 'while it goes on');
is($busy->result->{state}, '00000', 'which is done, too');
works($dba, "SELECT count(*) FROM envcrypt.wrappings WHERE tenant = 't99'", '0', 'what was destroyed stays so');
$dba->value("DELETE FROM t WHERE tenant = 't99'");
--$tenants;
--$keys;
$well = "t\n$keys\n$tenants";
works($dba, $all, $well, 'every value decrypts');

# --- what is under way when a move begins is not left behind: a rotation, a new tenant, a tenant that leaves its group
$dba->value("SELECT envcrypt.create_group_key('group', 'b'), envcrypt.move_tenant('t2', 'group')");
my @under_way = map { Envcrypt::Session->new($node) } 1 .. 3;
$dba->value("SELECT envcrypt.load_keys('t1', 't2')");
$_->value("SELECT envcrypt.load_keys('t1', 't2')") for @under_way;
mount('a', 'slow/0.5');
$under_way[0]->begin("SELECT envcrypt.rotate_key('t1')");
$under_way[1]->begin("SELECT envcrypt.create_tenant('late', 'a')");
$under_way[2]->begin("SELECT envcrypt.move_tenant('t2', '')");
wait_for_kms($dba, $_) for @under_way;
mount('a', 'transit');
works($dba, "CALL envcrypt.rewrap_keys('a', to_server => 'b'); SELECT left_over FROM envcrypt.progress WHERE to_server = 'b'", '0', 'a move waits for them');
is($_->result->{state}, '00000', 'which are done') for @under_way;
works($dba, "SELECT count(*) FROM envcrypt.wrappings WHERE server = 'a'", '0', 'and nothing is left behind');
$dba->value("CALL envcrypt.rewrap_keys('b', to_server => 'a')");
$_->close for @under_way;
++$keys;

# --- what changes while a reader waits for the KMS counts: a disable, a destruction, a move
my $reader = Envcrypt::Session->new($node);
my $slow = 0;
for my $case ([ "SELECT envcrypt.disable_tenant('t50')", '55000' ], [ "SELECT envcrypt.enable_tenant('t50')", '00000' ], [ "CALL envcrypt.rewrap_keys('a', to_server => 'b')", '00000' ],
	[ "SELECT envcrypt.destroy_tenant('t50', 't50')", '55000' ])
{
	my ($act, $state) = @$case;
	my $server = $dba->value("SELECT server FROM envcrypt.tenants WHERE name = 't50'");
	mount($server, 'slow/1.' . ++$slow);
	$reader->value('SELECT envcrypt.forget_keys()');
	$reader->begin("SELECT envcrypt.decrypt(v) FROM t WHERE tenant = 't50'");
	if ($act =~ /enable_/) { $reader->result; $reader->begin("SELECT 1"); }
	else { wait_for_kms($dba, $reader); }
	mount($server, 'transit');
	$dba->value($act);
	is($reader->result->{state}, $state, "while a reader waits: $act");
}
$dba->value("DELETE FROM t WHERE tenant = 't50'; CALL envcrypt.rewrap_keys('b', to_server => 'a')");
$reader->close;

# --- rotations, rewraps and moves beside writers
my $dir = PostgreSQL::Test::Utils::tempdir();
$dba->value('CREATE TABLE written (tenant text, v envcrypt.encrypted(text))');
append_to_file("$dir/write.sql", "\\set n random(1, 20)\nINSERT INTO written SELECT 't' || :n, envcrypt.encrypt('busy ' || :n, 't' || :n);\n");
append_to_file("$dir/rotate.sql", "\\set n random(1, 20)\nSELECT envcrypt.rotate_key('t' || :n);\n");
append_to_file("$dir/add.sql", "CALL envcrypt.add_wrapping('b');\n");
append_to_file("$dir/rewrap.sql", "CALL envcrypt.rewrap_keys('a');\n");
my ($out, $err) = ('', '');
my $writers = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-j', 2, '-t', 200, '-f', "$dir/write.sql\@30", '-f', "$dir/rotate.sql\@1", $node->connstr('postgres') ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(300));
for my $act ("add_wrapping('b')", "rewrap_keys('a')", "drop_wrapping('a')", "rewrap_keys('b')", "rewrap_keys('b', 'a')")
{
	$kms->rotate;
	works($busy, "CALL envcrypt.$act", '', "beside writers and rotations: $act");
}
$writers->finish;
like($out, qr{actually processed: 800/800}, 'no write and no rotation failed') or diag($out, $err);
works($dba, "SELECT count(*) FILTER (WHERE envcrypt.decrypt(v) <> 'busy ' || substr(tenant, 2)), count(*) > 500 FROM written", '0|t', 'every value decrypts');
works($dba, "SELECT count(*) FROM envcrypt.keys WHERE state <> 'destroyed' AND servers = '{}'", '0', 'every key is wrapped');

$_->close for $dba, $busy;
$node->stop;
done_testing();
