# AWS on loopback (test/servers/moto_kms.py): KMS, STS and Secrets Manager that check signatures and policies, the
# metadata services of machines and containers, and the files that a client of AWS finds its credentials in.
package Envcrypt::Moto;

use strict;
use warnings;
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP 'decode_json';
use PostgreSQL::Test::Utils;

use Envcrypt::Test;

use constant WRONG_SECRET => 'wrongwrongwrongwrongwrongwrongwrongwrong';

# Whether there is one to be started: ENVCRYPT_MOTO is a Python with the packages of test/servers/moto.requirements.
sub is_there { return -x ($ENV{ENVCRYPT_MOTO} // ''); }

sub start
{
	my ($class) = @_;
	my $certs = $ENV{ENVCRYPT_CERTS};
	if (!defined $certs)
	{
		$certs = PostgreSQL::Test::Utils::tempdir();
		system("$test_dir/servers/make_certs.sh", $certs) == 0 or die "no certificates";
	}
	my $self = bless { certs => $certs, dir => PostgreSQL::Test::Utils::tempdir() }, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, $ENV{ENVCRYPT_MOTO}, '-B', "$test_dir/servers/moto_kms.py", $certs);
	my $line = readline $self->{out};
	die "moto did not start" if !defined $line;
	$self->{told} = decode_json($line);
	$self->write_files;
	return $self;
}

sub write_files
{
	my ($self) = @_;
	my ($told, $limited) = ($self->{told}, $self->{told}{limited});
	my %keys = (
		default => [ $told->{access_key_id}, $told->{secret_access_key} ],
		limited => [ $limited->{access_key_id}, $limited->{secret_access_key} ],
		wrong => [ $told->{access_key_id}, WRONG_SECRET ]);
	write_secret("$self->{dir}/credentials", join "\n",
		map { "[$_]\naws_access_key_id = $keys{$_}[0]\naws_secret_access_key = $keys{$_}[1]\n" } sort keys %keys);
	write_secret("$self->{dir}/config", <<"CONFIG");
[default]
region = $told->{region}

[profile limited]
region = $told->{region}

[profile wrong]
region = $told->{region}

[profile role]
region = $told->{region}
role_arn = $told->{role_arn}
source_profile = default

[profile refused_role]
region = $told->{region}
role_arn = $told->{role_arn}
source_profile = limited
CONFIG
	write_token($self->web_identity_token_file, $told->{web_identity_token});
	write_token($self->container_token_file, $told->{container_token});
	return;
}

# Without a line's end, unlike write_secret: a token file of Kubernetes has none, and AWS's own clients refuse one.
sub write_token
{
	my ($path, $token) = @_;
	write_secret($path, '');
	open my $file, '>', $path or die "$path: $!";
	print $file $token;
	close $file or die "$path: $!";
	return;
}

sub endpoint { return "https://127.0.0.1:$_[0]{told}{port}"; }
sub ca_file { return "$_[0]{certs}/ca.pem"; }
sub region { return $_[0]{told}{region}; }
sub key_arn { return $_[0]{told}{key_arn}; }    # alias/app
sub own_key_arn { return $_[0]{told}{own_key_arn}; }    # alias/own
sub role_arn { return $_[0]{told}{role_arn}; }
sub secret_arn { return $_[0]{told}{secret_arn}; }    # holds secret()
sub secret { return $_[0]{told}{secret}; }
sub access_key_id { return $_[0]{told}{access_key_id}; }
sub secret_access_key { return $_[0]{told}{secret_access_key}; }
sub limited { return $_[0]{told}{limited}; }    # who may only decrypt

# Profiles: default, limited, wrong (secret), role (assumed by default), refused_role (by limited, who may not).
sub credentials_file { return "$_[0]{dir}/credentials"; }
sub config_file { return "$_[0]{dir}/config"; }
sub web_identity_token_file { return "$_[0]{dir}/web_identity_token"; }
sub container_token_file { return "$_[0]{dir}/container_token"; }

# Where a machine finds its credentials, a container of ECS, and a pod of EKS (which shows the container token).
sub imds_url { return "http://127.0.0.1:$_[0]{told}{metadata}"; }
sub ecs_url { return $_[0]->imds_url . "/v2/credentials/$_[0]{told}{container_id}"; }
sub eks_url { return $_[0]->imds_url . '/v1/credentials'; }

# The secrets (name => bytes) that must be in no log: the given ones, and all that were issued until now.
sub secrets
{
	my ($self) = @_;
	my $told = $self->{told};
	my $issued = $self->ask('GET', 'issued');
	return {
		secret_access_key => $told->{secret_access_key},
		limited_secret_access_key => $told->{limited}{secret_access_key},
		wrong_secret_access_key => WRONG_SECRET,
		body_secret => $told->{body_secret},
		secret => $told->{secret},
		web_identity_token => $told->{web_identity_token},
		container_token => $told->{container_token},
		map { ("issued $_" => $issued->[$_]) } 0 .. $#$issued,
	};
}

# How often that was asked which the pattern names: X-Amz-Target, sts.ACTION, imds.*, container.*, connection.
sub counts
{
	my ($self, $pattern) = @_;
	my $counts = $self->ask('GET', 'counts');
	my $sum = 0;
	$sum += $counts->{$_} for grep { /$pattern/ } keys %$counts;
	return $sum;
}

# Tells the front what to do, as moto_kms.py has it: 'fault?what=ThrottlingException&times=2', 'date?3600', …
sub control { my ($self, $path) = @_; $self->ask('POST', $path); return; }

sub ask
{
	my ($self, $method, $path) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60, proxy => undef)
	  ->request($method, "http://127.0.0.1:$self->{told}{control}/$path");
	die "no $path: $answer->{reason} $answer->{content}" if !$answer->{success};
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
