"""The system calls that storage stands on, one method each: the seam at which tests take the disk away.

Blocking; raises OSError. Nothing here decides anything. Tests put a disk in its place that forgets what was not
synced, or one that stops at every step.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

_COPY_CHUNK = 1 << 30  # bytes asked of the kernel in one copy_file_range
_READ_CHUNK = 256 * 1024
# sync_file_range(2), which Python does not have; the interpreter lock is let go of, as for any other disk call.
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_RANGE_WRITE = 2
_NO_SYNC_RANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE)
_NO_COPY_RANGE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_LOOKS = 3  # at a name whose file goes whenever it is found
P = ParamSpec("P")
T = TypeVar("T")


def look_again(look: Callable[P, T]) -> Callable[P, T]:
    """Have a reading by name begun again when the file that it met is gone (ESTALE), as NFS tells of one.

    The server removes a link over which another host renames a new one, whoever has just found the old one there.
    Looked up again, the name leads to the new one; or to nothing, where a session or a tag has ended.
    """

    @wraps(look)
    def looking(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_LOOKS - 1):
            try:
                return look(*args, **kwargs)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
        return look(*args, **kwargs)

    return looking


@dataclass(frozen=True, slots=True)
class Status:
    """What stat tells of a file or directory."""

    size: int
    modified: float  # seconds since the epoch
    stamp: int  # nanoseconds; changes when the content (of a directory: the names in it) does
    is_directory: bool


class Disk:
    """The real one."""

    @look_again
    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def pieces(self, path: str, start: int, stop: int, size: int) -> Iterator[bytes]:
        """The bytes from start to stop, at most `size` at a time."""
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(size, stop - start))
                if not piece:
                    raise OSError(errno.EIO, "the file ended before the bytes that were asked of it", path)
                start += len(piece)
                yield piece

    @look_again
    def status(self, path: str) -> Status:
        found = os.stat(path)
        return Status(found.st_size, found.st_mtime, found.st_mtime_ns, stat.S_ISDIR(found.st_mode))

    @look_again
    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def create(self, path: str) -> int:
        """A new file for writing; FileExistsError when there is one."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_lock(self, path: str) -> int:
        """A file that is only ever locked; made when missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @look_again
    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        return os.fstat(fd).st_size

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        """Bytes from this offset on; fewer, or none, where the file ends."""
        return os.pread(fd, size, offset)

    def open_existing(self, path: str) -> int:
        """A file that is there, for writing."""
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def seek(self, fd: int, offset: int) -> None:
        """Have `write` and `copy` go on from this offset."""
        os.lseek(fd, offset, os.SEEK_SET)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """All of it, from this offset on."""
        written = 0
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """All of it: a short write goes on where it stopped."""
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, memoryview(data)[written:])

    def start_writeback(self, fd: int, start: int, size: int) -> None:
        """Have the kernel begin to write these bytes out, so that a later sync has little left to wait for.

        Nothing is durable by this; where the file system does not know it, nothing happens. An error is raised: it
        may be told here alone, and not by the sync again.
        """
        if _sync_file_range(fd, start, size, _RANGE_WRITE) and (code := ctypes.get_errno()) not in _NO_SYNC_RANGE:
            raise OSError(code, os.strerror(code))

    def copy(self, source: str, fd: int, size: int) -> None:
        """Go on with the first `size` bytes of a file; inside the kernel where it can, as a reflink even."""
        source_fd = self.open(source)
        try:
            while size:
                size -= self._copy_some(source_fd, fd, size)
        finally:
            os.close(source_fd)

    def _copy_some(self, source_fd: int, fd: int, size: int) -> int:
        try:
            done = os.copy_file_range(source_fd, fd, min(size, _COPY_CHUNK))
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
            data = os.read(source_fd, min(size, _READ_CHUNK))
            self.write(fd, data)
            done = len(data)
        if not done:
            raise OSError(errno.EIO, "the file ended before the bytes that were asked of it")
        return done

    def seal(self, fd: int) -> None:
        """Nobody is to write this file again (rule B1); others may read it, as Distribution does."""
        os.fchmod(fd, 0o444)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def sync_path(self, path: str) -> None:
        """Make a file's content, or a directory's entries, durable."""
        fd = self.open(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def try_lock(self, fd: int) -> bool:
        """Lock the file against every other opening of it, on any host; False when somebody holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def confirm_lock(self, fd: int) -> None:
        """Ask the server for something by the lock's descriptor: EIO where it has dropped the lock meanwhile.

        An NFS client that a server has not heard of for a lease (90 s) may lose its locks to others. Linux lets no
        bytes through such a descriptor (fcntl(2), "Lost locks"), and reads what it has in its cache; so a byte is
        written, which nobody reads. That there is no room for it is an answer as well.
        """
        try:
            os.pwrite(fd, b"\n", 0)
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def is_locked(self, fd: int) -> bool:
        """Whether another opening of the file holds its lock.

        Asked by a shared lock, which does not get into the way of others who ask, and which NFS gives to whoever
        may read; an exclusive one it gives only to who might write (EBADF otherwise). Gone when `fd` is closed.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def touch(self, path: str) -> None:
        """Have what is there dated now, by whoever dates files; needs no room."""
        os.utime(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def link(self, source: str, target: str) -> None:
        """A second name for a file; FileExistsError when the name is taken: exactly one caller wins."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)
