# Every way to log in at OpenBao, and every place that the secret for it can lie in: files, Secrets Manager, Secret Manager,
# Key Vault, OpenBao's own KV engine, Doppler.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Open2;
use JSON::PP;
use MIME::Base64 'encode_base64url';
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Envcrypt::Azure;
use Envcrypt::Bao;
use Envcrypt::Gcp;
use Envcrypt::Moto;
use Envcrypt::Test;

plan skip_all => 'ENVCRYPT_BAO is not set' if !Envcrypt::Bao->is_there;
plan skip_all => 'ENVCRYPT_MOTO is not set' if !Envcrypt::Moto->is_there;

my $bao = Envcrypt::Bao->start;
my $certs = $ENV{ENVCRYPT_CERTS};
my $others_pid = open2(my $others_out, my $others_in, $python, '-B', "$test_dir/servers/others.py", $certs);
my $others = decode_json(scalar readline $others_out);

sub tell_others
{
	my (%told) = @_;
	print $others_in encode_json(\%told) . "\n";
	$others_in->flush;
	my $answer = readline $others_out;
	return;
}
my $others_url = "https://127.0.0.1:$others->{port}";

# one file of all CAs that are met here
my $ca_file = $bao->dir . '/all_ca.pem';
append_to_file($ca_file, slurp_file($_)) for $bao->ca_file, "$certs/ca.pem";
my $node = new_cluster('logins');
my $dba = Envcrypt::Session->new($node);
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_vault
	OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '$ca_file', secrets_endpoint '$others_url');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (auth 'token', token 'file:" . $bao->token_file('dba', 'envcrypt') . "');
	SELECT envcrypt.create_tenant('acme', 'kms');
	CREATE TABLE kept AS SELECT envcrypt.encrypt('plaintext', 'acme') v");
my $decrypt = 'SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.decrypt(v) FROM kept';

sub map_by { my ($options) = @_; $dba->value("DROP USER MAPPING IF EXISTS FOR CURRENT_USER SERVER kms; CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS ($options)"); return; }
sub identity { return $dba->value("SELECT coalesce(identity, concat_ws(' ', sqlstate, error, hint)) FROM envcrypt.check_server('kms')"); }

# --- JSON web tokens, as GitLab, GitHub or SPIRE issue them
my $jwt_key = $bao->dir . '/jwt.key';
system_or_bail('openssl', 'genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048', '-out', $jwt_key);
system_or_bail('openssl', 'pkey', '-in', $jwt_key, '-pubout', '-out', "$jwt_key.pub");

