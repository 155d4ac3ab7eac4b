# A database session that lives on between statements: a psql fed through a pipe. Keys are cached for each session.
package Envcrypt::Session;

use strict;
use warnings;
use IPC::Run ();
use Time::HiRes 'time';

use constant PATIENCE => 180;

# Options: role, database, environment (a hash).
sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless { in => '', out => '' }, $class;
	my $place = $node->connstr($options{database} // 'postgres');
	$place .= " user=$options{role}" if defined $options{role};
	local $ENV{PGOPTIONS} = '-c client_min_messages=error';
	local %ENV = (%ENV, %{ $options{environment} // {} });
	$self->{timer} = IPC::Run::timer(PATIENCE);
	$self->{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $place ],
		'<', \$self->{in}, '>', \$self->{out}, '2>&1', $self->{timer});
	$self->{in} .= "\\set VERBOSITY verbose\n";
	$self->{pid} = $self->value('SELECT pg_backend_pid()');
	return $self;
}

sub pid { return $_[0]{pid}; }

# Sends SQL and does not wait. One result() must follow.
sub begin
{
	my ($self, $sql) = @_;
	$self->{out} = '';
	$self->{in} .= "$sql;\n\\echo \@\@\@ :SQLSTATE\n";
	$self->{psql}->pump_nb while length $self->{in} && $self->{psql}->pumpable;
	return;
}

# What came of it: rows, and state, message, detail and hint of its last statement. The state is 'gone' where the
# session has ended; `text` is all that psql said, `ended` the moment when it was known.
sub result
{
	my ($self) = @_;
	$self->{timer}->start(PATIENCE);
	while ($self->{out} !~ /^@@@ (\w{5})$/m)
	{
		die "no answer from psql; so far: $self->{out}" if $self->{timer}->is_expired;
		last if !$self->{psql}->pumpable;
		$self->{psql}->pump;
	}
	my %result = (ended => time, text => $self->{out}, state => $self->{out} =~ /^@@@ (\w{5})$/m ? $1 : 'gone');
	($result{rows} = $self->{out}) =~ s/\n?^@@@ .*\n//m;
	# the last error is that of the last statement
	if ($self->{out} =~ /.*^(?:ERROR|FATAL|PANIC):  (\w{5}): ([^\n]*)(.*)/ms)
	{
		my $rest = $3;
		@result{qw(error message)} = ($1, $2);
		$result{detail} = $rest =~ /^DETAIL:  (.*)$/m ? $1 : '';
		$result{hint} = $rest =~ /^HINT:  (.*)$/m ? $1 : '';
	}
	return \%result;
}

sub ask
{
	my ($self, $sql) = @_;
	$self->begin($sql);
	return $self->result;
}

# The rows of a statement that must succeed.
sub value
{
	my ($self, $sql) = @_;
	my $result = $self->ask($sql);
	die "$sql: $result->{text}" if $result->{state} ne '00000' || $result->{error};
	return $result->{rows};
}

sub close
{
	my ($self) = @_;
	return if !$self->{psql};
	my $psql = delete $self->{psql};
	# said, since whatever was started later may have inherited the pipe and keep it open
	$self->{in} .= "\\q\n";
	my $timer = $self->{timer};
	$timer->start(PATIENCE);
	eval { $psql->pump while $psql->pumpable && !$timer->is_expired; };
	eval { $timer->is_expired ? $psql->kill_kill : $psql->finish; };
	return;
}

sub DESTROY { local ($?, $@); $_[0]->close; return; }

1;
