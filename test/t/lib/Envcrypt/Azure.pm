# Azure as a client of Key Vault meets it (test/servers/azure_vault.py): a vault, logins and managed identities.
package Envcrypt::Azure;

use strict;
use warnings;
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP;
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
	$self->{pid} = open2($self->{out}, $self->{in}, $python, '-B', "$test_dir/servers/azure_vault.py", $certs);
	my $line = readline $self->{out};
	die "the server of Azure did not start" if !defined $line;
	$self->{is} = decode_json($line);
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	my $other = $self->{is}{public_only_client};
	write_secret("$self->{dir}/client_secret", $self->{is}{client_secret});
	write_secret("$self->{dir}/federated_token", $self->{is}{federated_token});
	write_secret("$self->{dir}/identity_header", $self->{is}{identity_header});
	write_secret("$self->{dir}/public_only_secret", $other->{client_secret});
	return $self;
}

# The vault, and the authority of its logins; `host` for a name other than 127.0.0.1.
sub endpoint { my ($self, $host) = @_; return 'https://' . ($host // '127.0.0.1') . ":$self->{is}{port}"; }
sub ca_file { return "$_[0]{certs}/ca.pem"; }

# Where a virtual machine and an App Service have their identities.
sub imds_endpoint { return "http://127.0.0.1:$_[0]{is}{imds}"; }
sub app_service_endpoint { return "http://127.0.0.1:$_[0]{is}{imds}/msi/token"; }
sub identity_header_file { return "$_[0]{dir}/identity_header"; }

sub tenant { return $_[0]{is}{tenant}; }
sub client_id { return $_[0]{is}{client_id}; }
sub client_secret_file { return "$_[0]{dir}/client_secret"; }
sub federated_token_file { return "$_[0]{dir}/federated_token"; }

# An app that may read public keys, and nothing else.
sub public_only_client_id { return $_[0]{is}{public_only_client}{client_id}; }
sub public_only_secret_file { return "$_[0]{dir}/public_only_secret"; }

sub ask
{
	my ($self, $method, $path) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60, proxy => undef)
	  ->request($method, "http://127.0.0.1:$self->{is}{control}/$path");
	die "$method $path: $answer->{reason} $answer->{content}" if !$answer->{success};
	return JSON::PP->new->decode($answer->{content});
}

# How often each thing was asked for; the sum of those that the pattern names.
sub counts
{
	my ($self, $pattern) = @_;
	my $counts = $self->ask('GET', 'counts');
	my $sum = 0;
	$sum += $counts->{$_} for grep { /$pattern/ } keys %$counts;
	return $sum;
}

# 'expire', 'disable?app', 'fault?what=throttled&times=2', …: see the server. Returns what it answers.
sub control { my ($self, $path) = @_; return $self->ask('POST', $path); }

# The server knows another client secret from now on; the file still holds the old one.
sub replace_client_secret
{
	my ($self, $new) = @_;
	$self->{is}{client_secret} = $new;
	return $self->control("replace-client-secret?$new");
}

# The file holds another token, as Kubernetes renews it; a time in the past makes one that has ended.
sub renew_federated_token
{
	my ($self, $seconds) = @_;
	my $token = $self->control('federated-token?' . ($seconds // 3600))->{federated_token};
	return write_secret($self->federated_token_file, $token);
}

# What no log may hold, by name: what is in the files, the vault's secret, and every access token until now.
sub secrets
{
	my ($self) = @_;
	my %secrets = map { $_ => $self->{is}{$_} } qw(client_secret federated_token identity_header pw);
	$secrets{public_only_secret} = $self->{is}{public_only_client}{client_secret};
	my $number = 0;
	$secrets{ 'access token ' . ++$number } = $_ for @{ $self->ask('GET', 'tokens') };
	return \%secrets;
}

# In the text of all its errors.
sub body_secret { return 'body-secret-of-the-azure-server'; }

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
