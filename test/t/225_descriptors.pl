# Many calls to a KMS at once where the process may open few descriptors: fewer run at a time, and none fails.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $tenants = 200;
my $kms = Envcrypt::Kms->start;
my $node = new_cluster('descriptors', conf => "envcrypt.kms_timeout = '60s'\n");

# a master key each, so that each is a call of its own
my $dba = Envcrypt::Session->new($node);
$dba->value($kms->create_server('kms'));
$dba->value("SET envcrypt.kms_concurrency = 32;
	SELECT envcrypt.create_tenant('t' || i, 'kms', master_key => 'k' || i) FROM generate_series(1, $tenants) i");

sub limit_descriptors { system_or_bail('prlimit', '--pid', $$, "--nofile=$_[0]:"); return; }
my ($before) = `prlimit --pid $$ --nofile --output SOFT --noheadings` =~ /(\d+)/;

for my $limit (100, 256, 1024)
{
	$node->stop;
	limit_descriptors($limit);
	$node->start;
	limit_descriptors($before);
	for my $concurrency (1, 16, 32, 160, 1000)
	{
		my $session = Envcrypt::Session->new($node);
		$session->value("SET envcrypt.kms_concurrency = $concurrency; SET envcrypt.cache_size = 10000");
		works($session, "SELECT envcrypt.load_keys(VARIADIC array_agg(name)) FROM envcrypt.tenant", 2 * $tenants,
			"load_keys with $limit descriptors and $concurrency at once");
		works($session, 'SELECT count(*) FROM envcrypt.cache', 2 * $tenants, 'all are open');
		is($session->ask("CALL envcrypt.rewrap_keys('kms')")->{state}, '00000', 'and rewrap_keys') if $concurrency != 1;
	}
}
done_testing();