sub jwt
{
	my (%claims) = @_;
	%claims = (iss => 'https://issuer.test', aud => 'bao', sub => 'postgres', iat => int time, exp => int(time + 600), %claims);
	delete $claims{aud} if !defined $claims{aud};
	my $signed = join '.', map { encode_base64url($_) } '{"alg":"RS256","typ":"JWT"}', encode_json(\%claims);
	my $file = $bao->dir . '/to_sign';
	unlink $file;
	append_to_file($file, $signed);
	my $signature = `openssl dgst -sha256 -sign $jwt_key $file`;
	return $signed . '.' . encode_base64url($signature);
}
$bao->run('auth', 'enable', 'jwt');
$bao->run('write', 'auth/jwt/config', "jwt_validation_pubkeys=\@$jwt_key.pub", 'bound_issuer=https://issuer.test');
$bao->run('write', 'auth/jwt/role/postgres', 'role_type=jwt', 'bound_audiences=bao', 'user_claim=sub', 'token_policies=envcrypt');
my $jwt_file = write_secret($bao->dir . '/jwt', my $jwt = jwt());
map_by("auth 'jwt', role 'postgres', jwt 'file:$jwt_file'");
works($dba, $decrypt, "t\nplaintext", 'jwt');
like(identity(), qr/^jwt-postgres \(policies: .*envcrypt/, 'jwt: who it is');
write_secret($jwt_file, my $ended = jwt(exp => int(time - 3600), iat => int(time - 7200)));
fails_with($dba, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"', hint => qr/has not ended/ }, 'a jwt that has ended');
write_secret($jwt_file, my $next = jwt(sub => 'other'));
works($dba, $decrypt, "t\nplaintext", 'jwt: the file is read again');
map_by("auth 'jwt', role 'nobody', jwt 'file:$jwt_file'");
fails_with($dba, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"' }, 'jwt: no such role');

# --- Kubernetes
$bao->run('auth', 'enable', 'kubernetes');
$bao->run('write', 'auth/kubernetes/config', "kubernetes_host=$others_url", "kubernetes_ca_cert=\@$certs/ca.pem", 'token_reviewer_jwt=' . jwt(), 'disable_iss_validation=true');
$bao->run('write', 'auth/kubernetes/role/postgres', 'bound_service_account_names=postgres', 'bound_service_account_namespaces=default', 'token_policies=envcrypt');
# the reviewer knows one token; OpenBao itself looks into it first, so it must be a JSON web token
my $service_account = jwt(iss => 'kubernetes/serviceaccount', aud => undef, sub => 'system:serviceaccount:default:postgres', nbf => int time - 60,
	'kubernetes.io/serviceaccount/namespace' => 'default',
	'kubernetes.io/serviceaccount/service-account.name' => 'postgres', 'kubernetes.io/serviceaccount/service-account.uid' => '1');
tell_others(service_account_token => $service_account);
my $service_account_file = write_secret($bao->dir . '/service_account', $service_account);
map_by("auth 'kubernetes', role 'postgres', jwt 'file:$service_account_file'");
works($dba, $decrypt, "t\nplaintext", 'kubernetes');
like(identity(), qr/^kubernetes-default-postgres \(policies: .*envcrypt/, 'kubernetes: who it is');

# --- TLS client certificates
$bao->run('auth', 'enable', 'cert');
$bao->run('write', 'auth/cert/certs/postgres', "certificate=\@$certs/client.pem", 'token_policies=envcrypt', 'display_name=postgres');
map_by("auth 'cert', role 'postgres'");
fails_with($dba, $decrypt, { state => 'HV000', message => qr/lacks the option "client_cert_file"/ }, 'cert: no certificate');
$dba->value("ALTER SERVER kms OPTIONS (ADD client_cert_file '$certs/client.pem', ADD client_key_file '$certs/client.key')");
works($dba, $decrypt, "t\nplaintext", 'cert');
like(identity(), qr/\(policies: .*envcrypt/, 'cert: who it is');
$dba->value("ALTER SERVER kms OPTIONS (SET client_cert_file '$certs/other_client.pem', SET client_key_file '$certs/other_client.key')");
fails_with($dba, $decrypt, { state => qr/^(42501|HV000)$/ }, "cert: another's certificate");
$dba->value("ALTER SERVER kms OPTIONS (DROP client_cert_file, DROP client_key_file)");

# --- namespaces
$bao->run('namespace', 'create', 'team');
$bao->run('secrets', 'enable', '-namespace=team', 'transit');
$bao->run('write', '-namespace=team', '-f', 'transit/keys/app', 'derived=true');
$bao->run('auth', 'enable', '-namespace=team', 'approle');
$bao->{input} = "path \"transit/*\" { capabilities = [\"update\"] }\n";
$bao->run('policy', 'write', '-namespace=team', 'team', '-');
$bao->{input} = '';
$bao->run('write', '-namespace=team', 'auth/approle/role/app', 'token_policies=team', 'token_ttl=1h');
my $team_role = $bao->run('read', '-namespace=team', '-field=role_id', 'auth/approle/role/app/role-id');
my $team_secret = $bao->run('write', '-namespace=team', '-f', '-field=secret_id', 'auth/approle/role/app/secret-id');
write_secret($bao->dir . '/team', $team_secret);
$dba->value("CREATE SERVER team FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', master_key 'app', ca_file '$ca_file', namespace 'team');
	CREATE USER MAPPING FOR CURRENT_USER SERVER team OPTIONS (auth 'approle', role_id '$team_role', secret_id 'file:" . $bao->dir . "/team');
	SELECT envcrypt.create_tenant('of:team', 'team')");
works($dba, "SELECT envcrypt.forget_keys() >= 0; SELECT envcrypt.decrypt(envcrypt.encrypt('in a namespace', 'of:team'))", "t\nin a namespace", 'a namespace');

# --- a lease that is lengthened: the secret id can be used once, so that only renewing keeps the session going
$bao->run('write', 'auth/approle/role/short', 'token_policies=envcrypt', 'token_ttl=4s', 'token_max_ttl=1h', 'secret_id_num_uses=1');
my $short_role = $bao->run('read', '-field=role_id', 'auth/approle/role/short/role-id');
write_secret($bao->dir . '/short', $bao->new_secret_id('short'));
map_by("auth 'approle', role_id '$short_role', secret_id 'file:" . $bao->dir . "/short'");
$dba->value("SELECT envcrypt.create_tenant('many:' || n, 'kms') FROM generate_series(1, 12) n");
my ($start, $n) = (time, 0);
while (time < $start + 9)
{
	# each of these asks the KMS for one key more
	$n = $n % 12 + 1;
	my $got = $dba->ask("SET envcrypt.cache_size = 1; SELECT envcrypt.encrypt('x', 'many:$n') IS NOT NULL");
	last if $got->{state} ne '00000';
	sleep 0.3;
}
cmp_ok(time - $start, '>=', 9, 'a lease is lengthened before it ends');
$dba->value('RESET envcrypt.cache_size');

# --- where the secret lies
my $aws = Envcrypt::Moto->start;
my $gcp = Envcrypt::Gcp->start;
my $azure = Envcrypt::Azure->start;
$aws->control('errors?aws');
$bao->run('secrets', 'enable', '-path=kv', '-version=2', 'kv');
$bao->{input} = "path \"kv/data/*\" { capabilities = [\"read\"] }\n";
$bao->run('policy', 'write', 'kv', '-');
$bao->{input} = '';
$dba->value("CREATE SERVER store_aws FOREIGN DATA WRAPPER envcrypt_aws OPTIONS (endpoint '" . $aws->endpoint . "', secrets_endpoint '" . $aws->endpoint
	  . "', ca_file '$ca_file', region '" . $aws->region . "');
	CREATE USER MAPPING FOR CURRENT_USER SERVER store_aws OPTIONS (auth 'profile', credentials_file '" . $aws->credentials_file . "');
	CREATE SERVER store_gcp FOREIGN DATA WRAPPER envcrypt_gcp OPTIONS (secrets_endpoint '" . $gcp->endpoint . "', ca_file '$ca_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER store_gcp OPTIONS (auth 'service_account', credentials_file '" . $gcp->service_account_file . "');
	CREATE SERVER store_azure FOREIGN DATA WRAPPER envcrypt_azure OPTIONS (endpoint '" . $azure->endpoint . "', token_endpoint '" . $azure->endpoint . "', ca_file '$ca_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER store_azure OPTIONS (auth 'client_secret', tenant_id '" . $azure->tenant . "', client_id '" . $azure->client_id
	  . "', client_secret 'file:" . $azure->client_secret_file . "');
	CREATE SERVER store_vault FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '" . $bao->url . "', ca_file '$ca_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER store_vault OPTIONS (auth 'token', token 'file:" . $bao->token_file('kv', 'kv') . "')");
my $doppler_token_file = write_secret($bao->dir . '/doppler', $others->{doppler_token});
my ($role_id, $secret_file) = $bao->approle('app', 'envcrypt');
my %secret;

# The same secret id in the store, alone and in a document.
sub keep_in_kv { my ($id) = @_; $bao->run('kv', 'put', '-mount=kv', 'team/app', "secret_id=$id", 'other=x'); return; }
sub keep_in_doppler { my ($id) = @_; tell_others(secret => [ SECRET_ID => $id ]); return; }
my @stores = (
	[ 'vault-kv:store_vault:kv/team/app#secret_id', \&keep_in_kv ],
	[ 'gcp-secretmanager:store_gcp:projects/test/secrets/app', sub { $gcp->control('secret', 'app', $_[0]); } ],
	[ 'gcp-secretmanager:store_gcp:projects/test/secrets/doc#secret_id', sub { $gcp->control('secret', 'doc', encode_json({ secret_id => $_[0] })); } ],
	[ 'azure-keyvault:store_azure:secret-id', sub { $azure->control("secret?secret-id=$_[0]"); } ],
	[ 'doppler:app/prd/SECRET_ID', \&keep_in_doppler ]);
for my $store (@stores)
{
	my ($reference, $keep) = @$store;
	my $id = $secret{$reference} = $bao->new_secret_id('app');
	$keep->($id);
	map_by("auth 'approle', role_id '$role_id', secret_id '$reference', doppler_token 'file:$doppler_token_file'");
	works($dba, $decrypt, "t\nplaintext", $reference);
	# rotated: the old one is destroyed, the new one is where the old one was
	$bao->run('write', 'auth/approle/role/app/secret-id/destroy', "secret_id=$id");
	fails_with($dba, $decrypt, { state => '42501', message => 'could not log in with KMS "kms"' }, "$reference: a secret id that was destroyed");
	$secret{"new $reference"} = $bao->new_secret_id('app');
	$keep->($secret{"new $reference"});
	works($dba, $decrypt, "t\nplaintext", "$reference: a rotated secret is picked up without a restart");
}
# Secrets Manager holds what it holds: so the secret id is made to be that
$bao->run('write', 'auth/approle/role/app/custom-secret-id', 'secret_id=' . $aws->secret);
map_by("auth 'approle', role_id '$role_id', secret_id 'aws-secretsmanager:store_aws:" . $aws->secret_arn . "'");
works($dba, $decrypt, "t\nplaintext", 'aws-secretsmanager, by its ARN');

# --- references that lead nowhere
for my $case (
	[ 'gcp-secretmanager:store_gcp:projects/test/secrets/none', '42501' ], [ 'azure-keyvault:store_azure:none', '42501' ],
	[ 'vault-kv:store_vault:kv/none#x', qr/^(42501|HV000)$/ ], [ 'vault-kv:store_vault:kv/team/app#none', '08P01' ],
	[ 'aws-secretsmanager:store_aws:none', qr/^(42501|HV000)$/ ], [ 'aws-secretsmanager:store_aws:' . $aws->secret_arn . '#field', 'HV000' ],
	[ 'doppler:app/prd/NONE', '42501' ], [ 'azure-keyvault:store_gcp:x', 'HV000' ], [ 'vault-kv:nowhere:kv/x#y', '42704' ])
{
	my ($reference, $state) = @$case;
	map_by("auth 'approle', role_id '$role_id', secret_id '$reference', doppler_token 'file:$doppler_token_file'");
	fails_with($dba, $decrypt, { state => $state }, "a reference that leads nowhere: $reference");
}
map_by("auth 'approle', role_id '$role_id', secret_id 'doppler:app/prd/SECRET_ID'");
fails_with($dba, $decrypt, { state => 'HV000', message => qr/lacks the option "doppler_token"/ }, 'doppler without a token');
$dba->value("ALTER USER MAPPING FOR CURRENT_USER SERVER store_azure OPTIONS (SET client_secret 'vault-kv:store_vault:kv/team/app#secret_id')");
map_by("auth 'approle', role_id '$role_id', secret_id 'azure-keyvault:store_azure:secret-id'");
fails_with($dba, $decrypt, { state => 'HV000', detail => qr/may lead to files only/ }, 'a reference to a reference');
map_by("auth 'approle', role_id '$role_id', secret_id 'file:$secret_file'");
works($dba, $decrypt, "t\nplaintext", 'and all is well again');

holds_none(log_of($node), { jwt => $jwt, 'jwt that ended' => $ended, 'next jwt' => $next, 'service account' => $service_account, team => $team_secret,
	'doppler token' => $others->{doppler_token}, body => $others->{body_secret}, %secret, %{ $aws->secrets }, %{ $gcp->secrets }, %{ $azure->secrets } },
	'the log holds no secret');
close $others_in;
waitpid $others_pid, 0;
done_testing();
