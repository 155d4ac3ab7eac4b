# What a backend's memory holds of keys, credentials and tokens, with every KMS: nothing once they were forgotten, wherever one
# looks, and nothing that a core dump shows while they are in use, but for what security.md says. Takes cores by gcore.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Azure;
use Envcrypt::Bao;
use Envcrypt::Gcp;
use Envcrypt::Moto;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_BAO is not set' if !Envcrypt::Bao->is_there;
plan skip_all => 'ENVCRYPT_MOTO is not set' if !Envcrypt::Moto->is_there;

my $node = do {
	local $ENV{LD_PRELOAD} = $ENV{ENVCRYPT_TRACEABLE} // '';
	new_cluster('memory', conf => "envcrypt.cache_ttl = '1h'\n");
};
my $dba = Envcrypt::Session->new($node);
my $cores = PostgreSQL::Test::Utils::tempdir();
my $bao = Envcrypt::Bao->start;
my $aws = Envcrypt::Moto->start;
my $gcp = Envcrypt::Gcp->start;
my $azure = Envcrypt::Azure->start;
my ($role_id, $secret_id_file) = $bao->approle('app', 'envcrypt', 'wrap');
$bao->policy('wrap', 'transit/encrypt/+');

# What a program says to a request, both in JSON.
sub ask_program
{
	my ($request, @program) = @_;
	my ($in, $out, $err) = (JSON::PP->new->utf8->canonical->encode($request) . "\n", '', '');
	IPC::Run::run([ @program ], '<', \$in, '>', \$out, '2>', \$err) or die "@program: $err";
	return decode_json($out);
}

# What a core of the session's backend holds of the secrets; with `all`, the core has the pages too that are excluded from
# core dumps.
sub search
{
	my ($session, $secrets, $all, @patterns) = @_;
	my $pid = $session->pid;
	my ($out, $in) = ('', '');
	IPC::Run::run([ 'gcore', $all ? '-a' : (), '-o', "$cores/core", $pid ], '<', \$in, '>&', \$out);
	die "gcore took no core: $out" if !-s "$cores/core.$pid";
	my %hex = map { my $secret = $secrets->{$_}; utf8::encode($secret) if utf8::is_utf8($secret); $_ => unpack 'H*', $secret } keys %$secrets;
	my $told = ask_program({ secrets => \%hex, patterns => \@patterns }, $python, '-B', "$test_dir/servers/search_core.py", "$cores/core.$pid");
	unlink "$cores/core.$pid";
	return $told;
}

# One test: of the secrets only those are in the core that the pattern names. A marker in every form shows that the search
# would find them.
my $marker = 'a marker/50% of 32 bytes + more~~';

sub holds
{
	my ($session, $secrets, $all, $allowed, $name) = @_;
	mark($session);
	my $told = search($session, { %$secrets, marker => $marker }, $all);
	my $forms = delete $told->{found}{marker} // [];
	is("@$forms", 'base64+0 base64+1 base64+2 hex raw url', "$name: the marker is found in every form");
	my @found = map { "$_ (@{ $told->{found}{$_} })" } grep { !$allowed || !/$allowed/ } sort keys %{ $told->{found} };
	ok($told->{bytes} > 1024 * 1024 && !@found, "$name: no secret") or diag("found: ", join ', ', @found);
	return;
}

sub mark
{
	my ($session) = @_;
	$session->value("SET marker.raw = '$marker'; SET marker.hex = '" . unpack('H*', $marker) . "'; SET marker.url = '"
		  . ($marker =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ger) . "'; "
		  . join '; ', map { "SELECT set_config('marker.base64_$_', encode('" . ('x' x $_) . "$marker', 'base64'), false) IS NULL" } 0 .. 2);
	return;
}

