"""The stock clients: one class for each that copies OCI layouts, and one for each engine with a storage of its own.

A class owns the command lines of its client and nothing else; what must come of them is said in the tests.
Every client gets a home of its own, so that it reads and writes none of the user's files.
"""

import json
import os
import subprocess
from typing import ClassVar

import httpx

from tests.support.process import Process
from tests.support.tools import require

POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
UNWANTED = ("DOCKER_", "CONTAINERS_", "CONTAINER_", "REGISTRY_AUTH", "XDG_", "HELM_", "BUILDAH_", "STORAGE_")


class Client:
    """Runs one program; a failure shows everything it printed."""

    program: ClassVar[str]

    def __init__(self, home: str | os.PathLike[str]) -> None:
        self.home = os.fspath(home)
        self.path = require(self.program)
        policy = os.path.join(self.home, ".config", "containers", "policy.json")
        os.makedirs(os.path.dirname(policy), exist_ok=True)
        with open(policy, "w", encoding="utf-8") as file:
            json.dump(POLICY, file)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
        self.env |= {"HOME": self.home, "XDG_RUNTIME_DIR": self.home, "TMPDIR": self.home}

    def run(self, *arguments: str, within: float = 240) -> str:
        return self.raw(*arguments, within=within).decode()

    def raw(self, *arguments: str, within: float = 240) -> bytes:
        """Run what must go well; the bytes that it printed."""
        done = self._run(arguments, within)
        assert done.returncode == 0, f"{self.program} {' '.join(arguments)}:\n{done.stderr.decode()}"
        return done.stdout

    def fails(self, *arguments: str, within: float = 60) -> str:
        """Run what must fail; what it printed about it."""
        done = self._run(arguments, within)
        assert done.returncode != 0, f"{self.program} {' '.join(arguments)} went well:\n{done.stdout.decode()}"
        return done.stderr.decode()

    def _run(self, arguments: tuple[str, ...], within: float) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.path, *self.options(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.env,
            cwd=self.home,
            timeout=within,
            check=False,
        )

    def options(self) -> list[str]:
        """What stands before every sub-command."""
        return []


class Copier(Client):
    """A client that copies images between registries and OCI layouts, and lists and deletes what is in a registry.

    A reference is `host/repository:tag` or `host/repository@digest`; a layout is `directory:tag`, and holds one
    image.
    """

    def __init__(self, home: str | os.PathLike[str], host: str) -> None:
        super().__init__(home)
        self.host = host

    def push(self, layout: str, reference: str) -> None:
        raise NotImplementedError

    def pull(self, reference: str, layout: str) -> None:
        raise NotImplementedError

    def copy(self, source: str, target: str) -> None:
        raise NotImplementedError

    def tags(self, repository: str) -> list[str]:
        raise NotImplementedError

    def delete(self, reference: str) -> None:
        raise NotImplementedError


class Skopeo(Copier):
    program = "skopeo"

    def push(self, layout: str, reference: str) -> None:
        self._copy("--dest-tls-verify=false", f"oci:{layout}", f"docker://{reference}")

    def pull(self, reference: str, layout: str) -> None:
        self._copy("--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}")

    def copy(self, source: str, target: str) -> None:
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        self._copy(*plain, f"docker://{source}", f"docker://{target}")

    def tags(self, repository: str) -> list[str]:
        answer = json.loads(self.run("list-tags", "--tls-verify=false", f"docker://{repository}"))
        return list(answer["Tags"])

    def delete(self, reference: str) -> None:
        self.run("delete", "--tls-verify=false", f"docker://{reference}")

    def _copy(self, *arguments: str) -> None:
        self.run("copy", "--all", "--preserve-digests", *arguments)


class Crane(Copier):
    program = "crane"

    def push(self, layout: str, reference: str) -> None:
        # crane cannot choose: it sends the only image of a layout.
        self.run("push", layout.rpartition(":")[0], reference)

    def pull(self, reference: str, layout: str) -> None:
        self.run("pull", "--format=oci", reference, layout.rpartition(":")[0])

    def copy(self, source: str, target: str) -> None:
        self.run("copy", source, target)

    def tags(self, repository: str) -> list[str]:
        return self.run("ls", repository).split()

    def delete(self, reference: str) -> None:
        self.run("delete", reference)

    def repositories(self) -> list[str]:
        return self.run("catalog", self.host).split()


