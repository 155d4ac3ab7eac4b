# A KMS that is away, with another that wraps the same keys, and with a grace: what is served, from where, for how long, how
# soon; and that a denial by any of them ends it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
my $other = Envcrypt::Kms->start;
my $node = new_cluster('outage');
my $dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('a') . $other->create_server('b'));
$dba->value("SELECT envcrypt.create_tenant('acme', 'a'), envcrypt.create_tenant('alone', 'a'), envcrypt.create_tenant('many' || i, 'a') FROM generate_series(1, 40) i WHERE i < 2;
	SELECT envcrypt.create_tenant('many' || i, 'a') FROM generate_series(2, 40) i");
$dba->value("CALL envcrypt.add_wrapping('b'); CALL envcrypt.drop_wrapping('b', 'alone')");
$dba->value("CREATE TABLE t AS SELECT envcrypt.encrypt('plain', 'acme') AS v, envcrypt.encrypt('lonely', 'alone') AS w");
my $read = 'SELECT envcrypt.decrypt(v) FROM t';
my $anew = "SELECT envcrypt.forget_keys() >= 0; $read";
my $from = "SELECT string_agg(DISTINCT server, ',') FROM envcrypt.cache WHERE tenant = 'acme'";

# The mount of server `a`; another version of a server knows of no outage.
sub mount { $dba->value("ALTER SERVER a OPTIONS (SET mount '$_[0]')"); return; }
sub seconds { my ($sql) = @_; my $start = time; my $rows = $dba->value($sql); return (time - $start, $rows); }

# --- failover
works($dba, "$anew; $from", "t\nplain\na", 'the first place is asked first');
for my $case ([ 'sealed', 'unreachable' ], [ 'status/429', 'throttled' ], [ 'status/404', 'misconfigured' ], [ 'wrongkey', 'corrupt' ], [ 'close', 'cut off' ])
{
	mount("$case->[0]");
	works($dba, "SET envcrypt.kms_timeout = '3s'; $anew; $from", "t\nplain\nb", "$case->[1]: the other place");
}
mount('status/403');
fails_with($dba, $anew, { state => '42501', message => qr/^could not unwrap a key with KMS "a"/ }, 'denied: no other place is asked');
for my $foreign ('badjson', 'notjson', 'empty', 'redirect')
{
	mount($foreign);
	works($dba, "SET envcrypt.kms_timeout = '3s'; $anew; $from", "t\nplain\nb", "$foreign, not of the KMS: the other place");
}
mount('badbase64');
fails_with($dba, $anew, { state => '08P01' }, 'nonsense of the KMS: no other place is asked');
mount('transit');
$dba->value("ALTER SERVER a OPTIONS (SET endpoint '" . $kms->url('refused') . "')");
works($dba, "$anew; $from", "t\nplain\nb", 'connection refused: the other place');
$dba->value("ALTER SERVER b OPTIONS (SET mount 'status/403')");
fails_with($dba, $anew, { state => '42501', message => qr/KMS "b"/ }, 'the one is away, the other denies');
$dba->value("ALTER SERVER b OPTIONS (SET mount 'sealed')");
fails_with($dba, $anew, { state => '08006', message => qr/^could not unwrap a key with KMS "b"/, detail => qr/And .*KMS "a": could not connect/ }, 'both are away: the error tells of both');
works($dba, "SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.try_decrypt(v) IS NULL FROM t", "t\nt", 'try_decrypt: NULL');
my $sealed = $other->count('sealed');
works($dba, 'SELECT count(*), count(envcrypt.try_decrypt(v)) FROM t, generate_series(1, 1000)', '1000|0', 'in a thousand rows');
cmp_ok($other->count('sealed') - $sealed, '<', 10, 'asking a few times');
$dba->value("ALTER SERVER b OPTIONS (SET mount 'transit')");

# --- many keys at once
works($dba, "SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.load_keys(VARIADIC array_agg('many' || i)) FROM generate_series(1, 40) i; SELECT DISTINCT server FROM envcrypt.cache", "t\n80\nb", 'all of many');
fails_with($dba, "SELECT envcrypt.load_keys('acme', 'alone')", { state => '08006', message => qr/KMS "a"/ }, 'but for one that is nowhere else');
$dba->value("ALTER SERVER a OPTIONS (SET endpoint '" . $kms->url('good') . "')");

# --- more keys than are kept: each is asked for once
my $asked_before = $kms->count('decrypt');
works($dba, "SET envcrypt.cache_size = 2; SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.load_keys(VARIADIC array_agg('many' || i)) FROM generate_series(1, 40) i; SELECT count(*) FROM envcrypt.cache; RESET envcrypt.cache_size", "t\n80\n2", 'more than are kept');
cmp_ok($kms->count('decrypt') - $asked_before, '<', 5, 'in a batch');

# --- the worst is told, and what is corrupt is not passed over as not available
mount('sealed');
$dba->value("ALTER SERVER b OPTIONS (SET mount 'wrongkey')");
fails_with($dba, $anew, { state => 'XX001', message => 'KMS "b" did not return the key it was asked for', detail => qr/And .*KMS "a"/ }, 'the one is away, the other corrupt');
fails_with($dba, 'SELECT envcrypt.try_decrypt(v) FROM t', { state => 'XX001' }, 'try_decrypt: an error');
# --- a denial of one key takes what was open of all that were asked for with it
$dba->value("ALTER SERVER b OPTIONS (SET mount 'transit'); ALTER SERVER a OPTIONS (SET mount 'switch/sealed', ADD cache_ttl '1s', ADD outage_grace '1h')");
works($dba, "SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.load_keys('many1', 'many2')", "t\n4", 'two are open');
$kms->switch(1);
$dba->value("ALTER SERVER b OPTIONS (SET mount 'status/403')");
wait_until('both have expired', sub { $dba->value("SELECT max(expires_in) = '0' FROM envcrypt.cache") eq 't' });
fails_with($dba, "SELECT envcrypt.load_keys('many1', 'many2')", { state => '42501' }, 'the one is away, the other denies');
works($dba, 'SELECT count(*) FROM envcrypt.cache', '0', 'nothing is kept of either');
$kms->switch(0);
$dba->value("ALTER SERVER b OPTIONS (SET mount 'transit'); ALTER SERVER a OPTIONS (DROP cache_ttl, DROP outage_grace, SET mount 'transit')");

# --- slow the first time, fast then, and back by itself
$dba->value("SET envcrypt.kms_timeout = '4s'");
mount('switch/stall');
works($dba, "$anew; $from", "t\nplain\na", 'all is well');
$kms->switch(1);
my ($first) = seconds($anew);
my ($second) = seconds($anew);
cmp_ok($first, '<', 4, 'a KMS that says nothing does not use up the time of the other');
cmp_ok($second, '<', $first / 2, 'and is not asked again at once');
note(sprintf 'failover: the first time %.2f s of kms_timeout 4 s, then %.3f s', $first, $second);
works($dba, $from, 'b', 'from the other place');
$kms->switch(0);
wait_until('the first place is asked again', sub { $dba->value("$anew; $from") eq "t\nplain\na" });
pass('it comes back by itself');

# --- a denial takes what another place has opened
$dba->value("ALTER SERVER a OPTIONS (SET mount 'switch/sealed')");
$kms->switch(1);
works($dba, "$anew; $from", "t\nplain\nb", 'opened elsewhere');
$dba->value("ALTER SERVER a OPTIONS (SET mount 'switch/status/403')");
fails_with($dba, "SELECT envcrypt.load_keys('alone', 'acme')", { state => '42501' }, 'denied meanwhile');
$kms->switch(0);
mount('transit');

# --- a key that is made needs all of its places
$dba->value("ALTER SERVER b OPTIONS (SET mount 'sealed')");
my $keys = $dba->value('SELECT count(*) FROM envcrypt.keys');
fails_with($dba, "SELECT envcrypt.rotate_key('acme')", { state => '08006', message => qr/could not wrap a key with KMS "b"/ }, 'a rotation that one place cannot take part in fails');
works($dba, "SELECT count(*) FROM envcrypt.keys; $anew", "$keys\nt\nplain", 'and changes nothing');
like(log_of($node), qr/LOG: .*envcrypt: rotate_key failed \{"of": "acme", "role": "[^"]+", "session_role": "[^"]+", "keys": \["[0-9a-f]{16}"\], "sqlstate": "08006", "message": "could not wrap a key with KMS/,
	'the log tells of the failure, with the fields of the journal');
$dba->value("ALTER SERVER b OPTIONS (SET mount 'transit'); CALL envcrypt.drop_wrapping('b')");

# --- grace: what was open serves on while its KMS is away
my $lonely = 'SELECT envcrypt.decrypt(w) FROM t';
my $bridged = "SELECT bool_or(bridged), bool_and(ends_in > expires_in) FROM envcrypt.cache WHERE tenant = 'alone'";
$dba->value("ALTER SERVER a OPTIONS (SET mount 'switch/sealed', ADD cache_ttl '1s', ADD outage_grace '1h'); SET client_min_messages = warning");
works($dba, "SELECT envcrypt.forget_keys() >= 0; $lonely; $bridged", "t\nlonely\nf|t", 'open');
$kms->switch(1);
my $expire = sub { my ($tenant) = @_; wait_until('the key has expired', sub { $dba->value("SELECT coalesce(max(expires_in) = '0', true) FROM envcrypt.cache WHERE tenant = '$tenant'") eq 't' }); };
$expire->('alone');
my $warned = $dba->ask($lonely)->{text};
like($warned, qr/WARNING: .*KMS "a" is away: keys that it opened before serve on\n.*DETAIL:  They do until cache_ttl and outage_grace have passed/s, 'a warning') or diag($warned);
like($warned, qr/^lonely$/m, 'and the plaintext');
works($dba, "$lonely; $bridged", "lonely\nt|t", 'the next statement is served without a warning, the cache says so');
my $asked = $kms->count('sealed');
works($dba, "$lonely; $lonely; $lonely", "lonely\nlonely\nlonely", 'more');
is($kms->count('sealed'), $asked, 'without asking the KMS each time');
fails_with($dba, "SELECT envcrypt.encrypt('x'::text, 'acme')", { state => '08006' }, 'what was not open cannot be');
$kms->switch(0);
wait_until('the KMS is asked again', sub { $dba->value("$lonely; $bridged") eq "lonely\nf|t" });
pass('it comes back by itself');

# a denial ends it, and what was open is gone
$dba->value("ALTER SERVER a OPTIONS (SET mount 'switch/status/403')");
works($dba, $lonely, 'lonely', 'open');
$kms->switch(1);
$expire->('alone');
fails_with($dba, $lonely, { state => '42501' }, 'denied: no grace');
works($dba, "SELECT count(*) FROM envcrypt.cache; SELECT envcrypt.try_decrypt(w) IS NULL FROM t", "0\nt", 'nothing is kept; try_decrypt: NULL');
$kms->switch(0);
mount('switch/wrongkey');
works($dba, $lonely, 'lonely', 'open');
$kms->switch(1);
$expire->('alone');
fails_with($dba, $lonely, { state => 'XX001' }, 'corrupt: no grace');
fails_with($dba, 'SELECT envcrypt.try_decrypt(w) FROM t', { state => 'XX001' }, 'try_decrypt: an error');
$kms->switch(0);

# it ends
$dba->value("ALTER SERVER a OPTIONS (SET mount 'switch/sealed', SET outage_grace '2s')");
works($dba, $lonely, 'lonely', 'open');
$kms->switch(1);
$expire->('alone');
works($dba, $lonely, 'lonely', 'served on');
wait_until('the grace has ended', sub { $dba->ask($lonely)->{state} eq '08006' });
works($dba, 'SELECT count(*) FROM envcrypt.cache', '0', 'and the key is gone');
$kms->switch(0);

# by the setting, and not without one
$dba->value("ALTER SERVER a OPTIONS (DROP outage_grace, DROP cache_ttl); SET envcrypt.cache_ttl = 1");
for my $grace (3600, 0)
{
	$dba->value("SET envcrypt.outage_grace = $grace");
	works($dba, "SELECT envcrypt.forget_keys() >= 0; $lonely", "t\nlonely", 'open');
	$kms->switch(1);
	$expire->('alone');
	if ($grace) { works($dba, $lonely, 'lonely', 'the setting alone grants it'); }
	else { fails_with($dba, $lonely, { state => '08006' }, 'by default there is none'); }
	$kms->switch(0);
}
$dba->value('RESET envcrypt.cache_ttl; RESET envcrypt.outage_grace');

# a group, whose key serves on with those that it opened
$dba->value("SELECT envcrypt.create_group_key('group', 'a'), envcrypt.move_tenant('alone', 'group'), envcrypt.move_tenant('acme', 'group');
	ALTER SERVER a OPTIONS (ADD cache_ttl '1s', ADD outage_grace '1h')");
works($dba, "SELECT envcrypt.forget_keys() >= 0; $lonely", "t\nlonely", 'a group is open');
$kms->switch(1);
$expire->('group');
works($dba, "$lonely; $read; SELECT bool_and(bridged) FROM envcrypt.cache", "lonely\nplain\nt", 'it serves on, for all of its tenants');
$kms->switch(0);

holds_none(log_of($node), { token => $kms->token, body => $kms->body_secret }, 'the log holds no secret');
$dba->close;
$node->stop;
done_testing();