my %local = (key_file => $ENV{ENVCRYPT_KEY_FILE} // write_secret("$cores/local.key", join '', map { sprintf '%02x', int rand 256 } 1 .. 32));
my %vault = (endpoint => $bao->url, master_key => 'app', ca_file => $bao->ca_file);
my %aws = (endpoint => $aws->endpoint, sts_endpoint => $aws->endpoint, ca_file => $aws->ca_file, region => $aws->region, master_key => 'alias/app');
my %google = (endpoint => $gcp->endpoint, ca_file => $gcp->ca_file, master_key => $gcp->key);
my %azure = (endpoint => $azure->endpoint, token_endpoint => $azure->endpoint, ca_file => $azure->ca_file, master_key => 'app', attestation_key => 'attest');
my %google_file = (credentials_file => $gcp->service_account_file);

sub create_server
{
	my ($name, $wrapper, $server, $mapping) = @_;
	my $options = sub { my ($of) = @_; return join ', ', map { "$_ '$of->{$_}'" } sort keys %$of; };
	$dba->value("CREATE SERVER $name FOREIGN DATA WRAPPER $wrapper OPTIONS (" . $options->($server) . ')');
	$dba->value("CREATE USER MAPPING FOR CURRENT_USER SERVER $name" . (%$mapping ? ' OPTIONS (' . $options->($mapping) . ')' : ''));
	return;
}
create_server('second', 'envcrypt_local', \%local, {});

for my $way (
	{ name => 'vault', wrapper => 'envcrypt_vault', server => \%vault,
		mapping => { auth => 'approle', role_id => $role_id, secret_id => "file:$secret_id_file" },
		secrets => sub { return { 'secret id' => slurp_file($secret_id_file) =~ s/\n//r }; },
		token => '\b[sbh](?:vs)?\.[A-Za-z0-9_-]{24,}', is_token => sub { eval { $bao->run('token', 'lookup', $_[0]) } } },
	{ name => 'aws_role', wrapper => 'envcrypt_aws', server => \%aws,
		mapping => { auth => 'profile', credentials_file => $aws->credentials_file, config_file => $aws->config_file, profile => 'role' },
		secrets => sub { my %all = %{ $aws->secrets }; delete @all{ grep { /body_secret|^secret$/ } keys %all }; return \%all; } },
	{ name => 'aws_web', wrapper => 'envcrypt_aws', server => \%aws,
		mapping => { auth => 'web_identity', role_arn => $aws->role_arn, web_identity_token_file => $aws->web_identity_token_file },
		secrets => sub { my %all = %{ $aws->secrets }; delete @all{ grep { /body_secret|^secret$/ } keys %all }; return \%all; } },
	{ name => 'google', wrapper => 'envcrypt_gcp', server => \%google, mapping => { auth => 'service_account', %google_file },
		secrets => sub { return { 'access token' => 'ya29.test.' }; }, rsa => $gcp->{about}{service_account}{private_key},
		token => 'ya29\.test\.[A-Za-z0-9_.-]{8,}', is_token => sub { 1 } },
	{ name => 'google_federated', wrapper => 'envcrypt_gcp', server => { %google, metadata_endpoint => $gcp->endpoint },
		mapping => { auth => 'external_account', credentials_file => $gcp->external_account_file },
		secrets => sub { return { 'access token' => 'ya29.test.', 'subject token' => $gcp->{about}{subject_token} }; },
		token => 'ya29\.test\.[A-Za-z0-9_.-]{8,}', is_token => sub { 1 } },
	{ name => 'azure', wrapper => 'envcrypt_azure', server => \%azure,
		mapping => { auth => 'client_secret', tenant_id => $azure->tenant, client_id => $azure->client_id, client_secret => 'file:' . $azure->client_secret_file },
		secrets => sub { my %all = %{ $azure->secrets }; delete $all{pw}; return \%all; } },
	{ name => 'local', wrapper => 'envcrypt_local', server => \%local, mapping => {}, secrets => sub { return {}; } })
{
	my $name = $way->{name};
	create_server($name, @$way{qw(wrapper server mapping)});
	$dba->value("SELECT envcrypt.create_tenant('$name', '$name')");
	$dba->value("SET envcrypt.tenant = '$name'; CREATE TABLE $name (v envcrypt.encrypted(text, searchable, kept))");
	# long enough for OpenSSL, and short enough for libsodium
	$dba->value("INSERT INTO $name SELECT envcrypt.encrypt(repeat(t, 1000), label => 'kept', search => 'searchable') FROM unnest('{a,b}'::text[]) t");
	$dba->value("INSERT INTO $name VALUES (envcrypt.encrypt('short'::text, label => 'kept', search => 'searchable'))");
	# opened at the KMS by the session, and by the test from a second wrapping
	$dba->value("CALL envcrypt.add_wrapping('second', '$name')") if $name ne 'local';
	my $wrapped_at = $name eq 'local' ? 'local' : 'second';
	my @keys = map { [ split /\|/ ] } split /\n/, $dba->value("SELECT purpose, to_hex(key_id), tenant, encode(wrapped, 'hex'), encode(commitment, 'hex')
		FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = '$name' AND server = '$wrapped_at' ORDER BY purpose");
	is(join(' ', map { $_->[0] } @keys), 'data search', "$name: a data key and a search key");
	my %request = (master => $local{key_file}, keys => \@keys, values => [ split /\n/, $dba->value("SELECT v FROM $name") ]);

	my $session = Envcrypt::Session->new($node);
	my $use = "SET envcrypt.tenant = '$name'; SELECT count(envcrypt.decrypt(v)) FROM $name; SELECT count(*) FROM $name WHERE envcrypt.matches(v, 'short');
		SELECT string_agg(DISTINCT server, ' ') || ' ' || count(*) FROM envcrypt.cache";
	works($session, $use, "3\n1\n$name 2", "$name: keys are open");
	my $secrets = $way->{secrets}->();
	if ($name =~ /^aws/)
	{
		$request{aws} = { map { $_ => [ $secrets->{$_}, $aws->region ] } grep { /secret_access_key|issued/ } keys %$secrets };
		delete $request{aws}{ $_ } for grep { /limited|wrong/ } keys %{ $request{aws} };
	}
	$request{rsa} = $way->{rsa} if defined $way->{rsa};
	my $keys = ask_program(\%request, $python, '-B', "$test_dir/servers/derive_secrets.py", "$test_dir/vectors");
	my %all = (%$secrets, map { $_ => pack 'H*', $keys->{$_} } keys %$keys);

	# --- they are there while they are in use, in the pages that core dumps leave out
	my $before = search($session, \%all, 1, $way->{token} // ());
	my @there = grep { $before->{found}{$_} } 'data key', 'search key', 'token key', 'value subkey 0';
	is("@there", 'data key search key token key value subkey 0', "$name: in use, memory holds the keys");
	if ($way->{token})
	{
		my @tokens = grep { $way->{is_token}->($_) } @{ $before->{matches} };
		cmp_ok(scalar @tokens, '>', 0, "$name: in use, memory holds the token");
		$all{"token $_"} = $tokens[$_] for 0 .. $#tokens;
	}
	diag("$name: ", join ', ', map { "$_ (@{ $before->{found}{$_} })" } sort keys %{ $before->{found} }) if $ENV{MEMORY_VERBOSE};
	# of OpenSSL's ciphers the key schedule lies in ordinary memory
	holds($session, \%all, 0, qr/^value subkey/, "$name: in use, a core dump");

	works($session, 'SELECT envcrypt.forget_keys()', 2, "$name: keys are forgotten");
	holds($session, \%all, 1, undef, "$name: after forget_keys, all memory");
	works($session, $use, "3\n1\n$name 2", "$name: keys are open again");
	$session->value('DISCARD ALL');
	my %later = (%all, %{ $way->{secrets}->() });
	holds($session, \%later, 1, undef, "$name: after DISCARD ALL, all memory");
	$session->close;
}

# --- where something else in the process has initialized libcurl, envcrypt says so, once a session
$dba->close;
$node->stop;
{
	local $ENV{LD_PRELOAD} = $ENV{ENVCRYPT_OTHER_CURL} // '';
	$node->start;
}
my $session = Envcrypt::Session->new($node);
$session->value('SET client_min_messages = warning');
my $said = qr/^WARNING:  \w{5}: could not have libcurl wipe the memory that it frees$/m;
my $decrypt = 'SELECT envcrypt.forget_keys() >= 0; SELECT count(envcrypt.decrypt(v)) FROM vault';
like($session->ask($decrypt)->{text}, $said, 'another user of libcurl: a warning');
unlike($session->ask($decrypt)->{text}, $said, 'another user of libcurl: one');
$session->close;
$node->stop;
done_testing();
