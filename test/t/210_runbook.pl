# The runbook of doc/operations.md, step by step: its own statements, in the situation that each section is for, with two real
# OpenBaos.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Bao;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_BAO is not set' if !Envcrypt::Bao->is_there;

# What stands in the SQL blocks of a section: [ statement, … ], without comments.
my %runbook;
{
	my ($section, $in_sql);
	for my $line (split /\n/, slurp_file("$test_dir/../doc/operations.md"))
	{
		$section = $1 if $line =~ /^###? (.+)/;
		if ($line eq '```sql') { $in_sql = 1; }
		elsif ($line eq '```') { $in_sql = 0; }
		elsif ($in_sql) { $line =~ s/\s*--.*//; $runbook{$section} .= "$line\n"; }
	}
	$_ = [ grep { /\S/ } split /;\n(?!\s|END)/, $_ ] for values %runbook;
}

my ($bao, $other) = map { Envcrypt::Bao->start } 1 .. 2;
my @paths = map { "transit/$_/app" } qw(datakey/plaintext decrypt encrypt rewrap);
$_->policy('manage', @paths) for $bao, $other;
my $node = new_cluster('runbook');
my $dba = Envcrypt::Session->new($node);
$dba->value('CREATE ROLE app LOGIN');
my %tokens;
for my $place ([ kms => $bao ], [ other => $other ])
{
	my ($name, $kms) = @$place;
	$tokens{$name}{$_} = $kms->token_file($_, 'manage', 'envcrypt') for qw(dba app);
	$dba->value("CREATE SERVER $name FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $kms->url . "', master_key 'app', ca_file '" . $kms->ca_file . "');
		CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (auth 'token', token 'file:$tokens{$name}{dba}');
		CREATE USER MAPPING FOR app SERVER $name OPTIONS (auth 'token', token 'file:$tokens{$name}{app}'); GRANT USAGE ON FOREIGN SERVER $name TO app");
}
$dba->value("SELECT envcrypt.grant_access('app', '{encrypt,decrypt,search}'); SELECT envcrypt.create_tenant(t, 'kms') FROM unnest('{acme,demo,subject:42}'::text[]) t; SELECT envcrypt.create_group_key('small', 'kms'), envcrypt.move_tenant('demo', 'small');
	CREATE TABLE patient (id int GENERATED ALWAYS AS IDENTITY, ssn envcrypt.encrypted(text, searchable, ssn)); GRANT ALL ON patient TO app;
	INSERT INTO patient (ssn) SELECT envcrypt.encrypt('123', t, 'ssn', 'searchable') FROM unnest('{acme,acme,demo,subject:42}'::text[]) t");
my $readable = 'SELECT count(envcrypt.decrypt(ssn)) FROM patient';
my $anew = "SELECT envcrypt.forget_keys() >= 0; $readable";

# Each statement of the section, which must work; the rows of the last.
sub follow
{
	my ($section) = @_;
	my @steps = @{ $runbook{$section} // die "no section $section" };
	my $last = '';
	for my $step (@steps)
	{
		my $result = $dba->ask($step);
		is($result->{state}, '00000', "$section: $step") or diag($result->{text});
		$last = $result->{rows};
	}
	return $last;
}

# --- restored from before an erasure: a dump, for later
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');

# --- KMS outage
$dba->value($readable);
$dba->value("ALTER SERVER kms OPTIONS (ADD cache_ttl '1s')");
is((split /\n/, follow('KMS outage'))[0], '||', 'KMS outage: nothing is wrong yet');
works($dba, $readable, '4', 'keys opened with a grace');
$bao->seal;
wait_until('the keys have expired', sub { $dba->value("SELECT max(expires_in) = '0' FROM envcrypt.cache") eq 't' });
works($dba, $readable, '4', 'sealed: served on');
like($dba->value("SELECT server, bool_and(bridged), min(ends_in) > '3:59:00' FROM envcrypt.cache GROUP BY 1"), qr/^kms\|t\|t$/, 'as the cache shows');
like($dba->value("SELECT sqlstate, error FROM envcrypt.check_server('kms')"), qr/^08006\|.*503/, 'check_server tells what is wrong');
$bao->unseal;
wait_until('it is back', sub { $dba->value("$readable; SELECT bool_or(bridged) FROM envcrypt.cache") eq "4\nf" });
$dba->value('ALTER SERVER kms OPTIONS (DROP cache_ttl, DROP outage_grace)');

# --- leaked KMS credential: revoked, replaced, open sessions ended
my $app = Envcrypt::Session->new($node, role => 'app');
works($app, $readable, '4', 'an application reads');
$bao->run('token', 'revoke', slurp($tokens{kms}{app}));
works($app, $readable, '4', 'with open keys still, once its credential is revoked');
is(follow('Leaked KMS credential'), 't|', 'Leaked KMS credential: our own is good');
is($app->ask('SELECT 1')->{state}, 'gone', 'its session is ended');
$app->close;
$app = Envcrypt::Session->new($node, role => 'app');
fails_with($app, $readable, { state => '42501' }, 'the revoked credential opens nothing');
write_secret($tokens{kms}{app}, slurp($bao->token_file('app2', 'manage', 'envcrypt')));
works($app, $readable, '4', 'another in its place does');

# --- suspected leak of a data key
follow('Suspected leak of a data key');
works($dba, "SELECT tenant, key_version, c.\"values\" FROM envcrypt.count_values('patient', 'ssn') c ORDER BY 1", "acme|2|2\ndemo|1|1\nsubject:42|1|1", 'all of the tenant is under the new key');
works($dba, "$anew; SET envcrypt.tenant = 'acme'; SELECT count(*) FROM patient WHERE envcrypt.matches(ssn, '123')", "t\n4\n2", 'readable and found');

# --- erasure request
is(follow('Erasure request'), '0', 'Erasure request: nothing is left of its wrapped keys');
fails_with($dba, $readable, { state => '55000', message => qr/"subject:42" is destroyed/ }, 'its values are gone');
$dba->value("CREATE TABLE receipts AS SELECT details AS receipt FROM envcrypt.journal WHERE act = 'destroy_tenant'; DELETE FROM patient WHERE (envcrypt.inspect(ssn)).tenant = 'subject:42'");

# --- restore from a backup made before it
my $receipts = $dba->value('SELECT receipt FROM receipts');
$dba->value('CREATE DATABASE restored');
command_ok([ 'pg_restore', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
{
	my $live = $dba;
	$dba = Envcrypt::Session->new($node, database => 'restored');
	works($dba, $readable, '4', 'a backup from before has the values of the subject');
	$dba->value("CREATE TABLE receipts AS SELECT '$receipts'::jsonb AS receipt");
	is(follow('Restore from a backup made before an erasure'), 'subject:42|destroyed', 'Restore from before: the tenant is destroyed');
	fails_with($dba, $readable, { state => '55000' }, 'its values are gone here, too');
	# --- cloning into a test environment: the same backup, without production's identities
	is(follow('Cloning into a test environment'), '4|0', 'Cloning: the rows are there, and nobody reads them');
	$app->close;
	$app = Envcrypt::Session->new($node, role => 'app', database => 'restored');
	fails_with($app, 'SELECT envcrypt.decrypt(ssn) FROM patient', { state => '42501', message => 'role app has no identity at KMS "kms"' }, 'the application decrypts nothing there');
	$app->close;
	$dba->close;
	$dba = $live;
}

# --- moving to another KMS
is(follow('Moving to another KMS'), '', 'Moving: the old server is dropped');
$bao->stop;
works($dba, "$anew; SELECT DISTINCT server FROM envcrypt.tenants WHERE state = 'active'; SELECT envcrypt.rotate_key('demo'), envcrypt.move_tenant('demo', '')", "t\n3\nother\n2|", 'all goes on without the old KMS');
$app = Envcrypt::Session->new($node, role => 'app');
works($app, $readable, '3', 'for the application, too');

# --- lost KMS: there are two again, one is lost
my ($second, $third) = map { Envcrypt::Bao->start } 1 .. 2;
for my $place ([ kms => $second ], [ third => $third ])
{
	my ($name, $kms) = @$place;
	$kms->policy('manage', @paths);
	$dba->value("CREATE SERVER $name FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $kms->url . "', master_key 'app', ca_file '" . $kms->ca_file . "');
		CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (auth 'token', token 'file:" . $kms->token_file("dba$name", 'manage', 'envcrypt') . "')");
}
$dba->value("CALL envcrypt.rewrap_keys('other', 'kms'); CALL envcrypt.add_wrapping('other')");
$second->stop;
works($dba, "SET envcrypt.kms_timeout = '3s'; $anew", "t\n3", 'the first of two is lost: all goes on');
follow('Lost KMS');
works($dba, "$anew; SELECT string_agg(DISTINCT servers::text, ' ') FROM envcrypt.keys WHERE state <> 'destroyed'", "t\n3\n{other,third}", 'Lost KMS: it is dropped, and there are two again');
is_deeply([ grep { !/^(KMS outage|Leaked KMS credential|Suspected leak of a data key|Erasure request|Restore from a backup made before an erasure|Moving to another KMS|Cloning into a test environment|Lost KMS)$/ }
	map { /^### (.+)/ ? $1 : () } split /\n/, slurp_file("$test_dir/../doc/operations.md") ], [], 'every section of the runbook was tried');

$_->close for $dba, $app;
$_->stop for $other, $third;
$node->stop;
done_testing();

sub slurp { my $text = slurp_file($_[0]); chomp $text; return $text; }
