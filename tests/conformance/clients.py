"""The stock clients: one class for each that copies OCI layouts, and one for each engine with a storage of its own.

A class owns the command lines of its client and nothing else; what must come of them is said in the tests.
Every client gets a home of its own, so that it reads and writes none of the user's files.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import ClassVar, Self

import httpx

from tests.support.process import Process
from tests.support.tools import require

POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
UNWANTED = ("DOCKER_", "CONTAINERS_", "CONTAINER_", "REGISTRY_AUTH", "XDG_", "HELM_", "BUILDAH_", "STORAGE_")


class Client:
    """Runs one program; a failure shows everything it printed."""

    program: ClassVar[str]
    login_words: ClassVar[Sequence[str]] = ("login", "--password-stdin")
    logout_words: ClassVar[Sequence[str]] = ("logout",)

    def __init__(self, home: str | os.PathLike[str], ca: str | None = None) -> None:
        """`ca` is the authority of the registry's certificate; without it there is no TLS."""
        self.home = os.fspath(home)
        self.ca = ca
        self.path = require(self.program)
        policy = os.path.join(self.home, ".config", "containers", "policy.json")
        os.makedirs(os.path.dirname(policy), exist_ok=True)
        with open(policy, "w", encoding="utf-8") as file:
            json.dump(POLICY, file)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
        self.env |= {"HOME": self.home, "XDG_RUNTIME_DIR": self.home, "TMPDIR": self.home}
        if ca is not None:
            self.env["SSL_CERT_FILE"] = ca  # in place of the system's, as Go reads them

    def run(self, *arguments: str, within: float = 240) -> str:
        return self.raw(*arguments, within=within).decode()

    def raw(self, *arguments: str, within: float = 240, fed: str | None = None) -> bytes:
        """Run what must go well, with `fed` as its standard input; the bytes that it printed."""
        done = self._run(arguments, within, fed)
        assert done.returncode == 0, f"{self.program} {' '.join(arguments)}:\n{done.stderr.decode()}"
        return done.stdout

    def fails(self, *arguments: str, within: float = 60) -> str:
        """Run what must fail; what it printed about it."""
        done = self._run(arguments, within)
        assert done.returncode != 0, f"{self.program} {' '.join(arguments)} went well:\n{done.stdout.decode()}"
        return done.stderr.decode()

    def login(self, host: str, user: str, password: str) -> None:
        self.raw(*self.login_words, *self.secure(), "--username", user, host, fed=password)

    def logout(self, host: str) -> None:
        self.run(*self.logout_words, host)

    def secure(self) -> list[str]:
        """How a sub-command is told about TLS."""
        return []

    def _run(
        self, arguments: tuple[str, ...], within: float, fed: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.path, *self.options(), *arguments],
            input=(fed or "").encode(),
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

    def __init__(self, home: str | os.PathLike[str], host: str, ca: str | None = None) -> None:
        super().__init__(home, ca)
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


def containers_tls(ca: str | None, side: str = "") -> str:
    """How podman, skopeo and buildah are told about TLS, for one side of a copy."""
    return f"--{side}tls-verify=false" if ca is None else f"--{side}cert-dir={os.path.dirname(ca)}"


class Skopeo(Copier):
    program = "skopeo"

    def secure(self) -> list[str]:
        return [containers_tls(self.ca)]

    def push(self, layout: str, reference: str) -> None:
        self._copy(containers_tls(self.ca, "dest-"), f"oci:{layout}", f"docker://{reference}")

    def pull(self, reference: str, layout: str) -> None:
        self._copy(containers_tls(self.ca, "src-"), f"docker://{reference}", f"oci:{layout}")

    def copy(self, source: str, target: str) -> None:
        both = (containers_tls(self.ca, "src-"), containers_tls(self.ca, "dest-"))
        self._copy(*both, f"docker://{source}", f"docker://{target}")

    def tags(self, repository: str) -> list[str]:
        answer = json.loads(self.run("list-tags", *self.secure(), f"docker://{repository}"))
        return list(answer["Tags"])

    def delete(self, reference: str) -> None:
        self.run("delete", *self.secure(), f"docker://{reference}")

    def _copy(self, *arguments: str) -> None:
        self.run("copy", "--all", "--preserve-digests", *arguments)


