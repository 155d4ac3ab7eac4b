# make bench ONLY=load: what load_keys() takes for TENANTS (1000) tenants of a KMS that needs 20 ms for each answer, by
# envcrypt.kms_concurrency; and of an OpenBao, where it can be had. Two keys each, for data and for searching, since the role
# may search.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t/lib";
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

use Envcrypt::Bao;
use Envcrypt::Gcp;
use Envcrypt::Test;

my $tenants = $ENV{TENANTS} // 1000;
my $node = new_cluster('load', conf => "envcrypt.kms_timeout = '1min'\nenvcrypt.cache_size = 100000\n");
my $dba = Envcrypt::Session->new($node);
my $gcp = Envcrypt::Gcp->start;
$dba->value("CREATE SERVER gcp FOREIGN DATA WRAPPER envcrypt_gcp OPTIONS (endpoint '" . $gcp->endpoint . "', ca_file '" . $gcp->ca_file . "', master_key '" . $gcp->key . "');
	CREATE USER MAPPING FOR CURRENT_USER SERVER gcp OPTIONS (auth 'service_account', credentials_file '" . $gcp->service_account_file . "')");
$dba->value("SELECT count(envcrypt.create_tenant('g' || n, 'gcp')) FROM generate_series(1, $tenants) n");

sub load
{
	my ($prefix) = @_;
	$dba->value('SELECT envcrypt.forget_keys()');
	my $start = time;
	my $opened = $dba->value("SELECT envcrypt.load_keys(VARIADIC array_agg('$prefix' || n)) FROM generate_series(1, $tenants) n");
	is($opened, 2 * $tenants, 'all were opened');
	return sprintf '%.2f s', time - $start;
}
$gcp->control('delay', 20);
for my $concurrency (1, 8, 32, 128)
{
	$dba->value("SET envcrypt.kms_concurrency = $concurrency");
	diag(sprintf 'Google, 20 ms an answer, concurrency %3d: %s', $concurrency, load('g'));
}
if (Envcrypt::Bao->is_there)
{
	my $bao = Envcrypt::Bao->start;
	$dba->value("CREATE SERVER bao FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '" . $bao->ca_file . "');
		CREATE USER MAPPING FOR CURRENT_USER SERVER bao OPTIONS (auth 'token', token 'file:" . $bao->token_file('dba', 'envcrypt') . "');
		SELECT count(envcrypt.create_tenant('b' || n, 'bao')) FROM generate_series(1, $tenants) n");
	$dba->value('SET envcrypt.kms_concurrency = 32');
	diag('OpenBao, 128 keys a call, concurrency 32: ' . load('b'));
}
done_testing();
