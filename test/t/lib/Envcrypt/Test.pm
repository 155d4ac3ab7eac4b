# What the TAP tests share: clusters, errors, waiting for a condition, and what /proc tells of a process.
package Envcrypt::Test;

use strict;
use warnings;
use Exporter 'import';
use File::Basename 'dirname';
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Envcrypt::Session;

our @EXPORT = qw(new_cluster start_again wait_until write_secret fails_with works wait_for_kms is_waiting_for_kms
  open_descriptors threads resident_kb is_alive children_of log_of holds_none python $test_dir $python);

# Folders and programs: test/run sets the environment; a test run by hand may leave most of it out.
our $test_dir = $ENV{ENVCRYPT_TEST_DIR} // dirname(dirname(dirname(dirname(__FILE__))));
our $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';

use constant PATIENCE => 180;

# Calls the sub until it returns true, and returns that; dies where it never does.
sub wait_until
{
	my ($what, $sub) = @_;
	my $end = time + PATIENCE;
	while (time < $end)
	{
		my $result = $sub->();
		return $result if $result;
		sleep 0.005;
	}
	die "waited in vain until $what";
}

# A running cluster. conf: lines of postgresql.conf; init: of the node's init(); extension: whether to create it.
sub new_cluster
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(%{ $options{init} // {} }, extra => [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf', "max_connections = 150\nshared_buffers = 32MB\n" . ($options{conf} // ''));
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION envcrypt') if $options{extension} // 1;
	return $node;
}

# Starts a cluster whose postmaster was killed, once nothing of it is left.
sub start_again
{
	my ($node, @children) = @_;
	wait_until("the processes of the killed postmaster have ended", sub { !grep { is_alive($_) } @children });
	# a killed postmaster that nobody has reaped yet still counts as running
	unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	$node->start;
	return;
}

# A file with a secret, for the server's user alone. Returns its path.
sub write_secret
{
	my ($path, $secret) = @_;
	my $mask = umask 0077;
	open my $file, '>', $path or die "$path: $!";
	print $file "$secret\n";
	close $file or die "$path: $!";
	umask $mask;
	return $path;
}

# One test: the statement fails with this SQLSTATE, message, detail and hint (each a string or a regexp, and left out
# where it does not matter; '' for none).
sub fails_with
{
	my ($session, $sql, $expected, $name) = @_;
	my $got = ref $sql ? $sql : $session->ask($sql);
	my @wrong;
	for my $part (qw(state message detail hint))
	{
		next if !exists $expected->{$part};
		my ($is, $should) = ($got->{$part} // '', $expected->{$part});
		push @wrong, "$part is '$is', not '$should'" if !(ref $should ? $is =~ $should : $is eq $should);
	}
	ok(!@wrong, $name) or diag(join "\n", @wrong, $got->{text});
	return $got;
}

# One test: the statement's rows are these.
sub works
{
	my ($session, $sql, $rows, $name) = @_;
	my $got = $session->ask($sql);
	is($got->{state} eq '00000' ? $got->{rows} : "$got->{state} $got->{text}", $rows, $name);
	return $got;
}

sub is_waiting_for_kms
{
	my ($watcher, $pid) = @_;
	return $watcher->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active'
		AND wait_event_type = 'Extension' AND wait_event IN ('Extension', 'EnvcryptKms')") eq '1';
}

# Waits until the session's statement waits for a KMS, as another session sees it.
sub wait_for_kms
{
	my ($watcher, $session) = @_;
	my $pid = $session->pid;
	return wait_until("backend $pid waits for the KMS", sub { is_waiting_for_kms($watcher, $pid) });
}

# --- processes ---

sub entries
{
	my ($folder) = @_;
	opendir my $handle, $folder or return;
	return grep { !/^\./ } readdir $handle;
}

sub open_descriptors { return scalar entries("/proc/$_[0]/fd"); }
sub threads { return scalar entries("/proc/$_[0]/task"); }

sub status_of
{
	my ($pid, $field) = @_;
	open my $file, '<', "/proc/$pid/status" or return;
	for (<$file>) { return $1 if /^$field:\s+(\S+)/; }
	return;
}

sub resident_kb { return status_of($_[0], 'VmRSS'); }
sub is_alive { my $state = status_of($_[0], 'State'); return defined $state && $state ne 'Z'; }

sub children_of
{
	my ($pid) = @_;
	return grep { /^\d+$/ && (status_of($_, 'PPid') // 0) == $pid } entries('/proc');
}

# --- what must not leak ---

sub log_of { return slurp_file($_[0]->logfile); }

# One test: the text holds none of the secrets (name => bytes).
sub holds_none
{
	my ($text, $secrets, $name) = @_;
	my @found = grep { index($text, $secrets->{$_}) >= 0 } sort keys %$secrets;
	ok(length $text && !@found, $name) or diag("found: @found (in " . length($text) . " bytes)");
	return;
}

1;
