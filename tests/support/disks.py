"""Disks to put in the place of cluster/storage/disk.py's: one that forgets, one that waits before every call.

`ForgetfulDisk` is in memory and promises no more than POSIX does: after a loss of power a file holds what its last
fsync saw, and a directory the names of its last fsync. `SteppingDisk` is the real one, a step at a time
(tests/support/schedules.py decides whose step).
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.storage.disk import Disk, Status

ROOT = "/data"
CALLS = [name for name in vars(Disk) if not name.startswith("_")]


class PowerLoss(Exception):
    """The power is gone: this call, and every later one, does not take place."""


@dataclass(eq=False)
class _File:
    content: bytes = b""
    synced: bytes = b""
    modified: int = 0  # nanoseconds
    locked_by: int | None = None

    def sync(self) -> None:
        self.synced = self.content

    def survive(self, chance: random.Random | None, known: dict[object, _Node]) -> _File:
        kept = self.synced
        if chance is not None and self.content != self.synced:
            reached = chance.randint(0, len(self.content))
            torn = self.content[:reached] + bytes(len(self.content) - reached)
            kept = chance.choice([self.synced, self.content, torn])
        return _File(kept, kept, self.modified)


@dataclass(eq=False)
class _Directory:
    names: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)
    unsynced: list[dict[str, _Node | None]] = field(default_factory=list)  # changes since then, in order
    modified: int = 0

    def change(self, names: dict[str, _Node | None], now: int) -> None:
        """One change of this directory; None takes a name away."""
        _apply(self.names, names)
        self.unsynced.append(names)
        self.modified = now

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.unsynced.clear()

    def survive(self, chance: random.Random | None, known: dict[object, _Node]) -> _Directory:
        kept = dict(self.synced)
        for change in self.unsynced if chance is not None else []:
            if chance is not None and chance.random() < 0.5:
                _apply(kept, change)
        names = {name: _survivor(node, chance, known) for name, node in kept.items()}
        return _Directory(names, dict(names), [], self.modified)


_Node = _File | _Directory


def _apply(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _survivor(node: _Node, chance: random.Random | None, known: dict[object, _Node]) -> _Node:
    """What is left of a node; a file with two names stays one file."""
    if node not in known:
        known[node] = node.survive(chance, known)
    return known[node]


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


class ForgetfulDisk(Disk):
    """A disk with the directory ROOT, whose power can be cut.

    `lies` names what it only pretends to sync: "files", "directories".
    """

    def __init__(self) -> None:
        self._top = _Directory({"data": _Directory()})
        self._top.sync()
        self._open: dict[int, _Node] = {}
        self._now = 0
        self.lies: frozenset[str] = frozenset()
        self.steps = 0
        self.steps_left: int | None = None  # changes until the power goes; None: it stays

    def crash(self, chance: random.Random | None = None) -> ForgetfulDisk:
        """The disk when the power is back; with `chance`, some of what was never synced is there too."""
        for fd in list(self._open):
            self.close(fd)
        found = ForgetfulDisk()
        top = _survivor(self._top, chance, {})
        assert isinstance(top, _Directory)
        found._top = top
        return found

    def survive(self) -> None:
        """The process has died, or the power went in its node alone: nothing is lost, and no file is open."""
        for fd in list(self._open):
            self.close(fd)
        self.steps_left = None

    # What looks

    def read(self, path: str) -> bytes:
        return self._file(path).content

    def pieces(self, path: str, start: int, stop: int, size: int) -> Iterator[bytes]:
        content = self.read(path)
        if len(content) < stop:
            raise _error(errno.EIO, path)
        for offset in range(start, stop, size):
            yield content[offset : min(offset + size, stop)]

    def status(self, path: str) -> Status:
        node = self._node(path)
        size = len(node.content) if isinstance(node, _File) else 0
        return Status(size, node.modified / 1e9, node.modified, isinstance(node, _Directory))

    def names(self, path: str) -> list[str]:
        return list(self._directory(path).names)

    def open(self, path: str) -> int:
        node = self._node(path)
        fd = self._descriptor(node)
        if isinstance(node, _File):  # readers go on with the descriptor itself
            os.pwrite(fd, node.content, 0)
        return fd

    def size(self, fd: int) -> int:
        self._look()
        file = self._open[fd]
        assert isinstance(file, _File)
        return len(file.content)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        self._look()
        return super().read_at(fd, size, offset)

    def try_lock(self, fd: int) -> bool:
        self._look()
        file = self._open[fd]
        assert isinstance(file, _File)
        if file.locked_by in (None, fd):
            file.locked_by = fd
            return True
        return False

    def confirm_lock(self, fd: int) -> None:
        self._look()
        assert fd in self._open

    def is_locked(self, fd: int) -> bool:
        self._look()
        file = self._open[fd]
        assert isinstance(file, _File)
        return file.locked_by not in (None, fd)

    def close(self, fd: int) -> None:
        node = self._open.pop(fd)
        if isinstance(node, _File) and node.locked_by == fd:
            node.locked_by = None
        os.close(fd)

    # What changes

    def create(self, path: str) -> int:
        parent, name = self._place(path)
        if name in parent.names:
            raise _error(errno.EEXIST, path)
        self._step()
        file = _File(modified=self._tick())
        parent.change({name: file}, file.modified)
        return self._descriptor(file)

    def open_lock(self, path: str) -> int:
        parent, name = self._place(path)
        return self._descriptor(self._file(path)) if name in parent.names else self.create(path)

    def write(self, fd: int, data: bytes) -> None:
        self._step()
        file = self._open[fd]
        assert isinstance(file, _File)
        file.content += data
        file.modified = self._tick()

    def open_existing(self, path: str) -> int:
        self._look()
        return self._descriptor(self._file(path))

    def seek(self, fd: int, offset: int) -> None:
        """What is copied or written goes to the end: nobody wants it anywhere else."""
        self._look()
        file = self._open[fd]
        assert isinstance(file, _File) and len(file.content) == offset

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        self._step()
        file = self._open[fd]
        assert isinstance(file, _File)
        before = file.content[:offset].ljust(offset, b"\0")
        file.content = before + data + file.content[offset + len(data) :]
        file.modified = self._tick()

    def start_writeback(self, fd: int, start: int, size: int) -> None:
        """Nothing is promised by it, so nothing is kept for it."""

    def copy(self, source: str, fd: int, size: int) -> None:
        self.write(fd, b"".join(self.pieces(source, 0, size, max(size, 1))))

    def seal(self, fd: int) -> None:
        self._step()

    def sync(self, fd: int) -> None:
        self._sync(self._open[fd])

    def sync_path(self, path: str) -> None:
        self._sync(self._node(path))

    def mkdir(self, path: str) -> None:
        parent, name = self._place(path)
        if name in parent.names:
            raise _error(errno.EEXIST, path)
        self._step()
        now = self._tick()
        parent.change({name: _Directory(modified=now)}, now)

    def touch(self, path: str) -> None:
        self._look()
        self._node(path).modified = self._tick()

    def rmdir(self, path: str) -> None:
        parent, name = self._place(path)
        if self._directory(path).names:
            raise _error(errno.ENOTEMPTY, path)
        self._step()
        parent.change({name: None}, self._tick())

    def unlink(self, path: str) -> None:
        parent, name = self._place(path)
        if isinstance(self._node(path), _Directory):
            raise _error(errno.EISDIR, path)
        self._step()
        parent.change({name: None}, self._tick())

    def link(self, source: str, target: str) -> None:
        file = self._file(source)
        parent, name = self._place(target)
        if name in parent.names:
            raise _error(errno.EEXIST, target)
        self._step()
        parent.change({name: file}, self._tick())

    def rename(self, source: str, target: str) -> None:
        node = self._node(source)
        old, old_name = self._place(source)
        new, new_name = self._place(target)
        there = new.names.get(new_name)
        if there is node:  # two names of one file: POSIX leaves both
            return
        if isinstance(there, _Directory) and there.names:
            raise _error(errno.ENOTEMPTY, target)
        self._step()
        now = self._tick()
        if old is new:
            old.change({old_name: None, new_name: node}, now)
        else:
            new.change({new_name: node}, now)
            old.change({old_name: None}, now)

    # Inside

    def _look(self) -> None:
        if self.steps_left == 0:
            raise PowerLoss

    def _step(self) -> None:
        """Every change begins here, and takes place; the power may be gone by now. Before: whatever looks."""
        self._look()
        self.steps += 1
        if self.steps_left is not None:
            self.steps_left -= 1

    def _sync(self, node: _Node) -> None:
        self._step()
        if ("files" if isinstance(node, _File) else "directories") not in self.lies:
            node.sync()

    def _tick(self) -> int:
        """Now, in nanoseconds, and never the same twice."""
        self._now = max(self._now + 1, time.time_ns())
        return self._now

    def _descriptor(self, node: _Node) -> int:
        fd = os.memfd_create("forgetful")
        self._open[fd] = node
        return fd

    def _node(self, path: str) -> _Node:
        self._look()
        node: _Node = self._top
        for name in path.strip("/").split("/"):
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            if name not in node.names:
                raise _error(errno.ENOENT, path)
            node = node.names[name]
        return node

    def _file(self, path: str) -> _File:
        node = self._node(path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._node(path)
        if isinstance(node, _File):
            raise _error(errno.ENOTDIR, path)
        return node

    def _place(self, path: str) -> tuple[_Directory, str]:
        """The directory that a path's last name is, or would be, in."""
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name


class SteppingDisk(Disk):
    """The real disk; `before(call, arguments)` is asked before every call, and may wait, or refuse by raising.

    `after(call, arguments, outcome)` hears how the call ended: its result, or the OSError.
    """

    def __init__(
        self, before: Callable[[str, tuple[Any, ...]], None], after: Callable[[str, tuple[Any, ...], object], None]
    ) -> None:
        self._before = before
        self._after = after
        self._real = Disk()
        for call in CALLS:  # methods of this one object: what the real disk calls within a call is no step
            setattr(self, call, self._stepping(call))

    def _stepping(self, call: str) -> Callable[..., Any]:
        real = getattr(self._real, call)

        def step(*arguments: Any) -> Any:
            self._before(call, arguments)
            try:
                outcome = real(*arguments)
                if call == "pieces":
                    outcome = list(outcome)
            except OSError as error:
                self._after(call, arguments, error)
                raise
            self._after(call, arguments, outcome)
            return outcome

        return step
