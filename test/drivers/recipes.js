// The code of doc/drivers.md, and the TAP that the tests of drivers print. The counterpart of recipes.py.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const Module = require('node:module');
const { isDeepStrictEqual, inspect } = require('node:util');

const page = path.join(path.dirname(process.env.ENVCRYPT_TEST_DIR), 'doc', 'drivers.md');

// Every block of the language below the heading, at the line numbers of the page.
function blocks(heading, language) {
    let inside = false, code = false;
    const kept = fs.readFileSync(page, 'utf8').split('\n').map((line) => {
        if (line.startsWith('## ')) inside = line === `## ${heading}`;
        const fence = line.startsWith('```');
        const keep = inside && code && !fence;
        if (fence) code = line === '```' + language;
        return keep ? line : '';
    });
    if (!kept.some((line) => line)) throw new Error(`${page} has no ${language} below '${heading}'`);
    return kept.join('\n');
}

// The functions of these names.
function load(heading, names) {
    const recipe = new Module(page);
    recipe.paths = module.paths;
    recipe._compile(`${blocks(heading, 'js')}\nmodule.exports = { ${names} };`, page);
    return recipe.exports;
}

function equals(got, expected, name) {
    const same = isDeepStrictEqual(got, expected);
    console.log(same ? `ok ${name}` : `not ok ${name} : ${inspect(got, { breakLength: Infinity })}, not ${inspect(expected, { breakLength: Infinity })}`);
}

// The promise is rejected with this SQLSTATE (null: any), and message, detail and hint have these words.
async function rejects(promise, name, sqlstate, ...words) {
    const error = await promise.then(() => null, (caught) => caught);
    const text = error && [error.message, error.detail, error.hint].join(' ');
    let fits = error && (sqlstate === null || error.code === sqlstate) && words.every((word) => text.includes(word));
    // what the type says of plaintext does not repeat it
    fits = fits && !text.includes('123-45-6789');
    equals(fits ? 'as expected' : `${error && error.code} ${text}`.replaceAll('\n', ' '), 'as expected', name);
}

module.exports = { blocks, load, equals, rejects };
