# A real PgBouncer in transaction mode with one server connection, on a Unix socket of its own, in front of a cluster.
package Envcrypt::Pooler;

use strict;
use warnings;
use IPC::Open2;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use Envcrypt::Test;

# Debian has it in a folder that is in root's path only.
sub program { return (grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin')[0]; }

# As a number that can be compared: 1.18.0 is 1.018.
sub version
{
	my $out = '';
	IPC::Run::run([ program(), '--version' ], '>', \$out) && $out =~ /^PgBouncer (\d+)\.(\d+)/ or die "no version: $out";
	return sprintf '%d.%03d', $1, $2;
}

# roles: who may log in; tcp: on 127.0.0.1 too; settings: lines of the section [pgbouncer].
sub start
{
	my ($class, $node, %options) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $self = bless { dir => $dir, port => PostgreSQL::Test::Cluster::get_free_port() }, $class;
	append_to_file("$dir/users", join '', map { "\"$_\" \"\"\n" } @{ $options{roles} });
	append_to_file("$dir/ini", "[databases]
* = host=" . $node->host . " port=" . $node->port . "
[pgbouncer]
listen_addr = " . ($options{tcp} ? '127.0.0.1' : '') . "
listen_port = $self->{port}
unix_socket_dir = $dir
auth_type = trust
auth_file = $dir/users
pool_mode = transaction
default_pool_size = 1
" . ($options{settings} // ''));
	# the shell ends it when this test does, in whatever way
	$self->{pid} = open2(
		$self->{out}, $self->{in}, 'sh', '-c',
		'"$1" "$2/ini" >"$2/log" 2>&1 </dev/null & server=$!; cat >/dev/null; kill $server; wait $server', 'sh', program(), $dir);
	wait_until("PgBouncer has started or failed", sub {
		die "PgBouncer said:\n" . slurp_file("$dir/log") if -e "$dir/log" && slurp_file("$dir/log") =~ /FATAL/;
		return -S "$dir/.s.PGSQL.$self->{port}";
	});
	return $self;
}

sub connstr { my ($self, $database) = @_; return "host=$self->{dir} port=$self->{port} dbname=$database"; }
sub host { return $_[0]{dir}; }
sub port { return $_[0]{port}; }

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
