"""psycopg 3, by the recipe of doc/drivers.md: text and binary."""
import datetime
import io

import psycopg

from recipes import done, equals, holds, load, raises

recipe = load("psycopg 3")
born = datetime.date(1970, 1, 31)
connection = psycopg.connect(autocommit=True)
for binary in False, True:
    mode = "binary" if binary else "text"
    cursor = connection.cursor(binary=binary)
    prefix = f"psycopg {mode}: "
    connection.execute("DELETE FROM patient")

    # write, read, search; often enough that psycopg prepares the statements, with the tenant changing under them
    ids = [recipe.add(cursor, "acme", f"123-{n}", born) for n in range(8)]
    equals(recipe.read(cursor, ids[0]), ("123-0", born), prefix + "what is written is read")
    equals(recipe.read(cursor, recipe.add(cursor, "acme", None, None)), (None, None), prefix + "NULL")
    long = "Grüße, 世界 🔑" * 100
    equals(recipe.read(cursor, recipe.add(cursor, "acme", long, born))[0], long, prefix + "a long text")
    other = recipe.add(cursor, "other", "123-0", born)
    for n in range(8):
        equals(recipe.find(cursor, "acme", "123-0"), [(ids[0],)], prefix + f"found, round {n}")
        equals(recipe.find(cursor, "other", "123-0"), [(other,)], prefix + f"found as another tenant, round {n}")
    equals(recipe.find(cursor, "acme", "none"), [], prefix + "not found")
    equals(sorted(recipe.find_any(cursor, "acme", ["123-1", "123-2", "none"])), [(ids[1],), (ids[2],)], prefix + "any of a list")
    equals(connection.execute("SELECT current_setting('envcrypt.tenant')").fetchone()[0], "default", prefix + "the tenant ended with the transaction")

    # ciphertext
    stored = cursor.execute("SELECT ssn FROM patient WHERE id = %s", [ids[0]]).fetchone()[0]
    holds(isinstance(stored, bytes) and stored[0] == 0x11 if binary else stored.startswith("ec1:"), prefix + "the bare column is ciphertext")
    if not binary:
        # bytes would go as bytea, which is plaintext
        cursor.execute("INSERT INTO patient (id, ssn) VALUES (-1, %s)", [stored])
        equals(recipe.read(cursor, -1)[0], "123-0", prefix + "ciphertext is written as it came")
    file = io.BytesIO()
    recipe.copy_out(cursor, file)
    holds(file.getvalue().startswith(b"PGCOPY") and b"123-" not in file.getvalue(), prefix + "COPY gives ciphertext")
    before = cursor.execute("SELECT count(*) FROM patient").fetchone()[0]
    connection.execute("DELETE FROM patient")
    file.seek(0)
    recipe.copy_in(cursor, file)
    equals(cursor.execute("SELECT count(*) FROM patient").fetchone()[0], before, prefix + "and takes it")
    equals(len(recipe.find(cursor, "acme", "123-3")), 1, prefix + "where it is found")
    recipe.load(cursor, "acme", [("copied", born), (None, None)])
    equals(recipe.read(cursor, recipe.find(cursor, "acme", "copied")[0][0]), ("copied", born), prefix + "plaintext by COPY into the view")

    # mistakes
    refused = "invalid input for type encrypted: not an encrypted value"
    raises(lambda: cursor.execute("INSERT INTO patient (ssn) VALUES (%s)", ["123-45-6789"]), prefix + "no cast", "22P02", refused, "'value'::text")
    with connection.transaction():
        recipe.set_tenant(cursor, "acme")
        cursor.execute("INSERT INTO patient (ssn, born) VALUES (%b, %s)", ["no cast", born])
    equals(len(recipe.find(cursor, "acme", "no cast")), 1, prefix + "%b and a date carry their own types")
    raises(lambda: cursor.execute("SELECT id FROM patient WHERE ssn = %s", ["x"]), prefix + "=", "42883", "envcrypt.encrypted = unknown")
    raises(lambda: cursor.execute("SELECT FROM patient WHERE envcrypt.matches_any(ssn, %s)", [["x"]]), prefix + "a list without a cast", "42725", "is not unique")
    raises(lambda: cursor.execute("INSERT INTO patient (born) VALUES (%s::text)", ["1970-01-31"]), prefix + "another type", "42804",
        "a value of type text does not fit a column of type encrypted(date", "Cast the plaintext to date")
    raises(lambda: cursor.execute("INSERT INTO patient (ssn) VALUES (%s)", [7]), prefix + "a number", "42804", "does not fit a column of type encrypted(text")
    raises(lambda: cursor.execute("INSERT INTO patient (ssn) VALUES (%s)", [b"x"]), prefix + "bytes", "42804", "a value of type bytea does not fit")

    def copy_plaintext(options, row):
        with cursor.copy(f"COPY patient (ssn) FROM STDIN {options}") as copy:
            copy.write_row(row)
    raises(lambda: copy_plaintext("", ["123-45-6789"]), prefix + "COPY of plaintext", "22P02", refused, "COPY takes encrypted values only")
    raises(lambda: copy_plaintext("(FORMAT binary)", ["123-45-6789"]), prefix + "COPY of plaintext, binary", "22P03", "invalid binary input for type encrypted")
    if binary:
        copy_plaintext("(FORMAT binary)", [stored])
    else:
        copy_plaintext("", [stored])
    equals(len(recipe.find(cursor, "acme", "123-0")), 2 if binary else 3, prefix + "rows of ciphertext by COPY")

client = psycopg.ClientCursor(connection)
id = recipe.add(client, "acme", "it's", born)
equals(recipe.read(client, id), ("it's", born), "psycopg ClientCursor: the same")
equals(recipe.find(client, "acme", "it's"), [(id,)], "psycopg ClientCursor: found")
done()
