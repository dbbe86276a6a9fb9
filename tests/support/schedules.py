"""Operations on several nodes, one call of storage at a time, in an order that a test chooses.

Each operation runs in a thread of its own on a disk that waits before every call (tests/support/disks.py). What
it does next depends on nothing but what its calls have told it so far. So two runs that have come to the same files
and to the same answers go on alike, and `explore` follows only one of them: it sees every order nevertheless.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from cluster.storage.disk import Disk, Status
from cluster.storage.threads import Threads, translate
from tests.support.disks import SteppingDisk

P = ParamSpec("P")
T = TypeVar("T")
Node = TypeVar("Node")

# What is drawn at random in a file's name; it differs between runs that are otherwise the same.
_RANDOM = re.compile(r"(?<![0-9a-f-])[0-9a-f]{16}(?:[0-9a-f]{16})?(?![0-9a-f-])")


_TO_THE_END = sys.maxsize  # calls


class InPlace(Threads):
    """Calls of storage run where they are made: quicker, and in an order that can be repeated."""

    def __init__(self) -> None:
        super().__init__(1, 1)  # a pool that is never used starts no thread

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run_long(call, *args, **kwargs)

    async def open(
        self, call: Callable[P, T], close: Callable[[T], object], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self.run_long(call, *args, **kwargs)

    async def run_long(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            raise translate(error) from error

    def begin(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            outcome.set_result(call(*args, **kwargs))
        except OSError as error:
            outcome.set_exception(translate(error))
        except Killed as error:
            outcome.set_exception(error)
        return outcome

    def leave(self, call: Callable[[], object]) -> None:
        call()


class Killed(Exception):
    """The process of this operation is dead: none of its calls takes place any more."""


class Actor(Generic[Node]):
    """One node, and the operation that it has under way."""

    def __init__(self, number: int, build: Callable[[Disk], Node], labels: dict[str, str]) -> None:
        self.number = number
        self.node = build(SteppingDisk(self._before, self._after))
        self.outcome: Any = None
        self.waiting = False  # for its turn; otherwise the operation has ended
        self.history = 0  # of all that its calls have told it
        self.held: set[int] = set()  # descriptors
        self._labels = labels
        self._drawn = 0
        self._granted = 0  # calls that may be made without waiting
        self._dead = False
        self._operation: Callable[[Node], Coroutine[Any, Any, Any]] | None = None
        # Two locks, passed to and fro like a baton: whoever may go on acquires one that the other releases.
        self._turn, self._paused = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._paused.acquire()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self, operation: Callable[[Node], Coroutine[Any, Any, Any]]) -> None:
        """Take an operation up to its first call."""
        self.outcome, self.history, self._drawn, self._dead = None, 0, 0, False
        self._operation = operation
        self.advance(0)

    def advance(self, calls: int = 1) -> int:
        """Make so many calls, and go on to the next one or to the end. How many it made."""
        self.waiting = False
        self._granted = calls
        self._turn.release()
        self._paused.acquire()
        return calls - self._granted

    def kill(self) -> None:
        """Die here. The kernel closes the files, and with that frees the locks."""
        self._dead = True
        if self.waiting:
            self.advance()
        for fd in self.held:
            os.close(fd)
        self.held.clear()

    def close(self) -> None:
        self.kill()
        self._operation = None
        self._turn.release()
        self._thread.join()

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while self._turn.acquire() and self._operation is not None:
                try:
                    self.outcome = runner.run(self._operation(self.node))
                except Exception as error:  # the test decides which ones may be
                    self.outcome = error
                self._paused.release()

    def _before(self, call: str, arguments: tuple[Any, ...]) -> None:
        if threading.current_thread() is not self._thread:
            return  # the test itself, before and after
        if not self._granted and not self._dead:
            self.waiting = True
            self._paused.release()
            self._turn.acquire()
        if self._dead:
            raise Killed
        self._granted -= 1
        if call == "close":
            self.held.discard(arguments[0])

    def _after(self, call: str, arguments: tuple[Any, ...], outcome: Any) -> None:
        if threading.current_thread() is not self._thread:
            return
        texts = [self._plain(argument) for argument in arguments if isinstance(argument, str)]
        if call in ("create", "open", "open_existing", "open_lock") and isinstance(outcome, int):
            self.held.add(outcome)
            outcome = None
        if call == "names" and isinstance(outcome, list):
            outcome.sort(key=self._plain)  # a directory's own order differs between runs
            outcome = tuple(map(self._plain, outcome))
        if isinstance(outcome, Status):
            outcome = (outcome.size, outcome.is_directory)
        if isinstance(outcome, OSError):
            outcome = (type(outcome), outcome.errno)
        self.history = hash((self.history, call, tuple(texts), tuple(outcome) if call == "pieces" else outcome))

    def _plain(self, text: str) -> str:
        """A path without what was drawn at random; what is new in it was drawn by us."""
        return _RANDOM.sub(lambda match: self._labels.get(match[0]) or self._label(match[0]), text)

    def _label(self, drawn: str) -> str:
        self._drawn += 1
        return self._labels.setdefault(drawn, f"<{self.number}.{self._drawn}>")


class Stage(Generic[Node]):
    """Several nodes on one directory."""

    def __init__(self, root: str, build: Callable[[Disk], Node], size: int) -> None:
        self.root = root
        self._labels: dict[str, str] = {}
        self._runner = asyncio.Runner()
        self.actors = [Actor(number, build, self._labels) for number in range(size)]

    @property
    def node(self) -> Node:
        """One of the nodes, to prepare and to look; its calls do not wait when the test makes them."""
        return self.actors[0].node

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Something that the test itself does."""
        return self._runner.run(coroutine)

    def begin(self, operations: Sequence[Callable[[Node], Coroutine[Any, Any, Any]]]) -> None:
        self._labels.clear()
        for actor, operation in zip(self.actors, operations, strict=False):
            actor.begin(operation)

    def ready(self) -> list[int]:
        """Who can make a step."""
        return [actor.number for actor in self.actors if actor.waiting]

    def abandon(self) -> None:
        """End what is under way."""
        for actor in self.actors:
            actor.kill()

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self._runner.close()

    def state(self) -> Hashable:
        """Equal for two runs that can only go on alike."""
        histories = tuple((actor.waiting, actor.history) for actor in self.actors)
        return hash((histories, frozenset(self._files())))

    def _files(self) -> Iterator[tuple[str, bytes | None]]:
        for directory, names, files in os.walk(self.root):
            for name in files:
                with open(f"{directory}/{name}", "rb") as file:
                    yield self._plain(f"{directory}/{name}"), file.read()
            for name in names:
                yield self._plain(f"{directory}/{name}"), None

    def _plain(self, path: str) -> str:
        return _RANDOM.sub(lambda match: self._labels.get(match[0], match[0]), path)


