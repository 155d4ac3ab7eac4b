# A hundred sessions encrypt and decrypt at once, with a KMS that answers slowly, and then with one that fails at random:
# never a wrong result.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Kms;
use Envcrypt::Test;

my $sessions = 100;
my $shared = 5;
my $kms = Envcrypt::Kms->start;
my $node = new_cluster('concurrency', conf => "log_statement = none\nenvcrypt.kms_timeout = '120s'\n");
my $dba = Envcrypt::Session->new($node);

# each session has a tenant of its own, and all share some
$dba->value($kms->create_server('kms'));
$dba->value("SELECT envcrypt.create_tenant('own' || i, 'kms') FROM generate_series(0, $sessions - 1) i;
	SELECT envcrypt.create_tenant('shared' || i, 'kms') FROM generate_series(1, $shared) i");
$dba->value('CREATE TABLE kept (id bigserial PRIMARY KEY, tenant text, plain text, v envcrypt.encrypted(text));
	CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER kms TO app;
	GRANT SELECT, INSERT ON kept TO app; GRANT USAGE ON SEQUENCE kept_id_seq TO app;
	SELECT envcrypt.grant_access(\'app\', \'{encrypt,decrypt}\')');
$dba->value($kms->create_login('kms', 'app'));
# raises where what comes back is not what went in
$dba->value(q{CREATE FUNCTION check_kept(low float, howmany int) RETURNS int LANGUAGE plpgsql AS $$
	DECLARE
		kept_row kept;
		checked int := 0;
	BEGIN
		FOR kept_row IN SELECT * FROM kept WHERE id >= low * (SELECT max(id) FROM kept) LIMIT howmany LOOP
			IF envcrypt.decrypt(kept_row.v) IS DISTINCT FROM kept_row.plain OR (envcrypt.inspect(kept_row.v)).tenant <> kept_row.tenant THEN
				RAISE EXCEPTION 'WRONG RESULT in row %', kept_row.id;
			END IF;
			checked := checked + 1;
		END LOOP;
		RETURN checked;
	END $$;
	CREATE FUNCTION keep(the_tenant text) RETURNS void LANGUAGE sql AS $$
		SELECT set_config('envcrypt.tenant', the_tenant, true);
		INSERT INTO kept (tenant, plain, v)
		SELECT current_setting('envcrypt.tenant'), p, p FROM (SELECT the_tenant || ' ' || random() || repeat('x', (random() * 3000)::int) p) x
	$$;
	-- errors are allowed, wrong results are not
	CREATE FUNCTION try_all(own text, shared text, low float) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM keep(own), keep(shared), check_kept(low, 5);
		RETURN 'ok';
	EXCEPTION WHEN connection_failure OR protocol_violation OR insufficient_privilege OR configuration_limit_exceeded
		OR data_corrupted OR fdw_error THEN
		RETURN SQLSTATE;
	END $$;
	CREATE TABLE outcome (what text);
	GRANT INSERT ON outcome TO app});

sub all_right
{
	my ($name) = @_;
	works($dba, "SELECT count(*) FILTER (WHERE envcrypt.decrypt(v) IS DISTINCT FROM plain), count(*) > 0 FROM kept", '0|t', $name);
	return;
}

sub run_sessions
{
	my ($script, $transactions, $name) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script';
	append_to_file($file, $script);
	my ($out, $err) = run_command([ 'pgbench', '-n', '-c', $sessions, '-j', '4', '-t', $transactions, '-f', $file, '-U', 'app',
		'-d', $node->connstr('postgres') ]);
	like($out, qr/number of transactions actually processed: ${\($sessions * $transactions)}\/${\($sessions * $transactions)}/, "$name: all done");
	unlike($err, qr/error|abort|WRONG/i, "$name: no error") or diag(substr $err, 0, 2000);
	return;
}

# --- slow
$dba->value("SELECT keep('shared1') FROM generate_series(1, 20)");
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'slow')");
run_sessions(<<"SCRIPT", 10, 'a slow KMS');
\\set shared random(1, $shared)
\\set low random(0, 1000)
\\set forget random(1, 3)
BEGIN;
SELECT keep('own' || :client_id);
SELECT keep('shared' || :shared);
COMMIT;
SELECT check_kept(:low / 1000.0, 5);
\\if :forget = 1
SELECT envcrypt.forget_keys();
\\endif
SELECT check_kept(:low / 1000.0, 5);
SCRIPT
my $asked = $kms->count('^slow:');
cmp_ok($asked, '>=', 2 * $sessions, "the KMS was asked $asked times");
all_right('a slow KMS: every value that was kept decrypts');
works($dba, 'SELECT count(DISTINCT tenant), count(*) FROM kept', ($sessions + $shared) . '|' . (20 + 20 * $sessions),
	'a slow KMS: all values were kept');

# --- failing at random, with cancels on top
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'flaky')");
run_sessions(<<"SCRIPT", 10, 'a KMS that fails at random');
\\set shared random(1, $shared)
\\set low random(0, 1000)
SET envcrypt.kms_timeout = '1s';
INSERT INTO outcome SELECT try_all('own' || :client_id, 'shared' || :shared, :low / 1000.0);
SELECT envcrypt.forget_keys();
SCRIPT
diag('a KMS that fails at random: ' . $dba->value("SELECT string_agg(what || ' ' || n, ', ' ORDER BY what)
	FROM (SELECT what, count(*) n FROM outcome GROUP BY what) x"));
works($dba, "SELECT count(*) > 0 FROM outcome WHERE what = 'ok'", 't', 'a KMS that fails at random: some calls worked');
works($dba, "SELECT array_agg(DISTINCT what) @> '{08006,XX001}' FROM outcome WHERE what <> 'ok'", 't', 'a KMS that fails at random: and some failed');
$dba->value("ALTER SERVER kms OPTIONS (SET mount 'transit')");
all_right('a KMS that fails at random: every value that was kept decrypts');

$dba->close;
$node->stop;
done_testing();
