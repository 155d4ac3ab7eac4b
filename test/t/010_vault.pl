# The main job on a real OpenBao over verified TLS, and every way in which a real one says no.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use Envcrypt;
use PostgreSQL::Test::Utils;
use Test::More;

my $bao = start_bao();
bao('secrets', 'enable', 'transit');
bao('write', '-f', "transit/keys/$_", 'derived=true') for qw(app next);
bao('write', '-f', 'transit/keys/plain');
bao('auth', 'enable', 'approle');
my $policy = write_secret('policy', 'path "transit/datakey/plaintext/+" { capabilities = ["update"] } path "transit/decrypt/+" { capabilities = ["update"] }');
bao('policy', 'write', 'envcrypt', $policy);
bao('write', "auth/approle/role/$_", 'token_policies=envcrypt', 'token_ttl=1h') for qw(app admin);
bao('write', 'auth/approle/role/weak', 'token_policies=default');
my %role_id = map { $_ => bao('read', '-field=role_id', "auth/approle/role/$_/role-id") } qw(app admin weak);
my %secret = map { $_ => bao('write', '-f', '-field=secret_id', "auth/approle/role/$_/secret-id") } qw(app admin weak);
my %file = map { $_ => write_secret("secret_$_", "$secret{$_}\n") } qw(app admin weak);
$file{token} = write_secret('token', "root\n");

my $node = new_node('vault');
my $me = $node->safe_psql('postgres', 'SELECT CURRENT_USER');
sub approle { my $r = shift; "auth 'approle', role_id '$role_id{$r}', secret_id 'file:$file{$r}'" }
$node->safe_psql('postgres', qq{
    CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_vault OPTIONS (endpoint '$bao->{url}', master_key 'app', ca_file '$bao->{ca}');
    CREATE ROLE app LOGIN; CREATE ROLE weak LOGIN; CREATE ROLE stranger LOGIN;
    CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (@{[approle('admin')]});
    CREATE USER MAPPING FOR app SERVER kms OPTIONS (@{[approle('app')]});
    CREATE USER MAPPING FOR weak SERVER kms OPTIONS (@{[approle('weak')]});
    GRANT USAGE ON FOREIGN SERVER kms TO app, weak;
    SELECT envcrypt.grant_access('app', '{encrypt,decrypt}'), envcrypt.grant_access('weak', '{encrypt,decrypt}');});

# --- check_server, and the main job
is($node->safe_psql('postgres', q{SELECT ok, identity, master_key, master_key_version, sqlstate, error FROM envcrypt.check_server('kms')}),
    't|approle (policies: default envcrypt)|app|1||', 'check_server');
$node->safe_psql('postgres', q{
    SELECT envcrypt.create_tenant('acme', 'kms');
    CREATE TABLE patient (id int, ssn envcrypt.encrypted(text));
    GRANT SELECT, INSERT ON patient TO PUBLIC;});
my $insert = q{SET envcrypt.tenant = 'acme'; INSERT INTO patient VALUES (1, '123-45-6789'::text);};
my $read = 'SELECT envcrypt.decrypt(ssn) FROM patient';
sub as { my ($role, $sql) = @_; my ($rc, $out) = $node->psql('postgres', $sql, extra_params => [ '-U', $role ]); $out }
sub error_as { my ($role, $sql) = @_; sql_error($node, $sql, role => $role) }
as('app', $insert);
is(as('app', $read), '123-45-6789', 'an application writes and reads');
like($node->safe_psql('postgres', 'SELECT ssn FROM patient'), qr/^ec1:/, 'what is stored is ciphertext');
is($node->safe_psql('postgres', q{SELECT convert_from(wrapped, 'UTF8') ~ '^vault:v1:', master_key, master_key_version FROM envcrypt.wrapped_key}),
    't|app|1', 'the key is stored wrapped');

# --- who is denied
like(error_as('stranger', $read), qr/^42501 permission denied for schema envcrypt/, 'no right');
like(error_as('weak', $read), qr{^42501 could not unwrap a key with KMS "kms" / The KMS answered HTTP 403. / Check the policy}, 'the policy denies');
$node->safe_psql('postgres', q{SELECT envcrypt.grant_access('stranger', '{decrypt}'); GRANT USAGE ON FOREIGN SERVER kms TO stranger});
like(error_as('stranger', $read), qr{^42501 role stranger has no identity at KMS "kms" .* CREATE USER MAPPING FOR stranger}, 'no mapping');

# one session: a denial empties the cache of that mapping only
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe($read);
$session->query_safe('SET ROLE app');
is($session->query_safe($read), '123-45-6789', 'in the session as app');
$session->query_safe('RESET ROLE');
is($session->query_safe('SELECT count(*) FROM envcrypt.cache'), '2', 'two mappings, two entries');
$session->query_safe('SET ROLE weak');
$session->query($read);
$session->query_safe('RESET ROLE');
is($session->query_safe('SELECT count(*) FROM envcrypt.cache'), '2', 'the denial of weak takes nothing from the others');

