# make bench ONLY=rewrap: what rewrap_keys() takes for TENANTS (100000) tenants with a data key each, at a KMS that answers
# each call after 20 ms: a move to it, then under a new version of its master key; the ratio is to the floor, keys x 20 ms /
# envcrypt.kms_concurrency. And at an OpenBao, which rewraps in batches. Then what a disable takes to reach BUSY (50) sessions.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t/lib";
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP 'decode_json';
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

use Envcrypt::Bao;
use Envcrypt::Gcp;
use Envcrypt::Test;

my $tenants = $ENV{TENANTS} // 100000;
my $concurrency = 32;
my $latency = 0.02;
my $node = new_cluster('rewrap', conf => "log_statement = none\ntrack_commit_timestamp = on\nshared_buffers = 256MB\nmax_wal_size = 4GB\nenvcrypt.kms_timeout = '1min'\nenvcrypt.kms_concurrency = $concurrency\n");
my $dba = Envcrypt::Session->new($node);
my $gcp = Envcrypt::Gcp->start;    # its files
my ($out, $in);
my $pid = open2($out, $in, $python, '-B', "$FindBin::RealBin/slow_kms.py", $ENV{ENVCRYPT_CERTS}, 1000 * $latency);
my $slow = decode_json(scalar readline $out);
sub ask_slow { return HTTP::Tiny->new(timeout => 60, proxy => undef)->get("http://127.0.0.1:$slow->{control}/$_[0]")->{content}; }

my $key_file = PostgreSQL::Test::Utils::tempdir() . '/key';
write_secret($key_file, '5a' x 32);
$dba->value("CREATE SERVER local FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file'); CREATE USER MAPPING FOR CURRENT_USER SERVER local;
	CREATE SERVER slow FOREIGN DATA WRAPPER envcrypt_gcp OPTIONS (endpoint 'https://127.0.0.1:$slow->{port}', ca_file '" . $gcp->ca_file . "', master_key '" . $gcp->key . "');
	CREATE USER MAPPING FOR CURRENT_USER SERVER slow OPTIONS (auth 'service_account', credentials_file '" . $gcp->service_account_file . "')");

sub measured
{
	my ($what, $sql) = @_;
	my ($calls, $start) = (ask_slow('count'), time);
	$dba->begin($sql);
	my $result;
	$result = eval { $dba->result } until $result;    # longer than a session's patience
	my $seconds = time - $start;
	die $result->{text} if $result->{state} ne '00000';
	$calls = ask_slow('count') - $calls;
	my $floor = $tenants * $latency / $concurrency;
	diag(sprintf '%s: %.1f s, %d calls; %.2f of the floor of one call a key (%.1f s), %.2f of that of these calls', $what, $seconds, $calls,
		$seconds / $floor, $floor, $calls ? $seconds / ($calls * $latency / $concurrency) : 0);
	return;
}
$dba->value("SELECT envcrypt.create_tenant('hub', 'local')");
for (my $from = 1; $from <= $tenants; $from += 5000)
{
	my $to = $from + 4999 < $tenants ? $from + 4999 : $tenants;
	$dba->value("SELECT count(envcrypt.create_tenant('t' || n, 'local', search_tenant => 'hub')) FROM generate_series($from, $to) n");
}
$dba->value('CHECKPOINT; VACUUM ANALYZE envcrypt.data_key, envcrypt.wrapped_key, envcrypt.tenant');
my $memory = sub { return resident_kb($dba->pid) / 1024 };
my $before = $memory->();
measured("moved, $tenants tenants, concurrency $concurrency, 20 ms a call", "CALL envcrypt.rewrap_keys('local', to_server => 'slow')");
ask_slow('rotate');
measured('rewrapped under a new version (unwrapped, wrapped, unwrapped)', "CALL envcrypt.rewrap_keys('slow')");
measured('again, with nothing to do', "CALL envcrypt.rewrap_keys('slow')");
diag(sprintf 'memory of the backend: %.0f MB before, %.0f MB after', $before, $memory->());
is($dba->value("SELECT count(*) FROM envcrypt.wrappings WHERE outdated OR server <> 'slow'"), 0, 'all are under the newest version');
if (Envcrypt::Bao->is_there)
{
	my $bao = Envcrypt::Bao->start;
	$bao->policy('move', map { "transit/$_/app" } qw(datakey/plaintext decrypt encrypt rewrap));
	$dba->value("CREATE SERVER bao FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '" . $bao->ca_file . "');
		CREATE USER MAPPING FOR CURRENT_USER SERVER bao OPTIONS (auth 'token', token 'file:" . $bao->token_file('dba', 'move') . "')");
	measured('moved on to an OpenBao, 128 keys a call', "CALL envcrypt.rewrap_keys('slow', 'bao')");
	$bao->run('write', '-f', 'transit/keys/app/rotate');
	measured('rewrapped there, inside the KMS, 128 keys a call', "CALL envcrypt.rewrap_keys('bao')");
	is($dba->value("SELECT count(*) FROM envcrypt.wrappings WHERE outdated OR server <> 'bao'"), 0, 'all are under the newest version');
}

# --- from the disable's COMMIT to the last value that was decrypted, in busy sessions
my $busy = $ENV{BUSY} // 50;
$dba->value("SELECT envcrypt.create_tenant('busy', 'local')");
$dba->value("CREATE TABLE t AS SELECT envcrypt.encrypt('x', 'busy') AS v FROM generate_series(1, 1000)");
my @sessions = map { Envcrypt::Session->new($node) } 1 .. $busy;
$_->value("SELECT count(envcrypt.decrypt(v)) FROM t") for @sessions;
# one long statement each, which says when it last decrypted
$dba->value(q{CREATE FUNCTION decrypt_on() RETURNS timestamptz LANGUAGE plpgsql AS $$
	DECLARE last timestamptz; one envcrypt.encrypted := (SELECT v FROM t LIMIT 1);
	BEGIN
		LOOP
			PERFORM envcrypt.decrypt(one);
			last := clock_timestamp();
		END LOOP;
	EXCEPTION WHEN object_not_in_prerequisite_state THEN
		RETURN last;
	END $$});
$_->begin('SELECT decrypt_on()') for @sessions;
wait_until('all are busy', sub { $dba->value("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT decrypt_on();' AND state = 'active'") == $busy });
$dba->value("SELECT envcrypt.disable_tenant('busy')");
my $committed = $dba->value("SELECT pg_xact_commit_timestamp(xmin) FROM envcrypt.tenant WHERE name = 'busy'");
my @last = map { $_->result->{rows} } @sessions;
diag(sprintf 'disabled: the last of %d busy sessions decrypted %s ms after the COMMIT (median %s)', $busy,
	split /\|/, $dba->value("SELECT round(1000 * max(extract(epoch FROM l - '$committed'))), round(1000 * percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM l - '$committed'))) FROM unnest('{"
	  . join(',', map { "\"$_\"" } @last) . "}'::timestamptz[]) l"));
close $in;
waitpid $pid, 0;
done_testing();
