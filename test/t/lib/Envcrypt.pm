# What the TAP tests share: servers (OpenBao, the fault servers) that end with the test, a PostgreSQL with the extension, and
# errors as "SQLSTATE message / detail / hint".
package Envcrypt;
use strict;
use warnings;
use Exporter 'import';
use IPC::Run  ();
use JSON::PP  ();
use MIME::Base64;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(new_node start_server start_bao bao stop_bao write_secret sql_error poll wait_event local_kms);
our %servers;
my $certs = $ENV{ENVCRYPT_CERTS};

# A PostgreSQL of its own.
sub new_node {
    my ($name, %settings) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);
    $node->init(allows_streaming => $settings{allows_streaming} // 0, extra => [ '--locale=C', '--encoding=UTF8' ]);
    $node->append_conf('postgresql.conf', "$_ = '$settings{conf}{$_}'") for keys %{ $settings{conf} // {} };
    $node->start;
    $node->safe_psql('postgres', 'CREATE EXTENSION envcrypt');
    return $node;
}

# Starts a Python server from test/servers that prints a line of JSON and ends when its standard input closes.
sub start_server {
    my ($script) = @_;
    my ($in, $out) = ('', '');
    my $handle = IPC::Run::start([ '/usr/bin/python3', "$ENV{ENVCRYPT_TEST_DIR}/servers/$script", $certs ], '<', \$in, '>', \$out);
    $handle->pump until $out =~ /\n/;
    $servers{$script} = $handle;
    return JSON::PP::decode_json($out);
}

# A secret in a file that only the server's user reads; returns the path.
sub write_secret {
    my ($name, $text) = @_;
    my $path = PostgreSQL::Test::Utils::tempdir_short() . "/$name";
    umask 077;
    append_to_file($path, $text);
    return $path;
}

sub poll {
    my ($condition, $what) = @_;
    for (1 .. 600) {
        return 1 if $condition->();
        sleep 0.05;
    }
    die "waited in vain: $what";
}

# OpenBao as a development server with TLS: in memory, unsealed, on a free port.
my %bao;

sub start_bao {
    my ($port) = @_;
    die 'OpenBao is not installed' unless $ENV{ENVCRYPT_BAO};
    $port //= PostgreSQL::Test::Cluster::get_free_port();
    my $dir = PostgreSQL::Test::Utils::tempdir_short();
    my $log = "$dir/log";
    my $pid = fork // die;
    if ($pid == 0) {
        open STDOUT, '>', $log;
        open STDERR, '>&STDOUT';
        exec $ENV{ENVCRYPT_BAO}, 'server', '-dev', '-dev-tls', "-dev-tls-cert-dir=$dir", '-dev-root-token-id=root',
            "-dev-listen-address=127.0.0.1:$port", '-dev-no-store-token';
    }
    %bao = (pid => $pid, url => "https://127.0.0.1:$port", ca => "$dir/vault-ca.pem", log => $log, port => $port);
    poll(sub { -e $bao{ca} && (bao_try('status'))[0] }, 'OpenBao starts');
    $bao{unseal_key} = $1 if slurp_file($log) =~ /Unseal Key: (\S+)/;
    return \%bao;
}

sub bao_try {
    my @command = @_;
    local %ENV = (%ENV, BAO_ADDR => $bao{url}, BAO_CACERT => $bao{ca}, BAO_TOKEN => 'root');
    my ($in, $out, $err) = ('', '', '');
    my $ok = IPC::Run::run([ $ENV{ENVCRYPT_BAO}, @command ], '<', \$in, '>', \$out, '2>', \$err);
    chomp $out;
    return ($ok, $out, $err);
}

sub bao {
    my ($ok, $out, $err) = bao_try(@_);
    die "bao @_: $err" unless $ok;
    return $out;
}

sub stop_bao {
    return unless $bao{pid};
    kill 'TERM', $bao{pid};
    waitpid $bao{pid}, 0;
    $bao{pid} = 0;
}

# "SQLSTATE message / detail / hint" of what the SQL raises, "" where it raises nothing.
sub sql_error {
    my ($node, $sql, %options) = @_;
    my ($rc, $out, $err) = $node->psql($options{database} // 'postgres', "\\set VERBOSITY verbose\n$sql",
        extra_params => [ '-U', $options{role} // $node->{_user} // getpwuid($>) ]);
    return '' unless $err =~ /ERROR:  (\w{5}): ([^\n]*)/;
    my $text = "$1 $2";
    $text .= " / $1" if $err =~ /DETAIL:  ([^\n]*)/;
    $text .= " / $1" if $err =~ /HINT:  ([^\n]*)/;
    return $text;
}

# Waits until the backend waits for a KMS.
sub wait_event {
    my ($node, $pid) = @_;
    poll(sub {
        $node->safe_psql('postgres', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid") eq 't';
    }, "backend $pid waits for the KMS");
}

sub local_kms {
    my ($node, $database) = @_;
    $node->safe_psql($database // 'postgres', qq{
        CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$ENV{ENVCRYPT_KEY_FILE}');
        CREATE USER MAPPING FOR CURRENT_USER SERVER kms;});
}

END {
    local $?;
    stop_bao();
    for my $handle (values %servers) {
        eval { $handle->kill_kill };
    }
}

1;
