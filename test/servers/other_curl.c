/*
 * For LD_PRELOAD into a PostgreSQL server: another user of libcurl in the process, who initializes it before envcrypt does.
 *     cc -shared -fPIC -o other_curl.so other_curl.c -lcurl
 */
#include <curl/curl.h>

__attribute__((constructor)) static void start(void) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
}