class Oras(Copier):
    program = "oras"

    def push(self, layout: str, reference: str) -> None:
        self.run("cp", "--from-oci-layout", layout, "--to-plain-http", reference)

    def pull(self, reference: str, layout: str) -> None:
        self.run("cp", "--from-plain-http", reference, "--to-oci-layout", layout)

    def copy(self, source: str, target: str) -> None:
        self.run("cp", "--from-plain-http", source, "--to-plain-http", target)

    def tags(self, repository: str) -> list[str]:
        return self.run("repo", "tags", "--plain-http", repository).split()

    def delete(self, reference: str) -> None:
        self.run("manifest", "delete", "--plain-http", "--force", reference)

    def repositories(self) -> list[str]:
        return self.run("repo", "ls", "--plain-http", self.host).split()

    def attach(self, reference: str, artifact_type: str, file: str) -> None:
        self.run("attach", "--plain-http", "--artifact-type", artifact_type, reference, file)

    def referrers(self, reference: str, artifact_type: str) -> list[str]:
        """The digests of the artifacts of one type, by the referrers API alone."""
        api = ("--distribution-spec", "v1.1-referrers-api", "--depth", "1", "--format", "json")
        found = json.loads(self.run("discover", "--plain-http", *api, "--artifact-type", artifact_type, reference))
        return [entry["digest"] for entry in found["referrers"]]


class Regctl(Copier):
    program = "regctl"

    def options(self) -> list[str]:
        return ["--host", f"reg={self.host},tls=disabled"]

    def push(self, layout: str, reference: str) -> None:
        self.run("image", "copy", f"ocidir://{layout}", reference)

    def pull(self, reference: str, layout: str) -> None:
        self.run("image", "copy", reference, f"ocidir://{layout}")

    def copy(self, source: str, target: str) -> None:
        self.run("image", "copy", source, target)

    def tags(self, repository: str) -> list[str]:
        return self.run("tag", "ls", repository).split()

    def delete(self, reference: str) -> None:
        if "@" in reference:
            self.run("manifest", "delete", reference)
        else:
            self.run("tag", "delete", reference)

    def repositories(self) -> list[str]:
        return self.run("repo", "ls", self.host).split()

    def attach(self, reference: str, artifact_type: str, file: str) -> None:
        self.run("artifact", "put", "--artifact-type", artifact_type, "--subject", reference, "--file", file)

    def referrers(self, reference: str, artifact_type: str) -> list[str]:
        shown = ("--format", "{{range .Descriptors}}{{println .Digest}}{{end}}")
        return self.run("artifact", "list", "--filter-artifact-type", artifact_type, *shown, reference).split()


class Engine(Client):
    """A client that keeps images in a storage of its own; an image's id is the digest of its config."""

    def load(self, archive: str) -> None:
        self.run("load", "--input", archive)

    def tag(self, image: str, reference: str) -> None:
        self.run("tag", image, reference)

    def push(self, reference: str) -> None:
        self.run("push", reference)

    def pull(self, reference: str) -> None:
        self.run("pull", reference)

    def remove(self, *images: str) -> None:
        self.run("rmi", "--force", *images)

    def save(self, reference: str, archive: str) -> None:
        self.run("save", "--output", archive, reference)

    def image_id(self, reference: str) -> str:
        found = self.run("image", "inspect", "--format", "{{.Id}}", reference).strip()
        return "sha256:" + found.removeprefix("sha256:")


class Podman(Engine):
    program = "podman"

    def options(self) -> list[str]:
        places = ["--root", f"{self.home}/root", "--runroot", f"{self.home}/run", "--tmpdir", f"{self.home}/tmp"]
        return [*places, "--storage-driver", "vfs", "--events-backend", "none"]

    def push(self, reference: str) -> None:
        self.run("push", "--tls-verify=false", reference)

    def pull(self, reference: str) -> None:
        self.run("pull", "--tls-verify=false", reference)


class Docker(Engine):
    """The docker command, talking to an engine that was started for it."""

    program = "docker"

    def __init__(self, home: str | os.PathLike[str], socket: str) -> None:
        super().__init__(home)
        self.socket = socket

    def options(self) -> list[str]:
        return ["--host", f"unix://{self.socket}"]


def apart(program: str) -> list[str]:
    """A program with a mount table of its own: what it mounts is gone with it, however it ends."""
    return [require("unshare"), "--mount", "--", require(program)]


class DockerEngine(Process):
    """A private dockerd: own directories and socket, no network, and none of the host changed.

    The directory must be short, because a socket's path may have 107 characters only.
    """

    def __init__(self, directory: str) -> None:
        self.socket = os.path.join(directory, "docker.sock")
        config = os.path.join(directory, "daemon.json")
        with open(config, "w", encoding="utf-8") as file:
            file.write("{}")
        places = [f"--{name}={directory}/{name}" for name in ("data-root", "exec-root", "pidfile")]
        quiet = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none"]
        images = ["--storage-driver=vfs", "--insecure-registry=127.0.0.1"]
        super().__init__(
            [
                *apart("dockerd"),
                f"--config-file={config}",
                f"--host=unix://{self.socket}",
                *places,
                *quiet,
                *images,
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