class Crane(Copier):
    program = "crane"
    login_words = ("auth", "login", "--password-stdin")
    logout_words = ("auth", "logout")

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

    def secure(self, side: str = "") -> list[str]:
        return [] if self.ca else [f"--{side}plain-http"]

    def push(self, layout: str, reference: str) -> None:
        self.run("cp", "--from-oci-layout", layout, *self.secure("to-"), reference)

    def pull(self, reference: str, layout: str) -> None:
        self.run("cp", *self.secure("from-"), reference, "--to-oci-layout", layout)

    def copy(self, source: str, target: str) -> None:
        self.run("cp", *self.secure("from-"), source, *self.secure("to-"), target)

    def tags(self, repository: str) -> list[str]:
        return self.run("repo", "tags", *self.secure(), repository).split()

    def delete(self, reference: str) -> None:
        self.run("manifest", "delete", *self.secure(), "--force", reference)

    def repositories(self) -> list[str]:
        return self.run("repo", "ls", *self.secure(), self.host).split()

    def attach(self, reference: str, artifact_type: str, file: str) -> None:
        self.run("attach", *self.secure(), "--artifact-type", artifact_type, reference, file)

    def referrers(self, reference: str, artifact_type: str) -> list[str]:
        """The digests of the artifacts of one type, by the referrers API alone."""
        api = ("--distribution-spec", "v1.1-referrers-api", "--depth", "1", "--format", "json")
        found = json.loads(self.run("discover", *self.secure(), *api, "--artifact-type", artifact_type, reference))
        return [entry["digest"] for entry in found["referrers"]]


class Regctl(Copier):
    program = "regctl"
    login_words = ("registry", "login", "--pass-stdin")
    logout_words = ("registry", "logout")

    def options(self) -> list[str]:
        return [] if self.ca else ["--host", f"reg={self.host},tls=disabled"]

    def login(self, host: str, user: str, password: str) -> None:
        self.raw(*self.login_words, "--user", user, host, fed=password)

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

    def secure(self) -> list[str]:
        return [containers_tls(self.ca)]

    def push(self, reference: str) -> None:
        self.run("push", *self.secure(), reference)

    def pull(self, reference: str) -> None:
        self.run("pull", *self.secure(), reference)


class Docker(Engine):
    """The docker command, talking to an engine that was started for it."""

    program = "docker"

    def __init__(self, home: str | os.PathLike[str], socket: str) -> None:
        super().__init__(home)
        self.socket = socket

    def options(self) -> list[str]:
        return ["--host", f"unix://{self.socket}"]


class Helm(Client):
    program = "helm"
    login_words = ("registry", "login", "--password-stdin")
    logout_words = ("registry", "logout")

    def secure(self) -> list[str]:
        return [f"--ca-file={self.ca}"] if self.ca else ["--plain-http"]

    def package(self) -> str:
        """A small chart, `greeting` at 1.2.3; the archive's path."""
        templates = os.path.join(self.home, "greeting", "templates")
        os.makedirs(templates)
        with open(os.path.join(self.home, "greeting", "Chart.yaml"), "w", encoding="ascii") as file:
            file.write("apiVersion: v2\nname: greeting\nversion: 1.2.3\ndescription: says hello\n")
        with open(os.path.join(templates, "greeting.yaml"), "w", encoding="ascii") as file:
            file.write("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: greeting\ndata:\n  text: hello\n")
        self.run("package", "greeting")
        return os.path.join(self.home, "greeting-1.2.3.tgz")

    def push(self, archive: str, repository: str) -> None:
        self.run("push", archive, f"oci://{repository}", *self.secure())

    def pull(self, chart: str, directory: str) -> bytes:
        """The archive of `greeting` at 1.2.3."""
        os.makedirs(directory, exist_ok=True)
        self.run("pull", f"oci://{chart}", "--version", "1.2.3", *self.secure(), "--destination", directory)
        with open(os.path.join(directory, "greeting-1.2.3.tgz"), "rb") as file:
            return file.read()


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

    def within(self, namespace: str) -> Self:
        """Give it that network, and an /etc of its own, in which certificates can be put while it runs."""
        private_etc = 'cp -a /etc "$0" && mount --bind "$0/etc" /etc && exec "$@"'
        _, *command = apart("sh")
        enter = [require("nsenter"), f"--net={namespace}", require("unshare")]
        directory = os.path.dirname(self.socket)
        dockerd = self.command[len(apart("dockerd")) - 1 :]
        self.command = [*enter, *command, "-c", private_etc, directory, *dockerd]
        return self

    def run_inside(self, script: str) -> None:
        """Run a shell command where the engine's files are."""
        inside = [require("nsenter"), "--mount", f"--target={self.pid}", require("sh"), "-euc", script]
        subprocess.run(inside, check=True, capture_output=True, timeout=60)

    def _answers(self) -> bool:
        if not os.path.exists(self.socket):
            return False
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), timeout=5) as client:
            try:
                return client.get("http://docker/_ping").status_code == 200
            except httpx.TransportError:
                return False
