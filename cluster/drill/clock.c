/* A clock of the day that is ahead: preloaded into a node, it shifts what the C library says of CLOCK_REALTIME.

   The file that CLOCK_AHEAD names holds seconds, signed; it is read again every half a second. All other clocks stay
   true, and so do waits: a machine whose clock is wrong measures time as well as any. (libfaketime shifts absolute
   waits on the monotonic clock too, and so breaks Python's time.sleep.) */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead;
static long read_at;

static long seconds_ahead(void)
{
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long half_seconds = now.tv_sec * 2 + (now.tv_nsec >= 500000000);
    if (__atomic_exchange_n(&read_at, half_seconds, __ATOMIC_RELAXED) != half_seconds) {
        int saved = errno;
        const char *path = getenv("CLOCK_AHEAD");
        int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            char text[32];
            ssize_t length = read(file, text, sizeof text - 1);
            close(file);
            if (length > 0) {
                text[length] = '\0';
                __atomic_store_n(&ahead, strtol(text, NULL, 10), __ATOMIC_RELAXED);
            }
        }
        errno = saved;
    }
    return __atomic_load_n(&ahead, __ATOMIC_RELAXED);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += seconds_ahead();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += seconds_ahead();
    return failed;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL)
        *where = now.tv_sec;
    return now.tv_sec;
}
