# Applications write, read, search and copy by the recipes of doc/drivers.md, and are told what they did wrong; the code that
# runs is the page's. test/drivers has one program for each driver.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_PYTHON_DRIVERS and ENVCRYPT_NODE are not set' if !$ENV{ENVCRYPT_PYTHON_DRIVERS} && !$ENV{ENVCRYPT_NODE};

my $page = slurp_file("$test_dir/../doc/drivers.md");
my $node = new_cluster('drivers');
my $dba = Envcrypt::Session->new($node);
my $key_file = write_secret(PostgreSQL::Test::Utils::tempdir() . '/key', '5a' x 32);
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE ROLE app LOGIN; CREATE USER MAPPING FOR CURRENT_USER SERVER kms; CREATE USER MAPPING FOR app SERVER kms;
	GRANT USAGE ON FOREIGN SERVER kms TO app; SELECT envcrypt.grant_access('app', '{encrypt,decrypt,search}');
	SELECT envcrypt.create_tenant(name, 'kms') FROM unnest('{acme,other}'::text[]) name");

# the page's SQL, as psql takes it
my $sql = join "\n", $page =~ /^```sql\n(.*?)^```$/msg;
$node->safe_psql('postgres', "SET client_min_messages = error;\n$sql");
works($dba, "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relname LIKE 'patient%' AND relkind IN ('r', 'v')", 'patient,patient_plain',
	'the SQL of the page');

# A program that says "ok NAME" or "not ok NAME : WHY" for each of its tests, and "done" at its end.
sub driver
{
	my ($name, @command) = @_;
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGUSER => 'app', PGDATABASE => 'postgres', ENVCRYPT_TEST_DIR => $test_dir,
		HOME => PostgreSQL::Test::Utils::tempdir(), PYTHONDONTWRITEBYTECODE => 1);
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(300));
	ok($1 eq 'ok', $2) or diag($3 // '') while $out =~ /^(ok|not ok) ([^\n]*?)( : [^\n]*)?$/mg;
	ok($out =~ /^done$/m, "$name ran to its end") or diag($out, $err);
	return;
}

my $drivers = "$test_dir/drivers";
SKIP:
{
	skip 'ENVCRYPT_PYTHON_DRIVERS is not set', 1 if !$ENV{ENVCRYPT_PYTHON_DRIVERS};
	driver($_, $ENV{ENVCRYPT_PYTHON_DRIVERS}, "$drivers/${_}_.py") for qw(psycopg asyncpg sqlalchemy django);
}
SKIP:
{
	skip 'ENVCRYPT_NODE is not set', 1 if !$ENV{ENVCRYPT_NODE};
	local $ENV{NODE_PATH} = "$ENV{ENVCRYPT_NODE}/node_modules";
	driver('pg', 'node', "$drivers/pg.js");
	driver('prisma', 'node', "$drivers/prisma.js");
}

# every driver gave this where only ciphertext fits
holds_none(log_of($node), { plaintext => '123-45-6789' }, 'the log holds no plaintext that was refused');
# the search is served by the index
$dba->value("SET envcrypt.tenant = 'acme'; SET enable_seqscan = off; TRUNCATE patient");
like($dba->value("EXPLAIN (COSTS OFF) SELECT FROM patient_plain WHERE envcrypt.matches(ssn_encrypted, 'x')"), qr/Index.* on patient|using patient_ssn_idx/,
	'the view is searched by the index');
done_testing();
