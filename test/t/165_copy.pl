# COPY of values in text and binary, whole and corrupt: what is wrong in one row is told without the row, and nothing of the
# file gets in. And ciphertext that is swapped in the file: between columns, rows, types, tenants.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MIME::Base64 qw(decode_base64 encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

my $node = new_cluster('copy');
my $dba = Envcrypt::Session->new($node);
my $folder = PostgreSQL::Test::Utils::tempdir();
write_secret("$folder/key", '5a' x 32 . "\n");
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$folder/key');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms; SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('other', 'kms')");
$dba->value("SET envcrypt.tenant = 'acme';
	CREATE TABLE t (id int, ssn envcrypt.encrypted(text, searchable, ssn), born envcrypt.encrypted(date, born), free envcrypt.encrypted(text), raw envcrypt.encrypted);
	INSERT INTO t SELECT n, 'ssn-' || n, date '1970-01-01' + n, 'free-' || n, n FROM generate_series(1, 20) n;
	CREATE TABLE back (LIKE t)");
my $all = "SELECT string_agg(concat_ws(',', id, envcrypt.decrypt(ssn), born::date, envcrypt.decrypt(free), envcrypt.decrypt(raw)), ' ' ORDER BY id)";
my $contents = $dba->value("$all FROM t");

for my $format ('text', 'csv', 'binary')
{
	$dba->value("COPY t TO '$folder/$format' (FORMAT $format)");
	$dba->value("TRUNCATE back; COPY back FROM '$folder/$format' (FORMAT $format)");
	is($dba->value("$all FROM back"), $contents, "$format: there and back");
}
$dba->value('TRUNCATE back');
my @rows = map { [ split /\t/ ] } split /\n/, slurp_file("$folder/text");
is(scalar @rows, 20, 'twenty rows');

sub bytes { my $value = substr $_[0], 4; return decode_base64($value); }
sub text { return 'ec1:' . encode_base64($_[0], ''); }

# The fifth row of twenty is wrong.
sub fails
{
	my ($name, $state, $message, $change) = @_;
	my @changed = map { [@$_] } @rows;
	$change->($changed[4]);
	my $contents = join '', map { join("\t", @$_) . "\n" } @changed;
	my $file = "$folder/changed";
	unlink $file;
	open my $out, '>:raw', $file or die;
	print $out $contents;
	close $out;
	chmod 0644, $file;
	fails_with($dba, "COPY back FROM '$file'", { state => $state, message => $message }, "text: $name");
	works($dba, 'SELECT count(*) FROM back', '0', "text: $name: nothing got in");

	# the same in binary: 11 bytes of signature, flags and extension, rows of counted fields
	my $binary = "PGCOPY\n\xff\r\n\0" . pack('N N', 0, 0);
	for my $row (@changed)
	{
		my ($id, @values) = @$row;
		$binary .= pack 'n N/a*', 5, pack('N', $id);
		for my $value (@values)
		{
			$binary .= $value eq '\\N' ? pack('N', 0xffffffff) : pack('N/a*', $value =~ /^ec1:/ ? bytes($value) : $value);
		}
	}
	unlink $file;
	open $out, '>:raw', $file or die;
	print $out $binary, pack('n', 0xffff);
	close $out;
	$state = '22P03' if $state eq '22P02';
	fails_with($dba, "COPY back FROM '$file' (FORMAT binary)", { state => $state, message => $message }, "binary: $name");
	works($dba, 'SELECT count(*) FROM back', '0', "binary: $name: nothing got in");
	return;
}
my $malformed = qr/^invalid (binary )?input for type encrypted/;
fails('plaintext', '22P02', $malformed, sub { $_[0][1] = '123-45-6789-plaintext'; });
fails('a value that is cut short', '22P02', $malformed, sub { $_[0][1] = text(substr bytes($_[0][1]), 0, 50); });
fails('an unknown type', '22P02', $malformed, sub { my $v = bytes($_[0][4]); substr($v, 1, 1) = "\x1f"; $_[0][4] = text($v); });
fails('a token without a label', '22P02', $malformed, sub { my $v = bytes($_[0][1]); substr($v, 1, 1) = "\x41"; $_[0][1] = text($v); });
fails('a search key of version 0', '22P02', $malformed, sub { my $v = bytes($_[0][1]); substr($v, 13, 1) = "\x40"; $_[0][1] = text($v); });
fails('another search mode', '22000', qr/^a value that is searchable_nocase does not fit a column of type encrypted\(text, searchable, ssn\)$/,
	sub { my $v = bytes($_[0][1]); substr($v, 13, 1) = "\x81"; $_[0][1] = text($v); });
fails('columns swapped', '22000', qr/^a value of type date does not fit a column of type encrypted\(text, searchable, ssn\)$/, sub { @{ $_[0] }[ 1, 2 ] = @{ $_[0] }[ 2, 1 ]; });
fails('an unlabelled value where a label is declared', '22000', qr/^a value without a label does not fit /, sub { $_[0][1] = $_[0][3]; });
fails('a labelled value where none is declared', '22000', qr/^a value with the label ssn does not fit /, sub { $_[0][3] = $_[0][1]; });
fails('another type', '22000', qr/^a value of type int4 does not fit /, sub { $_[0][3] = $_[0][4]; });
for my $secret ('123-45-6789-plaintext')
{
	ok(index(log_of($node), $secret) < 0, 'the log does not repeat what was fed in');
}

# what passes by its form is found out when it is read
sub swapped
{
	my ($name, $change, $query, $message) = @_;
	my @changed = map { [@$_] } @rows;
	$change->(@changed);
	my $file = "$folder/swapped";
	unlink $file;
	open my $out, '>:raw', $file or die;
	print $out map { join("\t", @$_) . "\n" } @changed;
	close $out;
	$dba->value("TRUNCATE back; COPY back FROM '$file'");
	fails_with($dba, $query, { state => '22000', message => $message }, $name);
	return;
}
my $tampered = qr/^could not decrypt the value$/;
my $other = $dba->value("SELECT envcrypt.encrypt('x', tenant => 'other')");
swapped("another tenant's key", sub { my $v = bytes($_[2][3]); substr($v, 2, 8) = substr bytes($other), 2, 8; $_[2][3] = text($v); },
	'SELECT envcrypt.decrypt(free) FROM back', $tampered);
swapped('another type', sub { my $v = bytes($_[2][4]); substr($v, 1, 1) = "\x06"; $_[2][4] = text($v); }, 'SELECT envcrypt.decrypt(raw) FROM back', $tampered);
swapped("another row's token", sub { my $v = bytes($_[2][1]); substr($v, 14, 16) = substr bytes($_[3][1]), 14, 16; $_[2][1] = text($v); },
	'SELECT envcrypt.decrypt(ssn) FROM back', $tampered);
swapped("another column's label", sub { my $v = bytes($_[2][1]); substr($v, 10, 3) = substr bytes($_[2][2]), 10, 3; $_[2][4] = text($v); },
	"SELECT envcrypt.decrypt(raw, label => 'born') FROM back WHERE id = 3", $tampered);
swapped('a label taken off', sub { my $v = bytes($_[2][2]); $_[2][4] = text("\x11\x09" . substr($v, 2, 8) . substr $v, 13); },
	'SELECT envcrypt.decrypt(raw) FROM back WHERE id = 3', $tampered);
# a token that was moved leads a search to a row that does not decrypt, and never to another's plaintext
swapped('a search that a moved token misleads', sub { my $v = bytes($_[2][1]); substr($v, 14, 16) = substr bytes($_[3][1]), 14, 16; $_[2][1] = text($v); },
	"SELECT envcrypt.decrypt(ssn) FROM back WHERE envcrypt.matches(ssn, 'ssn-4') ORDER BY id", $tampered);
$dba->close;
$node->stop;
done_testing();