def explore(
    stage: Stage[Node], start: Callable[[], None], look: Callable[[], None], interruptions: float = math.inf
) -> int:
    """Go through every order in which at most so many times somebody who could go on is made to wait.

    `start` is called before every run, `look` in every state. The number of states.
    """
    seen: dict[Hashable, float] = {}
    untried: list[tuple[list[int], float]] = [([], interruptions)]
    try:
        while untried:
            done, left = untried.pop()
            start()
            for number, steps in itertools.groupby(done):
                stage.actors[number].advance(len(list(steps)))
            last = done[-1] if done else -1
            while seen.get(state := (stage.state(), last), -1) < left:
                seen[state] = left
                look()
                ready = stage.ready()
                if not ready:
                    break
                following = last if last in ready else ready[0]
                rest = left - (last in ready)
                untried += [([*done, number], rest) for number in ready if number != following and rest >= 0]
                last = following
                # Who will not be interrupted any more need not be watched.
                done = [*done, *[last] * stage.actors[last].advance(1 if left > 0 else _TO_THE_END)]
            stage.abandon()
    finally:
        stage.abandon()
    return len({state for state, _ in seen})


def wander(stage: Stage[Node], chance: random.Random, look: Callable[[], None], *, deadly: float = 0.0) -> None:
    """One run in an order that `chance` chooses, in bursts; with probability `deadly` a step is somebody's last."""
    while ready := stage.ready():
        actor = stage.actors[chance.choice(ready)]
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            if not actor.waiting:
                break
            if chance.random() < deadly:
                actor.kill()
            else:
                actor.advance()
        look()
