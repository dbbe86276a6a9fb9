"""`registry-cluster tokenkey` and `policy`: signing keys and rules at the command line.

Owns what is printed, and for how long a key that no longer signs is kept. The keys are in auth/keyring.py, the
rules in auth/policy.py; nodes see by themselves when either changes.
"""

from __future__ import annotations

import json
import time

from cluster.auth import keyring, policy
from cluster.auth.files import Watched
from cluster.auth.passwords import ANONYMOUS
from cluster.auth.policy import ACTIONS, EVERY_ACCOUNT, EVERYBODY, Reason, Rules
from cluster.auth.tokens import LEEWAY, UPLOAD_LIMIT
from cluster.errors import ConfigError, NameInvalid
from cluster.oci.reference import RepositoryName
from cluster.settings import Config, TokenServer


def list_keys(config: Config) -> list[str]:
    """A line for each signing key. ConfigError."""
    server = _server(config)
    return keyring.describe(keyring.read(server.keys), _kept(server), time.time())


def rotate_keys(config: Config) -> list[str]:
    """Publish a new key; what was done. ConfigError."""
    server = _server(config)
    keyring.provide(server.keys, server.algorithm)
    added, over = keyring.rotate(server.keys, server.algorithm, _kept(server), time.time())
    removed = [f"{key.kid}: removed, nothing that it signed is alive" for key in over]
    return [f"{added.kid}: added, verifies now and signs in {keyring.ACTIVATION} s", *removed]


def retire_key(config: Config, kid: str, *, force: bool) -> list[str]:
    """Remove a key; what was done. ConfigError."""
    server = _server(config)
    keyring.retire(server.keys, kid, _kept(server), time.time(), force=force)
    return [f"{kid}: removed"]


def print_key_set(config: Config) -> list[str]:
    """The public keys as a key set (RFC 7517), for other registries that are to believe our tokens. ConfigError."""
    return [json.dumps(keyring.key_set(keyring.read(_server(config).keys)), indent=2)]


def read_policy(path: str) -> Rules:
    """ConfigError."""
    return Watched(path, policy.parse).content


def policy_of(config: Config) -> Rules:
    """The rules that nodes with this configuration go by. ConfigError."""
    if config.auth.token is not None and config.cluster.tokenserver is None:
        raise ConfigError(["auth.token: the tokens of another token server say who may what; nothing here does"])
    if config.auth.token is None and config.auth.htpasswd is None:
        return EVERYBODY
    return read_policy(config.cluster.policy) if config.cluster.policy else EVERY_ACCOUNT


def warnings(config: Config) -> list[str]:
    """What the rules cannot bring about; nothing where they cannot be read, which is told elsewhere."""
    try:
        is_open = config.auth.htpasswd is not None and read_policy(config.cluster.policy).is_open
    except ConfigError:
        return []
    # docker does not go on without a login where /v2/ asks for one; where it asked for none, `docker login` would
    # take any password for the right one.
    why = "cluster.policy: docker cannot use what it opens to anonymous: that takes auth.token"
    return [why] if is_open else []


def explain(rules: Rules, user: str, repository: str) -> list[str]:
    """Who may what with a repository, and by which rules; the user `anonymous` is whoever has no account.

    ConfigError for what is no name of a repository: no rule is ever asked about it.
    """
    try:
        RepositoryName.parse(repository)
    except NameInvalid as error:
        raise ConfigError([f"no repository can have this name: {error.detail}"]) from None
    reasons = rules.explain("" if user == ANONYMOUS else user, repository)
    allowed = [action for action in ACTIONS if reasons[action]]
    lines = [f"{user} may {', '.join(allowed) or 'do nothing'} in {repository}"]
    for action in ACTIONS:
        lines += [f"  {action}: {text}" for text in map(_because, reasons[action])] or [f"  {action}: by no rule"]
    return lines


def _because(reason: Reason) -> str:
    through = f", as one of the group {reason.through}" if reason.through else ", by name"
    if reason.rule.number == 0 and reason.through == ANONYMOUS:
        return "there is no auth in the configuration: everybody may do everything"
    if reason.rule.number == 0:
        return f"there is no policy: every account may do everything{through}"
    return f"rule {reason.rule.number} (line {reason.rule.line}), {reason.pattern}{through}"


def _server(config: Config) -> TokenServer:
    if config.cluster.tokenserver is None:
        raise ConfigError(["the configuration has no cluster.tokenserver, and so no signing keys"])
    return config.cluster.tokenserver


def _kept(server: TokenServer) -> float:
    """Seconds for which something that a key signed may be alive: a refresh token, or a token during an upload."""
    return max(server.refresh, server.lifetime + UPLOAD_LIMIT) + LEEWAY
