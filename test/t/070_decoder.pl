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

# --- every type, labelled, with tokens where it may have them: PostgreSQL writes, the decoder reads
my $search_key = do
{
	my ($id, $its_wrapped) = split /\|/, $dba->value("SELECT lpad(to_hex(key_id), 16, '0'), convert_from(wrapped, 'UTF8')
		FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'patient:42' AND purpose = 'search'");
	unpack 'H*', decode_base64($bao->run('write', '-field=plaintext', 'transit/decrypt/app', "ciphertext=$its_wrapped",
		'context=' . encode_base64(join("\0", 'envcrypt1', 'search', $id, 'patient:42'), '')));
};
my %edges = (
	text => [ '', "Stra\xc3\x9fe", 'A b' ], bytea => [ '\x', '\x00ff' ], boolean => [ 't', 'f' ], int2 => [ -32768, 32767 ],
	int4 => [ -2147483648, 2147483647 ], int8 => [ '-9223372036854775808', '9223372036854775807' ],
	float8 => [ '-0', 'NaN', 'Infinity', '-Infinity', '5e-324', '1.7976931348623157e+308', '0.1' ],
	numeric => [ '0', '0.000', '-123456789012345678901234567890.123456789', '1e40', '0.00001', 'NaN', '100000000', 'Infinity' ],
	date => [ '4714-11-24 BC', '5874897-12-31', 'infinity', '-infinity', '2000-02-29', '1900-03-01', '0001-12-31 BC' ],
	timestamp => [ '2024-02-29 23:59:59.999999', '4714-11-24 00:00:00 BC', '294276-12-31 23:59:59.999999', 'infinity', '1999-12-31 23:59:59.5' ],
	timestamptz => [ '2024-03-10 02:30:00-05', '-infinity' ], interval => [ '24 hours', '1 day', '-1 year 2 months -3 days 04:05:06.000007' ],
	uuid => ['ffffffff-ffff-4fff-bfff-ffffffffffff'], inet => [ '10.0.0.1', '10.0.0.1/8', '::', 'fe80::1/64' ],
	jsonb => [ "{\"b\": 1, \"a\": [null, true, 1.10, \"\xc3\xa9\"]}", '"\\\t"', 'null' ], 'text[]' => [ '{}', '{a,NULL,""}', '{{a,b},{c,d}}', "{\xc3\xa9}" ]);
my %searchable = map { $_ => 1 } qw(text bytea int2 int4 int8 numeric date timestamp timestamptz uuid inet);
$dba->value("SET TimeZone = 'UTC'; SET DateStyle = ISO; SET envcrypt.tenant = 'patient:42'; CREATE TABLE edge (type text, v envcrypt.encrypted, shown jsonb)");
for my $type (sort keys %edges)
{
	for my $text (@{ $edges{$type} })
	{
		(my $quoted = $text) =~ s/'/''/g;
		my $shown = $type eq 'interval'
		  ? "jsonb_build_object('microseconds', trunc(extract(epoch FROM x - date_trunc('day', x)) * 1000000)::int8, 'days', extract(day FROM x)::int,
			'months', (extract(year FROM x) * 12 + extract(month FROM x))::int)"
		  : $type =~ /^(boolean|int.|text\[\])$/ ? 'to_jsonb(x)' : $type eq 'bytea' ? "to_jsonb(encode(x, 'hex'))" : $type eq 'inet' ? 'to_jsonb(abbrev(x))' : 'to_jsonb(x::text)';
		my $search = $searchable{$type} ? ", search => 'searchable'" : '';
		$dba->value("INSERT INTO edge SELECT '$type', envcrypt.encrypt(x, label => 'edge'$search), $shown FROM CAST('$quoted' AS $type) x");
	}
}
my @edges = map { [ split /\|/, $_, 3 ] } split /\n/, $dba->value('SELECT type, v, shown FROM edge ORDER BY type, ctid');
my @read = decode(join '', map { "$_->[1]\n" } @edges);
my (@differ, %tokens);
for my $i (0 .. $#edges)
{
	my ($type, undef, $shown) = @{ $edges[$i] };
	my $json = JSON::PP->new->allow_nonref->canonical;
	my $got = $json->encode($read[$i]{plaintext});
	my $expected = $json->encode($json->decode(do { my $text = $shown; utf8::decode($text); $text }));
	push @differ, "$type: $got, not $expected" if $got ne $expected || $read[$i]{type} ne $type || $read[$i]{label} ne 'edge';
	$tokens{$i} = $read[$i]{token} if defined $read[$i]{token};
}
is(scalar @edges, 57, 'values at the edges of every type');
is("@differ", '', 'what PostgreSQL wrote of every type is what the decoder reads');
my $made = '';
IPC::Run::run([ $python, '-B', '-c', <<'PYTHON', "$test_dir/vectors", $dek_file, $search_key ], '<', \(join '', map { "$_->[1]\n" } @edges), '>', \$made);
import sys
sys.path.insert(0, sys.argv[1])
import decode
dek = bytes.fromhex(open(sys.argv[2]).read())
for line in sys.stdin:
    value = decode.parse(decode.from_line(line.rstrip("\n")))
    if value.token is None:
        print("-")
        continue
    canonical = decode.canonical(value.type, value.search_mode, decode.open_value(value, dek))
    print(decode.search_token(bytes.fromhex(sys.argv[3]), value.label, value.type, value.search_mode, canonical).hex())
PYTHON
is($made, join('', map { ($tokens{$_} // '-') . "\n" } 0 .. $#edges), 'and so are the tokens, made from the search key by doc/format.md');
works($dba, "SELECT count(DISTINCT v) FROM (SELECT envcrypt.encrypt(x, label => 'pay', search => 'searchable') v FROM unnest('{1.5,1.50,1.5000}'::numeric[]) x) t", '1',
	'numbers that SQL calls equal have one token');

# --- and the other way round: what is kept decrypts here too
works($dba, 'SELECT count(*) FROM kept WHERE convert_to(envcrypt.decrypt(v), \'UTF8\') = b::bytea', '5', 'the extension agrees');

$dba->close;
$node->stop;
done_testing();
