# Google's KMS and what it takes to log in there (test/servers/gcp_kms.py), with credential files.
package Envcrypt::Gcp;

use strict;
use warnings;
use File::Spec;
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
	my $dir = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir());
	my $self = bless { certs => $certs, dir => $dir }, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, $python, '-B', "$test_dir/servers/gcp_kms.py", $certs);
	my $line = readline $self->{out};
	die "Google's server did not start" if !defined $line;
	$self->{about} = decode_json($line);

	my $json = JSON::PP->new->canonical->pretty;
	my $external = $self->{about}{external_account};
	$external->{credential_source}{file} = $self->subject_token_file;
	$self->write_subject_token($self->{about}{subject_token});
	write_secret($self->service_account_file, $json->encode($self->{about}{service_account}));
	write_secret($self->external_account_file, $json->encode($external));
	return $self;
}

sub endpoint { return "https://127.0.0.1:$_[0]{about}{port}"; }
sub ca_file { return "$_[0]{certs}/ca.pem"; }

# HOST:PORT of the metadata server, as GCE_METADATA_HOST has it: plain HTTP.
sub metadata_host { return "127.0.0.1:$_[0]{about}{metadata}"; }

# The name of key `app`, or of another beside it: `own`, or one that does not exist.
sub key
{
	my ($self, $name) = @_;
	my $key = $self->{about}{key};
	$key =~ s/[^\/]+$/$name/ if defined $name;
	return $key;
}

sub service_account_file { return "$_[0]{dir}/service_account.json"; }
sub external_account_file { return "$_[0]{dir}/external_account.json"; }
sub subject_token_file { return "$_[0]{dir}/subject_token"; }

# What the external account shows; without a newline, as Kubernetes writes it.
sub write_subject_token
{
	my ($self, $token) = @_;
	my $path = write_secret($self->subject_token_file, $token);
	truncate $path, length $token or die "$path: $!";
	return;
}

# What must be in no log (name => bytes, for holds_none): the beginning of every access token, a line of the private key,
# the subject token, and what is in every error that a fault makes.
sub secrets
{
	my ($self) = @_;
	my @private_key = split /\n/, $self->{about}{service_account}{private_key};
	return {
		'access token' => 'ya29.test.',
		'private key' => $private_key[ @private_key / 2 ],
		'subject token' => $self->{about}{subject_token},
		'error' => 'body-secret-of-the-google-server'
	};
}

# What a request to the control port answers: control('expire'), control('fault', 503, 2).
sub control
{
	my ($self, $path, @arguments) = @_;
	for (@arguments) { s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ge; }
	my $query = @arguments ? '?' . join('&', @arguments) : '';
	return $self->ask('POST', $path . $query);
}

# How often each METHOD:WHAT was asked; the sum of those that the pattern names.
sub counts
{
	my ($self, $pattern) = @_;
	my $counts = $self->ask('GET', 'counts');
	my $sum = 0;
	$sum += $counts->{$_} for grep { /$pattern/ } keys %$counts;
	return $sum;
}

sub ask
{
	my ($self, $method, $path) = @_;
	my $url = "http://127.0.0.1:$self->{about}{control}/$path";
	my $answer = HTTP::Tiny->new(timeout => 60, proxy => undef)->request($method, $url);
	die "$method $path: $answer->{reason} $answer->{content}" if !$answer->{success};
	return decode_json($answer->{content});
}

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
