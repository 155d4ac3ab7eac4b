# The fault server (test/servers/fault_kms.py): a KMS that does what the server's option `mount` says.
package Envcrypt::Kms;

use strict;
use warnings;
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP 'decode_json';
use PostgreSQL::Test::Utils;

use Envcrypt::Test;

sub start
{
	my ($class) = @_;
	my $certs = $ENV{ENVCRYPT_CERTS};
	if (!defined $certs)
	{
		$certs = PostgreSQL::Test::Utils::tempdir();
		system("$test_dir/servers/make_certs.sh", $certs) == 0 or die "no certificates";
	}
	my $self = bless { certs => $certs }, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, $python, '-B', "$test_dir/servers/fault_kms.py", $certs);
	my $line = readline $self->{out};
	die "the fault server did not start" if !defined $line;
	$self->{ports} = decode_json($line);
	$self->{secrets} = PostgreSQL::Test::Utils::tempdir();
	$self->{token_file} = write_secret("$self->{secrets}/token", token());
	$self->{secret_id_file} = write_secret("$self->{secrets}/secret_id", secret_id());
	return $self;
}

# The secrets that the server knows of; `body` is in all its errors.
sub token { return 's.static-token-of-the-fault-server'; }
sub secret_id { return 'secret-id-of-the-fault-server'; }
sub body_secret { return 'body-secret-of-the-fault-server'; }

# The URL of a way in: good, expired, wrong_host, …; `host` for a name other than 127.0.0.1.
sub url
{
	my ($self, $way, $host) = @_;
	my $port = $self->{ports}{$way} // die "no way in named $way";
	return 'https://' . ($host // '127.0.0.1') . ":$port";
}

sub ca_file { return "$_[0]{certs}/ca.pem"; }
sub certs { return $_[0]{certs}; }

# SQL that makes a server for this KMS, with a mapping for the current role.
sub create_server
{
	my ($self, $name, %options) = @_;
	my %all = (endpoint => $self->url($options{way} // 'good', $options{host}), ca_file => $self->ca_file,
		master_key => 'app', mount => $options{mount} // 'transit');
	return "CREATE SERVER $name FOREIGN DATA WRAPPER envcrypt_vault OPTIONS ("
	  . join(', ', map { "$_ '$all{$_}'" } sort keys %all) . ");"
	  . $self->create_mapping($name);
}

sub create_mapping
{
	my ($self, $name, $role) = @_;
	$role //= 'CURRENT_USER';
	return "CREATE USER MAPPING FOR $role SERVER $name OPTIONS (auth 'token', token 'file:$self->{token_file}');";
}

sub create_login
{
	my ($self, $name, $role, $auth_mount) = @_;
	$auth_mount //= 'approle';
	return "CREATE USER MAPPING FOR $role SERVER $name OPTIONS (auth 'approle', auth_mount '$auth_mount', "
	  . "role_id 'fault', secret_id 'file:$self->{secret_id_file}');";
}

# What the control port answers.
sub control
{
	my ($self, $what) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60, proxy => undef)->get("http://127.0.0.1:$self->{ports}{control}/$what");
	die "no $what: $answer->{reason} $answer->{content}" if !$answer->{success};
	return decode_json($answer->{content});
}

# How often each MOUNT:OPERATION was asked; the sum of those that the pattern names.
sub count
{
	my ($self, $pattern) = @_;
	my $counts = $self->control('counts');
	my $sum = 0;
	$sum += $counts->{$_} for grep { /$pattern/ } keys %$counts;
	return $sum;
}

# Makes a new version of every master key.
sub rotate { $_[0]->control('rotate'); return; }
# Has the mounts switch/SCENARIO do that, or work.
sub switch { my ($self, $on) = @_; $self->control($on ? 'on' : 'off'); return; }

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
