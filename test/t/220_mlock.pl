# envcrypt.require_mlock where memory cannot be locked: no key is used from memory that could reach swap, at the first
# statement and at those that follow.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

my $node = new_cluster('mlock');
my $dba = Envcrypt::Session->new($node);
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$ENV{ENVCRYPT_KEY_FILE}');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
	SELECT envcrypt.create_tenant('acme', 'kms');
	SET envcrypt.tenant = 'acme';
	CREATE TABLE kept AS SELECT envcrypt.encrypt('kept', label => 'k', search => 'searchable') v");

# sessions that begin from now on may lock nothing
my $postmaster = $node->data_dir . '/postmaster.pid';
my ($pid) = slurp_file($postmaster) =~ /^(\d+)/;
system_or_bail('prlimit', '--pid', $pid, '--memlock=0:0');

my %unlocked = (state => '53000', message => 'could not lock keys in memory', detail => qr/wiped/, hint => qr/LimitMEMLOCK/);
my $decrypt = "SELECT envcrypt.decrypt(v, label => 'k') FROM kept";
my %use = (
	decrypt => $decrypt,
	encrypt => "SELECT envcrypt.encrypt('x', 'acme') IS NOT NULL",
	search => "SELECT cardinality(envcrypt.search('x', 'k', 'searchable', '{acme}'))",
	load => "SELECT envcrypt.load_keys('acme')",
	envelope => "SELECT length(ciphertext) FROM envcrypt.encrypt_envelope('kms', 'x'::text)",
	create => "SELECT envcrypt.create_tenant('another', 'kms')",
	rotate => "SELECT envcrypt.rotate_key('acme')");

for my $name (sort keys %use)
{
	my $session = Envcrypt::Session->new($node);
	$session->value('SET envcrypt.require_mlock = on');
	fails_with($session, $use{$name}, \%unlocked, "$name fails") for 1 .. 3;
	works($session, 'SELECT count(*) FROM envcrypt.cache', '0', "after $name nothing is left open");
}

# what was opened before the setting was turned on is not used either
for my $name (qw(decrypt encrypt search))
{
	my $session = Envcrypt::Session->new($node);
	my $got = $session->ask($use{$name});
	is($got->{state}, '00000', "$name works without the setting");
	is($session->ask($use{$name})->{state}, '00000', 'and again');
	my $pid = $session->pid;
	my @warnings = log_of($node) =~ /\[$pid\].*WARNING:  could not lock keys in memory/g;
	is(scalar @warnings, 1, 'with one warning a session');
	works($session, 'SELECT count(*) > 0 FROM envcrypt.cache', 't', 'the keys are open');
	$session->value("PREPARE again AS $use{$name}; EXECUTE again");
	$session->value('SET envcrypt.require_mlock = on');
	fails_with($session, 'EXECUTE again', \%unlocked, "$name fails once the setting is on");
	works($session, 'SELECT count(*) FROM envcrypt.cache', '0', 'what was open is wiped');
	$session->value('SET envcrypt.require_mlock = off');
	is($session->ask($use{$name})->{state}, '00000', "$name works again without it");
}

# turned on amid a scan
my $session = Envcrypt::Session->new($node);
$session->value('SET envcrypt.tenant = \'acme\'; INSERT INTO kept SELECT envcrypt.encrypt(n::text, label => \'k\') FROM generate_series(1, 3) n');
fails_with($session, "SELECT envcrypt.decrypt(v, label => 'k'), set_config('envcrypt.require_mlock', 'on', true) FROM kept", \%unlocked, 'a scan ends there');

# where it can be locked nothing changes
$dba->value('SET envcrypt.require_mlock = on');
works($dba, "$decrypt LIMIT 1", 'kept', 'a session that may lock memory goes on');
done_testing();
