"""A network of one address, for programs that trust every registry on loopback whatever its certificate is.

Makes a network namespace and leads one port in it to a port of 127.0.0.1 outside; needs root. Nothing of the host's
network is changed, and all of it goes with the process that holds the namespace.
"""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Self

from tests.support.process import Process
from tests.support.tools import require

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Island(Process):
    """A namespace in which `address` and a port lead to the same port of 127.0.0.1 here."""

    def __init__(self, directory: str, address: str, port: int) -> None:
        self.address = address
        self.port = port
        command = [require("unshare"), "--net", require("sleep"), "infinity"]
        super().__init__(command, log=os.path.join(directory, "island.log"), ready=self._is_apart)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def namespace(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def start(self) -> Self:
        super().start()
        try:
            inside = [require("nsenter"), f"--net={self.namespace}", require("ip")]
            for change in (["link", "set", "lo", "up"], ["address", "add", f"{self.address}/32", "dev", "lo"]):
                subprocess.run([*inside, *change], check=True, capture_output=True, timeout=30)
            listener = self._listener()
        except BaseException:
            self.kill()
            raise
        self._run(self._serve, listener)
        return self

    def stop(self, within: float = 20) -> int:
        for each in self._sockets:
            _end(each)  # whoever waits on it wakes
        while self._threads:
            self._threads.pop().join()
        return super().stop(within)

    def _run(self, what: Callable[[socket.socket], None], on: socket.socket) -> None:
        self._sockets.append(on)
        self._threads.append(threading.Thread(target=what, args=(on,)))
        self._threads[-1].start()

    def _is_apart(self) -> bool:
        return os.readlink(self.namespace) != os.readlink("/proc/self/ns/net")

    def _listener(self) -> socket.socket:
        """A socket of that network. It is made by a thread that goes there, for threads can, and ends."""
        made: list[socket.socket] = []

        def go_and_listen() -> None:
            fd = os.open(self.namespace, os.O_RDONLY)
            try:
                if _libc.setns(fd, _CLONE_NEWNET) == 0:
                    made.append(socket.create_server((self.address, self.port)))
            finally:
                os.close(fd)

        thread = threading.Thread(target=go_and_listen)
        thread.start()
        thread.join()
        assert made, "no socket could be made in the network namespace"
        return made[0]

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                self._run(self._relay, near)

    def _relay(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self.port)) as far:
            back = threading.Thread(target=_pump, args=(far, near))
            back.start()
            _pump(near, far)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand bytes on until one side ends, then end the other one's."""
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        _end(source)
        _end(sink)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
