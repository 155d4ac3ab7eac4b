# Dumps carry ciphertext, wrapped keys and rights, and neither plaintext nor secrets; they restore without a KMS, in
# every way, into a new database, another encoding and a new cluster, and then the values decrypt.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
my $node = new_cluster('source');
my $dba = Envcrypt::Session->new($node);

# --- what is dumped: tables enough for four jobs, and a role with rights of its own
my @tables = map { "patient_$_" } 1 .. 8;
$dba->value('CREATE ROLE app LOGIN; CREATE ROLE other LOGIN');
$dba->value($kms->create_server('kms') . $kms->create_login('kms', 'app'));
$dba->value("GRANT USAGE ON FOREIGN SERVER kms TO app;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt}');
	SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('other', 'kms'), envcrypt.create_group_key('group', 'kms');
	SELECT envcrypt.move_tenant('other', 'group')");
for my $table (@tables)
{
	$dba->value("CREATE TABLE $table (id int PRIMARY KEY, ssn envcrypt.encrypted(text), scan envcrypt.encrypted(bytea),
			any_type envcrypt.encrypted, several envcrypt.encrypted[]);
		GRANT SELECT, INSERT ON $table TO app;
		INSERT INTO $table SELECT i, v, envcrypt.encrypt(decode('abcdef0123', 'hex'), tenant => 'other'), v, ARRAY[v, v]
		FROM generate_series(1, 200) i, LATERAL envcrypt.encrypt('plaintext-\xc3\xa9-' || i, tenant => 'acme') v");
}
$dba->value("CREATE MATERIALIZED VIEW summary AS SELECT id, ssn FROM patient_1");

$dba->value("SELECT envcrypt.rotate_key('acme')");

# What a restored database must show, as a checksum of all plaintexts of all tables.
my $contents = 'SELECT md5(string_agg(line, chr(10) ORDER BY line)) FROM ('
  . join(' UNION ALL ', map { "SELECT '$_' || id || envcrypt.decrypt(ssn) || encode(scan::bytea, 'hex')
	|| envcrypt.decrypt(any_type) || envcrypt.decrypt(several[2]) AS line FROM $_" } @tables)
  . ') all_lines';
my $expected = $dba->value($contents);
my $columns = "SELECT string_agg(format_type(atttypid, atttypmod), ',' ORDER BY attnum) FROM pg_attribute
	WHERE attrelid = 'patient_1'::regclass AND attnum > 0";
my $declared = $dba->value($columns);
is($declared, 'integer,envcrypt.encrypted(text),envcrypt.encrypted(bytea),envcrypt.encrypted,envcrypt.encrypted[]', 'the declarations');

my %secrets = (
	plaintext => "plaintext-\xc3\xa9-", 'plaintext in hex' => unpack('H*', 'plaintext-'), bytea => 'abcdef0123',
	'secret id' => $kms->secret_id, token => $kms->token);

# --- dumped and restored without a KMS
my $dumps = PostgreSQL::Test::Utils::tempdir();
my $asked = $kms->count('.');
my $globals = "$dumps/globals.sql";
$node->command_ok([ 'pg_dumpall', '--globals-only', '-f', $globals, '-d', $node->connstr('postgres') ], 'pg_dumpall --globals-only');
my %dump = (
	plain => [ '-Fp' ], inserts => [ '-Fp', '--column-inserts', '--rows-per-insert=50' ], custom => [ '-Fc' ],
	directory => [ '-Fd', '-j4' ]);
for my $format (sort keys %dump)
{
	$node->command_ok([ 'pg_dump', @{ $dump{$format} }, '-f', "$dumps/$format", '-d', $node->connstr('postgres') ], "pg_dump: $format");
}
is($kms->count('.'), $asked, 'dumping asked no KMS');
holds_none(slurp_file("$dumps/$_"), \%secrets, "the dump holds no plaintext and no secret: $_") for qw(plain inserts);
like(slurp_file("$dumps/plain"), qr/ssn envcrypt\.encrypted\('?text'?\)/, 'the dump declares the columns');
like(slurp_file("$dumps/plain"), qr/^1\tec1:/m, 'the dump holds ciphertext');
$kms->stop;

my $new_cluster = new_cluster('target', extension => 0);
$new_cluster->command_ok([ 'psql', '-X', '-q', '-f', $globals, '-d', $new_cluster->connstr('postgres') ], 'the roles of the new cluster');

my @restored;    # [ cluster, database, how ]

sub restored_by
{
	my ($cluster, $database, $how, @command) = @_;
	$cluster->command_ok([ @command, '-d', $cluster->connstr($database) ], "restore: $how");
	push @restored, [ $cluster, $database, $how ];
	return;
}
for my $place ([ $node, 'a new database' ], [ $new_cluster, 'a new cluster' ])
{
	my ($cluster, $where) = @$place;
	for my $format (sort keys %dump)
	{
		my $database = "from_$format";
		$cluster->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");
		my @command = $dump{$format}[0] eq '-Fp' ? ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dumps/$format")
		  : ('pg_restore', '-e', '-j4', "$dumps/$format");
		restored_by($cluster, $database, "$format into $where", @command);
	}
}
$node->safe_psql('postgres', "CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
restored_by($node, 'latin1', 'custom into a database in LATIN1', 'pg_restore', '-e', '-j4', "$dumps/custom");
# in three steps, as with triggers and constraints put off
$node->safe_psql('postgres', 'CREATE DATABASE sections TEMPLATE template0');
$node->command_ok([ 'pg_restore', '-e', "--section=$_", '-d', $node->connstr('sections'), "$dumps/custom" ], "restore: section $_")
  for qw(pre-data data);
restored_by($node, 'sections', 'section by section', 'pg_restore', '-e', '--section=post-data', "$dumps/custom");

# --- the KMS is back
$kms = Envcrypt::Kms->start;
my $move = "ALTER SERVER kms OPTIONS (SET endpoint '" . $kms->url('good') . "', SET ca_file '" . $kms->ca_file . "');
	ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET secret_id 'file:$kms->{secret_id_file}');
	ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (SET token 'file:$kms->{token_file}')";
for (@restored)
{
	my ($cluster, $database, $how) = @$_;
	my $owner = Envcrypt::Session->new($cluster, database => $database);
	$owner->value($move);
	my $app = Envcrypt::Session->new($cluster, database => $database, role => 'app', environment => { PGCLIENTENCODING => 'UTF8' });
	if ($database eq 'latin1')
	{
		works($app, 'SELECT envcrypt.decrypt(ssn) FROM patient_1 WHERE id = 7', "plaintext-\xc3\xa9-7", "$how: decrypts");
	}
	else
	{
		works($app, $contents, $expected, "$how: the role's rights are back and every value decrypts");
	}
	works($app, "INSERT INTO patient_1 (id, ssn) SELECT 1000, envcrypt.encrypt('new'::text, tenant => 'acme');
		SELECT envcrypt.decrypt(ssn) FROM patient_1 WHERE id = 1000", 'new', "$how: and new ones are encrypted");
	works($owner, $columns, $declared, "$how: the declarations");
	works($owner, "SELECT envcrypt.create_tenant('new', 'kms'); SELECT envcrypt.decrypt(envcrypt.encrypt('x'::text, tenant => 'new'))",
		"\nx", "$how: a new tenant");
	fails_with($owner, 'DROP EXTENSION envcrypt CASCADE', { state => '2BP01' }, "$how: the guards are back");
	fails_with(Envcrypt::Session->new($cluster, database => $database, role => 'other'), 'SELECT envcrypt.decrypt(ssn) FROM patient_1',
		{ state => '42501' }, "$how: no rights but those");
}

# --- a table without its keys
$node->command_ok([ 'pg_dump', '-t', 'patient_1', '-f', "$dumps/table", '-d', $node->connstr('postgres') ], 'pg_dump -t');
$node->safe_psql('postgres', 'CREATE DATABASE no_keys TEMPLATE template0');
$node->safe_psql('no_keys', 'CREATE EXTENSION envcrypt');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dumps/table", '-d', $node->connstr('no_keys') ],
	'a table is restored without its keys');
my $no_keys = Envcrypt::Session->new($node, database => 'no_keys');
fails_with($no_keys, 'SELECT envcrypt.decrypt(ssn) FROM patient_1', { state => '42704', message => qr/^key [0-9a-f]{16} does not exist$/,
	hint => 'The value comes from another database, or the key tables were not restored with it.' }, 'its values do not decrypt');
works($no_keys, 'SELECT count(*), count((envcrypt.inspect(ssn)).key_id), count((envcrypt.inspect(ssn)).tenant) FROM patient_1',
	'200|200|0', 'but can be inspected');
$no_keys->value($kms->create_server('kms'));
$dba->value($move);
my @exported = map { $dba->value("SELECT envcrypt.export_keys('$_')") } qw(acme other);
works($no_keys, join('; ', map { "SELECT envcrypt.import_keys('$_')" } @exported) . '; SELECT count(envcrypt.decrypt(ssn)), count(scan::bytea) FROM patient_1', "3\n3\n200|200",
	'once its keys are imported they do');
holds_none(join('', @exported), \%secrets, 'what was exported holds no secret');

$_->close for $dba, $no_keys;
$_->stop for $node, $new_cluster;
done_testing();
