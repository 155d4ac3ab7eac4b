/*
 * For LD_PRELOAD into a PostgreSQL server: lets the server's own user trace its processes, so that a test may take their
 * cores, also where Yama lets nobody but an ancestor.
 *     cc -shared -fPIC -o traceable.so traceable.c
 */
#include <pthread.h>
#include <sys/prctl.h>

static void allow(void) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); /* fails where there is no Yama, and nothing forbids it */
}

__attribute__((constructor)) static void start(void) {
    allow();
    pthread_atfork(0, 0, allow);
}
