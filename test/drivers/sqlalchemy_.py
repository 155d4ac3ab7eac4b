"""SQLAlchemy 2, by the recipe of doc/drivers.md: with psycopg and with asyncpg."""
import asyncio
import datetime
import os

import sqlalchemy as sa
import sqlalchemy.dialects.postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from recipes import done, equals, error_of, holds, load, raises

recipe = load("SQLAlchemy 2")
Patient, born = recipe.Patient, datetime.date(1970, 1, 31)
equals(" ".join(str(CreateTable(Patient.__table__).compile(dialect=sa.dialects.postgresql.dialect())).split()),
    "CREATE TABLE patient ( id BIGSERIAL NOT NULL, ssn envcrypt.encrypted(text, searchable, ssn), born envcrypt.encrypted(date, born), PRIMARY KEY (id) )",
    "SQLAlchemy: the declaration")


def check(session, prefix):
    session.execute(sa.delete(Patient))
    session.commit()
    session.info["tenant"] = "other"
    session.add(Patient(ssn="123-0", born=born))
    session.commit()
    session.info["tenant"] = "acme"
    added = [Patient(ssn=f"123-{n}", born=born) for n in range(3)] + [Patient()]
    session.add_all(added)
    session.commit()
    ids = [patient.id for patient in added]
    session.expire_all()
    equals((added[0].ssn, added[0].born, added[3].ssn), ("123-0", born, None), prefix + "what is written is read")
    session.commit()
    added[0].ssn = "new"
    session.commit()
    for n in range(3):
        session.info["tenant"] = "acme"
        equals([patient.id for patient in session.scalars(recipe.with_ssn("new"))], [ids[0]], prefix + f"changed and found, round {n}")
        session.commit()
        session.info["tenant"] = "other"
        equals([patient.ssn for patient in session.scalars(recipe.with_ssn("123-0"))], ["123-0"], prefix + f"found as another tenant, round {n}")
        session.commit()
    session.info["tenant"] = "acme"
    equals(session.scalars(sa.select(Patient.id).where(sa.func.envcrypt.matches(Patient.ssn, "123-1"))).all(), [ids[1]], prefix + "matches takes a str")
    anyone = sa.func.envcrypt.matches_any(Patient.ssn, sa.cast(["123-1", "123-2"], sa.ARRAY(sa.Text)))
    equals(session.scalars(sa.select(Patient.id).where(anyone).order_by(Patient.id)).all(), ids[1:3], prefix + "any of a list")
    equals(session.execute(sa.insert(Patient).returning(Patient.ssn, Patient.born), [{"ssn": "a", "born": born}, {"ssn": "b", "born": None}]).all(),
        [("a", born), ("b", None)], prefix + "many rows with RETURNING")
    equals(session.execute(sa.update(Patient).where(Patient.id == ids[1]).values(ssn="c").returning(Patient.ssn)).all(), [("c",)], prefix + "UPDATE with RETURNING")
    inner = sa.select(Patient).where(Patient.id == ids[2]).subquery()
    equals(session.scalars(sa.select(inner.c.ssn)).all(), ["123-2"], prefix + "through a subquery")
    session.commit()
    session.execute(sa.text("INSERT INTO patient (ssn) VALUES (:ssn)").bindparams(ssn="raw"))
    equals(len(session.scalars(recipe.with_ssn("raw")).all()), 1, prefix + "bindparams casts a str")
    stored = session.scalar(sa.select(sa.cast(Patient.ssn, sa.Text)).where(Patient.id == ids[2]))
    holds("ec1:" in stored, prefix + "cast to text is ciphertext")
    session.commit()


def in_session(connection, prefix):
    with Session(connection) as session:
        check(session, prefix)


def fails(statement, name, sqlstate, *words):
    with Session(engine) as session:
        session.info["tenant"] = "acme"
        raises(lambda: session.execute(*statement if isinstance(statement, tuple) else [statement]), name, sqlstate, *words)


place = {"host": os.environ["PGHOST"], "port": os.environ["PGPORT"], "user": os.environ["PGUSER"]}
engine = sa.create_engine(sa.URL.create("postgresql+psycopg", username=place["user"], database=os.environ["PGDATABASE"], query={"host": place["host"], "port": place["port"]}), hide_parameters=True)
with Session(engine) as session:
    check(session, "SQLAlchemy, psycopg: ")
by_hand = sa.text("INSERT INTO patient (ssn) VALUES (:ssn)"), {"ssn": "123-45-6789"}
fails(by_hand, "SQLAlchemy: SQL by hand without a cast", "22P02", "not an encrypted value")
with Session(engine) as session:
    try:
        session.execute(*by_hand)
    except sa.exc.DBAPIError as error:
        holds("123-45-6789" not in str(error), "SQLAlchemy: hide_parameters keeps plaintext out of the error")
fails(sa.select(Patient).where(Patient.ssn == "x"), "SQLAlchemy: ==", "42883", "envcrypt.encrypted = text")
fails(sa.insert(Patient).values(born=sa.cast("1970-01-31", sa.Text)), "SQLAlchemy: another type", "42804", "a value of type text does not fit a column of type encrypted(date")


async def asynchronous():
    engine = create_async_engine(sa.URL.create("postgresql+asyncpg", username=place["user"], database=os.environ["PGDATABASE"], query={"host": place["host"], "port": place["port"]}))
    async with engine.connect() as connection:
        await connection.run_sync(lambda connection: in_session(connection, "SQLAlchemy, asyncpg: "))
        await connection.commit()
    await engine.dispose()


asyncio.run(asynchronous())
done()
