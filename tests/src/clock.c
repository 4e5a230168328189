/* Preloaded into a node under test: its wall clock is off by CLOCK_OFFSET_S seconds. All other clocks are right. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *offset = getenv("CLOCK_OFFSET_S");
    if (result == 0 && clock == CLOCK_REALTIME && offset != NULL)
        now->tv_sec += atol(offset);
    return result;
}
