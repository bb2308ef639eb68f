/* Preloaded: counts the system calls that change a file beneath the folder SOAK_PATH, notes them in
   the file SOAK_LOG, and kills the process with SIGKILL before the SOAK_AT-th. A write is made in
   two halves with the event between them, so that a kill tears it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name, type, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

static long events = 0;

static void path_of(int descriptor, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
}

static int is_beneath(const char *path) {
    const char *folder = getenv("SOAK_PATH");
    char current[4096];
    if (!folder || !path) return 0;
    if (path[0] && path[0] != '/') path = getcwd(current, sizeof current);
    return path && strncmp(path, folder, strlen(folder)) == 0;
}

static void event(const char *what, const char *path) {
    if (!is_beneath(path)) return;
    long number = __sync_add_and_fetch(&events, 1);
    const char *log = getenv("SOAK_LOG"), *at = getenv("SOAK_AT");
    if (log) {
        char line[4200];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, what, path);
        int file = NEXT(open, int, const char *, int, ...)(log, O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (length > (int)sizeof line) length = sizeof line;
        if (NEXT(write, ssize_t, int, const void *, size_t)(file, line, length) < 0) abort();
        close(file);
    }
    if (at && number == atol(at)) kill(getpid(), SIGKILL);
}

int rename(const char *from, const char *to) {
    event("rename", to);
    return NEXT(rename, int, const char *, const char *)(from, to);
}

int unlink(const char *path) {
    event("unlink", path);
    return NEXT(unlink, int, const char *)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    char parent[4096];
    path_of(folder, parent, sizeof parent);
    event("unlink", folder == AT_FDCWD ? path : parent);
    return NEXT(unlinkat, int, int, const char *, int)(folder, path, flags);
}

int rmdir(const char *path) {
    event("rmdir", path);
    return NEXT(rmdir, int, const char *)(path);
}

int mkdir(const char *path, mode_t mode) {
    event("mkdir", path);
    return NEXT(mkdir, int, const char *, mode_t)(path, mode);
}

int fsync(int file) {
    char path[4096];
    path_of(file, path, sizeof path);
    event("fsync", path);
    return NEXT(fsync, int, int)(file);
}

int ftruncate64(int file, off64_t size) {
    char path[4096];
    path_of(file, path, sizeof path);
    event("truncate", path);
    return NEXT(ftruncate64, int, int, off64_t)(file, size);
}

ssize_t write(int file, const void *bytes, size_t size) {
    ssize_t (*next)(int, const void *, size_t) = NEXT(write, ssize_t, int, const void *, size_t);
    char path[4096];
    path_of(file, path, sizeof path);
    if (size < 2 || !is_beneath(path)) return next(file, bytes, size);
    size_t half = size / 2;
    ssize_t first = next(file, bytes, half);
    if (first < (ssize_t)half) return first;
    event("write", path);
    ssize_t second = next(file, (const char *)bytes + half, size - half);
    return second < 0 ? first : first + second;
}

#define OPEN(name)                                                            \
    int name(const char *path, int flags, ...) {                              \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if (flags & O_CREAT) event("create", path);                           \
        return NEXT(name, int, const char *, int, ...)(path, flags, mode);    \
    }
OPEN(open)
OPEN(open64)
