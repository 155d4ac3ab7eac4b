# A real OpenBao on loopback, over TLS, with a derived transit key `app`, a key `plain` that is not derived, a policy
# `envcrypt` and AppRole logins.
package Envcrypt::Bao;

use strict;
use warnings;
use IO::Socket::INET;
use IPC::Open2;
use IPC::Run ();
use PostgreSQL::Test::Utils;

use Envcrypt::Test;

# Whether there is one to be started.
sub is_there { return -x ($ENV{ENVCRYPT_BAO} // ''); }

# OpenBao takes no port of the system's choice, so a free one is tried, and another where somebody else was faster.
sub start
{
	my ($class) = @_;
	for (1 .. 5)
	{
		my $probe = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => 0) or die "no free port";
		my $port = $probe->sockport;
		close $probe;
		my $self = bless { port => $port, dir => PostgreSQL::Test::Utils::tempdir() }, $class;
		return $self if $self->run_server;
	}
	die "OpenBao did not start";
}

sub run_server
{
	my ($self) = @_;
	local $ENV{HOME} = $self->{dir};
	unlink "$self->{dir}/log", glob "$self->{dir}/vault-*.pem";    # of one before
	# the shell ends the server when this test does, in whatever way
	$self->{pid} = open2(
		$self->{out}, $self->{in}, 'sh', '-c',
		'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & server=$!; cat >/dev/null; kill $server; wait $server',
		'sh', "$self->{dir}/log", $ENV{ENVCRYPT_BAO}, 'server', '-dev', '-dev-tls', "-dev-tls-cert-dir=$self->{dir}",
		'-dev-root-token-id=root', "-dev-listen-address=127.0.0.1:$self->{port}", '-dev-no-store-token');
	my $log = '';
	wait_until("OpenBao has started or failed", sub {
		$log = -e "$self->{dir}/log" ? slurp_file("$self->{dir}/log") : '';
		return $log =~ /Root Token: |^Error|panic/m;
	});
	if ($log !~ /^\s*Unseal Key: (\S+)/m)
	{
		print "# OpenBao said:\n$log\n";
		$self->stop;
		return 0;
	}
	$self->{unseal_key} = $1;
	$self->run('secrets', 'enable', 'transit');
	$self->run('write', '-f', 'transit/keys/app', 'derived=true');
	$self->run('write', '-f', 'transit/keys/plain');
	$self->policy('envcrypt', 'transit/datakey/plaintext/+', 'transit/decrypt/+');
	$self->run('auth', 'enable', 'approle');
	return 1;
}

sub url { return "https://127.0.0.1:$_[0]{port}"; }
sub ca_file { return "$_[0]{dir}/vault-ca.pem"; }
sub dir { return $_[0]{dir}; }

# The client's output; dies where it fails.
sub run
{
	my ($self, @arguments) = @_;
	my ($out, $err) = ('', '');
	local %ENV = (%ENV, HOME => $self->{dir}, BAO_ADDR => $self->url, BAO_CACERT => $self->ca_file, BAO_TOKEN => 'root');
	IPC::Run::run([ $ENV{ENVCRYPT_BAO}, @arguments ], '<', \$self->{input}, '>', \$out, '2>', \$err)
	  or die "bao @arguments: $err";
	chomp $out;
	return $out;
}

# A policy of update on these paths.
sub policy
{
	my ($self, $name, @paths) = @_;
	$self->{input} = join '', map { "path \"$_\" { capabilities = [\"update\"] }\n" } @paths;
	$self->run('policy', 'write', $name, '-');
	$self->{input} = '';
	return;
}

# A token of the policies, in a file. Returns the path.
sub token_file
{
	my ($self, $name, @policies) = @_;
	my $token = $self->run('token', 'create', '-field=token', '-ttl=1h', map { "-policy=$_" } @policies);
	return write_secret("$self->{dir}/token.$name", $token);
}

# An AppRole of the policies. Returns its role id and the file of its secret id.
sub approle
{
	my ($self, $name, @policies) = @_;
	$self->run('write', "auth/approle/role/$name", 'token_policies=' . join(',', @policies), 'token_ttl=1h');
	my $role_id = $self->run('read', '-field=role_id', "auth/approle/role/$name/role-id");
	return ($role_id, write_secret("$self->{dir}/secret_id.$name", $self->new_secret_id($name)));
}

sub new_secret_id
{
	my ($self, $name) = @_;
	return $self->run('write', '-f', '-field=secret_id', "auth/approle/role/$name/secret-id");
}

sub seal { $_[0]->run('operator', 'seal'); return; }
sub unseal { my ($self) = @_; $self->run('operator', 'unseal', $self->{unseal_key}); return; }

sub stop
{
	my ($self) = @_;
	return if !$self->{pid};
	close $self->{in};
	local $?;
	waitpid delete $self->{pid}, 0;
	return;
}

sub DESTROY { $_[0]->stop; return; }

1;
