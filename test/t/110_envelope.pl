# The article's own format: what an application in Python wrote with boto3 the database reads, and the other way round, and
# stored values move into an encrypted column.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Moto;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_MOTO is not set' if !Envcrypt::Moto->is_there;

my $node = new_cluster('envelope');
my $aws = Envcrypt::Moto->start;
my $dba = Envcrypt::Session->new($node);
$dba->value("CREATE SERVER aws FOREIGN DATA WRAPPER envcrypt_aws OPTIONS (endpoint '" . $aws->endpoint . "', ca_file '" . $aws->ca_file
	  . "', region '" . $aws->region . "', master_key 'alias/app');
	CREATE USER MAPPING FOR CURRENT_USER SERVER aws OPTIONS (auth 'profile', credentials_file '" . $aws->credentials_file . "');
	SELECT envcrypt.create_tenant('acme', 'aws')");
my %environment = (AWS_DEFAULT_REGION => $aws->region, AWS_SHARED_CREDENTIALS_FILE => $aws->credentials_file,
	AWS_CONFIG_FILE => $aws->config_file, AWS_CA_BUNDLE => $aws->ca_file, AWS_EC2_METADATA_DISABLED => 'true');

sub application
{
	my ($what, $in, @arguments) = @_;
	local %ENV = (%ENV, %environment);
	my ($out, $err) = ('', '');
	IPC::Run::run([ $ENV{ENVCRYPT_MOTO}, '-B', "$test_dir/servers/envelope.py", $what, $aws->endpoint, @arguments ],
		'<', \$in, '>', \$out, '2>', \$err) or return "failed: $err";
	return $out;
}

my %text = (plain => '123-45-6789', empty => '', umlauts => "gr\xc3\xbc\xc3\x9fe \xe2\x82\xac", long => 'x' x 100_000);
$dba->value('CREATE TABLE application (name text, encrypted_dek text, nonce text, ciphertext text)');
my $plaintext = "convert_from(envcrypt.decrypt_envelope('aws', decode(encrypted_dek, 'hex'), decode(nonce, 'hex'), decode(ciphertext, 'hex')), 'UTF8')";
for my $name (sort keys %text)
{
	my $stored = decode_json(application('encrypt', $text{$name}, $aws->key_arn));
	$dba->value("INSERT INTO application VALUES ('$name', '$stored->{encrypted_dek}', '$stored->{nonce}', '$stored->{ciphertext}')");
	my $hex = unpack 'H*', $text{$name};
	works($dba, "SELECT $plaintext = convert_from('\\x$hex', 'UTF8') FROM application WHERE name = '$name'", 't', "the database reads what Python wrote: $name");
	my $json = $dba->value("SELECT json_build_object('encrypted_dek', encode(encrypted_dek, 'hex'), 'nonce', encode(nonce, 'hex'), 'ciphertext', encode(ciphertext, 'hex'))
		FROM envcrypt.encrypt_envelope('aws', convert_from('\\x$hex', 'UTF8'))");
	is(application('decrypt', $json), $text{$name}, "Python reads what the database wrote: $name");
}
works($dba, "SELECT length(nonce), length(ciphertext) FROM envcrypt.encrypt_envelope('aws', '\\x00ff'::bytea)", '12|18', 'bytes, with a nonce of 12 and a tag of 16');

# stored values move into a column
$dba->value("CREATE TABLE moved AS SELECT name, envcrypt.encrypt($plaintext, tenant => 'acme') v FROM application");
works($dba, "SELECT envcrypt.decrypt(v) FROM moved WHERE name = 'plain'", $text{plain}, 'and moves into an encrypted column');

# --- bad input
my $parts = sub { return join ', ', map { "decode('$_', 'hex')" } @_; };
my ($dek, $nonce, $ciphertext) = split /\|/, $dba->value("SELECT encrypted_dek, nonce, ciphertext FROM application WHERE name = 'plain'");
for my $case (
	[ 'no key', [ '', $nonce, $ciphertext ], '22023' ], [ 'a key that is none', [ 'abcd', $nonce, $ciphertext ], 'XX001' ],
	[ 'a nonce of 16 bytes', [ $dek, '00' x 16, $ciphertext ], '22023' ], [ 'no ciphertext', [ $dek, $nonce, '' ], '22023' ],
	[ 'a tag alone', [ $dek, $nonce, '00' x 16 ], '22000' ], [ 'another nonce', [ $dek, '00' x 12, $ciphertext ], '22000' ],
	[ 'altered', [ $dek, $nonce, $ciphertext =~ s/^../00/r ], '22000' ], [ 'cut', [ $dek, $nonce, substr $ciphertext, 2 ], '22000' ])
{
	my ($name, $given, $state) = @$case;
	my $got = fails_with($dba, "SELECT envcrypt.decrypt_envelope('aws', " . $parts->(@$given) . ')', { state => $state }, "an envelope with $name");
}
# the key of a tenant is no key of an envelope: it was wrapped under a context
fails_with($dba, "SELECT envcrypt.decrypt_envelope('aws', wrapped, '\\x000000000000000000000000', '\\x00000000000000000000000000000000') FROM envcrypt.wrapped_key",
	{ state => 'XX001' }, "a tenant's key opens no envelope");
# rights
$dba->value("CREATE ROLE app LOGIN; GRANT SELECT ON application TO app");
my $app = Envcrypt::Session->new($node, role => 'app');
fails_with($app, "SELECT $plaintext FROM application", { state => '42501' }, 'no right');
$dba->value("SELECT envcrypt.grant_access('app', '{decrypt}')");
fails_with($app, "SELECT $plaintext FROM application", { state => '42501', message => 'permission denied for KMS "aws"' }, 'no USAGE');
$dba->value('GRANT USAGE ON FOREIGN SERVER aws TO app');
fails_with($app, "SELECT $plaintext FROM application", { state => '42501', message => 'role app has no identity at KMS "aws"' }, 'no mapping');
$dba->value("CREATE USER MAPPING FOR app SERVER aws OPTIONS (auth 'profile', credentials_file '" . $aws->credentials_file . "', profile 'limited')");
works($app, "SELECT $plaintext FROM application WHERE name = 'plain'", $text{plain}, 'with all of them');
fails_with($app, "SELECT envcrypt.encrypt_envelope('aws', 'x')", { state => '42501' }, 'and not to encrypt');
fails_with($dba, "CREATE MATERIALIZED VIEW leaked AS SELECT $plaintext AS p FROM application", { state => '55000' }, 'a materialized view would store plaintext');
holds_none(log_of($node), $aws->secrets, 'the log holds no secret');
done_testing();
