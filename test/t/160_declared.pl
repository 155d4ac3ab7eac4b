# Declared and searchable columns where no key is at hand: dumped and restored by four jobs, upgraded by pg_upgrade, searched
# on a standby, checked by amcheck; and unchanged in what they find.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Envcrypt::Test;

my $node = new_cluster('declared', init => { allows_streaming => 1 });
my $dba = Envcrypt::Session->new($node);
my $key_file = PostgreSQL::Test::Utils::tempdir() . '/key';
write_secret($key_file, '5a' x 32 . "\n");

my @types = qw(text bytea boolean int2 int4 int8 float8 numeric date timestamp timestamptz interval uuid inet jsonb text[]);
my %value = (
	text => "'Gr\xc3\xbc\xc3\x9fe'", bytea => "'\\xdeadbeef'", boolean => "'t'", int2 => '-2', int4 => '4', int8 => '-8000000000', float8 => "'-0'",
	numeric => '1.50', date => "'infinity'", timestamp => "'2024-02-29 23:59:59.999999'", timestamptz => "'2024-02-29 23:59:59+05'",
	interval => "'1 mon 24:00'", uuid => "'00112233-4455-6677-8899-aabbccddeeff'", inet => "'fe80::1/64'", jsonb => "'{\"b\": 1, \"a\": null}'",
	'text[]' => "'{{a,b},{c,NULL}}'");
