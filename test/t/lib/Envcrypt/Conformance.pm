# What every KMS must do, whichever it is: one suite, given what differs. Each KMS that can be started for tests runs it.
package Envcrypt::Conformance;

use strict;
use warnings;
use Test::More;

use Envcrypt::Session;
use Envcrypt::Test;

# name, wrapper; server and mapping: options; own_key: another master key; counts: how often the KMS was asked, logins
# included; fault(KIND, TIMES): the next answers to key operations are throttled, unavailable or denied; expire: ends the
# credentials that were given; version: what the version of a master key looks like, where it is told; secrets: by name.
sub run
{
	my ($node, %kms) = @_;
	my $name = $kms{name};
	my $database = lc "conformance_$name";
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	my $session = Envcrypt::Session->new($node, database => $database);
	my $options = sub { my ($all) = @_; return join ', ', map { "$_ '$all->{$_}'" } sort keys %$all; };
	$session->value("CREATE EXTENSION envcrypt;
		CREATE SERVER kms FOREIGN DATA WRAPPER $kms{wrapper} OPTIONS (" . $options->($kms{server}) . ");
		CREATE USER MAPPING FOR CURRENT_USER SERVER kms OPTIONS (" . $options->($kms{mapping}) . ")");
	my $calls = sub {
		my ($sql) = @_;
		my $before = $kms{counts}->();
		my $rows = $session->value($sql);
		return ($rows, $kms{counts}->() - $before);
	};

	# --- the whole way
	my $version = $kms{version} // qr/.+/;
	my $checked = $session->value('SELECT ok, identity, master_key, master_key_version, sqlstate, error FROM envcrypt.check_server(\'kms\')');
	like($checked, qr/^t\|[^|]+\|[^|]+\|$version\|\|$/, "$name: check_server");
	my (undef, $create) = $calls->("SELECT envcrypt.create_tenant('acme', 'kms')");
	$session->value("SELECT envcrypt.create_tenant('other', 'kms'); SET envcrypt.tenant = 'acme';
		CREATE TABLE kept AS SELECT envcrypt.encrypt('plaintext') v, envcrypt.encrypt('of other', 'other') w");
	$session->value('SELECT envcrypt.forget_keys()');
	my $decrypt = 'SELECT envcrypt.decrypt(v) FROM kept';
	my ($rows, $first) = $calls->($decrypt);
	is($rows, 'plaintext', "$name: decrypts after the key was opened anew");
	(undef, my $warm) = $calls->($decrypt);
	is($warm, 0, "$name: an open key needs no call");
	note("$name: create $create calls, first decrypt with a login $first, warm $warm");
	$session->value("SELECT envcrypt.create_tenant('own', 'kms', '$kms{own_key}')");
	works($session, "SELECT envcrypt.decrypt(envcrypt.encrypt('x', 'own')), envcrypt.forget_keys() > 0, envcrypt.decrypt(envcrypt.encrypt('y', 'own'))",
		'x|t|y', "$name: a tenant's own master key");
	like($session->value("SELECT DISTINCT master_key FROM envcrypt.wrapped_key JOIN envcrypt.data_key USING (key_id) WHERE tenant = 'own'"),
		qr/\Q$kms{own_key}\E$/, "$name: it is the own master key that wrapped");
	like($session->value('SELECT string_agg(DISTINCT master_key_version, \',\') FROM envcrypt.wrapped_key'), qr/^$version(,$version)*$/,
		"$name: the master key's version is recorded") if !defined $kms{version} || $kms{version} ne '';

	# --- the article's format, which is bound to no tenant
	works($session, "SELECT convert_from(envcrypt.decrypt_envelope('kms', encrypted_dek, nonce, ciphertext), 'UTF8') FROM envcrypt.encrypt_envelope('kms', 'in an envelope')",
		'in an envelope', "$name: envelopes");
	fails_with($session, "SELECT envcrypt.decrypt_envelope('kms', wrapped, '\\x000000000000000000000000', '\\x00000000000000000000000000000000')
		FROM envcrypt.wrapped_key LIMIT 1", { state => qr/^(XX001|22000)$/ }, "$name: a tenant's key opens no envelope");
	# --- many at once
	works($session, "SELECT envcrypt.forget_keys() > 0; SELECT envcrypt.load_keys('acme', 'other', 'own', 'acme'); SELECT count(*) FROM envcrypt.cache", "t\n6\n6",
		"$name: load_keys");

	# --- what is bound: a wrapping moved to another tenant, altered, cut short
	my $unwrap = qr/^could not unwrap a key with KMS "kms"$/;
	for my $attack (
		[ 'moved', "UPDATE envcrypt.wrapped_key w SET (wrapped, attestation, master_key_version) = (SELECT o.wrapped, o.attestation, o.master_key_version
			FROM envcrypt.wrapped_key o JOIN envcrypt.data_key k USING (key_id) WHERE k.tenant = 'other' AND k.purpose = 'data')
			FROM envcrypt.data_key k WHERE k.key_id = w.key_id AND k.tenant = 'acme' AND k.purpose = 'data'" ],
		[ 'altered', "UPDATE envcrypt.wrapped_key SET wrapped = set_byte(wrapped, length(wrapped) - 5, CASE get_byte(wrapped, length(wrapped) - 5) WHEN 65 THEN 66 ELSE 65 END)" ],
		[ 'cut', 'UPDATE envcrypt.wrapped_key SET wrapped = substr(wrapped, 1, length(wrapped) - 4)' ],
		[ 'empty', "UPDATE envcrypt.wrapped_key SET wrapped = ''" ])
	{
		my ($how, $sql) = @$attack;
		$session->value("BEGIN; $sql; SELECT envcrypt.forget_keys()");
		fails_with($session, $decrypt, { state => qr/^(XX001|HV000)$/, message => $unwrap }, "$name: a wrapping that was $how");
		$session->value('ROLLBACK');
	}
	works($session, $decrypt, 'plaintext', "$name: the session lives on");

	# --- faults
	$session->value('SELECT envcrypt.forget_keys()');
	$kms{fault}->('throttled', 2);
	works($session, $decrypt, 'plaintext', "$name: throttling is waited for");
	$session->value('SELECT envcrypt.forget_keys()');
	$kms{fault}->('unavailable', 1);
	works($session, $decrypt, 'plaintext', "$name: an outage that ends is waited for");
	$session->value('SELECT envcrypt.forget_keys()');
	$kms{fault}->('unavailable', 20);
	fails_with($session, $decrypt, { state => '08006', message => $unwrap }, "$name: one that does not end");
	$kms{fault}->('unavailable', 0);
	$kms{fault}->('throttled', 50);
	fails_with($session, "SET envcrypt.kms_timeout = '400ms'; $decrypt", { state => '53400', message => $unwrap }, "$name: throttled for good");
	$kms{fault}->('throttled', 0);
	$session->value('RESET envcrypt.kms_timeout');
	$kms{fault}->('denied', 10);
	fails_with($session, $decrypt, { state => '42501', message => $unwrap, hint => qr/./ }, "$name: a denial");
	$kms{fault}->('denied', 0);
	works($session, $decrypt, 'plaintext', "$name: the session lives on after faults");

	# --- the life of its keys: a second server at the same KMS stands for another one
	$session->value("CREATE SERVER second FOREIGN DATA WRAPPER $kms{wrapper} OPTIONS (" . $options->($kms{server}) . ");
		CREATE USER MAPPING FOR CURRENT_USER SERVER second OPTIONS (" . $options->($kms{mapping}) . ')');
	my $anew = 'SELECT envcrypt.forget_keys() > 0; SELECT envcrypt.decrypt(v), envcrypt.decrypt(w) FROM kept';
	my $servers = "SELECT string_agg(DISTINCT server, ',' ORDER BY server) FROM envcrypt.wrappings WHERE tenant";
	works($session, "CALL envcrypt.rewrap_keys('kms'); SELECT state, left_over FROM envcrypt.progress; $anew", "finished|0\nt\nplaintext|of other", "$name: rewrapped");
	works($session, "CALL envcrypt.add_wrapping('second'); $servers <> 'own'; $servers = 'own'; $anew", "kms,second\nkms\nt\nplaintext|of other", "$name: wrapped by another server, too");
	works($session, "SELECT envcrypt.rotate_key('acme'); $servers = 'acme'; SELECT count(*) FROM envcrypt.wrappings WHERE tenant = 'acme'; $anew", "2\nkms,second\n6\nt\nplaintext|of other", "$name: a new key is wrapped by both");
	works($session, "CALL envcrypt.drop_wrapping('kms', 'acme'); CALL envcrypt.drop_wrapping('kms', 'other'); $servers <> 'own'; $anew", "second\nt\nplaintext|of other", "$name: and by the other alone");
	works($session, "CALL envcrypt.add_wrapping('second', 'own', '$kms{own_key}'); CALL envcrypt.drop_wrapping('kms', 'own'); $servers = 'own'; SELECT envcrypt.decrypt(envcrypt.encrypt('z', 'own')); SELECT envcrypt.rotate_key('own');
		SELECT bool_and(own_master_key), count(DISTINCT master_key) FROM envcrypt.wrappings WHERE tenant = 'own'", "second\nz\n2\nt|1", "$name: an own master key moves as well");
	works($session, "SELECT envcrypt.create_group_key('group', 'second'), envcrypt.move_tenant('acme', 'group'), envcrypt.move_tenant('other', 'group'); $anew", "||\nt\nplaintext|of other", "$name: a group key opens both");
	$session->value('SELECT envcrypt.forget_keys(); SELECT envcrypt.check_server(\'second\')');
	(undef, my $group) = $calls->("SELECT envcrypt.load_keys('acme', 'other')");
	cmp_ok($group, '<=', 2, "$name: one call for all of a group");    # Azure RSA: the attestation key, too
	works($session, "SELECT envcrypt.move_tenant('acme', ''), envcrypt.move_tenant('other', ''); CALL envcrypt.rewrap_keys('second', to_server => 'kms'); $servers <> 'own'; SELECT left_over FROM envcrypt.progress WHERE to_server = 'kms'; $anew",
		"|\nkms\n3\nt\nplaintext|of other", "$name: moved back, but for the tenant with an own master key");

	# --- credentials that end before their time are obtained anew
	if ($kms{expire})
	{
		works($session, 'SELECT envcrypt.forget_keys() > 0', 't', "$name: keys are forgotten");
		$session->value($decrypt);
		$session->value("SELECT 1 FROM envcrypt.cache");
		$kms{expire}->();
		$session->value("UPDATE envcrypt.tenant SET created_at = created_at");
		works($session, 'SELECT envcrypt.decrypt(w) FROM kept', 'of other', "$name: a credential that ended is replaced");
	}
	holds_none(log_of($node), $kms{secrets}->(), "$name: the log holds no secret");
	return $session;
}

1;
