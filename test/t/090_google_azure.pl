# Google Cloud KMS and Azure Key Vault on servers that check what the services check, which the vendors' own clients
# prove right in this very run; and every way to log in there.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Azure;
use Envcrypt::Conformance;
use Envcrypt::Gcp;
use Envcrypt::Test;

my $node = new_cluster('clouds', extension => 0);

# --- the servers, by the vendors' clients
for my $vendor ('gcp', 'azure')
{
	my $vendor_python = $ENV{ 'ENVCRYPT_PYTHON_' . uc $vendor } // next;
	my ($out, $err) = ('', '');
	IPC::Run::run([ $vendor_python, '-B', "$test_dir/servers/prove_$vendor.py", $ENV{ENVCRYPT_CERTS} ], '<', \undef, '>', \$out, '2>', \$err);
	like($out, qr/^[1-9]\d* passed, 0 failed$/m, "the vendor's client finds the server of $vendor right") or diag($out, $err);
}

# --- Google
my $gcp = Envcrypt::Gcp->start;
my %google_status = (throttled => 429, unavailable => 503, denied => 403);
my %google = (endpoint => $gcp->endpoint, metadata_endpoint => $gcp->endpoint, ca_file => $gcp->ca_file, master_key => $gcp->key);
for my $way (
	[ Google => auth => 'service_account', credentials_file => $gcp->service_account_file ],
	[ Google_metadata => auth => 'metadata' ],
	[ Google_federated => auth => 'external_account', credentials_file => $gcp->external_account_file ])
{
	my ($name, %mapping) = @$way;
	my $session = Envcrypt::Conformance::run($node,
		name => $name, wrapper => 'envcrypt_gcp', server => \%google, mapping => \%mapping,
		own_key => $gcp->key('own'), counts => sub { $gcp->counts('.') }, version => qr/\d+/,
		fault => sub { my ($kind, $times) = @_; $gcp->control('fault', $times ? ($google_status{$kind}, $times) : 'none'); },
		expire => sub { $gcp->control('expire') }, secrets => sub { $gcp->secrets });
	next if $name ne 'Google';

	# checksums, both ways
	my $decrypt = 'SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.decrypt(v) FROM kept';
	for my $fault ('plaintext-crc', 'no-plaintext-crc', 'data-crc')
	{
		next if $fault eq 'data-crc';
		$gcp->control('fault', $fault, 1);
		works($session, $decrypt, "t\nplaintext", "a damaged answer is asked for again: $fault");
		$gcp->control('fault', $fault, 10);
		fails_with($session, $decrypt, { state => 'XX001', detail => qr/checksum/ }, "damaged for good: $fault");
		$gcp->control('fault', 'none');
	}
	for my $fault ('ciphertext-crc', 'no-ciphertext-crc', 'unverified', 'unverified-aad', 'version-name', 'not-json')
	{
		$gcp->control('fault', $fault, 10);
		fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => $fault eq 'not-json' ? '08006' : qr/^(XX001|08P01)$/ }, "create_tenant: $fault");
		$gcp->control('fault', 'none');
	}
	is($session->value("SELECT count(*) FROM envcrypt.tenant WHERE name = 'new'"), '0', 'no tenant came of that');
	# a new version of the master key wraps new keys, and the old one still opens old ones
	my $new = $gcp->control('new-version', 'app')->{version};
	$session->value("SELECT envcrypt.create_tenant('newer', 'kms')");
	is($session->value("SELECT DISTINCT master_key_version FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'newer'"), $new,
		'the version that wrapped is recorded');
	works($session, $decrypt, "t\nplaintext", 'what an older version wrapped is opened');
	$gcp->control('version', 'app', 1, 'DISABLED');
	fails_with($session, $decrypt, { state => '42501', detail => qr/FAILED_PRECONDITION/, hint => qr/disabled/ }, 'a disabled version');
	$gcp->control('version', 'app', 1, 'ENABLED');
	works($session, $decrypt, "t\nplaintext", 'and enabled again');
	# a clock that is off
	$gcp->control('clock-skew', 7200);
	fails_with($session, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"', hint => qr/clock/ }, 'a clock that is off');
	$gcp->control('clock-skew', 0);
	# files that are none
	my $file = $gcp->service_account_file;
	my $contents = slurp_file($file);
	for my $case ([ '{}', 'another type' ], [ '{"type":"service_account"}', 'incomplete' ], [ 'x', 'not JSON' ], [ '', 'empty' ],
		[ '{"type":"service_account","type":"service_account"}', 'not JSON' ], [ $contents =~ s/BEGIN PRIVATE/BEGIN BROKEN/r, 'private_key' ])
	{
		write_secret($file, $case->[0]);
		fails_with($session, $decrypt, { state => 'HV000', detail => qr/$case->[1]/ }, "a credentials file that is $case->[1]");
	}
	unlink $file;
	fails_with($session, $decrypt, { state => '42501', message => qr/^could not read file/ }, 'no credentials file');
	write_secret($file, $contents);
	works($session, $decrypt, "t\nplaintext", 'and one again');
	$session->value("ALTER SERVER kms OPTIONS (SET master_key '" . $gcp->key('nokey') . "')");
	fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => '42501', hint => qr/master_key/ }, 'no such key');
	$session->value("ALTER SERVER kms OPTIONS (SET master_key 'projects/p')");
	fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => 'HV000', hint => qr/cryptoKeys/ }, 'a key that is none');
}

