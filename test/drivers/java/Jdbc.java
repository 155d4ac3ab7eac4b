import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.util.UUID;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PGobject;

/** pgjdbc in one of its modes: Jdbc URL MODE. Every transaction sets its tenant, as it must behind a pooler. */
final class Jdbc {
    interface Bind {
        void to(PreparedStatement statement) throws SQLException;
    }

    private static Connection connection;

    private Jdbc() {}

    /** Runs a statement in a transaction of its own; the first column of its only row, or the number of rows written. */
    private static Object run(String sql, Bind bind) throws SQLException {
        try {
            try (PreparedStatement tenant = connection.prepareStatement("SELECT set_config('envcrypt.tenant', ?, true)")) {
                tenant.setString(1, "acme");
                tenant.execute();
            }
            Object result;
            try (PreparedStatement statement = connection.prepareStatement(sql)) {
                bind.to(statement);
                if (statement.execute()) {
                    ResultSet rows = statement.getResultSet();
                    result = rows.next() ? rows.getObject(1) : null;
                    if (result instanceof java.sql.Array array) result = String.join(",", (String[]) array.getArray());
                    else if (result instanceof byte[] bytes) result = java.util.HexFormat.of().formatHex(bytes);
                } else {
                    result = statement.getUpdateCount();
                }
            }
            connection.commit();
            return result;
        } catch (SQLException e) {
            connection.rollback();
            throw e;
        }
    }

    private static Object run(String sql) throws SQLException {
        return run(sql, s -> {});
    }

    /** Writes a value to a column, reads it back, several times, so that the statements become prepared ones. */
    private static void there_and_back(String column, String parameter, Bind bind, String read, Object expected) {
        Check.is(column + " written as " + parameter + ", read by " + read, expected, () -> {
            Object got = null;
            for (int turn = 0; turn < 7; turn++) {
                run("DELETE FROM typed");
                run("INSERT INTO typed (id, " + column + ") VALUES (1, " + parameter + ")", bind);
                got = run("SELECT " + read + " FROM typed");
            }
            return got;
        });
    }

