-- One million values of 11 bytes, each read RUNS times by a function that only copies its argument, by decrypt(), and by
-- pgcrypto; and plaintext. Nanoseconds for each value, the scan itself taken off, and the ratio to copying: in one run, since
-- machines are noisy.
\set QUIET on
\pset footer off
SET jit = off; SET max_parallel_workers_per_gather = 0; SET work_mem = '256MB';
SET envcrypt.tenant = 'bench';
CREATE EXTENSION pgcrypto;
CREATE FUNCTION bench_copy(envcrypt.encrypted) RETURNS text AS :'copy', 'bench_copy'
    LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE UNLOGGED TABLE bench AS SELECT
    lpad(i::text, :bytes, '0') AS plain,
    envcrypt.encrypt(lpad(i::text, :bytes, '0')) AS sealed
    FROM generate_series(1, :rows) i;
CREATE UNLOGGED TABLE bench_pgcrypto AS SELECT
    encrypt_iv(lpad(i::text, :bytes, '0')::bytea, '0123456789abcdef0123456789abcdef', '0123456789abcdef', 'aes') AS raw
    FROM generate_series(1, :rows) i;
CREATE UNLOGGED TABLE bench_pgp AS SELECT
    pgp_sym_encrypt(lpad(i::text, :bytes, '0'), 'password', 'cipher-algo=aes256, compress-algo=0') AS pgp
    FROM generate_series(1, greatest(:rows / 100, 1)) i;
VACUUM ANALYZE bench; VACUUM ANALYZE bench_pgcrypto; VACUUM ANALYZE bench_pgp;

CREATE TABLE bench_run (what text, query text, rows int, ns float8);
CREATE PROCEDURE measure(what text, query text, rows int) LANGUAGE plpgsql AS $$
DECLARE start timestamptz := clock_timestamp();
BEGIN
    EXECUTE query;
    INSERT INTO bench_run VALUES
        (what, query, rows, 1e9 * extract(epoch FROM clock_timestamp() - start) / rows);
END $$;
-- warm: pages and keys
CALL measure('-', 'SELECT count(envcrypt.decrypt(sealed)) FROM bench', :rows);
CALL measure('-', 'SELECT count(raw) FROM bench_pgcrypto', :rows);
SELECT format('CALL measure(%L, %L, %s)', what, query, rows) FROM generate_series(1, :runs) run, (VALUES
    (1, 'scan', 'SELECT count(sealed) FROM bench', :rows),
    (2, 'plaintext column', 'SELECT count(plain) FROM bench', :rows),
    (3, 'copying function', 'SELECT count(bench_copy(sealed)) FROM bench', :rows),
    (4, 'envcrypt decrypt', 'SELECT count(envcrypt.decrypt(sealed)) FROM bench', :rows),
    (5, 'envcrypt encrypt', 'SELECT count(envcrypt.encrypt(plain)) FROM bench', :rows),
    (6, 'pgcrypto decrypt_iv (no integrity)', 'SELECT count(decrypt_iv(raw, ''0123456789abcdef0123456789abcdef'', ''0123456789abcdef'', ''aes'')) FROM bench_pgcrypto', :rows),
    (7, 'pgcrypto pgp_sym_decrypt', 'SELECT count(pgp_sym_decrypt(pgp, ''password'')) FROM bench_pgp', greatest(:rows / 100, 1))
    ) q (place, what, query, rows) ORDER BY run, place \gexec

WITH best AS (SELECT what, min(ns) AS ns FROM bench_run WHERE what <> '-' GROUP BY what),
     scan AS (SELECT ns FROM best WHERE what = 'scan'),
     copying AS (SELECT ns FROM best WHERE what = 'copying function')
SELECT what, best.ns::numeric(12,1) AS "ns in all",
       (best.ns / copying.ns)::numeric(12,2) AS "ratio in all",
       (best.ns - scan.ns)::numeric(12,1) AS "ns without scan",
       ((best.ns - scan.ns) / (copying.ns - scan.ns))::numeric(12,2) AS "ratio without scan"
FROM best, scan, copying ORDER BY best.ns;