# --- Azure
my $azure = Envcrypt::Azure->start;
my %vault = (endpoint => $azure->endpoint, token_endpoint => $azure->endpoint, metadata_endpoint => $azure->endpoint, ca_file => $azure->ca_file,
	master_key => 'app', attestation_key => 'attest');
my %hsm = (%vault, master_key => 'hsm', algorithm => 'A256KW');
delete $hsm{attestation_key};
my %application = (tenant_id => $azure->tenant, client_id => $azure->client_id);
my %azure_fault = (throttled => 'throttled', unavailable => 'unavailable', denied => 'firewall');
for my $way (
	[ Azure => \%vault, 'own', auth => 'client_secret', %application, client_secret => 'file:' . $azure->client_secret_file ],
	[ Azure_managed => \%vault, 'own', auth => 'managed_identity' ],
	[ Azure_federated => \%vault, 'own', auth => 'federated', %application, federated_token_file => $azure->federated_token_file ],
	[ Azure_HSM => \%hsm, 'hsm', auth => 'client_secret', %application, client_secret => 'file:' . $azure->client_secret_file ])
{
	my ($name, $server, $own, %mapping) = @$way;
	my $session = Envcrypt::Conformance::run($node,
		name => $name, wrapper => 'envcrypt_azure', server => $server, mapping => \%mapping, own_key => $own,
		counts => sub { $azure->counts('^(?!connections|unauthorized|discovery)') }, version => qr/[0-9a-f]{32}/,
		fault => sub { my ($kind, $times) = @_; $azure->control("fault?what=$azure_fault{$kind}&times=0"); $azure->control("fault?what=$azure_fault{$kind}&times=$times") if $times; },
		expire => sub { $azure->control('expire') },
		secrets => sub { return { %{ $azure->secrets }, body => $azure->body_secret } });
	next if $name ne 'Azure';
	my $decrypt = 'SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.decrypt(v) FROM kept';

	# a wrapping that anyone with the public key can make
	for my $case ([ "''", 'no attestation' ], [ "convert_to('x:eA', 'UTF8')", 'attestation' ],
		[ "set_byte(attestation, 60, CASE get_byte(attestation, 60) WHEN 65 THEN 66 ELSE 65 END)", 'attestation' ],
		[ "(SELECT attestation FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'other' AND purpose = 'data')", 'attestation' ])
	{
		$session->value("BEGIN; UPDATE envcrypt.wrapped_key w SET attestation = $case->[0] FROM envcrypt.data_key k WHERE k.key_id = w.key_id AND tenant = 'acme' AND k.purpose = 'data'");
		fails_with($session, $decrypt, { state => qr/^(XX001|42501)$/ }, "a planted attestation: $case->[0]");
		$session->value('ROLLBACK');
	}
	for my $fault ('wrong-kid', 'altered', 'length', 'not-json')
	{
		$azure->control("fault?what=$fault&times=10");
		fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => $fault eq 'not-json' ? '08006' : qr/^(XX001|08P01|42501|HV000)$/ }, "create_tenant: $fault");
		$azure->control("fault?what=$fault&times=0");
	}
	is($session->value("SELECT count(*) FROM envcrypt.tenant WHERE name = 'new'"), '0', 'no tenant came of that');
	$azure->control('rotate?app');
	$session->value("SELECT envcrypt.create_tenant('newer', 'kms')");
	works($session, $decrypt, "t\nplaintext", 'what an older version wrapped is opened');
	$azure->control('disable?app');
	fails_with($session, $decrypt, { state => '42501', detail => qr/KeyDisabled/, hint => qr/enabled/ }, 'a disabled key');
	$azure->control('enable?app');
	$azure->replace_client_secret('another-secret-of-the-application');
	$azure->control('expire');
	fails_with($session, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"' }, 'a client secret that was replaced');
	write_secret($azure->client_secret_file, 'another-secret-of-the-application');
	works($session, $decrypt, "t\nplaintext", 'the new one is picked up without a restart');
	$session->value("ALTER SERVER kms OPTIONS (ADD algorithm 'RSA1_5')");
	fails_with($session, $decrypt, { state => 'HV000', hint => qr/A256KW/ }, 'an algorithm that is not spoken');
	$session->value("ALTER SERVER kms OPTIONS (DROP algorithm, DROP attestation_key)");
	fails_with($session, $decrypt, { state => 'HV000', message => qr/lacks the option "attestation_key"/ }, 'no attestation key');
}

done_testing();
