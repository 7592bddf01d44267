/*
 * Stands between a node and the kernel: writes to files that the kernel cuts short, and a sync that fails once.
 *
 * Loaded into the node by LD_PRELOAD; whoever installs a fault writes into the file that CHAOS_MEDDLE names, which
 * is mapped here, and reads there what was done. Only regular files are meddled with, and folders where that is asked for:
 * sockets, pipes and the rest are let through.
 *
 * A file whose sync has failed loses what was written before it: that is what kernels do, which mark such pages clean.
 * So what this process asks to be synced of that file later is said to be synced and is not.
 *
 * Source: write(2) ("may transfer fewer bytes"), fsync(2); Rebello et al., "Can Applications Recover from fsync
 * Failures?" (USENIX ATC 2020).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The places are those of meddle.rs. */
struct control {
    _Atomic uint32_t short_of;  /*   0: one of so many writes is cut short; 0: none */
    _Atomic uint32_t fail_once; /*   4: the next sync that fits fails */
    uint32_t folders;           /*   8: which syncs: of folders, or of files */
    uint32_t spare;
    _Atomic uint64_t chance;    /*  16: counts up; what follows from it is chance enough */
    _Atomic uint64_t shorts[3]; /*  24: writes that were cut short: log, metadata, other files */
    _Atomic uint64_t fails;     /*  48: syncs that failed */
    _Atomic uint64_t lies;      /*  56: syncs of such a file that were asked for later */
    char within[64];            /*  64: part of the path */
    char ends[64];              /* 128: how it ends */
};

#define DEAD_MAX 64

static struct control *control;
static _Atomic uint64_t dead[DEAD_MAX];
static _Atomic uint32_t dead_count;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_sync_file_range)(int, off64_t, off64_t, unsigned int);

static void find(void) {
    real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_pwrite = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    real_writev = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    real_pwritev = (ssize_t (*)(int, const struct iovec *, int, off64_t))dlsym(RTLD_NEXT, "pwritev64");
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_sync_file_range = (int (*)(int, off64_t, off64_t, unsigned int))dlsym(RTLD_NEXT, "sync_file_range");
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_MEDDLE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *at;
    find();
    if (fd < 0)
        return;
    at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        control = at;
}

static void path_of(int fd, char *path, size_t room) {
    char link[32];
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, room - 1);
    path[length > 0 ? length : 0] = 0;
}

static uint64_t chance(void) {
    /* splitmix64 */
    uint64_t x = atomic_fetch_add(&control->chance, 0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* How much of a write is done. */
static size_t part(int fd, size_t bytes) {
    uint32_t of = control ? atomic_load(&control->short_of) : 0;
    struct stat is;
    char path[PATH_MAX];
    uint64_t drawn;
    int before = errno;
    if (of == 0 || bytes < 2)
        return bytes;
    drawn = chance();
    if (drawn % of != 0 || fstat(fd, &is) != 0 || !S_ISREG(is.st_mode)) {
        errno = before;
        return bytes;
    }
    path_of(fd, path, sizeof path);
    atomic_fetch_add(&control->shorts[strstr(path, "/data/log/") ? 0 : strstr(path, "/data/meta/") ? 1 : 2], 1);
    errno = before;
    return 1 + (drawn >> 32) % (bytes - 1);
}

/* The pieces of a write that hold its first bytes; how many they are. */
static int cut(const struct iovec *from, int count, size_t bytes, struct iovec *to) {
    int at = 0;
    for (; at < count && bytes > 0; at++) {
        to[at] = from[at];
        if (to[at].iov_len > bytes)
            to[at].iov_len = bytes;
        bytes -= to[at].iov_len;
    }
    return at;
}

static size_t sum(const struct iovec *all, int count) {
    size_t bytes = 0;
    for (int at = 0; at < count; at++)
        bytes += all[at].iov_len;
    return bytes;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (!real_write)
        find();
    return real_write(fd, bytes, part(fd, length));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    if (!real_pwrite)
        find();
    return real_pwrite(fd, bytes, part(fd, length), at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    return pwrite64(fd, bytes, length, at);
}

ssize_t writev(int fd, const struct iovec *all, int count) {
    struct iovec some[IOV_MAX];
    size_t whole;
    size_t now;
    if (!real_writev)
        find();
    if (!control || atomic_load(&control->short_of) == 0 || count < 1 || count > IOV_MAX)
        return real_writev(fd, all, count);
    whole = sum(all, count);
    now = part(fd, whole);
    return now == whole ? real_writev(fd, all, count) : real_writev(fd, some, cut(all, count, now, some));
}

ssize_t pwritev64(int fd, const struct iovec *all, int count, off64_t at) {
    struct iovec some[IOV_MAX];
    size_t whole;
    size_t now;
    if (!real_pwritev)
        find();
    if (!control || atomic_load(&control->short_of) == 0 || count < 1 || count > IOV_MAX)
        return real_pwritev(fd, all, count, at);
    whole = sum(all, count);
    now = part(fd, whole);
    return now == whole ? real_pwritev(fd, all, count, at) : real_pwritev(fd, some, cut(all, count, now, some), at);
}

ssize_t pwritev(int fd, const struct iovec *all, int count, off_t at) {
    return pwritev64(fd, all, count, at);
}

/* What becomes of a sync: it is done (0), fails (1), or is said to be done (2). */
static int fate(int fd) {
    struct stat is;
    char path[PATH_MAX];
    uint64_t name;
    uint32_t known;
    size_t length;
    size_t wanted;
    int before = errno;
    if (!control || fstat(fd, &is) != 0)
        goto done;
    name = ((uint64_t)is.st_dev << 40) ^ (uint64_t)is.st_ino;
    known = atomic_load(&dead_count);
    for (uint32_t at = 0; at < known && at < DEAD_MAX; at++) {
        if (atomic_load(&dead[at]) == name) {
            atomic_fetch_add(&control->lies, 1);
            errno = before;
            return 2;
        }
    }
    if (atomic_load(&control->fail_once) == 0 || (control->folders ? !S_ISDIR(is.st_mode) : !S_ISREG(is.st_mode)))
        goto done;
    path_of(fd, path, sizeof path);
    length = strlen(path);
    wanted = strlen(control->ends);
    if (!strstr(path, control->within) || length < wanted || strcmp(path + length - wanted, control->ends) != 0)
        goto done;
    if (atomic_exchange(&control->fail_once, 0) == 0)
        goto done;
    known = atomic_fetch_add(&dead_count, 1);
    if (known < DEAD_MAX)
        atomic_store(&dead[known], name);
    atomic_fetch_add(&control->fails, 1);
    errno = EIO;
    return 1;
done:
    errno = before;
    return 0;
}

int fsync(int fd) {
    if (!real_fsync)
        find();
    switch (fate(fd)) {
    case 0: return real_fsync(fd);
    case 1: return -1;
    default: return 0;
    }
}

int fdatasync(int fd) {
    if (!real_fdatasync)
        find();
    switch (fate(fd)) {
    case 0: return real_fdatasync(fd);
    case 1: return -1;
    default: return 0;
    }
}

int sync_file_range(int fd, off64_t from, off64_t bytes, unsigned int flags) {
    if (!real_sync_file_range)
        find();
    switch (fate(fd)) {
    case 0: return real_sync_file_range(fd, from, bytes, flags);
    case 1: return -1;
    default: return 0;
    }
}
