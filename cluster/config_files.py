"""The files that a configuration names: which setting names which, and which of them cannot be read here.

Owns the list. What is in a file is the business of whoever reads it; readers know paths, so what they say of one is
given the name of the setting here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.settings import Config, RedisTls, Tls, Token, TokenServer


@dataclass(frozen=True)
class _File:
    setting: str
    path: str
    is_directory: bool = False
    is_made: bool = False  # by a node that does not find it


def unreadable(config: Config) -> list[str]:
    """A line for each file that this user cannot read on this machine, which need not be the one of a node."""
    troubles = ((file, _trouble(file)) for file in _files(config))
    return [f"{file.setting}: {file.path}: cannot be read here: {reason}" for file, reason in troubles if reason]


@contextmanager
def naming(config: Config) -> Iterator[None]:
    """What is wrong with a file is said with the setting that names it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_named(problem, config) for problem in error.problems]) from None


def _named(problem: str, config: Config) -> str:
    starts = [file for file in _files(config) if problem.startswith(tuple(f"{file.path}{end}" for end in ":,/"))]
    if not starts:
        return problem
    return f"{max(starts, key=lambda file: len(file.path)).setting}: {problem}"


def _trouble(file: _File) -> str:
    try:
        os.close(os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # a pipe would be waited for
    except FileNotFoundError as error:
        return "" if file.is_made else str(error.strerror)
    except OSError as error:
        return str(error.strerror)
    if os.path.isdir(file.path) == file.is_directory:
        return ""
    return os.strerror(errno.ENOTDIR if file.is_directory else errno.EISDIR)


def _files(config: Config) -> Iterator[_File]:
    yield from (file for file in _all(config) if file.path)


def _all(config: Config) -> Iterator[_File]:
    tls, token = config.http.tls or Tls(), config.auth.token or Token()
    redis = config.redis.tls if config.redis else RedisTls()
    ours, server = config.cluster, config.cluster.tokenserver or TokenServer()
    if config.storage.driver == "filesystem":
        root = config.storage.filesystem.rootdirectory
        yield _File("storage.filesystem.rootdirectory", root, is_directory=True)
    yield _File("http.tls.certificate", tls.certificate)
    yield _File("http.tls.key", tls.key)
    yield from (_File(f"http.tls.clientcas[{number}]", path) for number, path in enumerate(tls.clientcas))
    if config.auth.htpasswd is not None:
        yield _File("auth.htpasswd.path", config.auth.htpasswd.path, is_made=True)
    yield _File("auth.token.rootcertbundle", token.rootcertbundle)
    yield _File("auth.token.jwks", token.jwks)
    yield _File("redis.tls.certificate", redis.certificate)
    yield _File("redis.tls.key", redis.key)
    yield from (_File(f"redis.tls.rootcas[{number}]", path) for number, path in enumerate(redis.rootcas))
    yield _File("cluster.secretfile", ours.secretfile)
    yield _File("cluster.policy", ours.policy)
    yield _File("cluster.tokenserver.htpasswd", server.htpasswd, is_made=True)
    yield _File("cluster.tokenserver.keys", server.keys, is_directory=True, is_made=True)
    yield _File("cluster.tls.ca", ours.tls.ca)
    yield _File("cluster.tls.certificate", ours.tls.certificate)
