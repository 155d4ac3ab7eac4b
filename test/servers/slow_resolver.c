/*
 * A resolver that takes its time: names that end in ".slow.test" resolve to 127.0.0.1 after
 * ENVCRYPT_RESOLVER_DELAY seconds (5 if unset; fractions allowed), "missing.slow.test" is then not
 * found, and all others resolve as ever. For LD_PRELOAD into a PostgreSQL server, or linked into a test program:
 *     cc -shared -fPIC -o slow_resolver.so slow_resolver.c -ldl -pthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int (*resolver)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static atomic_int sleeping;

/* How many threads are waiting in here now. */
int envcrypt_resolver_sleeping(void) {
    return atomic_load(&sleeping);
}

static int is_slow(const char *name) {
    static const char suffix[] = ".slow.test";
    size_t length = name ? strlen(name) : 0;
    return length >= sizeof suffix - 1 && strcmp(name + length - (sizeof suffix - 1), suffix) == 0;
}

static void wait_a_while(void) {
    const char *delay = getenv("ENVCRYPT_RESOLVER_DELAY");
    double seconds = delay ? strtod(delay, NULL) : 5;
    struct timespec left;
    left.tv_sec = (time_t)seconds;
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    resolver next = (resolver)dlsym(RTLD_NEXT, "getaddrinfo");
    if (!is_slow(name)) return next(name, service, hints, result);
    atomic_fetch_add(&sleeping, 1);
    wait_a_while();
    atomic_fetch_sub(&sleeping, 1);
    if (strcmp(name, "missing.slow.test") == 0) return EAI_NONAME;
    return next("127.0.0.1", service, hints, result);
}
