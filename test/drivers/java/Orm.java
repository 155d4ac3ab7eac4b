import jakarta.persistence.Column;
import jakarta.persistence.Entity;
import jakarta.persistence.Id;
import jakarta.persistence.Table;
import java.time.LocalDate;
import java.util.List;
import java.util.function.Function;
import org.hibernate.Session;
import org.hibernate.SessionFactory;
import org.hibernate.annotations.ColumnTransformer;
import org.hibernate.annotations.DynamicUpdate;
import org.hibernate.annotations.Formula;
import org.hibernate.cfg.Configuration;

/** Hibernate by the recipe of doc/drivers-java.md: Orm URL. */
final class Orm {
    @Entity(name = "Patient")
    @Table(name = "patient")
    @DynamicUpdate
    static class Patient {
        @Id
        Long id;

        String name;

        @Column(columnDefinition = "\"envcrypt\".\"encrypted\"(text, searchable, ssn)")
        @ColumnTransformer(read = "envcrypt.decrypt(ssn)", write = "?::text")
        String ssn;

        // the same column as it is stored, to be searched
        @Formula("ssn")
        String ssnEncrypted;

        @Column(columnDefinition = "\"envcrypt\".\"encrypted\"(date, born)")
        @ColumnTransformer(read = "born::date", write = "?::date")
        LocalDate born;

        protected Patient() {}

        Patient(long id, String name, String ssn, LocalDate born) {
            this.id = id;
            this.name = name;
            this.ssn = ssn;
            this.born = born;
        }
    }

    private Orm() {}

    /** A transaction of a tenant. */
    static <T> T in(SessionFactory factory, String tenant, Function<Session, T> work) {
        return factory.fromTransaction(session -> {
            if (tenant != null)
                session.createNativeQuery("SELECT set_config('envcrypt.tenant', :tenant, true)", String.class).setParameter("tenant", tenant).getSingleResult();
            return work.apply(session);
        });
    }

    private static final String FIND = "FROM Patient p WHERE function('envcrypt.matches', p.ssnEncrypted, :ssn) = true";

    static String stored(SessionFactory factory, long id) {
        return in(factory, "acme", s -> s.createNativeQuery("SELECT ssn::text FROM patient WHERE id = :id", String.class).setParameter("id", id).getSingleResult());
    }

    public static void main(String[] arguments) throws Exception {
        Configuration configuration = new Configuration().addAnnotatedClass(Patient.class)
            .setProperty("hibernate.connection.url", arguments[0])
            .setProperty("hibernate.connection.pool_size", 1)
            .setProperty("hibernate.hbm2ddl.auto", "validate");
        try (SessionFactory factory = configuration.buildSessionFactory()) {
            Check.is("persist", 3L, () -> {
                in(factory, "acme", s -> {
                    s.persist(new Patient(1, "Ann", "123-45-6789", LocalDate.of(1970, 2, 3)));
                    s.persist(new Patient(2, "Bob", "987-65-4321", null));
                    s.persist(new Patient(3, "Cid", null, null));
                    return null;
                });
                return in(factory, "acme", s -> s.createQuery("SELECT count(*) FROM Patient", Long.class).getSingleResult());
            });
            Check.is("find", "123-45-6789 1970-02-03 ec1:", () -> in(factory, "acme", s -> {
                Patient p = s.find(Patient.class, 1L);
                return p.ssn + " " + p.born + " " + p.ssnEncrypted.substring(0, 4);
            }));
            Check.is("NULL", "null null null", () -> in(factory, "acme", s -> {
                Patient p = s.find(Patient.class, 3L);
                return p.ssn + " " + p.born + " " + p.ssnEncrypted;
            }));
            Check.is("a search", "[Ann]", () -> in(factory, "acme", s -> s.createQuery(FIND, Patient.class).setParameter("ssn", "123-45-6789")
                .getResultList().stream().map(p -> p.name).toList()));
            Check.is("a search for several", "[1, 2]", () -> in(factory, "acme", s -> s.createNativeQuery(
                    "SELECT id FROM patient WHERE envcrypt.matches_any(ssn, string_to_array(:all, ',')) ORDER BY id", Long.class)
                .setParameter("all", "123-45-6789,987-65-4321,x").getResultList()));
            Check.is("a search in SQL, for entities", "[Bob 987-65-4321]", () -> in(factory, "acme", s -> {
                List<Long> ids = s.createNativeQuery("SELECT id FROM patient WHERE envcrypt.matches(ssn, :ssn)", Long.class).setParameter("ssn", "987-65-4321").getResultList();
                return s.findMultiple(Patient.class, ids).stream().map(p -> p.name + " " + p.ssn).toList();
            }));
            Check.is("what is not there", "[]", () -> in(factory, "acme", s -> s.createQuery(FIND, Patient.class).setParameter("ssn", "x").getResultList()));
            Check.is("another tenant", "[]", () -> in(factory, "other", s -> s.createQuery(FIND, Patient.class).setParameter("ssn", "123-45-6789").getResultList()));
            Check.is("order and compare by what is decrypted", "[Bob, Ann]", () -> in(factory, "acme", s -> s.createQuery(
                    "SELECT p.name FROM Patient p WHERE p.ssn IS NOT NULL ORDER BY p.ssn DESC", String.class).getResultList()));

            String before = stored(factory, 1);
            Check.is("an update of something else", "Anna", () -> {
                in(factory, "acme", s -> s.find(Patient.class, 1L).name = "Anna");
                return in(factory, "acme", s -> s.find(Patient.class, 1L).name);
            });
            Check.is("leaves the value as it is", before, () -> stored(factory, 1));
            Check.is("an update", "1 111-11-1111", () -> {
                in(factory, "acme", s -> s.find(Patient.class, 1L).ssn = "111-11-1111");
                return in(factory, "acme", s -> s.createQuery(FIND, Patient.class).setParameter("ssn", "111-11-1111")
                    .getResultList().stream().map(p -> p.id + " " + p.ssn).findFirst().orElse("nothing"));
            });
            Check.is("an update by query", "222-22-2222", () -> {
                in(factory, "acme", s -> s.createMutationQuery("UPDATE Patient SET ssn = :ssn WHERE id = 1").setParameter("ssn", "222-22-2222").executeUpdate());
                return in(factory, "acme", s -> s.find(Patient.class, 1L).ssn);
            });
            Check.is("merge", "333-33-3333", () -> {
                in(factory, "acme", s -> s.merge(new Patient(1, "Ann", "333-33-3333", null)));
                return in(factory, "acme", s -> s.find(Patient.class, 1L).ssn);
            });
            Check.fails("no tenant, no write", "55000", "envcrypt.tenant was not set in this transaction", () -> in(factory, null, s -> {
                s.persist(new Patient(9, "Eve", "x", null));
                return null;
            }));
            Check.is("entities by SQL of one's own", "Bob 987-65-4321", () -> in(factory, "acme", s -> {
                Patient p = s.createNativeQuery("SELECT {p.*} FROM patient p WHERE envcrypt.matches(p.ssn, :ssn)", Patient.class)
                    .addEntity("p", Patient.class).setParameter("ssn", "987-65-4321").getSingleResult();
                return p.name + " " + p.ssn;
            }));
            Check.is("remove", 2L, () -> {
                in(factory, "acme", s -> { s.remove(s.find(Patient.class, 1L)); return null; });
                return in(factory, "acme", s -> s.createQuery("SELECT count(*) FROM Patient", Long.class).getSingleResult());
            });
        }
        Check.done();
    }
}
