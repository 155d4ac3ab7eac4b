"""Django, by the recipe of doc/drivers.md: with parameters in the statement, as it is by default, and apart from it."""
import datetime
import os
import sys
import tempfile
import types

import django
from django.conf import settings

from recipes import done, equals, holds, load, raises

settings.configure(
    INSTALLED_APPS=["clinic"], DEFAULT_AUTO_FIELD="django.db.models.BigAutoField", USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"]}})
# an application of the name, whose models are the page's
folder = tempfile.TemporaryDirectory()
sys.modules["clinic"] = clinic = types.ModuleType("clinic")
clinic.__path__ = [folder.name]
django.setup()
recipe = load("Django", __name__="clinic.models")
sys.modules["clinic.models"] = recipe

from django.db import connection, models, transaction  # noqa: E402
from django.db.migrations.writer import MigrationWriter  # noqa: E402

Patient, born = recipe.Patient, datetime.date(1970, 1, 31)


def in_tenant(tenant, work):
    with transaction.atomic():
        recipe.set_tenant(tenant)
        return work()


def check(prefix):
    Patient.objects.all().delete()
    patients = [in_tenant("acme", lambda: Patient.objects.create(ssn=f"it's 123-{n}", born=born)) for n in range(3)]
    other = in_tenant("other", lambda: Patient.objects.create(ssn="it's 123-0", born=born))
    read = Patient.objects.get(pk=patients[0].pk)
    equals((read.ssn, read.born), ("it's 123-0", born), prefix + "what is written is read")
    empty = in_tenant("acme", lambda: Patient.objects.create())
    equals(list(Patient.objects.filter(pk=empty.pk).values_list("ssn", "born")), [(None, None)], prefix + "NULL")
    equals(list(Patient.objects.filter(ssn__isnull=True)), [empty], prefix + "is null")
    for n in range(3):
        equals(in_tenant("acme", lambda: list(Patient.objects.filter(ssn="it's 123-0"))), [patients[0]], prefix + f"found, round {n}")
        equals(in_tenant("other", lambda: list(Patient.objects.filter(ssn="it's 123-0"))), [other], prefix + f"found as another tenant, round {n}")
    equals(in_tenant("acme", lambda: list(Patient.objects.filter(ssn__in=["it's 123-1", "it's 123-2", "x"]).order_by("pk"))), patients[1:], prefix + "any of a list")
    equals(in_tenant("acme", lambda: Patient.objects.exclude(ssn="it's 123-0").count()), 4, prefix + "exclude")
    read.ssn = "saved"
    in_tenant("acme", read.save)
    equals(in_tenant("acme", lambda: Patient.objects.filter(pk=read.pk).update(born=None)), 1, prefix + "update")
    equals(Patient.objects.values("ssn", "born").get(pk=read.pk), {"ssn": "saved", "born": None}, prefix + "saved")
    in_tenant("acme", lambda: Patient.objects.bulk_create([Patient(ssn="a", born=born), Patient(ssn="b")]))
    equals(in_tenant("acme", lambda: sorted(Patient.objects.filter(ssn__in=["a", "b"]).values_list("ssn", flat=True))), ["a", "b"], prefix + "bulk_create")
    for patient, ssn in zip(patients[1:], ("c", "d")):
        patient.ssn = ssn
    in_tenant("acme", lambda: Patient.objects.bulk_update(patients[1:], ["ssn"]))
    equals(in_tenant("acme", lambda: list(Patient.objects.filter(ssn__in=["c", "d"]).order_by("pk"))), patients[1:], prefix + "bulk_update")
    found = in_tenant("acme", lambda: Patient.objects.get_or_create(ssn="c"))
    equals(found, (patients[1], False), prefix + "get_or_create")
    with connection.cursor() as cursor:
        cursor.execute("SELECT ssn::text FROM patient WHERE id = %s", [read.pk])
        holds(cursor.fetchone()[0].startswith("ec1:"), prefix + "stored is ciphertext")
        cursor.execute("SELECT current_setting('envcrypt.tenant')")
        equals(cursor.fetchone()[0], "default", prefix + "the tenant ended with the transaction")

    # mistakes
    def raw(sql, value):
        with transaction.atomic(), connection.cursor() as cursor:
            recipe.set_tenant("acme")
            cursor.execute(sql, [value])
    raises(lambda: raw("INSERT INTO patient (ssn) VALUES (%s)", "x"), prefix + "raw SQL without a cast", "22P02", "not an encrypted value", "'value'::text")
    raises(lambda: raw("INSERT INTO patient (born) VALUES (%s::text)", "x"), prefix + "another type", "42804", "a value of type text does not fit")
    raises(lambda: in_tenant("acme", lambda: Patient.objects.filter(born=born).count()), prefix + "a column that is not searchable", "42809", "cannot be searched")
    raises(lambda: in_tenant("nobody", lambda: Patient.objects.create(ssn="x")), prefix + "no such tenant", "42704")


check("Django: ")
connection.close()
connection.settings_dict["OPTIONS"] = {"server_side_binding": True}
check("Django, server_side_binding: ")

# what a migration says of the field, and the table that it makes
field = Patient._meta.get_field("ssn")
equals(MigrationWriter.serialize(field)[0], "clinic.models.Encrypted('text, searchable, ssn', db_index=True, null=True)", "Django: the field in a migration")
with connection.schema_editor(collect_sql=True) as editor:
    editor.create_model(Patient)
holds(any('"ssn" envcrypt.encrypted(text, searchable, ssn) NULL, "born" envcrypt.encrypted(date, born) NULL' in line for line in editor.collected_sql), "Django: the declaration")
done()
