"""A certificate that is renewed while it is served (cluster/tls.py); real connections are in tests/node."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from cluster.certificates import SERVER, SERVER_KEY
from cluster.settings import Tls
from cluster.tls import ServedCertificate
from tests.support.tls import make_certificates


@pytest.fixture
def served(tmp_path: Path) -> ServedCertificate:
    certs = make_certificates(tmp_path / "served")
    return ServedCertificate(Tls(certificate=f"{certs}/{SERVER}", key=f"{certs}/{SERVER_KEY}"))


def renew(tmp_path: Path, name: str) -> None:
    """One of the two steps of a renewal."""
    renewed = tmp_path / "renewed"
    if not renewed.exists():
        make_certificates(renewed)
    os.replace(renewed / name, tmp_path / "served" / name)


def test_a_look_between_the_two_steps_of_a_renewal_is_no_trouble(
    tmp_path: Path, served: ServedCertificate, caplog: pytest.LogCaptureFixture
) -> None:
    old = served.context
    renew(tmp_path, SERVER_KEY)
    served.refresh()
    assert served.context is old
    renew(tmp_path, SERVER)
    served.refresh()
    assert served.context is not old
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_files_that_still_do_not_fit_at_the_next_look_are_told_once(
    tmp_path: Path, served: ServedCertificate, caplog: pytest.LogCaptureFixture
) -> None:
    old = served.context
    renew(tmp_path, SERVER_KEY)
    for _ in range(4):
        served.refresh()
    assert served.context is old
    (told,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "is not the key of the certificate" in told


class Troubled(ServedCertificate):
    """Fails once in a way that nobody foresaw, and then looks as ever."""

    looks = 0

    def refresh(self) -> None:
        self.looks += 1
        if self.looks == 1:
            raise RuntimeError("can't start new thread")
        super().refresh()


def test_a_look_that_fails_is_logged_and_the_next_renewal_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs = make_certificates(tmp_path / "served")
    troubled = Troubled(Tls(certificate=f"{certs}/{SERVER}", key=f"{certs}/{SERVER_KEY}"))
    old = troubled.context

    async def watch() -> None:
        watching = asyncio.create_task(troubled.watch(every=0.01))
        renew(tmp_path, SERVER_KEY)
        renew(tmp_path, SERVER)
        async with asyncio.timeout(20):
            while troubled.context is old:
                assert not watching.done()
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(watch())
    assert "can't start new thread" in caplog.text
