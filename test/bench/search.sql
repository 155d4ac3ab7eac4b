-- How long a value of each type is, beside plaintext and pgcrypto; and three tables to look values up in: plaintext with a
-- btree, encrypted with a btree and with a hash index.
\set QUIET on
\pset footer off
SET envcrypt.tenant = 'bench';
CREATE EXTENSION IF NOT EXISTS pgcrypto;
SELECT type, bytes AS plaintext, pgp AS pgp_sym_encrypt, sealed AS encrypted, labelled AS "with label", token AS "with token" FROM (
    SELECT 1 AS place, 'text (11)' AS type, octet_length('123-45-6789') AS bytes, octet_length(pgp_sym_encrypt('123-45-6789', 'p', 'cipher-algo=aes256, compress-algo=0')) AS pgp,
        octet_length(envcrypt.encrypted_send(envcrypt.encrypt('123-45-6789'))) AS sealed, octet_length(envcrypt.encrypted_send(envcrypt.encrypt('123-45-6789', label => 'a'))) AS labelled,
        octet_length(envcrypt.encrypted_send(envcrypt.encrypt('123-45-6789', label => 'a', search => 'searchable'))) AS token
    UNION ALL SELECT 2, 'bytea (16)', 16, octet_length(pgp_sym_encrypt_bytea(decode(repeat('00', 16), 'hex'), 'p', 'cipher-algo=aes256, compress-algo=0')), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(decode(repeat('00', 16), 'hex')))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(decode(repeat('00', 16), 'hex'), label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(decode(repeat('00', 16), 'hex'), label => 'a', search => 'searchable')))
    UNION ALL SELECT 3, 'boolean', pg_column_size(true), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(true))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(true, label => 'a'))), NULL
    UNION ALL SELECT 4, 'int2', pg_column_size(1::int2), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int2))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int2, label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int2, label => 'a', search => 'searchable')))
    UNION ALL SELECT 5, 'int4', pg_column_size(1), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1, label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1, label => 'a', search => 'searchable')))
    UNION ALL SELECT 6, 'int8', pg_column_size(1::int8), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int8))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int8, label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::int8, label => 'a', search => 'searchable')))
    UNION ALL SELECT 7, 'float8', pg_column_size(1::float8), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::float8))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1::float8, label => 'a'))), NULL
    UNION ALL SELECT 8, 'numeric (1234.50)', pg_column_size(1234.50), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1234.50))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1234.50, label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(1234.50, label => 'a', search => 'searchable')))
    UNION ALL SELECT 9, 'date', pg_column_size(current_date), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(current_date))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(current_date, label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(current_date, label => 'a', search => 'searchable')))
    UNION ALL SELECT 10, 'timestamp, timestamptz', pg_column_size(now()), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(now()))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(now(), label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(now(), label => 'a', search => 'searchable')))
    UNION ALL SELECT 12, 'interval', pg_column_size(interval '1 day'), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(interval '1 day'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(interval '1 day', label => 'a'))), NULL
    UNION ALL SELECT 13, 'uuid', pg_column_size(gen_random_uuid()), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(gen_random_uuid()))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(gen_random_uuid(), label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(gen_random_uuid(), label => 'a', search => 'searchable')))
    UNION ALL SELECT 14, 'inet (IPv4)', pg_column_size(inet '10.0.0.1'), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt(inet '10.0.0.1'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(inet '10.0.0.1', label => 'a'))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt(inet '10.0.0.1', label => 'a', search => 'searchable')))
    UNION ALL SELECT 15, 'jsonb ({"a": 1})', pg_column_size('{"a": 1}'::jsonb), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt('{"a": 1}'::jsonb))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt('{"a": 1}'::jsonb, label => 'a'))), NULL
    UNION ALL SELECT 16, 'text[] ({a,b})', pg_column_size('{a,b}'::text[]), NULL, octet_length(envcrypt.encrypted_send(envcrypt.encrypt('{a,b}'::text[]))), octet_length(envcrypt.encrypted_send(envcrypt.encrypt('{a,b}'::text[], label => 'a'))), NULL) t
    ORDER BY place;
CREATE UNLOGGED TABLE bench_plain AS SELECT n AS id, n::text AS ssn FROM generate_series(1, :rows) n;
CREATE UNLOGGED TABLE bench_btree AS SELECT id, ssn::envcrypt.encrypted(text, searchable, ssn) AS ssn FROM bench_plain;
CREATE UNLOGGED TABLE bench_hash AS TABLE bench_btree;
CREATE INDEX ON bench_plain (ssn); CREATE INDEX ON bench_btree (ssn); CREATE INDEX ON bench_hash USING hash (ssn);
VACUUM ANALYZE bench_plain; VACUUM ANALYZE bench_btree; VACUUM ANALYZE bench_hash;
SELECT tablename, n_distinct, coalesce(array_length(most_common_freqs, 1), 0) AS "common values", array_length(histogram_bounds::text::text[], 1) AS "histogram bounds",
    (histogram_bounds::text::text[])[1] LIKE 'ec1:%' AS "of ciphertext" FROM pg_stats WHERE tablename LIKE 'bench_%' AND attname = 'ssn' ORDER BY 1;
SELECT indexrelid::regclass AS index, pg_size_pretty(pg_relation_size(indexrelid)) AS size FROM pg_index WHERE indrelid::regclass::text LIKE 'bench_%' AND indrelid::regclass::text IN ('bench_plain', 'bench_btree', 'bench_hash') ORDER BY 1;
EXPLAIN (COSTS OFF) SELECT id FROM bench_btree WHERE envcrypt.matches(ssn, '42');
EXPLAIN (COSTS OFF) SELECT id FROM bench_hash WHERE envcrypt.matches(ssn, '42');
EXPLAIN (COSTS OFF) SELECT id FROM bench_btree WHERE envcrypt.matches_any(ssn, ARRAY['42', '43']);
EXPLAIN (COSTS OFF) SELECT id FROM bench_btree WHERE ssn OPERATOR(envcrypt.=) ANY (envcrypt.search('42', 'ssn', 'searchable'));
