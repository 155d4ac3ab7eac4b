# A KMS, or something in its place, that misbehaves: each fault has its SQLSTATE and its remedy, the session lives on,
# nothing is lost and no secret reaches the client or the log.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

use Envcrypt::Kms;
use Envcrypt::Test;

my $kms = Envcrypt::Kms->start;
# a client that OpenSSL itself would let speak old TLS: envcrypt must refuse it
my $node = do {
	local $ENV{OPENSSL_CONF} = $kms->certs . '/lax_openssl.cnf';
	new_cluster('faults');
};
my $session = Envcrypt::Session->new($node);
my $plaintext = 'plaintext-of-the-fault-test';

$session->value($kms->create_server('kms'));
$session->value("SELECT envcrypt.create_tenant('acme', 'kms')");
$session->value('CREATE TABLE kept (v envcrypt.encrypted(text))');
$session->value("SET envcrypt.tenant = 'acme'; INSERT INTO kept VALUES ('$plaintext'::text)");
$session->value("SET envcrypt.kms_timeout = '10s'");

my $decrypt = 'SELECT envcrypt.decrypt(v) FROM kept';
my $create = "SELECT envcrypt.create_tenant('new', 'kms')";
my $keys = $session->value('SELECT count(*) FROM envcrypt.data_key');
my $heard = '';    # all that a client was told

# One fault, for a statement whose keys are not cached: the error, then the same session decrypts again.
sub fault
{
	my ($options, $sql, $expected, $name) = @_;
	$session->value("ALTER SERVER kms OPTIONS ($options)");
	$session->value('SELECT envcrypt.forget_keys()');
	$heard .= fails_with($session, $sql, $expected, $name)->{text};
	$session->value("ALTER SERVER kms OPTIONS (SET mount 'transit', SET endpoint '" . $kms->url('good') . "')");
	my $after = $session->ask("$decrypt; SELECT count(*) FROM envcrypt.data_key");
	is($after->{rows}, "$plaintext\n$keys", "$name: the session lives on, nothing changed") or diag($after->{text});
	return;
}

# A scenario of the fault server, for the mount.
sub scenario { my ($mount, @rest) = @_; fault("SET mount '$mount'", @rest); return; }
sub way_in { my ($way, @rest) = @_; fault("SET endpoint '" . $kms->url($way) . "'", @rest); return; }

my $unwrap = 'could not unwrap a key with KMS "kms"';
my $make = 'could not make a data key with KMS "kms"';
my $wrong = 'KMS "kms" did not return the key it was asked for';
my $place = '127\.0\.0\.1:\d+';

# --- what is in the KMS's place
way_in('refused', $decrypt, { state => '08006', message => qr/^$unwrap: could not connect to $place$/, hint => qr/endpoint/ },
	'connection refused');
way_in('cut', $decrypt, { state => '08006', message => qr/^$unwrap: could not connect to $place$/ }, 'handshake cut');
way_in('reset', $decrypt, { state => '08006', message => qr/^$unwrap: could not connect to $place$/ }, 'handshake reset');
way_in('expired', $decrypt, { state => 'HV000', message => qr/^$unwrap: certificate of $place cannot be trusted$/,
	detail => qr/expired/, hint => "Renew the KMS's certificate, and check the clock of the database host." }, 'expired certificate');
