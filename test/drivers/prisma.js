// Prisma, by the recipe of doc/drivers.md: through the view.
'use strict';
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { PrismaPg } = require('@prisma/adapter-pg');
const { blocks, load, equals, rejects } = require('./recipes.js');

const recipe = load('Prisma', 'inTenant, add, find');
const born = new Date('1970-01-31');

// The client, made of the page's schema. Only migrations use the schema engine, which is in no package: the variable keeps
// Prisma from fetching it.
function makeClient() {
    const folder = process.env.HOME;
    fs.writeFileSync(path.join(folder, 'package.json'), '{}');
    fs.symlinkSync(process.env.NODE_PATH, path.join(folder, 'node_modules'));
    fs.writeFileSync(path.join(folder, 'schema.prisma'), blocks('Prisma', 'prisma'));
    execFileSync(process.execPath, [require.resolve('prisma/build/index.js'), 'generate', `--schema=${folder}/schema.prisma`], {
        cwd: folder, stdio: ['ignore', 'ignore', 'inherit'],
        env: { ...process.env, DATABASE_URL: 'postgresql://', PRISMA_SCHEMA_ENGINE_BINARY: '/bin/true', CHECKPOINT_DISABLE: '1', PRISMA_GENERATE_SKIP_AUTOINSTALL: '1',
            PRISMA_HIDE_UPDATE_MESSAGE: '1' } });
    return require(path.join(folder, 'client')).PrismaClient;
}

async function main() {
    const prisma = new (makeClient())({ adapter: new PrismaPg({}) });
    const plain = ({ tenant, ssn, born }) => [tenant, ssn, born && born.toISOString().slice(0, 10)];
    await prisma.patient.deleteMany();
    const added = [];
    for (let n = 0; n < 3; ++n) added.push(await recipe.add(prisma, 'acme', `123-${n}`, born));
    equals(plain(added[0]), ['acme', '123-0', '1970-01-31'], 'Prisma: what create returns');
    equals(plain(await prisma.patient.findUnique({ where: { id: added[0].id } })), ['acme', '123-0', '1970-01-31'], 'Prisma: what is written is read');
    equals(plain(await recipe.add(prisma, 'acme', null, null)), ['acme', null, null], 'Prisma: NULL');
    const other = await recipe.add(prisma, 'other', '123-0', born);
    for (let n = 0; n < 3; ++n) {
        equals(await recipe.find(prisma, 'acme', '123-0'), [{ id: added[0].id, ssn: '123-0', born }], `Prisma: found, round ${n}`);
        equals((await recipe.find(prisma, 'other', '123-0')).map((row) => row.id), [other.id], `Prisma: found as another tenant, round ${n}`);
    }
    equals((await prisma.patient.findMany({ where: { ssn: '123-1' } })).map((row) => row.id), [added[1].id], 'Prisma: filtered by plaintext, row by row');
    await recipe.inTenant(prisma, 'acme', (tx) => tx.patient.update({ where: { id: added[0].id }, data: { ssn: 'new' } }));
    equals((await recipe.find(prisma, 'acme', 'new')).length, 1, 'Prisma: update');
    equals((await recipe.inTenant(prisma, 'acme', (tx) => tx.patient.createMany({ data: [{ tenant: 'acme', ssn: 'a', born }, { tenant: 'acme', ssn: 'b' }] }))).count,
        2, 'Prisma: createMany');
    await prisma.patient.delete({ where: { id: added[1].id } });
    equals(await prisma.patient.count(), 6, 'Prisma: delete, count');
    const [{ stored }] = await prisma.$queryRaw`SELECT ssn::text AS stored FROM patient WHERE id = ${added[0].id}`;
    equals(stored.slice(0, 4), 'ec1:', 'Prisma: stored is ciphertext');
    equals(await prisma.$queryRaw`SELECT current_setting('envcrypt.tenant') AS tenant`, [{ tenant: 'default' }], 'Prisma: the tenant ended with the transaction');
    await rejects(prisma.$executeRaw`INSERT INTO patient (tenant, ssn) VALUES ('acme', ${'123-45-6789'})`, 'Prisma: SQL by hand without a cast', null, '22P02', 'not an encrypted value');
    await rejects(prisma.patient.create({ data: { tenant: 'nobody', ssn: 'x' } }), 'Prisma: no such tenant', null, 'nobody');
    await prisma.$disconnect();
    console.log('done');
}
main();