    public static void main(String[] arguments) throws Exception {
        String mode = arguments[1];
        boolean simple = mode.contains("preferQueryMode=simple"), typed = !simple && !mode.contains("stringtype=unspecified");
        connection = DriverManager.getConnection(arguments[0] + "&" + mode);
        connection.setAutoCommit(false);

        // every type, with the type said: works in every mode
        there_and_back("ssn", "?::text", s -> s.setString(1, "gr\u00fc\u00dfe \u20ac"), "envcrypt.decrypt(ssn)", "gr\u00fc\u00dfe \u20ac");
        there_and_back("ssn", "?::text", s -> s.setString(1, ""), "envcrypt.decrypt(ssn)", "");
        there_and_back("ssn", "?::text", s -> s.setNull(1, Types.VARCHAR), "envcrypt.decrypt(ssn)", null);
        there_and_back("ssn", "?", s -> s.setNull(1, Types.OTHER), "envcrypt.decrypt(ssn)", null);
        there_and_back("born", "?::date", s -> s.setObject(1, LocalDate.of(1970, 2, 3)), "born::date", "1970-02-03");
        there_and_back("born", "?::date", s -> s.setDate(1, java.sql.Date.valueOf("1970-02-03")), "born::date", "1970-02-03");
        there_and_back("born", "?::date", s -> s.setString(1, "1970-02-03"), "envcrypt.decrypt(born)", "1970-02-03");
        there_and_back("pay", "?::numeric", s -> s.setBigDecimal(1, new BigDecimal("1.50")), "pay::numeric", "1.50");
        there_and_back("visits", "?::int8", s -> s.setLong(1, 1L << 40), "visits::int8", 1L << 40);
        there_and_back("visits", "?::int8", s -> s.setInt(1, -3), "visits::int8", -3);
        there_and_back("scan", "?::bytea", s -> s.setBytes(1, new byte[] {0, 1, -1}), "scan::bytea", "0001ff");
        there_and_back("doc", "?::jsonb", s -> s.setString(1, "{\"a\": 1}"), "envcrypt.decrypt_as(doc, NULL::jsonb)", "{\"a\": 1}");
        there_and_back("tags", "?::text[]", s -> s.setArray(1, connection.createArrayOf("text", new String[] {"a", "b,c"})), "tags::text[]", "a,b,c");
        there_and_back("tags", "?::text[]", s -> s.setObject(1, new String[] {"a", "b,c"}), "tags::text[]", "a,b,c");
        UUID uuid = UUID.fromString("00112233-4455-6677-8899-aabbccddeeff");
        there_and_back("device", "?::uuid", s -> s.setObject(1, uuid), "device::uuid", uuid);
        OffsetDateTime moment = OffsetDateTime.parse("2024-02-29T23:59:59.999999Z");
        there_and_back("seen", "?::timestamptz", s -> s.setObject(1, moment), "extract(epoch FROM seen::timestamptz)", "1709251199.999999");
        there_and_back("seen", "?::timestamptz", s -> s.setTimestamp(1, Timestamp.from(moment.toInstant())), "extract(epoch FROM seen::timestamptz)", "1709251199.999999");
        there_and_back("active", "?::boolean", s -> s.setBoolean(1, true), "active::boolean", true);
        there_and_back("score", "?::float8", s -> s.setDouble(1, -0.0), "score::float8", -0.0);
        there_and_back("any_type", "envcrypt.encrypt(?::text, tenant => ?)", s -> { s.setString(1, "x"); s.setString(2, "other"); },
            "(envcrypt.inspect(any_type)).tenant", "other");

        // with no type said, it is the driver that says one, or does not
        Bind plain = s -> s.setString(1, "123-45-6789");
        String bare = "INSERT INTO typed (id, ssn) VALUES (2, ?) RETURNING envcrypt.decrypt(ssn)";
        if (typed) Check.is("setString says varchar", "123-45-6789", () -> run(bare, plain));
        else Check.fails("setString says no type", "22P02", "not an encrypted value", () -> run(bare, plain));
        Check.fails("setObject with Types.OTHER says no type", "22P02", "not an encrypted value",
            () -> run(bare, s -> s.setObject(1, "123-45-6789", Types.OTHER)));
        Check.fails("setDate says no type", "22P02", "not an encrypted value",
            () -> run("INSERT INTO typed (id, born) VALUES (2, ?)", s -> s.setDate(1, java.sql.Date.valueOf("1970-02-03"))));
        if (typed)
            Check.fails("a string where jsonb is declared", "42804", "character varying does not fit a column of type encrypted(jsonb)",
                () -> run("INSERT INTO typed (id, doc) VALUES (2, ?)", s -> s.setString(1, "{}")));
        if (!simple)
            there_and_back("tags", "?", s -> s.setObject(1, new String[] {"a", "b,c"}), "tags::text[]", "a,b,c");
        Check.fails("= is no operator of the type", "42883", "operator does not exist", () -> run("SELECT FROM typed WHERE ssn = ?", plain));

        // searching
        for (int n = 0; n < 20; n++) {
            String value = "value " + n;
            int id = 100 + n;
            run("INSERT INTO typed (id, ssn, pay, visits) VALUES (?, ?::text, ?::numeric, ?::int8)", s -> {
                s.setInt(1, id);
                s.setString(2, value);
                s.setBigDecimal(3, new BigDecimal(id));
                s.setLong(4, id);
            });
        }
        for (int turn = 0; turn < 7; turn++) {
            int n = turn;
            Check.is("matches(ssn, ?::text) " + n, 100 + n, () -> run("SELECT id FROM typed WHERE envcrypt.matches(ssn, ?::text)", s -> s.setString(1, "value " + n)));
        }
        Check.is("matches(ssn, ?)", 107, () -> run("SELECT id FROM typed WHERE envcrypt.matches(ssn, ?)", s -> s.setString(1, "value 7")));
        Check.is("matches(pay, ?::numeric)", 107, () -> run("SELECT id FROM typed WHERE envcrypt.matches(pay, ?::numeric)", s -> s.setBigDecimal(1, new BigDecimal("107.00"))));
        Check.is("matches(visits, ?::int8)", 107, () -> run("SELECT id FROM typed WHERE envcrypt.matches(visits, ?::int8)", s -> s.setInt(1, 107)));
        Check.is("matches_any(ssn, ?::text[])", 2, () -> run("SELECT count(*) FROM typed WHERE envcrypt.matches_any(ssn, ?::text[])",
            s -> s.setArray(1, connection.createArrayOf("text", new String[] {"value 3", "value 4", "none"}))));
        Check.is("what is not there", 0, () -> run("SELECT count(*) FROM typed WHERE envcrypt.matches(ssn, ?::text)", s -> s.setString(1, "none")));

        // the value itself
        Check.is("the value is ciphertext, as a PGobject", "\"envcrypt\".\"encrypted\" ec1:", () -> {
            PGobject value = (PGobject) run("SELECT ssn FROM typed WHERE id = 107");
            return value.getType() + " " + value.getValue().substring(0, 4);
        });
        Check.is("and may be put where it came from", 1, () -> {
            Object value = run("SELECT ssn FROM typed WHERE id = 107");
            return run("UPDATE typed SET ssn = ? WHERE id = 107", s -> s.setObject(1, value));
        });
        if (typed)
            Check.fails("but not as a string", "22000", "holds an encrypted value", () -> {
                Object value = run("SELECT ssn FROM typed WHERE id = 107");
                return run("UPDATE typed SET ssn = ?::text WHERE id = 107", s -> s.setString(1, value.toString()));
            });
        Check.is("still what it was", "value 7", () -> run("SELECT envcrypt.decrypt(ssn) FROM typed WHERE id = 107"));

        // batches, and what their errors show
        Check.is("a batch", 50, () -> {
            run("SELECT 1");
            try (Statement tenant = connection.createStatement(); PreparedStatement batch = connection.prepareStatement("INSERT INTO typed (id, ssn) VALUES (?, ?::text)")) {
                tenant.execute("SET LOCAL envcrypt.tenant = 'acme'");
                for (int n = 0; n < 50; n++) {
                    batch.setInt(1, 1000 + n);
                    batch.setString(2, "batch");
                    batch.addBatch();
                }
                batch.executeBatch();
            }
            connection.commit();
            return run("SELECT count(*) FROM typed WHERE envcrypt.matches(ssn, 'batch'::text) AND envcrypt.decrypt(ssn) = 'batch'");
        });
        Check.is("a batch's error shows its parameters, unless logServerErrorDetail=false", !mode.contains("logServerErrorDetail=false"), () -> {
            try (Statement tenant = connection.createStatement(); PreparedStatement batch = connection.prepareStatement("INSERT INTO typed (id, ssn) VALUES (1000, ?::text)")) {
                tenant.execute("SET LOCAL envcrypt.tenant = 'acme'");
                batch.setString(1, "the secret");
                batch.addBatch();
                batch.executeBatch();
                return "no error";
            } catch (BatchUpdateException e) {
                return e.getMessage().contains("the secret");
            } finally {
                connection.rollback();
            }
        });

        // COPY carries values
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringWriter out = new StringWriter();
        Check.is("COPY out shows ciphertext", "ec1:", () -> {
            copy.copyOut("COPY (SELECT 107, ssn FROM typed WHERE id = 107) TO STDOUT", out);
            connection.commit();
            return out.toString().substring(4, 8);
        });
        Check.is("and takes it back in", "value 7", () -> {
            run("DELETE FROM typed WHERE id = 107");
            copy.copyIn("COPY typed (id, ssn) FROM STDIN", new StringReader(out.toString()));
            connection.commit();
            return run("SELECT envcrypt.decrypt(ssn) FROM typed WHERE envcrypt.matches(ssn, 'value 7'::text)");
        });
        Check.fails("but no plaintext", "22P02", "not an encrypted value", () -> {
            try {
                return copy.copyIn("COPY typed (id, ssn) FROM STDIN", new StringReader("108\tplaintext\n"));
            } finally {
                connection.rollback();
            }
        });
        Check.is("plaintext by way of a temporary table", "staged", () -> {
            try (Statement s = connection.createStatement()) {
                s.execute("SET LOCAL envcrypt.tenant = 'acme'");
                s.execute("CREATE TEMP TABLE staged (id int, ssn text) ON COMMIT DROP");
                copy.copyIn("COPY staged FROM STDIN", new StringReader("2000\tstaged\n"));
                s.execute("INSERT INTO typed (id, ssn) SELECT id, ssn FROM staged");
            }
            connection.commit();
            return run("SELECT envcrypt.decrypt(ssn) FROM typed WHERE id = 2000");
        });
        run("DELETE FROM typed");
        connection.close();
        Check.done();
    }
}