$dba->value("CREATE SERVER kms FOREIGN DATA WRAPPER envcrypt_local OPTIONS (key_file '$key_file');
	CREATE USER MAPPING FOR CURRENT_USER SERVER kms; SELECT envcrypt.create_tenant('acme', 'kms')");
$dba->value("SET envcrypt.tenant = 'acme'; CREATE TABLE every (id int PRIMARY KEY, "
	  . join(', ', map { "\"$_\" envcrypt.encrypted('$_', every)" } @types) . ");
	INSERT INTO every VALUES (1, " . join(', ', map { "$value{$_}::$_" } @types) . ");
	CREATE TABLE note (id int PRIMARY KEY, size varchar(9), note envcrypt.encrypted(text, searchable, note));
	CREATE TABLE person (ssn envcrypt.encrypted(text, searchable, ssn) PRIMARY KEY, mail envcrypt.encrypted(text, searchable_nocase, mail),
		phone envcrypt.encrypted(text, searchable_digits, 'order'), born envcrypt.encrypted(date, searchable, born));
	CREATE INDEX person_mail ON person USING hash (mail); CREATE INDEX person_phone ON person (phone); CREATE UNIQUE INDEX person_born ON person (born);
	INSERT INTO person SELECT n::text, 'User' || n || '\@x', '+' || n, date '1970-01-01' + n FROM generate_series(1, 2000) n;
	CREATE TABLE visit (id int, ssn envcrypt.encrypted(text, searchable, ssn) REFERENCES person, any_type envcrypt.encrypted) PARTITION BY RANGE (id);
	CREATE TABLE visit1 PARTITION OF visit FOR VALUES FROM (0) TO (500); CREATE TABLE visit2 PARTITION OF visit FOR VALUES FROM (500) TO (5000);
	CREATE INDEX ON visit (ssn);
	INSERT INTO visit SELECT n, (1 + n % 100)::text, n FROM generate_series(1, 1000) n;
	ANALYZE person, visit");
$dba->value($dba->value("SELECT envcrypt.view_ddl('note')"));

# What every copy of the database must show, once it has the key.
my $decrypted = 'SELECT md5(concat_ws(chr(10), ' . join(', ', map { "envcrypt.decrypt(\"$_\")" } @types) . ')) FROM every';
my $found = q{SELECT (SELECT count(*) FROM person WHERE envcrypt.matches(ssn, '42')), (SELECT count(*) FROM person WHERE envcrypt.matches(mail, 'USER42@X')),
	(SELECT count(*) FROM person WHERE envcrypt.matches(phone, '4-2')), (SELECT count(*) FROM person WHERE envcrypt.matches(born, date '1970-02-12')),
	(SELECT count(*) FROM visit WHERE envcrypt.matches_any(ssn, ARRAY['42', '43', '2000'])), (SELECT count(DISTINCT ssn) FROM visit)};
my $declared = q{SELECT md5(string_agg(attrelid::regclass || attname || format_type(atttypid, atttypmod), ',' ORDER BY attrelid::regclass::text, attnum))
	FROM pg_attribute WHERE attrelid::regclass::text IN ('every', 'person', 'visit', 'visit1') AND attnum > 0};
my ($plaintexts, $columns) = ($dba->value($decrypted), $dba->value($declared));
works($dba, $found, '1|1|1|1|20|100', 'what is found');

sub is_whole
{
	my ($cluster, $database, $how) = @_;
	my $session = Envcrypt::Session->new($cluster, database => $database);
	is($session->value($declared), $columns, "$how: the declarations");
	$session->value("SET envcrypt.tenant = 'acme'");
	works($session, $decrypted, $plaintexts, "$how: what every type decrypts to");
	works($session, $found, '1|1|1|1|20|100', "$how: what is found");
	for my $index ('person_pkey', 'person_mail')
	{
		my $column = $index eq 'person_pkey' ? 'ssn' : 'mail';
		like($session->value("EXPLAIN (COSTS OFF) SELECT * FROM person WHERE envcrypt.matches($column, 'x')"), qr/Index Scan (using|on) $index/,
			"$how: by the index $index");
	}
	$session->close;
	return;
}

# --- indexes are what they should be, by amcheck, without a key
$dba->value('CREATE EXTENSION amcheck; SELECT envcrypt.forget_keys()');
works($dba, "SELECT count(bt_index_parent_check(indexrelid, true, true)) FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am a ON a.oid = relam
	WHERE amname = 'btree' AND relkind = 'i' AND indrelid::regclass::text IN ('person', 'visit1', 'visit2')", '5', 'amcheck finds every btree right');
works($dba, 'REINDEX TABLE person; REINDEX TABLE visit; VACUUM FULL person; ANALYZE person; SELECT count(*) FROM envcrypt.cache', '0',
	'REINDEX, VACUUM FULL and ANALYZE needed no key');

# --- a standby: the same index, opened under the standby's own calls to the KMS
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$dba->value("INSERT INTO person VALUES ('after'::text, 'After\@x'::text, '+0000'::text, date '1900-01-01')");
$node->wait_for_catchup($standby);
is_whole($standby, 'postgres', 'standby');
my $reader = Envcrypt::Session->new($standby);
works($reader, "SET envcrypt.tenant = 'acme'; SELECT envcrypt.decrypt(mail) FROM person WHERE envcrypt.matches(ssn, 'after')", 'After@x', 'standby: what came later');
fails_with($reader, "SELECT envcrypt.create_tenant('x', 'kms')", { state => '25006' }, 'standby: keys are not made');
$reader->close;
$dba->value("DELETE FROM person WHERE envcrypt.matches(ssn, 'after')");
$standby->stop;

# --- dumped and restored while the master key is away
rename $key_file, "$key_file.away" or die;
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-Fd', '-j4', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump -j4');
$dba->value('CREATE DATABASE restored; CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0');
for my $database ('restored', 'latin')
{
	$node->command_ok([ 'pg_restore', '-j4', '--exit-on-error', '-d', $node->connstr($database), $dump ], "pg_restore -j4: $database");
}
$dba->value('SELECT envcrypt.forget_keys()');
rename "$key_file.away", $key_file or die;
is_whole($node, 'restored', 'restored by four jobs');
my $restored = Envcrypt::Session->new($node, database => 'restored');
works($restored, "SET envcrypt.tenant = 'acme'; INSERT INTO note_plain VALUES (1, 'one', 'by view'); UPDATE note_plain SET note = note || '!'; SELECT size, note FROM note_plain",
	'one|by view!', 'the view of view_ddl() writes to the restored table');
$restored->close;
my $latin = Envcrypt::Session->new($node, database => 'latin');
$latin->value("SET envcrypt.tenant = 'acme'; SET client_encoding = UTF8");
works($latin, $found, '1|1|1|1|20|100', 'restored into LATIN1: what is found');
works($latin, 'SELECT envcrypt.decrypt(text) FROM every', "Gr\xc3\xbc\xc3\x9fe", 'restored into LATIN1: text');
works($latin, "CREATE TABLE u (v envcrypt.encrypted(text, searchable, ssn)); INSERT INTO u VALUES ('Gr\xc3\xbc\xc3\x9fe'::text);
	SELECT count(*) FROM u WHERE envcrypt.matches(v, 'Gr\xc3\xbc\xc3\x9fe')", '1', 'LATIN1: tokens are of UTF-8');
my $of_latin = $latin->value('SELECT encode(substr(envcrypt.encrypted_send(v), 14, 17), \'hex\') FROM u');
is($dba->value("SELECT encode(substr(envcrypt.encrypted_send('Gr\xc3\xbc\xc3\x9fe'::text::envcrypt.encrypted(text, searchable, ssn)), 14, 17), 'hex')"), $of_latin,
	'and the same as in UTF-8');
$latin->close;

# --- pg_upgrade, which copies files and calls no function of ours
$dba->value('DROP DATABASE restored; DROP DATABASE latin');
$dba->close;
$node->stop;
my $upgraded = PostgreSQL::Test::Cluster->new('upgraded');
$upgraded->init;
my $bin = $node->config_data('--bindir');
my $folder = PostgreSQL::Test::Utils::tempdir();
chdir $folder or die;
command_ok([ 'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $upgraded->data_dir, '-b', $bin, '-B', $bin, '-s', $node->host,
	'-p', $node->port, '-P', $upgraded->port ], 'pg_upgrade');
$upgraded->start;
is_whole($upgraded, 'postgres', 'upgraded');
$upgraded->stop;
done_testing();
