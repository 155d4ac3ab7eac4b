# Ways into declared columns, out of the settings and past the limits of memory that need a session of their own, or one
# that has not loaded the library yet.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

my $node = new_cluster('doors');
my $dba = Envcrypt::Session->new($node);
my $key_file = PostgreSQL::Test::Utils::tempdir() . '/key';
write_secret($key_file, '5a' x 32 . "\n");
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE ROLE app LOGIN;
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms; CREATE USER MAPPING FOR app SERVER kms; GRANT USAGE ON FOREIGN SERVER kms TO app;
	SELECT envcrypt.grant_access('app', '{encrypt,decrypt,search}'); SELECT envcrypt.create_tenant('acme', 'kms');
	ALTER DATABASE postgres SET envcrypt.tenant = 'acme'; GRANT CREATE ON SCHEMA public TO app");

# --- plpgsql keeps the declaration that a record's field had first
$dba->value("SET envcrypt.tenant = 'acme';
	CREATE TABLE aa (s envcrypt.encrypted(text, searchable, aa)); INSERT INTO aa VALUES ('x'::text);
	CREATE TABLE bb (s envcrypt.encrypted(text, searchable, bb)); INSERT INTO bb VALUES ('x'::text);
	CREATE TABLE dates (s envcrypt.encrypted(date)); INSERT INTO dates VALUES (date '2000-01-01');
	CREATE TABLE bare (s envcrypt.encrypted(text, aa)); INSERT INTO bare VALUES ('x'::text);
	CREATE TABLE into_aa (LIKE aa); CREATE TABLE arrays (s envcrypt.encrypted(text, searchable, aa)[]); INSERT INTO arrays VALUES ('{}');
	CREATE TABLE anything (s envcrypt.encrypted)");
# what is done with a record of each table in turn
sub with_records
{
	my ($statement, @tables) = @_;
	return "DO \$\$ DECLARE r record; v envcrypt.encrypted(text, searchable, aa); t text; BEGIN
		FOREACH t IN ARRAY '{" . join(',', @tables) . "}'::text[] LOOP
			FOR r IN EXECUTE format('SELECT s, ARRAY[s] AS a, s::text AS t FROM %I', t) LOOP $statement; END LOOP; END LOOP; END \$\$";
}
for my $preload ('', 'envcrypt')
{
	my $session = Envcrypt::Session->new($node, environment => { PGOPTIONS => "-c client_min_messages=error -c session_preload_libraries=$preload" });
	$session->value("SELECT envcrypt.decrypt(s) FROM aa") if !$preload;
	for my $case ([ 'bb', qr/label bb does not fit/ ], [ 'dates', qr/type date does not fit/ ], [ 'bare', qr/without a search token/ ])
	{
		my ($table, $message) = @$case;
		my %refused = (state => '22000', message => $message);
		my $how = "$table" . ($preload && ', preloaded');
		fails_with($session, with_records('INSERT INTO into_aa VALUES (r.s)', 'aa', $table), {%refused}, "a record's field, inserted: $how");
		fails_with($session, with_records('UPDATE arrays SET s[1] = r.s', 'aa', $table), {%refused}, "assigned to an element: $how");
		fails_with($session, with_records('v := r.s; INSERT INTO into_aa VALUES (v)', 'aa', $table), {%refused}, "by a variable: $how");
		fails_with($session, with_records("IF NOT envcrypt.matches(r.s, 'x') THEN RAISE 'not found'; END IF", 'aa', $table), {%refused}, "searched for: $how");
		fails_with($session, with_records('SELECT r.s INTO v; INSERT INTO into_aa VALUES (v)', 'aa', $table), {%refused}, "by SELECT INTO: $how");
		fails_with($session, with_records('INSERT INTO into_aa SELECT r.s FROM generate_series(1, 2)', 'aa', $table), {%refused}, "by INSERT SELECT: $how");
		fails_with($session, with_records('UPDATE aa SET s = r.s', 'aa', $table), {%refused}, "updated: $how");
		fails_with($session, with_records('INSERT INTO into_aa VALUES (CASE WHEN true THEN r.s END)', 'aa', $table), {%refused}, "within an expression: $how");
		fails_with($session, with_records('INSERT INTO into_aa VALUES (r.a[1])', 'aa', $table), {%refused}, "an array's element: $how");
		fails_with($session, with_records('INSERT INTO arrays VALUES (r.a)', 'aa', $table), {%refused}, "an array: $how");
		works($session, with_records("INSERT INTO anything VALUES (r.s); IF r.s IS NULL OR r.s::text <> r.t THEN RAISE 'changed'; END IF", 'aa', $table), '', "moved to where nothing is declared: $how")
	}
	works($session, with_records("INSERT INTO into_aa VALUES (r.s); v := r.s; UPDATE arrays SET s[1] = v; ASSERT envcrypt.matches(r.s, 'x') AND envcrypt.decrypt(r.s) = 'x'", 'aa', 'aa')
		. '; SELECT count(*) FROM into_aa', 2 * (1 + !!$preload), 'what fits goes in' . ($preload && ', preloaded'));
}
# a trigger's plan is older than the column's declaration: it reads and copies on
my $pooled = Envcrypt::Session->new($node);
$pooled->value("SET envcrypt.tenant = 'acme'; CREATE TABLE m (id int PRIMARY KEY, s envcrypt.encrypted(text)); CREATE TABLE m_log (s envcrypt.encrypted);
	CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN IF NEW.s IS NULL THEN RAISE 'none'; END IF; INSERT INTO m_log VALUES (NEW.s); RETURN NEW; END \$\$;
	CREATE TRIGGER x BEFORE INSERT ON m FOR EACH ROW EXECUTE FUNCTION trg(); INSERT INTO m VALUES (1, 'alice'::text)");
$dba->value("SET envcrypt.tenant = 'acme'; ALTER TABLE m ALTER s TYPE envcrypt.encrypted(text, searchable, nm) USING envcrypt.decrypt(s)");
works($pooled, "INSERT INTO m VALUES (2, 'carol'::text); SELECT count(*), count(*) FILTER (WHERE envcrypt.matches(s, 'carol')) FROM m", '2|1', 'after ALTER TYPE');
$pooled->close;
is($dba->value('SELECT count(*) FROM into_aa WHERE NOT envcrypt.matches(s, \'x\')'), 0, 'and is found');

# --- the statement that loads the library began without its hooks
my $mv = 'EXPLAIN (ANALYZE) CREATE MATERIALIZED VIEW mv AS SELECT envcrypt.decrypt(s) FROM aa';
$dba->value('GRANT SELECT ON aa, bb TO app; CREATE FUNCTION decr(i int) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT envcrypt.decrypt(s) FROM aa); END $$');
for my $statement ($mv, "$mv WHERE envcrypt.matches(s, 'x')", "DO \$\$ BEGIN PERFORM envcrypt.decrypt(s) FROM aa; EXECUTE '$mv'; END \$\$",
	"DO \$\$ BEGIN EXECUTE '$mv'; END \$\$", 'EXPLAIN ANALYZE CREATE MATERIALIZED VIEW mv AS SELECT decr(i) FROM generate_series(1, 1) i')
{
	fails_with(Envcrypt::Session->new($node, role => 'app'), $statement, { state => '55000', message => qr/security-restricted/ },
		"the first statement of a session: $statement");
}
is($dba->value("SELECT to_regclass('mv')"), '', 'no such view is left');
works(Envcrypt::Session->new($node, role => 'app'), 'BEGIN; CREATE MATERIALIZED VIEW innocent AS SELECT 1; SELECT envcrypt.decrypt(s) FROM aa; COMMIT', 'x',
	'a materialized view that was there before the library');

works(Envcrypt::Session->new($node, role => 'app'), 'SELECT envcrypt.decrypt(s) FROM aa; CREATE MATERIALIZED VIEW innocent_too AS SELECT 1; SELECT envcrypt.decrypt(s) FROM aa', "x\nx",
	'one that is made after it, in the same message');
works(Envcrypt::Session->new($node, role => 'app'), 'SELECT envcrypt.decrypt(s) FROM aa; BEGIN; CREATE MATERIALIZED VIEW innocent_three AS SELECT 1;
	SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL parallel_leader_participation = off;
	SELECT count(envcrypt.decrypt(s)) FROM aa; COMMIT', "x\n1", 'and parallel workers');

# --- what is searched for each row once follows changes all the same
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE slow (s envcrypt.encrypted(text, searchable, slow)); INSERT INTO slow SELECT (n % 3)::text FROM generate_series(1, 3000) n");
for my $change ([ "SELECT envcrypt.disable_tenant('acme')", "SELECT envcrypt.enable_tenant('acme')", '55000' ],
	[ "SELECT envcrypt.revoke_access('app', '{search}')", "SELECT envcrypt.grant_access('app', '{search}')", '42501' ])
{
	my ($do, $undo, $state) = @$change;
	$dba->value('GRANT SELECT ON slow TO app');
	my $scanning = Envcrypt::Session->new($node, role => 'app');
	$scanning->begin("SELECT count(*) FROM (SELECT s, pg_sleep(0.01) FROM slow OFFSET 0) b WHERE envcrypt.matches(s, '1')");
	wait_until('the scan runs', sub { $dba->value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") > 0 });
	$dba->value($do);
	is($scanning->result->{state}, $state, "a scan meets: $do");
	$dba->value($undo);
	$scanning->close;
}

# --- who has no right at all makes tables as before
$dba->value('CREATE ROLE nobody LOGIN; GRANT CREATE ON SCHEMA public TO nobody');
works(Envcrypt::Session->new($node, role => 'nobody'), 'CREATE TEMP TABLE x (i int UNIQUE); CREATE TABLE y (i int PRIMARY KEY); CREATE INDEX ON y (i); ALTER TABLE y ADD j int; DROP TABLE y', '',
	'a role without rights makes tables');

# --- options of a connection come before the library
$dba->value("ALTER ROLE app SET envcrypt.tenant_scope = transaction; ALTER DATABASE postgres SET envcrypt.cache_ttl = '60s'");
sub client
{
	my ($options, $user) = @_;
	my ($out, $err) = ('', '');
	local $ENV{PGOPTIONS} = "-c client_min_messages=error $options";
	IPC::Run::run([ 'psql', '-XAt', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres') . " user=$user", '-c', "SELECT envcrypt.decrypt(s) FROM aa",
		'-c', 'SHOW envcrypt.tenant_scope', '-c', 'SHOW envcrypt.cache_ttl' ], '>', \$out, '2>', \$err);
	chomp $out;
	return $out . $err;
}
is(client('', 'app'), "x\ntransaction\n1min", 'settings of role and database');
for my $library ('', 'envcrypt')
{
	$dba->value("ALTER ROLE app SET session_preload_libraries = '$library'") if $library;
	for my $option ('tenant_scope=session', 'tenant_scope=bogus', 'cache_ttl=86400', 'cache_size=2', 'require_mlock=off', 'tenant_set_in=7', 'session_credentials=on')
	{
		my ($name) = $option =~ /^(\w+)/;
		like(client("-c envcrypt.$option", 'app'), qr/FATAL:  (42501: )?permission denied to set parameter "envcrypt\.$name"/, "no client's to set: $option" . ($library && ', preloaded'));
	}
}
my ($super) = $dba->value('SELECT current_user');
is(client('-c envcrypt.cache_ttl=120 -c envcrypt.tenant=acme', $super), "x\nsession\n2min", 'a superuser may');
$dba->value('GRANT SET ON PARAMETER envcrypt.cache_ttl TO app');
is(client('-c envcrypt.cache_ttl=120', 'app'), "x\ntransaction\n2min", 'nor whom it was granted to');
is(client('-c envcrypt.tenant=acme', 'app'), "x\ntransaction\n1min", "the tenant is anybody's");

# --- the view of view_ddl() writes over nothing that another transaction has changed
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE doc (id int PRIMARY KEY, version int, a envcrypt.encrypted(text), b envcrypt.encrypted(text, searchable, b))");
$dba->value($dba->value("SELECT envcrypt.view_ddl('doc')"));
my $other = Envcrypt::Session->new($node);
$other->value("SET envcrypt.tenant = 'acme'");
for my $level ('READ COMMITTED', 'REPEATABLE READ')
{
	for my $case ([ 'the same column', "UPDATE doc_plain SET a = 'by two', version = 6 WHERE id = 1 AND version = 5" ],
		[ 'another column', "UPDATE doc_plain SET version = version + 1 WHERE id = 1" ], [ 'a deletion', 'DELETE FROM doc_plain WHERE id = 1' ])
	{
		my ($name, $statement) = @$case;
		$dba->value("DELETE FROM doc; INSERT INTO doc VALUES (1, 5, 'old'::text, 'old'::text)");
		$dba->value("BEGIN; UPDATE doc_plain SET a = 'by one', version = 6 WHERE id = 1 AND version = 5");
		$other->begin("BEGIN ISOLATION LEVEL $level; $statement");
		wait_until('the second waits for the first', sub { $dba->value('SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Lock\'') > 0 });
		$dba->value('COMMIT');
		is($other->result->{state}, '40001', "$level, $name: refused");
		$other->ask('ROLLBACK');
		works($dba, 'SELECT version, a FROM doc_plain', '6|by one', "$level, $name: the first stands");
		# of columns that are shown as ciphertext too
		$dba->value("BEGIN; UPDATE doc_plain SET b = 'by one' WHERE id = 1");
		$other->begin("BEGIN ISOLATION LEVEL $level; DELETE FROM doc_plain");
		wait_until('the second waits for the first', sub { $dba->value('SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Lock\'') > 0 });
		$dba->value('COMMIT');
		is($other->result->{state}, '40001', "$level, $name: and where a searchable column was changed");
		$other->ask('ROLLBACK');
	}
}
# what its own statement or transaction has changed is no conflict
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE par (id int PRIMARY KEY, up int REFERENCES par ON UPDATE CASCADE, s envcrypt.encrypted(text))");
$dba->value($dba->value("SELECT envcrypt.view_ddl('par')"));
works($dba, "INSERT INTO par_plain VALUES (1, NULL, 'x'), (2, 1, 'y'); UPDATE par_plain SET id = id + 10; SELECT id, up, s FROM par_plain ORDER BY 1", "11||x\n12|11|y", 'a cascade');
works($dba, "UPDATE par_plain SET s = e.s FROM (VALUES (11, 'twice'), (11, 'twice')) e(id, s) WHERE e.id = par_plain.id; SELECT s FROM par_plain WHERE id = 11", 'twice', 'a row that is met twice');
works($dba, "BEGIN; UPDATE par_plain SET s = 'a' WHERE id = 12; SAVEPOINT s; UPDATE par_plain SET s = s || 'b' WHERE id = 12; RELEASE s; UPDATE par_plain SET s = s || 'c' WHERE id = 12; COMMIT;
	SELECT s FROM par_plain WHERE id = 12", 'abc', 'its own transaction');
$dba->value("DELETE FROM doc; INSERT INTO doc VALUES (1, 5, 'old'::text, 'old'::text)");
$dba->value('BEGIN; DELETE FROM doc_plain');
$other->begin("UPDATE doc_plain SET a = 'x' RETURNING id");
wait_until('the second waits for the first', sub { $dba->value('SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Lock\'') > 0 });
$dba->value('COMMIT');
is($other->result->{rows}, '', 'a row that is gone is no error');
$other->close;

# --- sorting leaves nothing behind in the sort's memory
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE big (s envcrypt.encrypted(text, searchable, ssn)); INSERT INTO big SELECT n::text FROM generate_series(1, 100000) n;
	CREATE TABLE wide (s envcrypt.encrypted(text)); ALTER TABLE wide ALTER s SET STORAGE EXTERNAL; INSERT INTO wide SELECT repeat('x', 20000) FROM generate_series(1, 500)");
for my $statement ("SET maintenance_work_mem = '64MB'; SET max_parallel_maintenance_workers = 0; CREATE INDEX big_s ON big (s)",
	'SET max_parallel_workers_per_gather = 0; SET enable_indexscan = off; SET enable_indexonlyscan = off; SELECT s IS NULL FROM big ORDER BY s OFFSET 99999',
	'SET max_parallel_workers_per_gather = 0; SET enable_hashagg = off; SELECT count(*) FROM (SELECT DISTINCT s FROM wide) d',
	'SET max_parallel_workers_per_gather = 0; SET enable_sort = off; SELECT count(*) FROM (SELECT DISTINCT s FROM wide) d')
{
	my $session = Envcrypt::Session->new($node);
	my $peak = "SELECT (regexp_match(pg_read_file('/proc/self/status'), 'VmHWM:\\s+(\\d+)'))[1]::int / 1024";
	my $before = $session->value("SELECT count(s) FROM big; SELECT count(s) FROM wide; $peak");
	($before) = $before =~ /(\d+)$/;
	$session->value($statement);
	my $grown = $session->value($peak) - $before;
	cmp_ok($grown, '<', 120, "memory in MB: $statement");
	note("$grown MB: $statement");
}

done_testing();
