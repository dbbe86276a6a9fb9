"""`registry-cluster certs`: clients accept what is made, keys are private, a renewal keeps all that it should."""

import ipaddress
import multiprocessing
import os
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cluster.certificates import BUNDLE, CA, CA_KEY, SERVER, SERVER_KEY, create, look, renew, subject
from cluster.cli import main
from cluster.errors import ConfigError
from cluster.trust import instructions, reference_host
from tests.support.tools import require, require_root

WHAT = subject(["registry.example", "localhost"], ["192.0.2.10", "2001:db8::10"])
FILES = {CA, CA_KEY, SERVER, SERVER_KEY, BUNDLE}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "certs"
    create(str(directory), WHAT)
    return directory


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_openssl_accepts_the_certificate_strictly_for_every_name_and_address(made: Path) -> None:
    strict = [require("openssl"), "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(made / CA)]
    for check in (
        ["-verify_hostname", "registry.example"],
        ["-verify_hostname", "localhost"],
        ["-verify_ip", "192.0.2.10"],
        ["-verify_ip", "2001:db8::10"],
    ):
        subprocess.run([*strict, *check, str(made / SERVER)], check=True, capture_output=True)
    wrong = subprocess.run(
        [*strict, "-verify_hostname", "other.example", str(made / SERVER)], check=False, capture_output=True
    )
    assert wrong.returncode != 0


def test_the_certificates_are_for_as_long_and_for_as_much_as_they_should(made: Path) -> None:
    authority, server = certificate(made / CA), certificate(made / SERVER)
    now = datetime.now(UTC)
    for found, life in ((authority, timedelta(days=3653)), (server, timedelta(days=397))):
        assert found.not_valid_before_utc < now - timedelta(minutes=50), "clocks of clients may be behind"
        assert abs(found.not_valid_after_utc - now - life) < timedelta(minutes=5)
        assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert look(str(made))[0] == WHAT


def test_keys_are_private_whatever_the_umask_and_no_name_is_one_that_clients_misread(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(str(tmp_path / "certs"), WHAT)
        renew(str(tmp_path / "certs"))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certs").iterdir()}
    assert modes == {CA: 0o644, SERVER: 0o644, CA_KEY: 0o600, SERVER_KEY: 0o600, BUNDLE: 0o600}
    assert not any(name.endswith((".key", ".cert")) for name in modes)


def test_a_renewal_keeps_the_authority_and_the_names_and_replaces_the_rest(made: Path) -> None:
    before, serial = contents(made), certificate(made / SERVER).serial_number
    renew(str(made))
    after = contents(made)
    assert set(after) == FILES
    assert {name for name in FILES if before[name] == after[name]} == {CA, CA_KEY}
    assert look(str(made))[0] == WHAT
    assert certificate(made / SERVER).serial_number != serial
    assert after[BUNDLE] == after[SERVER] + after[SERVER_KEY]
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made / SERVER, made / SERVER_KEY)
    certificate(made / SERVER).verify_directly_issued_by(certificate(made / CA))


def test_a_renewal_keeps_owner_and_mode_so_that_the_node_can_read_its_key(made: Path) -> None:
    require_root("files of another user")
    os.chown(made / SERVER_KEY, 65534, 65534)
    os.chmod(made / SERVER_KEY, 0o640)
    renew(str(made))
    found = (made / SERVER_KEY).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o640)


def _renew_often(directory: str) -> int:
    """How many of ten renewals were done; the others met one under way."""
    done = 0
    for _ in range(10):
        try:
            renew(directory)
            done += 1
        except ConfigError as error:
            assert "try again" in str(error)
    return done


def test_renewals_at_the_same_time_leave_a_pair_that_fits(made: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(_renew_often, [str(made)] * 3)) >= 1
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made / SERVER, made / SERVER_KEY)
    assert set(contents(made)) == FILES


def test_nothing_is_overwritten_without_force(made: Path) -> None:
    before = contents(made)
    with pytest.raises(ConfigError, match="certs renew"):
        create(str(made), WHAT)
    assert contents(made) == before
    create(str(made), WHAT, force=True)
    assert not set(contents(made).values()) & set(before.values())


def test_a_renewal_that_fails_leaves_nothing_behind_and_is_done_again(made: Path) -> None:
    os.unlink(made / BUNDLE)
    os.mkdir(made / BUNDLE)  # what it is to be replaced by cannot be moved here
    with pytest.raises(ConfigError, match="cannot be written"):
        renew(str(made))
    os.rmdir(made / BUNDLE)
    assert set(contents(made)) == FILES - {BUNDLE}
    renew(str(made))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made / BUNDLE)


