# AWS KMS on moto, which checks signatures and policies, over TLS; every way to log in there; and what AWS answers that
# moto does not, by the front before it. The article's own code, run against the same server, is in 110_envelope.pl.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Conformance;
use Envcrypt::Moto;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_MOTO is not set' if !Envcrypt::Moto->is_there;

my ($out, $err) = ('', '');
IPC::Run::run([ $ENV{ENVCRYPT_MOTO}, '-B', "$test_dir/servers/prove_moto.py", $ENV{ENVCRYPT_CERTS} ], '<', \undef, '>', \$out, '2>', \$err);
like($out, qr/^[1-9]\d* passed, 0 failed$/m, 'boto3 finds the server right') or diag($out, $err);

my $node = new_cluster('aws', extension => 0);
my $aws = Envcrypt::Moto->start;
$aws->control('errors?aws');
my %fault = (throttled => 'ThrottlingException', unavailable => 'KMSInternalException', denied => 'AccessDeniedException');
my %server = (endpoint => $aws->endpoint, sts_endpoint => $aws->endpoint, metadata_endpoint => $aws->endpoint,
	ca_file => $aws->ca_file, region => $aws->region, master_key => 'alias/app');
my %files = (credentials_file => $aws->credentials_file, config_file => $aws->config_file);
my ($ecs_path) = $aws->ecs_url =~ m{^http://[^/]+(/.*)$};
for my $way (
	[ AWS => auth => 'profile', %files ],
	[ AWS_role_profile => auth => 'profile', %files, profile => 'role' ],
	[ AWS_role => auth => 'profile', credentials_file => $aws->credentials_file, role_arn => $aws->role_arn, role_session_name => 'postgres' ],
	[ AWS_web_identity => auth => 'web_identity', role_arn => $aws->role_arn, web_identity_token_file => $aws->web_identity_token_file ],
	[ AWS_ecs => auth => 'container', container_path => $ecs_path ],
	[ AWS_eks => auth => 'container', container_token_file => $aws->container_token_file ],
	[ AWS_instance => auth => 'instance' ])
{
	my ($name, %mapping) = @$way;
	my $session = Envcrypt::Conformance::run($node,
		name => $name, wrapper => 'envcrypt_aws', server => \%server, mapping => \%mapping,
		own_key => $aws->own_key_arn, counts => sub { $aws->counts('^(?!connection)') }, version => qr/[0-9a-f]*/,
		fault => sub { my ($kind, $times) = @_; $aws->control($times ? "fault?what=$fault{$kind}&times=$times" : 'fault'); },
		secrets => sub { $aws->secrets });
	my $decrypt = 'SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.decrypt(v) FROM kept';
	if ($name eq 'AWS_instance')
	{
		# credentials that are about to end are renewed without a statement failing
		$aws->control('credential-seconds?8');
		my $asked = $aws->counts('^imds.credentials');
		works($session, $decrypt, "t\nplaintext", 'credentials of a short life') for 1 .. 2;
		wait_until('the credentials have been renewed', sub {
			$session->value('UPDATE envcrypt.tenant SET created_at = created_at; SELECT envcrypt.decrypt(v) FROM kept');
			$session->value("ALTER SERVER kms OPTIONS (SET region '" . $aws->region . "')");
			$session->value('SELECT envcrypt.decrypt(v) FROM kept');
			return $aws->counts('^imds.credentials') > $asked + 2;
		});
		$aws->control('credential-seconds?-60');
		fails_with($session, $decrypt, { state => '08006', detail => qr/have expired/, hint => qr/clock/ }, 'credentials that have ended already');
		$aws->control('credential-seconds?3600');
		works($session, $decrypt, "t\nplaintext", 'and good ones again');
		$aws->control('fault?what=503&times=30&at=imds');
		fails_with($session, $decrypt, { state => '08006', message => 'could not log in with KMS "kms"' }, 'instance metadata is away');
		$aws->control('fault');
	}
	if ($name eq 'AWS_web_identity')
	{
		$aws->control('web-identity-token?another-token');
		fails_with($session, $decrypt, { state => qr/^(42501|HV000)$/, message => 'could not log in with KMS "kms"' }, 'a web identity token that was replaced');
		Envcrypt::Moto::write_token($aws->web_identity_token_file, 'another-token');
		works($session, $decrypt, "t\nplaintext", 'the new one is picked up without a restart');
	}
	next if $name ne 'AWS';

	# what AWS says of a key, and what it means
	my @meanings = (
		[ DisabledException => '42501', qr/enabled/ ],
		[ KMSInvalidStateException => '42501', qr/pending deletion/ ],
		[ NotFoundException => '42501', qr/master_key/ ],
		[ IncorrectKeyException => 'XX001', qr/Another master key/ ]);
	for (@meanings)
	{
		my ($code, $state, $hint) = @$_;
		$aws->control("fault?what=$code&times=5");
		fails_with($session, $decrypt, { state => $state, detail => qr/, $code\.$/, hint => $hint }, $code);
		$aws->control('fault');
	}
	$aws->control('fault?what=ExpiredTokenException&times=1');
	works($session, "SELECT envcrypt.decrypt(envcrypt.encrypt('x')); UPDATE envcrypt.tenant SET state = state; SELECT envcrypt.decrypt(w) FROM kept", "x\nof other",
		'a credential refused is read again once');
	$aws->control('fault');
	# the clock of the host is off by an hour: signed again by AWS's own time
	$aws->control('date?3600');
	works($session, $decrypt, "t\nplaintext", 'a clock that is behind');
	$aws->control('date?-3600');
	works($session, $decrypt, "t\nplaintext", 'a clock that is ahead');
	$aws->control('date?0');
	works($session, $decrypt, "t\nplaintext", 'a clock that is right again');
	# and where a role is assumed first
	$session->value("ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (ADD role_arn '" . $aws->role_arn . "')");
	$aws->control('date?3600');
	works($session, $decrypt, "t\nplaintext", 'a clock that is behind, met by STS first');
	$aws->control('date?0');
	$session->value("ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (DROP role_arn)");
	# the key's material is recorded where AWS names it
	my $material = 'ab' x 32;
	$aws->control("material?$material");
	$session->value("SELECT envcrypt.create_tenant('material', 'kms')");
	is($session->value("SELECT DISTINCT master_key_version FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'material'"), $material,
		'the key material that wrapped is recorded');
	# a network that lets KMS through, and STS not
	$session->value("ALTER SERVER kms OPTIONS (SET sts_endpoint 'https://127.0.0.1:1')");
	like($session->value("SELECT ok, identity FROM envcrypt.check_server('kms')"), qr/^t\|access key \w+$/, 'check_server without STS');
	$session->value("ALTER SERVER kms OPTIONS (SET sts_endpoint '" . $aws->endpoint . "')");
	# identities that are none
	my $mapping = sub { $session->value("ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS ($_[0])"); };
	$mapping->("ADD profile 'wrong'");
	fails_with($session, $decrypt, { state => '42501', detail => qr/InvalidSignatureException/, hint => qr/clock/ }, 'a wrong secret key');
	$mapping->("SET profile 'limited'");
	works($session, $decrypt, "t\nplaintext", 'whoever may only decrypt decrypts');
	fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => '42501', detail => qr/AccessDenied/, hint => qr/kms:GenerateDataKey/ },
		'and makes no keys');
	$mapping->("SET profile 'refused_role'");
	fails_with($session, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"' }, 'a role that may not be assumed');
	$mapping->("SET profile 'nobody'");
	fails_with($session, $decrypt, { state => 'HV000', detail => 'Profile "nobody" has no aws_access_key_id and aws_secret_access_key.' }, 'no such profile');
	$mapping->('DROP profile');
	for my $case ([ "SET endpoint 'https://127.0.0.1/path'" => 'HV000' ],
		[ "SET endpoint '" . $aws->endpoint . "', SET master_key 'alias/none'" => '42501' ], [ "SET master_key 'arn:aws:kms:nowhere'" => '42501' ],
		[ "SET master_key 'alias/app', SET region 'nowhere-1'" => '08006' ])
	{
		$session->value("ALTER SERVER kms OPTIONS ($case->[0])");
		fails_with($session, "SELECT envcrypt.create_tenant('new', 'kms')", { state => $case->[1] }, "a server with $case->[0]");
	}
	$session->value("ALTER SERVER kms OPTIONS (SET master_key 'alias/app', SET region '" . $aws->region . "')");
	works($session, $decrypt, "t\nplaintext", 'all is well again');
}

