# Values dumped from a database are decoded by a program that shares no code with the extension (test/vectors/decode.py),
# given the data key, which is asked for at OpenBao itself.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use JSON::PP;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Bao;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_BAO is not set' if !Envcrypt::Bao->is_there;
plan skip_all => 'python3-cryptography is not installed'
  if system("$python -c 'import cryptography.hazmat.primitives.ciphers.aead' >/dev/null 2>&1") != 0;

my $bao = Envcrypt::Bao->start;
my $node = new_cluster('decoder');
my $dba = Envcrypt::Session->new($node);
my $token = $bao->token_file('dba', 'envcrypt');
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_vault
		OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '" . $bao->ca_file . "');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (auth 'token', token 'file:$token');
	SELECT envcrypt.create_tenant('patient:42', 'kms'), envcrypt.create_tenant('other', 'kms');
	CREATE TABLE kept (id int, v envcrypt.encrypted(text), b envcrypt.encrypted(bytea), bound envcrypt.encrypted)");
my %text = (1 => 'plain', 2 => '', 3 => "gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xf0\x9f\x94\x91", 4 => "line\nbreak \"quoted\" \\", 5 => 'x' x 20000);
for my $id (sort keys %text)
{
	my $hex = unpack 'H*', $text{$id};
	$dba->value("INSERT INTO kept SELECT $id, envcrypt.encrypt(t, tenant => 'patient:42'), envcrypt.encrypt(convert_to(t, 'UTF8'), tenant => 'patient:42'),
		envcrypt.encrypt(t, tenant => 'patient:42', associated_data => 'r\xc3\xb6w $id') FROM convert_from('\\x$hex', 'UTF8') t");
}

# --- the data key, by the context that doc/format.md says
my ($key_id, $wrapped, $commitment) = split /\|/, $dba->value("SELECT lpad(to_hex(key_id), 16, '0'), convert_from(wrapped, 'UTF8'), encode(commitment, 'hex')
	FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'patient:42' AND purpose = 'data'");
my $context = join "\0", 'envcrypt1', 'data', $key_id, 'patient:42';
my $dek = decode_base64($bao->run('write', '-field=plaintext', 'transit/decrypt/app', "ciphertext=$wrapped",
	'context=' . encode_base64($context, '')));
is(length $dek, 32, 'OpenBao opens the wrapped key under its context');
ok(!eval { $bao->run('write', 'transit/decrypt/app', "ciphertext=$wrapped", 'context=' . encode_base64("$context?", '')); 1 },
	'and under no other');
my $dek_file = write_secret($bao->dir . '/dek', unpack 'H*', $dek);

# What the decoder says to lines of values.
sub decode
{
	my ($lines, @arguments) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ $python, '-B', "$test_dir/vectors/decode.py", '--dek-file', $dek_file, @arguments ],
		'<', \$lines, '>', \$out, '2>', \$err);
	diag($err) if $err ne '';
	return map { JSON::PP->new->utf8->decode($_) } split /\n/, $out;
}

sub plaintexts { return join '|', map { my $text = $_->{plaintext} // "fault: $_->{fault}"; utf8::encode($text); $text } @_; }

# as pg_dump and COPY write them
my $dump = $bao->dir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-t', 'kept', '--data-only', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
my @lines = map { [ split /\t/ ] } grep { /^\d+\tec1:/ } split /\n/, slurp_file($dump);
is(scalar @lines, 5, 'five rows were dumped');
my $expected = join '|', @text{ 1 .. 5 };
my @decoded = decode(join '', map { "$_->[1]\n" } @lines);
is(plaintexts(@decoded), $expected, 'texts are decoded');
is(join('|', map { "$_->{type} $_->{key_id} " . ($_->{bound} ? 'bound' : 'free') } @decoded), join('|', ("text $key_id free") x 5), 'their headers');
is(plaintexts(decode(join '', map { "$_->[2]\n" } @lines)), join('|', map { unpack 'H*', $_ } @text{ 1 .. 5 }), 'bytea values are decoded');
for (@lines)
{
	my ($id, undef, undef, $bound) = @$_;
	is(plaintexts(decode("$bound\n", '--associated-data', "r\xc3\xb6w $id")), $text{$id}, "bound to associated data: row $id");
	is(plaintexts(decode("$bound\n", '--associated-data', 'another')), 'fault: tag', "bound to associated data: not to another, row $id");
}
# as the binary form is
my $binary = $dba->value('SELECT envcrypt.encrypted_send(v) FROM kept ORDER BY id');
is(plaintexts(decode("$binary\n")), $expected, 'binary forms are decoded');
# a value of another tenant, and an altered one
my $other = $dba->value("SELECT envcrypt.encrypt('x'::text, tenant => 'other')");
is(plaintexts(decode("$other\n")), 'fault: tag', 'the key of one tenant opens no value of another');

# --- the commitment
my $computed = '';
IPC::Run::run([ $python, '-B', '-c', <<'PYTHON', "$test_dir/vectors", $dek_file, $key_id, 'patient:42' ], '>', \$computed);
import sys
sys.path.insert(0, sys.argv[1])
import decode
dek = bytes.fromhex(open(sys.argv[2]).read())
print(decode.commitment(dek, decode.wrap_context("data", int(sys.argv[3], 16), sys.argv[4])).hex(), end="")
PYTHON
is($computed, $commitment, 'the commitment in the database is that of doc/format.md');

# --- and the other way round: what is kept decrypts here too
works($dba, 'SELECT count(*) FROM kept WHERE convert_to(envcrypt.decrypt(v), \'UTF8\') = b::bytea', '5', 'the extension agrees');

$dba->close;
$node->stop;
done_testing();