way_in('wrong_host', $decrypt, { state => 'HV000', message => qr/^$unwrap: certificate of $place cannot be trusted$/,
	hint => qr/option endpoint to a host name that the KMS's certificate holds/ }, "another host's certificate");
way_in('other_ca', $decrypt, { state => 'HV000', message => qr/^$unwrap: certificate of $place cannot be trusted$/,
	hint => qr/ca_file/ }, 'certificate of another CA');
way_in('tls11', $decrypt, { state => 'HV000', message => qr/^$unwrap: could not agree on TLS with $place$/,
	hint => 'The KMS must speak TLS 1.2 or later.' }, 'TLS 1.1 only');
way_in('plain', $decrypt, { state => 'HV000', message => qr/^$unwrap: could not agree on TLS with $place$/,
	hint => qr/port .* speaks TLS 1\.2/ }, 'HTTP without TLS');
way_in('mtls', $decrypt, { state => 'HV000', message => qr/^$unwrap: could not agree on TLS with $place$/,
	hint => qr/client_cert_file and client_key_file/ }, 'a client certificate is asked for');
fault("SET endpoint '" . $kms->url('mtls') . "', ADD client_cert_file '" . $kms->certs . "/other_client.pem', "
	  . "ADD client_key_file '" . $kms->certs . "/other_client.key'",
	$decrypt, { state => 'HV000', message => qr/^$unwrap: could not agree on TLS with $place$/, hint => qr/client_cert_file/ },
	'a client certificate of another CA');
$session->value("ALTER SERVER kms OPTIONS (SET client_cert_file '" . $kms->certs . "/client.pem', SET client_key_file '"
	  . $kms->certs . "/client.key', SET endpoint '" . $kms->url('mtls') . "')");
works($session, $decrypt, $plaintext, 'with the right client certificate it works');
$session->value("ALTER SERVER kms OPTIONS (DROP client_cert_file, DROP client_key_file, SET endpoint '" . $kms->url('good') . "')");
way_in('control', $decrypt, { state => 'HV000', message => qr/^$unwrap: could not agree on TLS/ }, 'another service');

# --- answers that are none
for my $mount ('close', 'half')
{
	scenario($mount, $decrypt, { state => '08006', message => qr/^$unwrap: connection to $place was lost$/ }, "hung up: $mount");
}
scenario('not-http', $decrypt, { state => '08P01', message => qr/^$unwrap: answer from $place is not HTTP$/, hint => qr/endpoint/ }, 'not HTTP');
my $before = resident_kb($session->pid);
scenario('oversize', $decrypt, { state => '08P01', message => qr/^$unwrap: answer from $place is too long$/ }, 'two gigabytes');
cmp_ok(resident_kb($session->pid) - $before, '<', 8192, 'two gigabytes are not read into memory');
scenario('redirect', "SET envcrypt.kms_timeout = '500ms'; $decrypt", { state => '08006', message => qr/^$unwrap: $place answered with a redirect$/,
	detail => 'HTTP status 307 to https://elsewhere.test:8200', hint => qr/no active node.*address of the KMS itself/ }, 'redirect');
$session->value('RESET envcrypt.kms_timeout');
for my $mount (qw(empty notjson badjson trailing deep))
{
	scenario($mount, $decrypt, { state => '08006', message => "$unwrap: something in front of it answered",
		detail => qr/^The answer is not one of OpenBao or Vault: HTTP status 200/, hint => qr/proxy/ }, "not the JSON of a KMS: $mount");
}
for my $mount (qw(nodata noplaintext badbase64 number))
{
	scenario($mount, $decrypt, { state => '08P01', message => $unwrap, detail => qr/It had no data\.plaintext in base64/ },
		"not an answer of a KMS: $mount");
}
scenario($_, $create, { state => '08P01', message => $make, detail => qr/data\.ciphertext/ }, "create_tenant: $_")
  for qw(nociphertext nodata);
scenario('badversion', $create, { state => '08P01', message => $make, detail => qr/vault:vN:/ }, 'create_tenant: badversion');
for my $mount (qw(stall stall-body))
{
	my $sql = "SET envcrypt.kms_timeout = '200ms'; $decrypt";
	scenario($mount, $sql, { state => '08006', message => qr/^$unwrap: timeout while (waiting for an answer|reading the answer) from $place$/ },
		"kms_timeout: $mount");
	$session->value('RESET envcrypt.kms_timeout');
}

# --- a wrong key must never be used
for my $mount (qw(wrongkey shortkey longkey duplicate))
{
	scenario($mount, $decrypt, { state => $mount eq 'duplicate' ? qr/^(XX001|08P01|08006)$/ : 'XX001' }, "decrypt: $mount");
	scenario("$mount.decrypt", "SELECT envcrypt.encrypt('x'::text)",
		{ state => $mount eq 'duplicate' ? qr/^(XX001|08P01|08006)$/ : 'XX001' }, "encrypt: $mount");
	scenario($mount, $create, { state => qr/^(XX001|08P01|08006)$/ }, "create_tenant: $mount");
}
scenario('wrongkey', $decrypt, { state => 'XX001', message => $wrong, detail => qr/commitment/, hint => qr/master key/ },
	'a wrong key: the words');
scenario('emptykey', $decrypt, { state => qr/^(XX001|08P01|08006)$/ }, 'decrypt: emptykey');
scenario('wrongkey.decrypt', $create, { state => 'XX001', message => $wrong }, 'create_tenant: what was persisted opens to another key');
scenario('unbound', $create, { state => 'HV000', message => qr/does not bind keys to their tenant$/, hint => qr/derived=true/ },
	'create_tenant: the context is ignored');

# --- errors that the KMS says
my %status = (
	400 => 'HV000', 404 => 'HV000', 405 => 'HV000', 403 => '42501', 429 => '53400', 412 => '08006', 472 => '08006',
	473 => '08006', 500 => '08006', 502 => '08006', 503 => '08006', 504 => '08006', 599 => '08006',
	401 => 'HV000');
for my $status (sort keys %status)
{
	scenario("status/$status", $decrypt, { state => $status{$status}, message => $unwrap, detail => "The KMS answered HTTP $status." },
		"HTTP $status");
}
scenario('status/204', $decrypt, { state => '08006', message => "$unwrap: something in front of it answered", detail => qr/HTTP status 204/ }, 'HTTP 204');
scenario('sealed', $decrypt, { state => '08006', hint => qr/unseal it\. Keys are not lost/ }, 'sealed');
scenario('status/429', $decrypt, { state => '53400', hint => qr/rate limit/ }, 'throttled');
scenario('status/403', $decrypt, { state => '42501', hint => qr/policy/ }, 'denied');
scenario('leak', $decrypt, { state => 'HV000', detail => 'The KMS answered HTTP 400.' }, 'an error that repeats what was sent');

# --- logins
$session->value('CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER kms TO app; GRANT SELECT ON kept TO app;
	SELECT envcrypt.grant_access(\'app\', \'{decrypt}\')');
$session->value($kms->create_login('kms', 'app'));
my $app = Envcrypt::Session->new($node, role => 'app');
works($app, $decrypt, $plaintext, 'login');
my $login = 'could not log in with KMS "kms"';
my @logins = (
	[ 'status/403', '42501', qr/HTTP 403/ ],
	[ 'status/429', '53400', qr/HTTP 429/ ],
	[ 'sealed', '08006', qr/HTTP 503/ ],
	[ 'notjson', '08006', qr/is not one of OpenBao or Vault/, "$login: something in front of it answered" ],
	[ 'notoken', '08P01', qr/client_token/ ],
	[ 'status/404', 'HV000', qr/HTTP 404/ ]);
for (@logins)
{
	my ($mount, $state, $detail, $message) = @$_;
	$session->value("ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET auth_mount '$mount')");
	$heard .= fails_with($app, $decrypt, { state => $state, message => $message // $login, detail => $detail }, "login: $mount")->{text};
}
$session->value("ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET auth_mount 'approle')");
works($app, $decrypt, $plaintext, 'the same session logs in again');

# one deadline for all that a key operation takes
$session->value("ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET auth_mount 'slow/1.0'); ALTER SERVER kms OPTIONS (SET mount 'stall')");
my $start = time;
fails_with($app, "SET envcrypt.kms_timeout = '1500ms'; $decrypt", { state => '08006', message => qr/^could not .* with KMS "kms": timeout while waiting for an answer/ },
	'kms_timeout: the login counts');
cmp_ok(time - $start, '<', 2.2, 'kms_timeout: one deadline for both calls');
$session->value("ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET auth_mount 'approle'); ALTER SERVER kms OPTIONS (SET mount 'transit')");
works($app, "RESET envcrypt.kms_timeout; $decrypt", $plaintext, 'kms_timeout: the session lives on');

# --- files of secrets that are none
my $file = "$kms->{secrets}/of_app";
$session->value("ALTER USER MAPPING FOR app SERVER kms OPTIONS (SET secret_id 'file:$file')");
my @files = (
	[ 'missing', sub { }, '42501', qr/No such file/ ],
	[ 'empty', sub { write_secret($file, '') }, 'HV000', 'It is empty.' ],
	[ 'too long', sub { write_secret($file, 'x' x 70000) }, 'HV000', 'It is longer than 64 KiB.' ],
	[ 'a folder', sub { mkdir $file }, 'HV000', 'It is not a regular file.' ],
	[ 'a pipe', sub { POSIX::mkfifo($file, 0600) }, 'HV000', 'It is not a regular file.' ],
	[ 'not readable', sub { write_secret($file, 'x'); chmod 0, $file }, '42501', qr/Permission denied/ ]);
for (@files)
{
	my ($what, $make, $state, $detail) = @$_;
	$make->();
	$heard .= fails_with($app, "SELECT envcrypt.forget_keys(); $decrypt", { state => $state, message => qr/file "\Q$file\E"$/, detail => $detail },
		"secret file: $what")->{text};
	-d $file ? rmdir $file : unlink $file;
}
write_secret($file, $kms->secret_id);
works($app, $decrypt, $plaintext, 'secret file: the right one');
my $clerk_token = write_secret("$kms->{secrets}/of_clerk", $kms->token . "\r\nX-Other: x");
$session->value("CREATE ROLE clerk LOGIN; GRANT USAGE ON FOREIGN SERVER kms TO clerk; GRANT SELECT ON kept TO clerk;
	SELECT envcrypt.grant_access('clerk', '{decrypt}');
	CREATE USER MAPPING FOR clerk SERVER kms OPTIONS (auth 'token', token 'file:$clerk_token')");
my $clerk = Envcrypt::Session->new($node, role => 'clerk');
$heard .= fails_with($clerk, $decrypt, { state => 'HV000', message => 'token for KMS "kms" cannot be sent', hint => qr/option token/ },
	'a token of two lines')->{text};
write_secret($clerk_token, 's.another-token');
$heard .= fails_with($clerk, $decrypt, { state => '42501', hint => qr/policy/ }, 'a token that the KMS does not know')->{text};
write_secret($clerk_token, $kms->token);
works($clerk, $decrypt, $plaintext, 'the right token');

# a token that is refused is replaced once, and then the answer counts
$session->value("SELECT envcrypt.create_tenant('other', 'kms')");
my $other = $session->value("SELECT envcrypt.encrypt('of other'::text, tenant => 'other')");
$session->value("ALTER SERVER kms OPTIONS (SET mount 'uses/1')");
my $logins = $kms->count('^approle:login$');
works($app, $decrypt, $plaintext, 'a token that works once');
works($app, "SELECT envcrypt.decrypt('$other')", 'of other', 'is replaced when it is refused');
is($kms->count('^approle:login$') - $logins, 2, 'by one more login');
$logins = $kms->count('^approle:login$');
my $asked = $kms->count('^status/403:decrypt$');
$session->value("ALTER SERVER kms OPTIONS (SET mount 'status/403')");
$app->value('SELECT envcrypt.forget_keys()');
$heard .= fails_with($app, $decrypt, { state => '42501' }, 'refused again: denied')->{text};
is($kms->count('^status/403:decrypt$') - $asked, 1, 'a new token that is refused is not tried twice');
$session->value("ALTER SERVER kms OPTIONS (SET mount 'transit')");
works($app, $decrypt, $plaintext, 'and works again');

# a connection that the KMS has closed meanwhile is replaced
$session->value("ALTER SERVER kms OPTIONS (SET mount 'last')");
$asked = $kms->count('^last:decrypt$');
works($session, "SELECT envcrypt.forget_keys() >= 0; $decrypt; SELECT envcrypt.decrypt('$other')", "t\n$plaintext\nof other",
	'a connection that was closed between two calls') for 1 .. 5;
is($kms->count('^last:decrypt$') - $asked, 10, 'each call was asked once');
$session->value("ALTER SERVER kms OPTIONS (SET mount 'transit')");

# --- check_server tells all of it as a row
for (
	[ 'transit', qr/^t\|.*\|app\|1\|/ ],
	[ 'unbound', qr/^f\|.*\|HV000\|master key "app" of KMS "kms" does not bind/ ],
	[ 'wrongkey.decrypt', qr/^f\|.*\|XX001\|/ ],
	[ 'status/403', qr/^f\|.*\|42501\|/ ],
	[ 'sealed', qr/^f\|.*\|08006\|/ ],
	[ 'notjson', qr/^f\|.*\|08006\|/ ])
{
	my ($mount, $row) = @$_;
	$session->value("ALTER SERVER kms OPTIONS (SET mount '$mount')");
	my $got = $session->value("SELECT ok, identity, master_key, master_key_version, sqlstate, error, hint FROM envcrypt.check_server('kms')");
	$heard .= $got;
	like($got, $row, "check_server: $mount");
}
$session->value("ALTER SERVER kms OPTIONS (SET mount 'transit')");

# --- a denial empties the cache of its mapping; nothing else that goes wrong does
$session->value($kms->create_server('faulty'));
for (
	[ 'status/403', 0 ], [ 'sealed', 1 ], [ 'status/429', 1 ], [ 'status/404', 1 ], [ 'notjson', 1 ], [ 'wrongkey', 1 ], [ 'close', 1 ])
{
	my ($mount, $left) = @$_;
	$session->value("ALTER SERVER faulty OPTIONS (SET mount 'transit')");
	my ($first, $second) = map { my $n = "$mount/$_"; $session->value("SELECT envcrypt.create_tenant('$n', 'faulty')"); $n } 1, 2;
	my ($value, $other) = map { $session->value("SELECT envcrypt.encrypt('x'::text, tenant => '$_')") } $first, $second;
	# by-tenant/SCENARIO does what it says for the tenant SCENARIO/2 and works for all others
	$session->value("SELECT envcrypt.forget_keys(); ALTER SERVER faulty OPTIONS (SET mount 'by-tenant/$mount')");
	$session->value("SELECT envcrypt.decrypt('$value'); $decrypt");
	$session->ask("SELECT envcrypt.decrypt('$other')");
	works($session, 'SELECT count(*) FILTER (WHERE server = \'faulty\'), count(*) FILTER (WHERE server = \'kms\') FROM envcrypt.cache',
		"$left|1", "what stays in the cache after: $mount");
}

# --- no secret, wherever one may have been repeated
my %secrets = (token => $kms->token, 'secret id' => $kms->secret_id, body => $kms->body_secret);
holds_none($heard, { %secrets, plaintext => $plaintext, wrapped => 'vault:v1:' }, 'no client was told a secret');
my $log = log_of($node);
$log =~ s/INSERT INTO kept VALUES [^\n]*//;    # the statement that the client itself wrote
holds_none($log, { %secrets, plaintext => $plaintext, wrapped => 'vault:v1:' }, 'the log holds no secret');

$_->close for $app, $clerk, $session;
$node->stop;
done_testing();