@pytest.mark.parametrize(
    ("names", "addresses", "said"),
    [
        ([], [], "at least one --name or --ip"),
        (["registry example"], [], "--name registry example: wanted a host name"),
        (["192.0.2.1"], [], "--name 192.0.2.1: wanted a host name"),
        (["*.example"], [], "--name *.example: wanted a host name"),
        ([], ["registry.example"], "--ip registry.example: wanted an IP address"),
        ([], ["192.0.2.1/24"], "--ip 192.0.2.1/24: wanted an IP address"),
    ],
)
def test_what_cannot_be_certified_is_said(names: list[str], addresses: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        subject(names, addresses)
    assert said in str(caught.value)


def test_a_name_counts_once_in_any_case_and_a_long_one_is_taken() -> None:
    long = ".".join(["a" * 60] * 4)
    found = subject(["Registry.Example", "registry.example", long], ["::1", "0:0::1"])
    assert found.names == ("registry.example", long)
    assert found.addresses == (ipaddress.ip_address("::1"),)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (CA_KEY, None, "No such file"),
        (CA_KEY, b"nonsense", "no EC key in PEM form"),
        (CA, b"nonsense", "no certificate in PEM form"),
        (SERVER, None, "No such file"),
    ],
)
def test_a_directory_that_is_not_whole_is_not_renewed(
    made: Path, name: str, content: bytes | None, said: str
) -> None:
    (made / name).unlink()
    if content is not None:
        (made / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        renew(str(made))
    assert said in str(caught.value)


def test_an_authority_that_lost_its_key_to_another_is_not_used(made: Path, tmp_path: Path) -> None:
    create(str(tmp_path / "other"), WHAT)
    (made / CA_KEY).write_bytes((tmp_path / "other" / CA_KEY).read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        renew(str(made))


# -- The command


def test_the_command_makes_renews_and_says_where_clients_want_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "certs")
    assert main(["certs", directory, "--name", "registry.example", "--ip", "192.0.2.10", "--port", "5000"]) == 0
    said = capsys.readouterr().out
    assert "a certificate for registry.example, 192.0.2.10, until 20" in said
    for place in (
        "/etc/docker/certs.d/registry.example:5000/ca.crt",
        "/etc/docker/certs.d/192.0.2.10:5000/ca.crt",
        "/etc/containers/certs.d/registry.example:5000/ca.crt",
        "/etc/containerd/certs.d/registry.example:5000/hosts.toml",
        "/usr/local/share/ca-certificates/registry.example.crt && update-ca-certificates",
    ):
        assert place in said
    assert main(["certs", directory, "--name", "other.example"]) == 1
    assert main(["certs", "renew", directory]) == 0
    assert main(["certs", "renew", directory, "--name", "other.example"]) == 1
    assert main(["certs", "renew", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "wanted no --name" in said
    assert look(directory)[0].names == ("registry.example",)


def test_the_shell_commands_that_are_printed_do_what_they_say(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "client"
    lines = "\n".join(instructions(str(made), ["registry.example", "2001:db8::10"], 5000)).partition(
        "On every client"
    )
    script = (
        lines[2].partition("\n")[2].replace("/etc/", f"{root}/etc/").replace("/usr/local/", f"{root}/usr/local/")
    )
    script = script.replace("update-ca-certificates", "true")
    subprocess.run(["sh", "-euc", script], check=True, capture_output=True)
    wanted = (made / CA).read_bytes()
    for place in ("registry.example:5000", "[2001:db8::10]:5000"):
        for holder in ("docker", "containers", "containerd"):
            assert (root / "etc" / holder / "certs.d" / place / "ca.crt").read_bytes() == wanted
        toml = (root / "etc/containerd/certs.d" / place / "hosts.toml").read_text()
        assert f'[host."https://{place}"]\n  ca = "' in toml
    assert (root / "usr/local/share/ca-certificates/registry.example.crt").read_bytes() == wanted


@pytest.mark.parametrize(
    ("host", "port", "wanted"),
    [
        ("a.example", 443, "a.example"),
        ("a.example", 5000, "a.example:5000"),
        ("::1", 443, "[::1]"),
        ("::1", 1, "[::1]:1"),
    ],
)
def test_clients_name_their_directories_after_references(host: str, port: int, wanted: str) -> None:
    assert reference_host(host, port) == wanted


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["certs", str(tmp_path / place), "--name", "registry.example"]) == 1
    assert f"{tmp_path}/{place}: cannot be made: " in capsys.readouterr().err


def test_renew_alone_is_not_taken_for_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["certs", "renew", "--name", "registry.example"]) == 1
    assert "certs renew: wanted the directory too" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_commands_that_are_shown_can_be_typed() -> None:
    lines = "\n".join(instructions("/etc/my certs", ["registry.example"], 443))
    assert "`registry-cluster certs renew '/etc/my certs'`" in lines
    assert "install -D -m 644 '/etc/my certs/ca.crt' /etc/docker/certs.d/registry.example/ca.crt" in lines
