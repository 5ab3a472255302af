/* Faults at the system calls that change a journal's files; loaded with LD_PRELOAD.
 *
 * faults_arm(kill_at, tear, fail_sync_at, what) starts counting. Steps are the calls below on a path
 * that contains `what`; syncs are those of them that sync. Before step `kill_at` the process is killed,
 * with `tear` after half of what that step would have written. Sync `fail_sync_at` does nothing and
 * returns EIO, once, as a kernel does that has dropped the dirty pages.
 * faults_break_disk(write_at) has write `write_at` and all after it fail with EIO and write nothing.
 * faults_steps() and faults_syncs() say how many there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int steps, syncs, writes;
static int armed, kill_step, tear_step, fail_sync, fail_write;
static char watched[256];

void faults_arm(int kill_at, int tear, int fail_sync_at, const char *what) {
    steps = syncs = writes = 0;
    kill_step = kill_at;
    tear_step = tear;
    fail_sync = fail_sync_at;
    snprintf(watched, sizeof watched, "%s", what);
    armed = 1;
}
void faults_break_disk(int write_at) { fail_write = write_at; }
int faults_writes(void) { return writes; }
int faults_steps(void) { return steps; }
int faults_syncs(void) { return syncs; }

static int is_watched(int fd, const char *path) {
    char link[64], name[PATH_MAX];
    if (!armed) return 0;
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, name, sizeof name - 1);
        if (n < 0) return 0;
        name[n] = 0;
        path = name;
    }
    return strstr(path, watched) != NULL;
}

/* 1 when this step is the one that must be torn: the caller writes half and calls die(). */
static int step(int is_write) {
    if (++steps != kill_step) return 0;
    if (tear_step && is_write) return 1;
    raise(SIGKILL);
    return 0;
}
static int sync_fails(void) {
    if (++syncs != fail_sync) return 0;
    errno = EIO;
    return 1;
}

static int write_fails(void) {
    int number = ++writes;
    if (!fail_write || number < fail_write) return 0;
    errno = EIO;
    return 1;
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define PWRITE(function, offset_type)                                                 \
    ssize_t function(int fd, const void *data, size_t length, offset_type offset) {   \
        REAL(ssize_t, #function, int, const void *, size_t, offset_type);             \
        if (is_watched(fd, NULL)) {                                                   \
            if (step(1)) {                                                            \
                real(fd, data, length / 2, offset);                                   \
                raise(SIGKILL);                                                       \
            }                                                                         \
            if (write_fails()) return -1;                                             \
        }                                                                             \
        return real(fd, data, length, offset);                                        \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (is_watched(fd, NULL) && step(1)) {
        real(fd, data, length / 2);
        raise(SIGKILL);
    }
    return real(fd, data, length);
}

#define SYNC(function)                                            \
    int function(int fd) {                                        \
        REAL(int, #function, int);                                \
        if (is_watched(fd, NULL)) {                               \
            step(0);                                              \
            if (sync_fails()) return -1;                          \
        }                                                         \
        return real(fd);                                          \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(function, offset_type)                           \
    int function(int fd, offset_type length) {                    \
        REAL(int, #function, int, offset_type);                   \
        if (is_watched(fd, NULL)) step(0);                        \
        return real(fd, length);                                  \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ALLOCATE(function, offset_type)                           \
    int function(int fd, offset_type offset, offset_type length) { \
        REAL(int, #function, int, offset_type, offset_type);      \
        if (is_watched(fd, NULL)) step(0);                        \
        return real(fd, offset, length);                          \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (is_watched(-1, path)) step(0);
    return real(path);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (is_watched(-1, to)) step(0);
    return real(from, to);
}
