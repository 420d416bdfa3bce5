"""What a process believes of its machine: the clock that it reads and the disk that it writes to, both changed at will.

A small library is loaded before the process's own; it is told what to do through a file that both have mapped. Only the
processes that were started with it are touched, never the machine.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct world { int64_t clock_ns; int64_t sync_delay_ns; int64_t disk_full; };
static volatile struct world *world;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_WORLD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof(struct world), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) world = mapped;
}

int clock_gettime(clockid_t id, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, out);
    if (result == 0 && world && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t now = (int64_t)out->tv_sec * 1000000000 + out->tv_nsec + world->clock_ns;
        out->tv_sec = now / 1000000000;
        out->tv_nsec = now % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

static void wait_for_disk(void) {
    if (world && world->sync_delay_ns) {
        struct timespec pause = {world->sync_delay_ns / 1000000000, world->sync_delay_ns % 1000000000};
        nanosleep(&pause, 0);
    }
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    wait_for_disk();
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk();
    return real(file);
}

/* The log on standard error is somebody else's disk. */
static int refused(int file) {
    struct stat about;
    if (!world || !world->disk_full || file <= 2 || fstat(file, &about) != 0 || !S_ISREG(about.st_mode)) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int file, const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return refused(file) ? -1 : real(file, bytes, size);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    return refused(file) ? -1 : real(file, bytes, size, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return refused(file) ? -1 : real(file, bytes, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    return refused(file) ? -1 : real(file, parts, count);
}
"""
LAYOUT = struct.Struct("<qqq")


def missing() -> str:
    """Why no world can be changed here; empty where one can."""
    return "" if shutil.which("cc") else "there is no C compiler"


def build(folder: Path) -> Path:
    """The library that a process is started with."""
    library = folder / "world.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return library


@dataclass(eq=False)
class World:
    """The world of one process, over all its starts."""

    file: Path
    library: Path

    def __post_init__(self) -> None:
        self.file.write_bytes(LAYOUT.pack(0, 0, 0))
        with self.file.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), LAYOUT.size)

    @property
    def environ(self) -> Mapping[str, str]:
        """What the process is started with."""
        return {"LD_PRELOAD": str(self.library), "CHAOS_WORLD": str(self.file)}

    def change(self, *, clock_seconds: float = 0.0, sync_seconds: float = 0.0, disk_full: bool = False) -> None:
        """How far its clock is off, how long each sync takes, whether its disk is full. Without arguments: as it is."""
        self._mapped[:] = LAYOUT.pack(round(clock_seconds * 1e9), round(sync_seconds * 1e9), int(disk_full))
