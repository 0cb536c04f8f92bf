/*
 * A disk that talks: loaded before libc, it writes down what a process does to one file, and can lie about it.
 *
 *   SHIM_FILE    the end of the path of the file that is watched (default "/data.mdb")
 *   SHIM_LEDGER  the end of the path of a file whose writes are acknowledgements
 *   SHIM_RECORD  where to write it all down; without it nothing is
 *   SHIM_LIE     the number of the head write (on a descriptor opened with O_DSYNC, counted from 1) that is done and
 *                then reported as failed
 *
 * The record is a row of entries: one text line "OP OFFSET LENGTH", then LENGTH bytes. OP is
 *   W  a write that is not durable yet      H  a write that is durable when it returns (O_DSYNC)
 *   S  a sync that succeeded                A  an acknowledgement
 *
 * Entries are written after the call they tell of: what the record lacks at its end never returned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fdatasync)(int);

static const char *watched = "/data.mdb", *ledger;
static int record = -1;
static long lie, heads;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void)
{
    real_write = dlsym(RTLD_NEXT, "write");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    if (getenv("SHIM_FILE"))
        watched = getenv("SHIM_FILE");
    ledger = getenv("SHIM_LEDGER");
    if (getenv("SHIM_LIE"))
        lie = atol(getenv("SHIM_LIE"));
    if (getenv("SHIM_RECORD"))
        record = open(getenv("SHIM_RECORD"), O_WRONLY | O_CREAT | O_APPEND, 0600);
}

static int is(int fd, const char *ending)
{
    char link[40], path[4096];
    if (!ending)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1), size = strlen(ending);
    return length >= size && memcmp(path + length - size, ending, size) == 0;
}

static void note(char op, off_t offset, const struct iovec *parts, int count, ssize_t length)
{
    if (record < 0 || length < 0)
        return;
    char line[64];
    int saved = errno, size = snprintf(line, sizeof line, "%c %lld %lld\n", op, (long long)offset, (long long)length);
    pthread_mutex_lock(&turn);
    if (real_write(record, line, size) != size)
        abort();
    for (int i = 0; i < count && length > 0; i++) {
        size_t part = parts[i].iov_len < (size_t)length ? parts[i].iov_len : (size_t)length;
        if (real_write(record, parts[i].iov_base, part) != (ssize_t)part)
            abort();
        length -= part;
    }
    pthread_mutex_unlock(&turn);
    errno = saved;
}

static int durable(int fd)
{
    return (fcntl(fd, F_GETFL) & O_DSYNC) != 0;
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    ssize_t done = real_pwrite(fd, bytes, size, offset);
    if (!is(fd, watched))
        return done;
    struct iovec part = {(void *)bytes, size};
    note(durable(fd) ? 'H' : 'W', offset, &part, 1, done);
    if (durable(fd) && ++heads == lie) {
        errno = EIO;
        return -1;
    }
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off_t offset)
{
    return pwrite(fd, bytes, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t done = real_pwritev(fd, parts, count, offset);
    if (is(fd, watched))
        note('W', offset, parts, count, done);
    return done;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    return pwritev(fd, parts, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    off_t offset = is(fd, watched) ? lseek(fd, 0, SEEK_CUR) : -1;
    ssize_t done = real_writev(fd, parts, count);
    if (offset >= 0)
        note('W', offset, parts, count, done);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t size)
{
    ssize_t done = real_write(fd, bytes, size);
    struct iovec part = {(void *)bytes, size};
    if (fd > 2 && fd != record && is(fd, ledger))
        note('A', 0, &part, 1, done);
    else if (fd > 2 && fd != record && is(fd, watched))
        note('W', lseek(fd, 0, SEEK_CUR) - done, &part, 1, done);
    return done;
}

int fdatasync(int fd)
{
    int result = real_fdatasync(fd);
    if (result == 0 && is(fd, watched))
        note('S', 0, NULL, 0, 0);
    return result;
}
