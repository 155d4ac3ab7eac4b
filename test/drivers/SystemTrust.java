// Copies the CA certificates of a PEM file into a new key store, for Java keeps a list of its own:
//     java SystemTrust.java /etc/ssl/certs/ca-certificates.crt STORE PASSWORD
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;

class SystemTrust {
    public static void main(String[] arguments) throws Exception {
        char[] password = arguments[2].toCharArray();
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, password);
        try (InputStream file = Files.newInputStream(Path.of(arguments[0]))) {
            int number = 0;
            for (Certificate certificate : CertificateFactory.getInstance("X.509").generateCertificates(file))
                store.setCertificateEntry("ca" + number++, certificate);
        }
        try (OutputStream file = Files.newOutputStream(Path.of(arguments[1]))) {
            store.store(file, password);
        }
    }
}
