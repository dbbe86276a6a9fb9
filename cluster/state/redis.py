"""Connections to Redis: to one server, to the master that Sentinels name, or to every master of a Cluster.

The only importer of redis-py; its exceptions, and the system's, die here. Everything slow (names, TCP, TLS, AUTH,
Sentinels, a Cluster's slots) happens in `connect`, which no request waits for. What it returns is never repaired:
it works, or is dropped whole and made anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from redis.asyncio.connection import Connection, SSLConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from cluster.errors import StateError
from cluster.state.commands import Command, Reply
from cluster.state.store import Refused, WrongServer

Address = tuple[str, int]

_ELSEWHERE = (ReadOnlyError, AskError, ClusterDownError, BusyLoadingError, TryAgainError)  # MOVED is an AskError


@dataclass(frozen=True)
class Tls:
    """How servers are trusted, and how they know us. Paths of PEM files."""

    certificate: str | None = None
    key: str | None = None
    root_cas: tuple[str, ...] = ()  # in place of the system's

    def context(self) -> ssl.SSLContext:
        """Reads the files. OSError (ssl.SSLError is one)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in self.root_cas:
            context.load_verify_locations(path)
        if not self.root_cas:
            context.load_default_certs()
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Login:
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Servers:
    """Where Redis is. Several addresses are Sentinels with `master`, and members of a Cluster without."""

    addresses: tuple[Address, ...]
    master: str = ""
    login: Login = Login()
    sentinel_login: Login = Login()
    db: int = 0
    client_name: str | None = None
    tls: Tls | None = None
    dial_timeout: float = 1.0  # seconds to connect, and
    answer_timeout: float = 1.0  # seconds for what is asked while connecting; requests have their own limit
    connections: int = 4  # to each server; calls take turns on them


class _Lane:
    """One connection. Calls take turns; one that is cut short ends it, so that no answer is left for the next."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.WriteTransport | None = None
        self._turn = asyncio.Lock()
        self.waiting = 0

    @property
    def is_up(self) -> bool:
        return bool(self._connection.is_connected)

    async def open(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                await self._connection.connect()  # type: ignore[no-untyped-call]
            assert self._connection._writer is not None  # noqa: S101 - it is connected
            self._transport = self._connection._writer.transport
        except (RedisError, OSError) as error:  # a time-out of asyncio is an OSError
            await self.close()
            raise _translated(error, self._name) from None

    async def ask(self, *commands: Command) -> list[Reply]:
        self.waiting += 1
        try:
            async with self._turn:
                return await self._exchange(commands)
        except (RedisError, OSError) as error:
            raise _translated(error, self._name) from None
        finally:
            self.waiting -= 1
            if not self.is_up:
                self._abort()

    async def close(self) -> None:
        self._abort()
        try:
            await self._connection.disconnect()
        except (RedisError, OSError):
            pass  # it was broken; it is gone now

    def _abort(self) -> None:
        # A polite end (of TLS, or of what is still to be sent) would wait for a server that hangs.
        if self._transport is not None:
            self._transport.abort()

    @property
    def _name(self) -> str:
        return f"{self._connection.host}:{self._connection.port}"

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if not self.is_up:  # redis-py would connect here, in the middle of a request
            raise StateError(f"Redis at {self._name}: the connection is gone")
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        replies = []
        for _ in commands:
            try:
                replies.append(await self._connection.read_response())
            except ResponseError as error:  # one answer among others, which still have to be read
                replies.append(error)
        _check(replies)
        return replies


@dataclass(frozen=True)
class _Server:
    """A server that takes writes, and the slots it keeps."""

    slots: tuple[range, ...]
    lanes: tuple[_Lane, ...]

    async def ask(self, *commands: Command) -> list[Reply]:
        """On the connection that fewest wait for."""
        usable = [lane for lane in self.lanes if lane.is_up] or self.lanes
        return await min(usable, key=lambda lane: lane.waiting).ask(*commands)


class Connections:
    """A Link to servers that are all connected."""

    def __init__(self, servers: Sequence[_Server], close: AsyncExitStack) -> None:
        self._servers = servers
        self._close = close

    async def call(self, *command: str | bytes | int) -> Reply:
        return (await self._keeper(_slot(command)).ask(command))[0]

    async def together(self, *commands: Command) -> list[Reply]:
        slots = {_slot(command) for command in commands}
        if len(self._servers) > 1 and len(slots) > 1:
            return [await self.call(*command) for command in commands]
        replies: list[Reply] = (await self._keeper(slots.pop()).ask(("MULTI",), *commands, ("EXEC",)))[-1]
        return replies

    async def ping(self) -> None:
        await asyncio.gather(*(lane.ask(("PING",)) for server in self._servers for lane in server.lanes))

    async def close(self) -> None:
        await self._close.aclose()

    def _keeper(self, slot: int) -> _Server:
        for server in self._servers:
            if any(slot in slots for slots in server.slots):
                return server
        raise WrongServer(f"Redis Cluster: no server keeps slot {slot}")


async def connect(servers: Servers) -> Connections:
    """Find the servers, and connect to them. StateError."""
    return await _Connecting(servers, await _context(servers.tls)).connect()


async def _context(tls: Tls | None) -> ssl.SSLContext | None:
    """Read anew each time, so that renewed certificates are taken; in a thread, because the system's are many."""
    try:
        return await asyncio.to_thread(tls.context) if tls else None
    except OSError as error:
        raise StateError(f"the TLS files for Redis: {error}") from None


