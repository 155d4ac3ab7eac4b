# Behind a real PgBouncer in transaction mode, two clients share one server connection: each writes, finds and reads its own
# tenant, and what one forgets or leaves is never the other's. The recipe is that of doc/poolers.md.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Pooler;
use Envcrypt::Test;

# test/run counts its absence as a failure
plan skip_all => 'no PgBouncer' if !Envcrypt::Pooler::program();

my $node = new_cluster('pooler', conf => "log_statement = none\n");
my $key_file = write_secret(PostgreSQL::Test::Utils::tempdir() . '/key', '5a' x 32);
my $dba = Envcrypt::Session->new($node);
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms;
	SELECT envcrypt.create_tenant('acme', 'kms'), envcrypt.create_tenant('other', 'kms');
	CREATE ROLE app LOGIN;
	CREATE USER MAPPING FOR app SERVER kms;
	GRANT USAGE ON FOREIGN SERVER kms TO app;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt,search}');
	ALTER ROLE app SET client_min_messages = error");
# the recipe
$dba->value("
	ALTER ROLE app SET envcrypt.tenant_scope = transaction;
	ALTER ROLE app SET session_preload_libraries = 'envcrypt';
	CREATE TABLE patient (
		tenant text NOT NULL DEFAULT envcrypt.current_tenant(), id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (tenant, id),
		ssn envcrypt.encrypted(text, searchable, ssn), born envcrypt.encrypted(date, born));
	CREATE INDEX ON patient (ssn);
	ALTER TABLE patient ENABLE ROW LEVEL SECURITY;
	CREATE POLICY tenant ON patient USING (tenant = envcrypt.current_tenant());
	GRANT SELECT, INSERT, UPDATE, DELETE ON patient TO app");

# PgBouncer passes no options on, and says so: the session sends none
sub client { return Envcrypt::Session->new($_[0], role => 'app', environment => { PGOPTIONS => '' }); }
sub of { my ($tenant, $sql) = @_; return "BEGIN; SET LOCAL envcrypt.tenant = '$tenant'; $sql; COMMIT"; }
my %unset = (state => '55000', message => 'envcrypt.tenant was not set in this transaction');
my $all = "SELECT string_agg(tenant || ' ' || envcrypt.decrypt(ssn), ', ' ORDER BY id) FROM patient";
my $find = "SELECT count(*) FROM patient WHERE envcrypt.matches(ssn, 'same')";

# --- with PgBouncer's own defaults, so that only envcrypt guards
my $pooler = Envcrypt::Pooler->start($node, roles => ['app']);
my ($one, $two) = (client($pooler), client($pooler));
is($one->pid, $two->pid, 'two clients share one server connection');

fails_with($one, "INSERT INTO patient (ssn) VALUES ('x'::text)", {%unset}, 'a connection that nobody has set a tenant in writes nothing');
fails_with($one, 'SELECT count(*) FROM patient', {%unset}, 'and reads nothing');

# transactions take turns; the second waits for the connection
$one->value("BEGIN; SELECT set_config('envcrypt.tenant', 'acme', true); INSERT INTO patient (ssn, born) VALUES ('same'::text, date '1970-01-01')");
$two->begin("BEGIN; SELECT set_config('envcrypt.tenant', 'other', true); INSERT INTO patient (ssn) VALUES ('same'::text); $find");
$one->value("INSERT INTO patient (ssn) VALUES ('of acme'::text)");
works($one, "$find; $all; COMMIT", "1\nacme same, acme of acme", 'the first sees what it wrote');
is($two->result->{rows}, "other\n1", 'and the second, that waited, what it wrote');
works($two, "$all; ROLLBACK", 'other same', 'and nothing else');
for my $turn (1 .. 3)
{
	works($two, of('other', "INSERT INTO patient (ssn) VALUES ('same'::text); $find; $all"), "$turn\n" . join(', ', ('other same') x $turn), "turn $turn: one tenant");
	works($one, of('acme', "$find; $all"), "1\nacme same, acme of acme", "turn $turn: the other");
}
works($dba, "SELECT string_agg(DISTINCT tenant || ' ' || (envcrypt.inspect(ssn)).tenant, ', ') FROM patient", 'acme acme, other other', 'each row under its own key');
fails_with($one, "BEGIN; SET LOCAL envcrypt.tenant = 'acme'; INSERT INTO patient (tenant, ssn) VALUES ('other', 'x'::text)", { state => '42501', message => qr/row-level security/ }, "a row of another's is refused");
$one->ask('ROLLBACK');

# --- forgotten
fails_with($one, "BEGIN; INSERT INTO patient (ssn) VALUES ('x'::text)", {%unset}, 'forgotten: a write');
fails_with($one, "ROLLBACK; BEGIN; $find", {%unset}, 'forgotten: a search');
fails_with($one, "ROLLBACK; UPDATE patient SET ssn = 'x'::text RETURNING id", {%unset}, 'forgotten: a change');
fails_with($one, 'DELETE FROM patient', {%unset}, 'forgotten: a deletion');
fails_with($one, 'SELECT count(*) FROM patient', {%unset}, 'forgotten: reading');

# --- left by SET, by the client before
$two->value("SET envcrypt.tenant = 'other'");
fails_with($one, "INSERT INTO patient (ssn) VALUES ('x'::text)", {%unset}, "left by another client: a write");
fails_with($one, "INSERT INTO patient (tenant, ssn) VALUES ('acme', 'x'::text)", {%unset}, "left by another client: a write that names the row's tenant");
fails_with($one, $find, {%unset}, 'left by another client: a search');
fails_with($one, "BEGIN; $find", {%unset}, 'left by another client: a search in a transaction');
$one->ask('ROLLBACK');
fails_with($two, "SET envcrypt.tenant = 'other'; $find", {%unset}, "left by the client itself");
works($one, of('acme', "$find; $all"), "1\nacme same, acme of acme", 'set for the transaction, it is one\'s own');
fails_with($one, $find, {%unset}, 'what was left is back afterwards, and refused');
fails_with($one, $all, {%unset}, 'left by another client: reading');
fails_with($one, 'DELETE FROM patient', {%unset}, 'left by another client: a deletion');
fails_with($one, 'SET envcrypt.tenant_scope = session', { state => '42501' }, 'the application cannot switch the check off');

# the view with plaintext types takes the tenant from the row, whose default asks as the policy does
$dba->value($dba->value("SELECT envcrypt.view_ddl('patient', 'tenant')"));
$dba->value('GRANT SELECT, INSERT, UPDATE, DELETE ON patient_plain TO app');
fails_with($one, $_, {%unset}, "by the view: $_") for "INSERT INTO patient_plain (ssn) VALUES ('x')", 'SELECT ssn FROM patient_plain', "UPDATE patient_plain SET ssn = 'x'",
	'DELETE FROM patient_plain';
works($one, of('acme', "INSERT INTO patient_plain (ssn) VALUES ('by view') RETURNING tenant, envcrypt.matches(ssn_encrypted, 'by view'); DELETE FROM patient_plain WHERE ssn = 'by view' RETURNING tenant"),
	"acme|t\nacme", 'by the view: of its own tenant');

# --- prepared in SQL by one client, executed by another
$two->value(of('other', "PREPARE find(text) AS SELECT count(*), min(tenant) FROM patient WHERE envcrypt.matches(ssn, \$1);
	PREPARE put(text) AS INSERT INTO patient (ssn) VALUES (\$1) RETURNING tenant, (envcrypt.inspect(ssn)).tenant"));
for my $mode ('force_custom_plan', 'force_generic_plan')
{
	my $set = "SET LOCAL plan_cache_mode = $mode";
	for (1 .. 2)
	{
		works($two, of('other', "$set; EXECUTE find('same')"), '3|other', "$mode: prepared by itself");
		works($one, of('acme', "$set; EXECUTE find('same')"), '1|acme', "$mode: prepared by the other");
	}
	works($one, of('acme', "$set; EXECUTE put('$mode')"), 'acme|acme', "$mode: and written");
	fails_with($one, "BEGIN; $set; EXECUTE find('same')", {%unset}, "$mode: forgotten");
	fails_with($one, "ROLLBACK; BEGIN; $set; EXECUTE put('x')", {%unset}, "$mode: forgotten, to write");
	$one->ask('ROLLBACK');
}
$one->value(of('acme', "DELETE FROM patient WHERE envcrypt.matches_any(ssn, '{force_custom_plan,force_generic_plan}'::text[])"));

# --- options of the connection would be a tenant for the session
{
	local $ENV{PGOPTIONS} = '-c envcrypt.tenant=other';
	my $said = '';
	IPC::Run::run([ 'psql', '-Xc', 'SELECT 1', $pooler->connstr('postgres') . ' user=app' ], '>', \my $out, '2>', \$said);
	like($said, qr/unsupported startup parameter/, 'PgBouncer refuses a tenant in the options of a connection') if Envcrypt::Pooler::version() < 1.020;
}
$_->close for $one, $two;
$pooler->stop;

# --- with PgBouncer's support of prepared statements, where it has any
$pooler = Envcrypt::Pooler->start($node, roles => ['app'], settings => Envcrypt::Pooler::version() >= 1.021 ? "max_prepared_statements = 100\n" : '');
($one, $two) = (client($pooler), client($pooler));
works($two, of('other', "SET envcrypt.tenant = 'other'; $find"), 3, 'set for the session inside a transaction, it serves that one');
fails_with($one, 'SELECT count(*) FROM patient', {%unset}, 'and no other');
works($one, of('acme', "$all; SELECT born::date FROM patient WHERE envcrypt.matches(ssn, 'same')"), "acme same, acme of acme\n1970-01-01", 'its own is there');
is($one->pid, $two->pid, 'still on one connection');

# --- the keys stay open from one transaction to the next: with the KMS away, both tenants go on
works($two, of('other', $find), 3, 'both keys are open');
rename $key_file, "$key_file.away" or die;
works($one, of('acme', "$find; $all"), "1\nacme same, acme of acme", 'open keys outlive the transaction: one tenant');
works($two, of('other', $find), 3, 'and the other');
rename "$key_file.away", $key_file or die;

# --- by index, under the policy
$dba->value("INSERT INTO patient (tenant, ssn) SELECT t, envcrypt.encrypt(n::text, tenant => t, label => 'ssn', search => 'searchable')
	FROM unnest('{acme,other}'::text[]) t, generate_series(1, 2000) n; ANALYZE patient");
like($one->value(of('acme', "EXPLAIN (COSTS OFF) SELECT id FROM patient WHERE envcrypt.matches(ssn, '42')")), qr/Index Cond: .*ssn OPERATOR\(envcrypt\.=\)/,
	'a search uses its index under the policy');
works($one, of('acme', "SELECT tenant, envcrypt.decrypt(ssn) FROM patient WHERE envcrypt.matches(ssn, '42')"), 'acme|42', 'and finds the tenant\'s own');
$_->close for $one, $two;

# --- many clients of two tenants, in each protocol that this PgBouncer carries; a row of another's is a division by zero. A
# thread each: pgbench waits for an answer while it prepares, and another of its clients could hold the one connection
my $dir = PostgreSQL::Test::Utils::tempdir();
for my $tenant (qw(acme other))
{
	append_to_file("$dir/$tenant.sql", "\\set n random(1, 2000)
BEGIN;
SELECT set_config('envcrypt.tenant', '$tenant', true);
SELECT 1 / (count(*) = 1 AND min(tenant) = '$tenant' AND min(envcrypt.decrypt(ssn)) = (:n)::text)::int FROM patient WHERE envcrypt.matches(ssn, (:n)::text);
INSERT INTO patient (ssn) VALUES (('by pgbench ' || :n)::text) RETURNING 1 / (tenant = '$tenant' AND (envcrypt.inspect(ssn)).tenant = '$tenant')::int;
COMMIT;
");
}
# forgets, and must never see or write a row
append_to_file("$dir/none.sql", "DO \$\$ BEGIN PERFORM count(*) FROM patient; RAISE 'was let in';
EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END \$\$;\n");
my @protocols = ('simple', 'extended', Envcrypt::Pooler::version() >= 1.021 ? 'prepared' : ());
for my $protocol (@protocols)
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'pgbench', '-n', '-M', $protocol, '-c', 6, '-j', 6, '-t', 100, map({ ('-f', "$dir/$_.sql") } qw(acme other none)),
		'-h', $pooler->host, '-p', $pooler->port, '-U', 'app', 'postgres' ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180));
	like($out, qr{transactions actually processed: 600/600}, "six clients of two tenants, $protocol") or diag($out, $err);
}
works($dba, "SELECT string_agg(DISTINCT tenant || ' ' || (envcrypt.inspect(ssn)).tenant, ', ') FROM patient", 'acme acme, other other', 'each row under its own key still');

$pooler->stop;
done_testing();
