"""Reads that never wait: what the kernel has in its caches is taken at once, on the event loop; nothing else.

Most of what a registry serves is in the page cache, and a thread for each stat would cost more than the stat.
Linux can be asked to answer from its caches only: `openat2` with RESOLVE_CACHED (5.12), `preadv2` with RWF_NOWAIT.
Where it would have to wait for a device or a server it says so, and the caller goes through a thread, as it does on
file systems that may ask somebody else (NFS, FUSE, overlays): a stalled server never stops the event loop.
"""

from __future__ import annotations

import ctypes
import os

_OPENAT2 = 437  # the same number on every architecture
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
# File systems whose `open` asks no one but the kernel's own caches.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "zfs"})


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_how = _OpenHow(os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
# PyDLL keeps the interpreter lock: the call does not wait, and letting go of it would cost more than the call.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]


class _IoVector(ctypes.Structure):
    """struct iovec of readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


_preadv2 = ctypes.PyDLL(None).preadv2
_preadv2.restype = ctypes.c_ssize_t
_preadv2.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int]
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.restype = ctypes.c_void_p
_address_of.argtypes = [ctypes.py_object]
_HOW, _HOW_SIZE = ctypes.addressof(_how), ctypes.sizeof(_how)


def open_cached(path: str) -> int:
    """A descriptor for reading. BlockingIOError when the kernel would have to wait; else as os.open."""
    fd = int(_syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), _HOW, _HOW_SIZE))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd


def read_cached(path: str) -> bytes:
    """A whole file. BlockingIOError when any of it would have to be waited for."""
    fd = open_cached(path)
    try:
        return pread_cached(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def pread_cached(fd: int, size: int, offset: int) -> bytes:
    """Exactly `size` bytes that the file is known to hold. BlockingIOError when some would have to be awaited."""
    # os.preadv reads into a buffer that must be cleared before and copied after: five times the work of the read.
    # A new bytes object that nobody else has seen yet may be filled in place.
    content = _new_bytes(None, size)
    vector = _IoVector(_address_of(content), size)
    if _preadv2(fd, ctypes.byref(vector), 1, offset, os.RWF_NOWAIT) != size:
        raise BlockingIOError
    return bytes(content)  # the same object; for the type checker


def size_cached(path: str) -> int:
    """A file's size in bytes. BlockingIOError when the kernel would have to wait."""
    return _status(path).st_size


def stamp_cached(path: str) -> int:
    """When a directory last changed, in nanoseconds. BlockingIOError when the kernel would have to wait."""
    return _status(path).st_mtime_ns


def _status(path: str) -> os.stat_result:
    fd = open_cached(path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_supported(directory: str) -> bool:
    """Whether this directory lies on a local file system of a kernel that can be asked this way."""
    if _file_system(os.path.realpath(directory)) not in _LOCAL:
        return False
    try:
        os.close(open_cached(directory))
    except BlockingIOError:
        return True
    except OSError:  # an old kernel, or a seccomp filter that does not know the call
        return False
    return True


def _file_system(directory: str) -> str:
    """The type of the file system a directory lies on, by the longest mount point above it."""
    best, found = "", ""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            inside = directory == point or directory.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, found = point, kind
    return found
