import java.sql.SQLException;
import java.util.Objects;

/** Lines for test/t/145_java.pl: "ok NAME" or "not ok NAME: WHY", and "done" at the end. */
final class Check {
    interface Work {
        Object run() throws Exception;
    }

    private Check() {}

    private static void say(boolean ok, String name, String why) {
        System.out.println((ok ? "ok " + name : "not ok " + name + ": " + why).replace('\n', ' '));
    }

    static void is(String name, Object expected, Work work) {
        try {
            Object got = work.run();
            say(Objects.equals(String.valueOf(expected), String.valueOf(got)), name, "got " + got + ", not " + expected);
        } catch (Exception | LinkageError e) {
            say(false, name, e.toString());
        }
    }

    /** The first SQLException down the causes has this state and says this, wherever. */
    static void fails(String name, String state, String says, Work work) {
        try {
            say(false, name, "no error but " + work.run());
        } catch (Exception | LinkageError e) {
            Throwable cause = e;
            while (cause != null && !(cause instanceof SQLException)) cause = cause.getCause();
            boolean ok = cause != null && state.equals(((SQLException) cause).getSQLState()) && cause.getMessage().contains(says);
            say(ok, name, String.valueOf(cause != null ? ((SQLException) cause).getSQLState() + " " + cause.getMessage() : e));
        }
    }

    static void done() {
        System.out.println("done");
    }
}
