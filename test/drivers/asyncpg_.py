"""asyncpg, by the recipe of doc/drivers.md: without a codec for the type, and with a binary and a text one."""
import asyncio
import datetime
import io

import asyncpg

from recipes import done, equals, error_of, holds, load

recipe = load("asyncpg")
born = datetime.date(1970, 1, 31)


async def fails(awaitable, name, sqlstate, *words):
    try:
        await awaitable
        error = None
    except Exception as caught:
        error = caught
    error_of(error, name, sqlstate, *words)


async def check(connection, prefix, form):
    await connection.execute("DELETE FROM patient")
    ids = [await recipe.add(connection, "acme", f"123-{n}", born) for n in range(3)]
    equals(tuple(await recipe.read(connection, ids[0])), ("123-0", born), prefix + "what is written is read")
    equals(tuple(await recipe.read(connection, await recipe.add(connection, "acme", None, None))), (None, None), prefix + "NULL")
    other = await recipe.add(connection, "other", "123-0", born)
    for n in range(8):
        equals([row["id"] for row in await recipe.find(connection, "acme", ["123-0"])], [ids[0]], prefix + f"found, round {n}")
        equals([row["id"] for row in await recipe.find(connection, "other", ["123-0", "x"])], [other], prefix + f"found as another tenant, round {n}")
    equals(await connection.fetchval("SELECT current_setting('envcrypt.tenant')"), "default", prefix + "the tenant ended with the transaction")
    in_tenant = connection.transaction()
    await in_tenant.start()
    await connection.execute("SELECT set_config('envcrypt.tenant', 'acme', true)")
    equals(await connection.fetchval("SELECT count(*) FROM patient WHERE envcrypt.matches(ssn, $1)", "123-0"), 1, prefix + "matches takes a text without a cast")
    await in_tenant.rollback()

    # ciphertext
    stored = await connection.fetchval("SELECT ssn FROM patient WHERE id = $1", ids[0])
    holds(stored.startswith("ec1:") if form is str else isinstance(stored, bytes) and stored[0] == 0x11, prefix + "the bare column is ciphertext")
    await connection.execute("INSERT INTO patient (id, tenant, ssn) VALUES (-1, 'acme', $1)", stored)
    equals((await recipe.read(connection, -1))["ssn"], "123-0", prefix + "ciphertext is written as it came")
    file = io.BytesIO()
    await recipe.copy_out(connection, file)
    holds(file.getvalue().startswith(b"PGCOPY") and b"123-" not in file.getvalue(), prefix + "COPY gives ciphertext")
    file.seek(0)
    await connection.execute("DELETE FROM patient")
    await recipe.copy_in(connection, file)
    equals(len(await recipe.find(connection, "acme", ["123-0", "123-1", "123-2"])), 4, prefix + "and takes it")
    await recipe.load(connection, "acme", [("copied", born), (None, None)])
    found = await recipe.find(connection, "acme", ["copied"])
    equals(tuple(await recipe.read(connection, found[0]["id"])), ("copied", born), prefix + "plaintext by COPY into the view")

    # mistakes
    insert = "INSERT INTO patient (tenant, {}) VALUES ('acme', $1{})"
    if form is str:
        await fails(connection.execute(insert.format("ssn", ""), "123-45-6789"), prefix + "no cast", "22P02", "not an encrypted value", "'value'::text")
    else:
        await fails(connection.execute(insert.format("ssn", ""), "123-45-6789"), prefix + "no cast", "22000", "invalid input for query argument $1", "without an encoding")
        await fails(connection.execute(insert.format("ssn", ""), b"123-45-6789"), prefix + "bytes without a cast", "22P03", "invalid binary input for type encrypted", "'value'::text")
    await fails(connection.execute(insert.format("born", "::date"), "1970-01-31"), prefix + "a str for a date", "22000", "toordinal")
    await fails(connection.execute(insert.format("born", "::text"), "1970-01-31"), prefix + "another type", "42804",
        "a value of type text does not fit a column of type encrypted(date", "Cast the plaintext to date")
    await fails(connection.fetch("SELECT FROM patient WHERE ssn = $1", "x"), prefix + "=", "42883", "envcrypt.encrypted = unknown")
    await fails(connection.fetch("SELECT FROM patient WHERE envcrypt.matches_any(ssn, $1)", ["x"]), prefix + "a list without a cast", "42725", "is not unique")
    return stored


async def main():
    connection = await asyncpg.connect()
    await check(connection, "asyncpg: ", str)
    await fails(connection.execute("INSERT INTO patient (tenant, born) VALUES ('acme', $1)", born), "asyncpg: a date without a cast", "22000", "expected str, got date")
    row = ("acme", "ec1:", None)
    await fails(connection.copy_records_to_table("patient", columns=["tenant", "ssn", "born"], records=[row]), "asyncpg: records need a codec", None,
        "no binary format encoder for type encrypted")

    # the recipe sets the codec
    rows = await connection.fetch("SELECT tenant, envcrypt.encrypted_send(ssn), envcrypt.encrypted_send(born) FROM patient WHERE ssn IS NOT NULL")
    await connection.execute("DELETE FROM patient")
    await recipe.copy_records(connection, [tuple(row) for row in rows])
    equals(len(await recipe.find(connection, "acme", ["123-0", "123-1", "123-2", "copied"])), 5, "asyncpg: rows of ciphertext by COPY")
    await fails(recipe.copy_records(connection, [("acme", b"123-45-6789", None)]), "asyncpg: rows of plaintext", "22P03", "invalid binary input for type encrypted")
    await check(connection, "asyncpg, binary codec: ", bytes)
    await connection.set_type_codec("encrypted", schema="envcrypt", encoder=str, decoder=str, format="text")
    await check(connection, "asyncpg, text codec: ", str)
    await connection.close()


asyncio.run(main())
done()
