# One role's keys and credentials never serve another: where PUBLIC's mapping reads its secret under each role's own identity
# at a store, and in parallel workers, which know nothing of what their leader's session brought.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Bao;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_BAO is not set' if !Envcrypt::Bao->is_there;

my $bao = Envcrypt::Bao->start;
my $ca_file = $bao->ca_file;
my $node = new_cluster('identities');
my $dba = Envcrypt::Session->new($node);
$bao->run('secrets', 'enable', '-path=kv', '-version=2', 'kv');
$bao->{input} = "path \"kv/data/*\" { capabilities = [\"read\"] }\n";
$bao->run('policy', 'write', 'kv', '-');
$bao->{input} = '';
my ($role_id) = $bao->approle('app', 'envcrypt');
$bao->run('kv', 'put', '-mount=kv', 'team/app', 'secret_id=' . $bao->new_secret_id('app'), 'other=x');
my $wrong_token = write_secret($bao->dir . '/wrong_token', 's.wrong');
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '$ca_file');
	CREATE SERVER store FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', ca_file '$ca_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (auth 'token', token 'file:" . $bao->token_file('dba', 'envcrypt') . "');
	SELECT envcrypt.create_tenant('acme', 'kms');
	CREATE ROLE may; CREATE ROLE may_not;
	GRANT USAGE ON FOREIGN SERVER kms, store TO may, may_not;
	SELECT envcrypt.grant_access('may', '{encrypt,decrypt}'), envcrypt.grant_access('may_not', '{encrypt,decrypt}');
	CREATE TABLE kept AS SELECT n, envcrypt.encrypt('plaintext', 'acme') v FROM generate_series(1, 2000) n;
	ALTER TABLE kept SET (parallel_workers = 2);
	GRANT SELECT ON kept TO may, may_not;
	CREATE USER MAPPING FOR may SERVER store OPTIONS (auth 'token', token 'file:" . $bao->token_file('kv', 'kv') . "');
	CREATE USER MAPPING FOR may_not SERVER store OPTIONS (auth 'token', token 'file:$wrong_token')");
my $decrypt = 'SELECT envcrypt.decrypt(v) FROM kept WHERE n = 1';
for my $more ('', ", token 'vault-kv:store:kv/team/app#other'")
{
	$dba->value("DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER kms;
		CREATE USER MAPPING FOR PUBLIC SERVER kms OPTIONS (auth 'approle', role_id '$role_id', secret_id 'vault-kv:store:kv/team/app#secret_id'$more)");
	my $references = $more eq '' ? 'one reference' : 'two references to one store';
	my $session = Envcrypt::Session->new($node);
	works($session, "SET ROLE may; $decrypt", 'plaintext', "$references: whoever reads the secret decrypts");
	fails_with($session, "SET ROLE may_not; $decrypt", { state => '42501' }, "$references: and lends its keys to nobody");
}

# --- a role whose own mapping opens nothing brings a credential
$dba->value("DROP USER MAPPING FOR PUBLIC SERVER kms; CREATE USER MAPPING FOR may_not SERVER kms OPTIONS (auth 'token', token 'file:$wrong_token')");
my $token = slurp_file($bao->token_file('app', 'envcrypt'));
chomp $token;
my $credential = qq({"auth": "token", "token": "$token"});
my $session = Envcrypt::Session->new($node);
$session->value('SET log_statement = none; SET log_min_error_statement = panic; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off');
$session->value("CREATE FUNCTION planned_before(c jsonb) RETURNS TABLE (x bigint) LANGUAGE sql VOLATILE AS \$\$
	SELECT envcrypt.set_credential('kms', c);
	SELECT count(*) FROM kept WHERE envcrypt.decrypt(v) = 'plaintext' \$\$; GRANT EXECUTE ON FUNCTION planned_before(jsonb) TO may_not;
	SET ROLE may_not");
works($session, "BEGIN; SELECT envcrypt.set_credential('kms', '$credential'); SELECT count(*) FROM kept WHERE envcrypt.decrypt(v) = 'plaintext'; COMMIT", "\n2000",
	'a query that is planned with the credential has no workers');
# what PostgreSQL plans before may have them (18 plans each statement when its turn comes): they never use another identity
my $outcome = $session->ask("SELECT * FROM planned_before('$credential')");
ok($outcome->{state} eq '00000' ? $outcome->{rows} =~ /2000$/ : $outcome->{text} =~ /a parallel worker has none of the credentials/,
	'one that is planned before works, or says so') or diag($outcome->{text});
fails_with($session, $decrypt, { state => '42501' }, 'and afterwards the mapping is what counts');
works($session, "SELECT count(*) FROM kept", '2000', 'the session lives on');
fails_with($dba, 'SET envcrypt.session_credentials = on', { state => '22023' }, 'the setting that tells workers is not to be set');
holds_none(log_of($node), { token => $token }, 'the log holds no secret');
$_->close for $session, $dba;
$node->stop;
done_testing();