class _Connecting:
    """One attempt to connect."""

    def __init__(self, servers: Servers, context: ssl.SSLContext | None) -> None:
        self._servers = servers
        self._context = context

    async def connect(self) -> Connections:
        async with AsyncExitStack() as opened:
            ready = [
                _Server(slots, tuple([await self._open(opened, address) for _ in range(self._servers.connections)]))
                for slots, address in await self._find()
            ]
            return Connections(ready, opened.pop_all())

    async def _find(self) -> list[tuple[tuple[range, ...], Address]]:
        """The servers that take writes, with their slots."""
        addresses = self._servers.addresses
        if not self._servers.master and len(addresses) > 1:
            return await self._cluster()
        address = await self._master() if self._servers.master else addresses[0]
        return [((range(REDIS_CLUSTER_HASH_SLOTS),), address)]

    async def _master(self) -> Address:
        """What most Sentinels name: one that is cut off may still name the old master."""
        answers = await asyncio.gather(*map(self._ask_sentinel, self._servers.addresses))
        named = Counter(answer for answer in answers if answer is not None)
        if not named:
            raise StateError(f"no Sentinel of {len(answers)} names a master {self._servers.master!r}")
        return named.most_common(1)[0][0]

    async def _ask_sentinel(self, address: Address) -> Address | None:
        question = ("SENTINEL GET-MASTER-ADDR-BY-NAME", self._servers.master)
        try:
            answer = await self._ask_once(address, question, sentinel=True)
        except StateError:
            return None
        return (answer[0].decode(), int(answer[1])) if answer else None

    async def _cluster(self) -> list[tuple[tuple[range, ...], Address]]:
        """The masters, as the first member that answers knows them."""
        reason = StateError("no address")
        for address in self._servers.addresses:
            try:
                rows = await self._ask_once(address, ("CLUSTER SLOTS",))
            except StateError as error:
                reason = error
                continue
            slots: dict[Address, list[range]] = {}
            for first, last, (host, port, *_), *_ in rows:
                master = ((host or b"").decode() or address[0], int(port))
                slots.setdefault(master, []).append(range(first, last + 1))
            return [(tuple(ranges), master) for master, ranges in slots.items()]
        raise StateError(f"no member of the Redis Cluster answers; the last one: {reason}")

    async def _ask_once(self, address: Address, question: Command, *, sentinel: bool = False) -> Reply:
        async with AsyncExitStack() as opened:
            lane = await self._open(opened, address, sentinel=sentinel)
            try:
                async with asyncio.timeout(self._servers.answer_timeout):
                    return (await lane.ask(question))[0]
            except TimeoutError:
                raise StateError(f"Redis at {address[0]}:{address[1]} does not answer") from None

    async def _open(self, opened: AsyncExitStack, address: Address, *, sentinel: bool = False) -> _Lane:
        await _look_up(address, self._servers.dial_timeout)
        lane = _Lane(self._connection(address, sentinel))
        opened.push_async_callback(lane.close)
        await lane.open(self._servers.dial_timeout + self._servers.answer_timeout)
        return lane

    def _connection(self, address: Address, sentinel: bool) -> Connection:
        login = self._servers.sentinel_login if sentinel else self._servers.login
        connection = (SSLConnection if self._context else Connection)(
            host=address[0],
            port=address[1],
            username=login.username,
            password=login.password,
            db=0 if sentinel else self._servers.db,
            client_name=self._servers.client_name,
            protocol=2,  # every version speaks it, and nothing comes that was not asked for
            socket_timeout=None,  # callers set limits
            socket_connect_timeout=self._servers.dial_timeout,
        )
        if isinstance(connection, SSLConnection):
            connection.ssl_context.context = self._context
        return connection


async def _look_up(address: Address, limit: float) -> None:
    """See that the host's name is known, before anybody connects to it. StateError.

    In a thread that is left behind: the event loop's own look-up cannot be given up, and while a name server hangs
    it would hold up the start and the end of this process.
    """
    host, port = address
    if _is_number(host):
        return
    loop = asyncio.get_running_loop()
    known: asyncio.Future[None] = loop.create_future()

    def tell(error: OSError | UnicodeError | None) -> None:
        if not known.done():
            known.set_exception(error) if error else known.set_result(None)

    def look() -> None:
        found: OSError | UnicodeError | None = None
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter: a name that cannot be one
            found = error
        try:
            loop.call_soon_threadsafe(tell, found)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    threading.Thread(target=look, name="redis-name", daemon=True).start()
    try:
        async with asyncio.timeout(limit):
            await known
    except TimeoutError:
        raise StateError(f"Redis at {host}:{port}: its name is not looked up within {limit:g} s") from None
    except (OSError, UnicodeError) as error:
        raise StateError(f"Redis at {host}:{port}: {error}") from None


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _slot(command: Command) -> int:
    return key_slot(str(command[1]).encode())


def _check(replies: list[Reply]) -> None:
    """Raise the first error among the replies, and among those inside of EXEC's."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list):
            _check(reply)


def _translated(error: Exception, name: str) -> StateError:
    kind: type[StateError] = Refused if isinstance(error, ResponseError) else StateError
    if isinstance(error, _ELSEWHERE):
        kind = WrongServer
    return kind(f"Redis at {name}: {str(error) or 'no answer in time'} ({type(error).__name__})")
