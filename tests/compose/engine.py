"""A private Docker engine, and stand-ins for the images that the files are built on, made with debootstrap.

Owns where the engine lives and what is left of it afterwards: nothing. Knows nothing of our images.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import httpx

from tests.support.process import Process
from tests.support.tools import PROJECT, TOOLS, require

SUITE = "trixie"
# What an image is used for, by the beginning of its name.
PACKAGES: Mapping[str, str] = {
    "python:": "python3,python3-venv,python3-dev,python3-pip,ca-certificates",
    "redis:": "redis-server",
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What the host's own pip and apt need to reach their servers, the build needs as well.
PASSED = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


class Engine(Process):
    """A dockerd with directories, a socket and a process namespace of its own, which takes all containers along.

    Its networks are bridges of this machine. The packet filter is left alone: docker-proxy publishes the ports.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.socket = os.path.join(directory, "docker.sock")
        config = os.path.join(directory, "daemon.json")
        with open(config, "w", encoding="utf-8") as file:
            file.write("{}")
        places = [f"--{name}={directory}/{name}" for name in ("data-root", "exec-root", "pidfile")]
        untouched = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        super().__init__(
            [
                *(require("unshare"), "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"),
                *(require("dockerd"), f"--config-file={config}", f"--host=unix://{self.socket}", *places),
                *(*untouched, "--bridge=none", "--insecure-registry=127.0.0.1"),
            ],
            log=os.path.join(directory, "log"),
            ready=self._answers,
        )

    def _answers(self) -> bool:
        if not os.path.exists(self.socket):
            return False
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), timeout=5) as client:
            try:
                return client.get("http://docker/_ping").status_code == 200
            except httpx.TransportError:
                return False

    @property
    def client_env(self) -> dict[str, str]:
        """For docker and compose: no file of the user's is read."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        # The newest client can do without BuildKit, and the oldest engine has none.
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "HOME": self.directory, "DOCKER_BUILDKIT": "0"}

    def docker(self, *arguments: str, within: float = 120, stdin: bytes | None = None) -> str:
        """Run what must go well; what it printed."""
        return run([require("docker"), *arguments], self.client_env, within, stdin)

    def crash(self, container: str) -> None:
        """Kill the first process of a container from outside, so that the restart policy counts."""
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        (dockerd,) = self.children()
        subprocess.run(
            [require("nsenter"), "--target", str(dockerd), "--pid", "--", require("sh"), "-c", f"kill -9 {pid}"],
            check=True,
            timeout=30,
        )

    def build(self, target: str, image: str) -> None:
        """An image of deploy/Dockerfile; the build uses this machine's network."""
        places = ("--network", "host", "--file", f"{PROJECT}/deploy/Dockerfile", "--target", target)
        self.docker("build", *places, "--tag", image, PROJECT, within=1200)

    def stand_in(self, image: str) -> None:
        """Have an image of this name that can do what the real one does for us."""
        packages = next((packages for start, packages in PACKAGES.items() if image.startswith(start)), None)
        assert packages is not None, f"no stand-in is known for {image}: {', '.join(PACKAGES)}"
        passed = [f"{name}={os.environ[name]}" for name in PASSED if name in os.environ]
        variables = " ".join([f"PIP_CERT={CERTIFICATES}", f"SSL_CERT_FILE={CERTIFICATES}", *passed])
        self.docker("import", "--change", f"ENV {variables}", _root_file_system(image, packages), image, within=300)

    def close(self) -> None:
        """Take down what is left in it, and the engine: its bridges are the machine's."""
        try:
            if left := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *left)
            self.docker("network", "prune", "--force")
        finally:
            self.kill()


def run(command: Sequence[str], env: Mapping[str, str], within: float, stdin: bytes | None = None) -> str:
    """Run what must go well, in the project's directory; what it printed."""
    done = subprocess.run(
        command, input=stdin or b"", capture_output=True, env=env, cwd=PROJECT, timeout=within, check=False
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(command)}:\n{(said + done.stderr.decode(errors='replace'))[-5000:]}"
    return said


def _root_file_system(image: str, packages: str) -> str:
    """An archive with Debian and these packages; kept, because making one takes a minute."""
    place = os.path.join(TOOLS, "bases", f"{re.sub('[^a-z0-9.]+', '-', image)}-{SUITE}.tar")
    if os.path.exists(place):
        return place
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-") as directory:
        root = os.path.join(directory, "root")
        mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []  # else debootstrap's own
        make = [require("debootstrap"), "--variant=minbase", f"--include={packages}", SUITE, root, *mirror]
        run(make, os.environ, 900)
        for file in ("/etc/pip.conf", CERTIFICATES):
            if os.path.exists(file):
                os.makedirs(os.path.dirname(root + file), exist_ok=True)
                shutil.copy(file, root + file)
        run(["tar", "-C", root, "-cf", f"{place}.new", "."], os.environ, 300)
    os.rename(f"{place}.new", place)
    return place