# --- tokens and secrets that change
bao('token', 'revoke', '-mode=path', 'auth/approle');
$session->query_safe(q{SELECT envcrypt.create_tenant('after_revoke', 'kms')});
is($session->query_safe(q{SELECT envcrypt.decrypt(envcrypt.encrypt('x', 'after_revoke'))}), 'x', 'a revoked token is replaced by a login');
my $new_secret = bao('write', '-f', '-field=secret_id', 'auth/approle/role/admin/secret-id');
bao('write', 'auth/approle/role/admin/secret-id/destroy', "secret_id=$secret{admin}");
bao('token', 'revoke', '-mode=path', 'auth/approle');
$session->query_safe('SELECT envcrypt.forget_keys()');
like(sql_error($node, $read), qr{^42501 could not log in with KMS "kms" / The KMS answered HTTP 400: "invalid role or secret ID". / Check role_id}, 'a secret id that is no more');
unlink $file{admin}; append_to_file($file{admin}, "$new_secret\n");
is($session->query_safe($read), '123-45-6789', 'the rotated secret id is picked up');
unlink $file{admin};
like(sql_error($node, $read), qr{^42501 could not read file "\S+secret_admin" / The system says: No such file}, 'the file is gone');
append_to_file($file{admin}, "$new_secret\n");
$node->safe_psql('postgres', qq{ALTER USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (SET auth 'token', ADD token 'file:$file{token}')});
is($session->query_safe($read), '123-45-6789', 'a token from its file');

# --- another master key for new keys leaves the old ones readable
$node->safe_psql('postgres', q{ALTER SERVER kms OPTIONS (SET master_key 'next'); SELECT envcrypt.create_tenant('later', 'kms')});
is($node->safe_psql('postgres', $read), '123-45-6789', 'older keys are unwrapped by their own master key');
is($node->safe_psql('postgres', q{SELECT envcrypt.create_tenant('own', 'kms', master_key => 'app'); SELECT master_key FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'own'}),
    "\napp", 'a master key of the tenant\'s own');

# --- what is wrong with a server or a master key
sub server { my ($name, $options) = @_;
    $node->safe_psql('postgres', qq{CREATE SERVER $name FOREIGN DATA WRAPPER envcrypt_vault OPTIONS ($options);
        CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (auth 'token', token 'file:$file{token}')}) }
my $at = "endpoint '$bao->{url}', ca_file '$bao->{ca}'";
server('not_derived', "$at, master_key 'plain'");
like(sql_error($node, q{SELECT envcrypt.create_tenant('bad', 'not_derived')}), qr{^HV000 master key "plain" .* does not bind keys .* derived=true}, 'a key that is not derived');
is($node->safe_psql('postgres', q{SELECT ok, sqlstate FROM envcrypt.check_server('not_derived')}), 'f|HV000', 'check_server sees it too');
server('no_key', "$at, master_key 'nothing'");
like(sql_error($node, q{SELECT envcrypt.create_tenant('bad', 'no_key')}), qr{^(42501|HV000) could not make a data key}, 'no such master key');
server('no_mount', "$at, master_key 'app', mount 'nowhere'");
like(sql_error($node, q{SELECT envcrypt.create_tenant('bad', 'no_mount')}), qr{^HV000 could not make a data key .* HTTP 404. / Check the server's options endpoint and mount}, 'no such mount');
server('no_ca', "endpoint '$bao->{url}', master_key 'app'");
like(sql_error($node, q{SELECT envcrypt.create_tenant('bad', 'no_ca')}), qr{^HV000 certificate of \S+ cannot be trusted .* ca_file}, 'an unknown CA');
bao('write', 'sys/quotas/rate-limit/q', 'rate=0.001', 'path=transit/');
$node->psql('postgres', q{SELECT * FROM envcrypt.check_server('kms')}) for 1 .. 2;
like(sql_error($node, $read), qr{^53400 could not unwrap .* HTTP 429. / A rate limit}, 'a rate limit');
bao('delete', 'sys/quotas/rate-limit/q');
is($node->safe_psql('postgres', q{SELECT count(*) FROM envcrypt.tenant WHERE name = 'bad'}), '0', 'nothing is left of what failed');

# --- versions of the master key
bao('write', '-f', 'transit/keys/app/rotate');
bao('write', '-f', 'transit/keys/app/config', 'min_decryption_version=2', 'min_encryption_version=2');
like(sql_error($node, $read), qr{^42501 could not unwrap .* "too old" .* min_decryption_version}, 'a version that the KMS does not open any more');
bao('write', '-f', 'transit/keys/app/config', 'min_decryption_version=1');

# --- sealed: an outage, not a denial
is($session->query_safe($read), '123-45-6789', 'before the seal');
bao('operator', 'seal');
is($session->query_safe($read), '123-45-6789', 'sealed, but cached');
like(sql_error($node, $read), qr{^08006 could not \S.* / The KMS answered HTTP 503. / The KMS is sealed}, 'sealed');
is($session->query_safe('SELECT count(*) > 0 FROM envcrypt.cache'), 't', 'an outage empties no cache');
bao('operator', 'unseal', $bao->{unseal_key});
is($node->safe_psql('postgres', $read), '123-45-6789', 'unsealed');
stop_bao();
like(sql_error($node, $read), qr{^08006 could not connect to 127.0.0.1:\d+ }, 'stopped');
is($session->query_safe($read), '123-45-6789', 'stopped, but cached');
$session->quit;

# --- no secret in the log
my $log = slurp_file($node->logfile);
unlike($log, qr/\Q$_\E/, 'no secret in the log') for values %secret, $new_secret;
unlike($log, qr/X-Vault-Token|hvs\./, 'no token in the log');
done_testing();