# rewrapping, inside KMS; where it names the key's material, what is under the newest is left alone, else what is done already
my $dba = Envcrypt::Session->new($node);
$dba->value('CREATE EXTENSION envcrypt');
my $options = sub { my %options = @_; return join ', ', map { "$_ '$options{$_}'" } sort keys %options };
$dba->value('CREATE SERVER rewrapped FOREIGN DATA WRAPPER envcrypt_aws OPTIONS (' . $options->(%server) . '); CREATE USER MAPPING FOR CURRENT_USER SERVER rewrapped OPTIONS (' . $options->(auth => 'profile', %files) . ')');
my ($first, $second) = map { $_ x 32 } 'ab', 'cd';
my $rewrap = sub {
	my ($asked) = @_;
	$dba->value("CALL envcrypt.rewrap_keys('rewrapped')");
	return $dba->value("SELECT string_agg(DISTINCT coalesce(master_key_version, '-'), ',') FROM envcrypt.wrappings WHERE server = 'rewrapped'")
	  . '|' . $dba->value("SELECT done, left_over FROM envcrypt.progress WHERE server = 'rewrapped'")
	  . '|' . ($aws->counts('ReEncrypt$') - ($asked // 0));
};
$aws->control('material?');
$dba->value("SELECT envcrypt.create_tenant('re' || i, 'rewrapped') FROM generate_series(1, 3) i");
my $re = $dba->value("SELECT envcrypt.encrypt('re'::text, 're1')");
my $asked = $aws->counts('ReEncrypt$');
is($rewrap->($asked), '-|6|0|6', 'rewrapped inside KMS');
$aws->control("material?$first");
is($rewrap->($asked), "$first|6|0|12", 'under key material that is named');
is($rewrap->($asked), "$first|0|0|12", 'under the newest already');
$aws->control("material?$second");
is($rewrap->($asked), "$second|6|0|18", 'under new key material');
works($dba, "SELECT envcrypt.forget_keys() > 0; SELECT envcrypt.decrypt('$re')", "t\nre", 'and nothing else has changed');
# a tenant's own master key stays its own; one that its owner closes keeps nobody else's keys from being rewrapped
my $own = $aws->own_key_arn;
$dba->value("SELECT envcrypt.create_tenant('byok', 'rewrapped', master_key => 'alias/own')");
$aws->control("material?$first");
is($rewrap->($asked), "$first|8|0|26", 'with a tenant that has a master key of its own');
works($dba, "SELECT DISTINCT own_master_key, master_key = '$own' FROM envcrypt.wrappings WHERE tenant = 'byok'", 't|t', 'which stays its own');
# and moves as the others do: added, verified, dropped
$dba->value('CREATE SERVER second FOREIGN DATA WRAPPER envcrypt_aws OPTIONS (' . $options->(%server) . '); CREATE USER MAPPING FOR CURRENT_USER SERVER second OPTIONS (' . $options->(auth => 'profile', %files) . ')');
works($dba, "CALL envcrypt.rewrap_keys('rewrapped', 'second'); SELECT name, server FROM envcrypt.tenants WHERE name ~ 're1|byok' ORDER BY 1; SELECT done, left_over FROM envcrypt.progress WHERE to_server = 'second'",
	"byok|rewrapped\nre1|second\n6|2", 'a move leaves it where it is');
fails_with($dba, "CALL envcrypt.add_wrapping('second', 'byok')", { state => '22023', message => 'tenant "byok" has a master key of its own', hint => qr/master_key => / }, 'unless its own master key there is said');
works($dba, "CALL envcrypt.add_wrapping('second', 'byok', master_key => 'alias/own'); CALL envcrypt.drop_wrapping('rewrapped', 'byok'); SELECT server, master_key = '$own' FROM envcrypt.tenants WHERE name = 'byok';
	SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, 'byok')); SELECT envcrypt.rotate_key('byok'); SELECT DISTINCT server, own_master_key FROM envcrypt.wrappings WHERE tenant = 'byok'", "second|t\nx\n2\nsecond|t", 'then it moves, and new keys follow');
$aws->control('material?');
holds_none(log_of($node), $aws->secrets, 'the log holds no secret');
done_testing();
