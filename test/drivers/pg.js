// node-postgres, by the recipe of doc/drivers.md: text and binary: true.
'use strict';
const { Readable, Writable } = require('node:stream');
const pg = require('pg');
const { load, equals, rejects } = require('./recipes.js');

const recipe = load('node-postgres', 'inTenant, add, read, find, findAny, copyOut, copyIn');
const born = '1970-01-31';

async function check(client, binary) {
    const prefix = binary ? 'pg binary: ' : 'pg text: ';
    const ask = (text, values = []) => client.query({ text, values, binary, queryMode: 'extended' });
    const plain = async (id) => { const { ssn, born } = await recipe.read(client, id, binary); return [ssn, born]; };
    await client.query('DELETE FROM patient');
    const ids = [];
    for (let n = 0; n < 3; ++n) ids.push(await recipe.add(client, 'acme', `123-${n}`, born));
    equals(await plain(ids[0]), ['123-0', born], prefix + 'what is written is read');
    equals(await plain(await recipe.add(client, 'acme', null, null)), [null, null], prefix + 'NULL');
    const umlauts = 'Grüße, 世界 🔑'.repeat(100);
    equals((await plain(await recipe.add(client, 'acme', umlauts, null)))[0], umlauts, prefix + 'a long text');
    const other = await recipe.add(client, 'other', '123-0', born);
    for (let n = 0; n < 3; ++n) {
        equals(await recipe.find(client, 'acme', '123-0'), [ids[0]], prefix + `found, round ${n}`);
        equals(await recipe.find(client, 'other', '123-0'), [other], prefix + `found as another tenant, round ${n}`);
    }
    equals((await recipe.findAny(client, 'acme', ['123-1', '123-2', 'x'])).sort(), [ids[1], ids[2]].sort(), prefix + 'any of a list');
    equals((await client.query("SELECT current_setting('envcrypt.tenant') AS tenant")).rows[0].tenant, 'default', prefix + 'the tenant ended with the transaction');

    // ciphertext
    const { stored } = await recipe.read(client, ids[0], binary);
    equals(stored.slice(0, 4), 'ec1:', prefix + 'the bare column is ciphertext');
    await ask("INSERT INTO patient (id, tenant, ssn) VALUES (-1, 'acme', $1), (-2, 'acme', $2)", [stored, Buffer.from(stored.slice(4), 'base64')]);
    equals([(await plain(-1))[0], (await plain(-2))[0]], ['123-0', '123-0'], prefix + 'ciphertext is written as it came, as text and in a Buffer');
    const chunks = [];
    await recipe.copyOut(client, new Writable({ write(chunk, _, next) { chunks.push(chunk); next(); } }));
    const copied = Buffer.concat(chunks);
    equals([copied.subarray(0, 6).toString(), copied.includes('123-')], ['PGCOPY', false], prefix + 'COPY gives ciphertext');
    await client.query('DELETE FROM patient');
    await recipe.copyIn(client, Readable.from([copied]));
    equals((await recipe.findAny(client, 'acme', ['123-0', '123-1'])).length, 4, prefix + 'and takes it');

    // mistakes
    const insert = (column, cast, value) => ask(`INSERT INTO patient (tenant, ${column}) VALUES ('acme', $1${cast})`, [value]);
    const refused = ['invalid input for type encrypted: not an encrypted value', "'value'::text"];
    await rejects(insert('ssn', '', '123-45-6789'), prefix + 'no cast', '22P02', ...refused);
    await rejects(insert('ssn', '', 7), prefix + 'a number without a cast', '22P02', ...refused);
    await rejects(insert('born', '', new Date(0)), prefix + 'a Date without a cast', '22P02', ...refused);
    await rejects(insert('ssn', '', Buffer.from('123-45-6789')), prefix + 'a Buffer', '22P03', 'invalid binary input for type encrypted', "'value'::text");
    await rejects(insert('born', '::text', born), prefix + 'another type', '42804', 'a value of type text does not fit a column of type encrypted(date', 'Cast the plaintext to date');
    await rejects(ask('SELECT FROM patient WHERE ssn = $1', ['x']), prefix + '=', '42883', 'envcrypt.encrypted = unknown');
    await rejects(ask('SELECT FROM patient WHERE envcrypt.matches_any(ssn, $1)', [['x']]), prefix + 'a list without a cast', '42725', 'is not unique');
    await rejects(recipe.inTenant(client, 'acme', async () => { await client.query('DELETE FROM patient'); throw new Error('mine'); }),
        prefix + 'what fails in a transaction', null, 'mine');
    equals((await recipe.findAny(client, 'acme', ['123-0'])).length, 3, prefix + 'is rolled back');
}

async function main() {
    const client = new pg.Client();
    await client.connect();
    await check(client, false);
    await check(client, true);
    await client.end();
    console.log('done');
}
main();
