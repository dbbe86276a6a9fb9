"""Real Redis servers as child processes: one server, with TLS, a Sentinel set, a Cluster. None keeps its data.

Knows nothing of what the registry keeps there.
"""

import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.process import Process, eventually, free_port
from tests.support.tools import require

PASSWORD = "password of the tests"


class RedisServer(Process):
    """One server on 127.0.0.1; `options` are those of its configuration file."""

    def __init__(self, directory: str | os.PathLike[str], options: Mapping[str, str] | None = None, **client: Any):
        self.directory = os.fspath(directory)
        self.port = free_port()
        os.makedirs(self.directory, exist_ok=True)
        own = {"port": str(self.port), "bind": "127.0.0.1", "dir": self.directory, "save": "", "appendonly": "no"}
        arguments = [part for name, value in (own | dict(options or {})).items() for part in (f"--{name}", value)]
        self._client = client
        super().__init__(
            [require("redis-server"), *arguments],
            log=os.path.join(self.directory, "log"),
            ready=self._answers,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, **more: Any) -> "redis.Redis[Any]":
        """Somebody else's client, to look at what is there; to be closed."""
        once: Any = Retry(NoBackoff(), 0)
        return redis.Redis("127.0.0.1", self.port, socket_timeout=5, retry=once, **{**self._client, **more})

    def ask(self, *command: Any) -> Any:
        """One command on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def replication(self, field: str) -> Any:
        """What it says of replication; None while it does not answer."""
        try:
            return self.ask("INFO", "replication").get(field)
        except (redis.ConnectionError, redis.TimeoutError):
            return None

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except (redis.ConnectionError, redis.TimeoutError):
            return False


class SentinelSet:
    """A master, a replica and three Sentinels; passwords everywhere."""

    master_name = "main"

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self._stack = ExitStack()
        with_password = {"requirepass": PASSWORD, "masterauth": PASSWORD}
        self.servers = [
            RedisServer(os.path.join(self._directory, name), with_password, password=PASSWORD) for name in "ab"
        ]
        self.sentinels = [self._sentinel(number) for number in range(3)]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            master, replica = (stack.enter_context(server) for server in self.servers)
            replica.ask("REPLICAOF", "127.0.0.1", master.port)
            eventually(
                lambda: replica.replication("master_link_status") == "up", 20, "the replica follows the master"
            )
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            eventually(self._complete, 30, "every Sentinel knows the replica and the others")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        return [sentinel.address for sentinel in self.sentinels]

    @property
    def master(self) -> RedisServer:
        """Whom the Sentinels name now."""
        port = int(self.sentinels[-1].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", self.master_name)[1])
        return next(server for server in self.servers if server.port == port)

    def replicated(self) -> None:
        """Return when the replica has what the master has."""
        with self.master.client() as client:
            eventually(lambda: client.wait(1, 1000) == 1, 20, "the replica has what the master has")

    def fail_over(self) -> RedisServer:
        """Make the replica the master, both being well; the new one."""
        before = self.master
        eventually(self._complete, 30, "a fail-over is possible")
        self.sentinels[0].ask("SENTINEL FAILOVER", self.master_name)
        eventually(lambda: self.master is not before, 30, "the Sentinels name the other server")
        eventually(lambda: before.replication("role") == "slave", 30, "the old master follows")
        return self.master

    def _sentinel(self, number: int) -> RedisServer:
        directory = os.path.join(self._directory, f"sentinel-{number}")
        sentinel = RedisServer(directory, {"requirepass": PASSWORD}, password=PASSWORD)
        config = os.path.join(directory, "sentinel.conf")
        lines = [
            f"port {sentinel.port}",
            "bind 127.0.0.1",
            f'requirepass "{PASSWORD}"',
            f'sentinel sentinel-pass "{PASSWORD}"',
            f"sentinel monitor {self.master_name} 127.0.0.1 {self.servers[0].port} 2",
            f'sentinel auth-pass {self.master_name} "{PASSWORD}"',
            f"sentinel down-after-milliseconds {self.master_name} 1000",
            f"sentinel failover-timeout {self.master_name} 5000",
        ]
        with open(config, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
        sentinel.command = [require("redis-server"), config, "--sentinel"]
        return sentinel

    def _complete(self) -> bool:
        for sentinel in self.sentinels:
            master = sentinel.ask("SENTINEL MASTER", self.master_name)
            if (master["num-slaves"], master["num-other-sentinels"], master["flags"]) != (1, 2, "master"):
                return False
            (replica,) = sentinel.ask("SENTINEL SLAVES", self.master_name)
            if (replica["flags"], replica["master-link-status"]) != ("slave", "ok"):
                return False
        return True


class RedisCluster:
    """Three masters, each with a third of the slots."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._stack = ExitStack()
        self.servers = [
            RedisServer(
                os.path.join(directory, f"member-{number}"),
                {"cluster-enabled": "yes", "cluster-port": str(free_port())},
            )
            for number in range(3)
        ]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            subprocess.run(
                [require("redis-cli"), "--cluster", "create", *self.addresses, "--cluster-yes"],
                check=True,
                capture_output=True,
                timeout=60,
            )
            eventually(self._complete, 30, "every member of the Cluster finds it complete")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def _complete(self) -> bool:
        return all(server.ask("CLUSTER INFO")["cluster_state"] == "ok" for server in self.servers)


class Certificates:
    """An authority, a server's certificate for 127.0.0.1, and a client's; PEM files in a directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        os.makedirs(self._directory, exist_ok=True)
        self.authority, self._authority_key = self._make("authority", "basicConstraints=critical,CA:TRUE")
        self.server, self.server_key = self._issue("server", "subjectAltName=IP:127.0.0.1")
        self.client, self.client_key = self._issue("client", "extendedKeyUsage=clientAuth")

    def _issue(self, name: str, extension: str) -> tuple[str, str]:
        return self._make(name, extension, "-CA", self.authority, "-CAkey", self._authority_key)

    def _make(self, name: str, extension: str, *signer: str) -> tuple[str, str]:
        certificate, key = (os.path.join(self._directory, f"{name}.{kind}") for kind in ("pem", "key"))
        what = ("-subj", f"/CN={name}", "-days", "2", "-addext", extension, "-out", certificate)
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
        command = [require("openssl"), "req", "-x509", *new_key, *what, *signer]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return certificate, key
