"""Who is believed by a token (cluster/auth/tokens.py, keys.py and bearer.py), and who is not."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cluster.auth import keyring, keys
from cluster.auth.access import ALL, CATALOG, DELETE, PULL, PUSH, REGISTRY, REPOSITORY, Access, Question
from cluster.auth.bearer import Terms, TokenAuthenticator
from cluster.auth.files import Watched
from cluster.auth.keyring import WatchedRing
from cluster.auth.tokens import Grant, sign_token
from cluster.errors import ConfigError, NameInvalid, Unauthorized, Unavailable
from tests.support import tokens
from tests.support.tokens import ISSUER, SERVICE, bundle, certificate, ec_key, encoded, es256, pem, raw_token, x5c

pytestmark = pytest.mark.anyio

# Tokens are made when this file is read, and looked at some minutes later: time stands still for both.
NOW = int(time.time())
claims, token = functools.partial(tokens.claims, NOW), functools.partial(tokens.token, now=NOW)

ROOT_KEY, KEY, STRANGER = ec_key(), ec_key(), ec_key()
ROOT = certificate(ROOT_KEY, "root", ca=True)
SIGNER = certificate(KEY, "signer")
KID = keys.thumbprint(KEY.public_key())
SECRET = b"s" * 32
PULL_APP, PUSH_APP = Access(REPOSITORY, "team/app", PULL), Access(REPOSITORY, "team/app", PUSH)
Make = Callable[..., TokenAuthenticator]


def jwk(key: Any, **more: str) -> dict[str, str]:
    return {**keys.public_jwk(key.public_key()), **more}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes authenticators that trust ROOT, KEY and SECRET."""
    (tmp_path / "bundle.pem").write_bytes(bundle(ROOT, SIGNER))
    secret = {"kty": "oct", "kid": "shared", "k": encoded(SECRET)}
    (tmp_path / "jwks.json").write_text(
        json.dumps({"keys": [jwk(KEY, kid="by-name"), secret, jwk(RSA_KEY, kid="one-way", alg="RS256")]})
    )

    def authenticator(algorithms: tuple[str, ...] = keys.ALL, **more: Any) -> TokenAuthenticator:
        terms = Terms(ISSUER, SERVICE, "https://auth.example/token", frozenset(algorithms))
        files = [
            Watched(str(tmp_path / "bundle.pem"), keys.read_bundle),
            Watched(str(tmp_path / "jwks.json"), keys.read_jwks),
        ]
        return TokenAuthenticator(terms, files, **{"now": lambda: float(NOW), **more})

    return authenticator


def question(header: str | None, *wanted: Access, **more: Any) -> Question:
    return Question(header, wanted, lambda: "192.0.2.1", lambda: "https://registry.example", **more)


async def ask(authenticator: TokenAuthenticator, text: str, *wanted: Access, **more: Any) -> Grant:
    return await authenticator.authenticate(question(f"Bearer {text}", *wanted, **more))


async def refused(authenticator: TokenAuthenticator, header: str | None, *wanted: Access) -> str:
    """The challenge of a refusal."""
    with pytest.raises(Unauthorized) as caught:
        await authenticator.authenticate(question(header, *wanted))
    return caught.value.headers["WWW-Authenticate"]


def slow_key(bits: int) -> rsa.RSAPrivateKey:
    """A key whose signatures take its owner no time to make, and everybody else long to check."""
    usual = rsa.generate_private_key(public_exponent=65537, key_size=bits).private_numbers()
    order, private = (usual.p - 1) * (usual.q - 1), 2**521 - 1
    while math.gcd(private, order) != 1:
        private -= 2
    public = rsa.RSAPublicNumbers(pow(private, -1, order), usual.public_numbers.n)
    parts = private % (usual.p - 1), private % (usual.q - 1), usual.iqmp
    return rsa.RSAPrivateNumbers(usual.p, usual.q, private, *parts, public).private_key(
        unsafe_skip_rsa_key_validation=True
    )


INTERMEDIATE_KEY = ec_key()
INTERMEDIATE = certificate(INTERMEDIATE_KEY, "intermediate", issuer="root", by=ROOT_KEY, ca=True)
LEAF = certificate(STRANGER, "leaf", issuer="intermediate", by=INTERMEDIATE_KEY)
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_LEAF = certificate(RSA_KEY, "rsa", issuer="root", by=ROOT_KEY)


@pytest.mark.parametrize(
    "text",
    [
        token(KEY, {"kid": KID}),
        token(KEY, {"kid": keys.fingerprint(KEY.public_key())}),
        token(KEY, {"kid": "by-name"}),
        token(KEY, {"jwk": jwk(KEY)}),
        token(KEY, {"jwk": jwk(KEY, kid="anything", use="sig")}),
        token(STRANGER, {"jwk": {**jwk(STRANGER), "x5c": x5c(LEAF, INTERMEDIATE)}}),
        token(KEY, {"x5c": x5c(SIGNER)}),
        token(STRANGER, {"x5c": x5c(LEAF, INTERMEDIATE)}),
        token(RSA_KEY, {"x5c": x5c(RSA_LEAF)}, "RS256"),
        token(RSA_KEY, {"x5c": x5c(RSA_LEAF)}, "PS384"),
        token(SECRET, {"kid": "shared"}, "HS256"),
        token(RSA_KEY, {"kid": "one-way"}, "RS256"),
        token(KEY, {"kid": KID, "typ": ""}, aud=["other.example", SERVICE]),
        token(KEY, {"kid": KID}, nbf=None, iat=None),
        token(KEY, {"kid": KID}, exp=NOW - 30, nbf=NOW - 300),
        token(KEY, {"kid": KID}, nbf=NOW + 30),
        token(
            KEY, {"kid": KID}, access=[{"type": "repository", "class": "", "name": "team/app", "actions": ["*"]}]
        ),
        token(
            KEY,
            {"kid": KID},
            access=[{"type": "repository", "name": "team/app", "actions": [action]} for action in ("pull", "push")],
        ),
    ],
)
async def test_a_right_token_is_believed_by_every_way_to_name_its_key(make: Make, text: str) -> None:
    caller = await ask(make(), text, PULL_APP, PUSH_APP)
    assert caller.name == "anna"
    assert not caller.may(Access(REPOSITORY, "team/app2", PULL))
    assert not caller.may(Access(REGISTRY, "team/app", PULL))


def with_public_key_as_secret() -> str:
    """The oldest trick: HMAC with what everybody knows."""
    return raw_token(
        {"alg": "HS256", "kid": KID}, claims(), lambda text: hmac.digest(pem(KEY), text, hashlib.sha256)
    )


def signed(header: Any = None, **changed: Any) -> str:
    """A token of KEY, whatever is in it."""
    return raw_token({"alg": "ES256", "kid": KID, **(header or {})}, claims(**changed), es256(KEY))


def signed_bytes(payload: bytes) -> str:
    return raw_token({"alg": "ES256", "kid": KID}, payload, es256(KEY))


_APP = {"type": "repository", "name": "team/app", "actions": ["pull"]}
_NOT_CA = certificate(INTERMEDIATE_KEY, "intermediate", issuer="root", by=ROOT_KEY)
_EXPIRED = certificate(STRANGER, "leaf", issuer="root", by=ROOT_KEY, days=(-30, -1))
_FORGED_ROOT = certificate(STRANGER, "root", ca=True)
HOSTILE = {
    "nothing signed": raw_token({"alg": "none", "kid": KID}, claims()),
    "nothing signed, in another case": raw_token({"alg": "NoNe", "kid": KID}, claims()),
    "no algorithm": raw_token({"kid": KID}, claims(), es256(KEY)),
    "an algorithm that is a list": raw_token({"alg": ["ES256"], "kid": KID}, claims(), es256(KEY)),
    "hmac with the public key": with_public_key_as_secret(),
    "hmac with the secret under another key's name": token(SECRET, {"kid": KID}, "HS256"),
    "hmac with a longer hash than the secret": raw_token(
        {"alg": "HS512", "kid": "shared"}, claims(), lambda text: hmac.digest(SECRET, text, hashlib.sha512)
    ),
    "another algorithm of the kind than the key's": token(RSA_KEY, {"kid": "one-way"}, "RS512"),
    "another algorithm than the key's": token(ec.generate_private_key(ec.SECP384R1()), {"kid": KID}, "ES384"),
    "no key": raw_token({"alg": "ES256"}, claims(), es256(KEY)),
    "an unknown key": token(STRANGER, {"kid": "unknown"}),
    "a key that is a number": signed({"kid": 7}),
    "somebody else's signature": token(STRANGER, {"kid": KID}),
    "no signature": raw_token({"alg": "ES256", "kid": KID}, claims()),
    "claims that were changed": ".".join(
        [signed().split(".")[0], encoded(json.dumps(claims(sub="root")).encode()), signed().split(".")[2]]
    ),
    "an extension": signed({"crit": ["exp"]}),
    "a detached payload": signed({"crit": ["b64"], "b64": False}),
    "a header key twice": raw_token(b'{"alg":"none","alg":"ES256","kid":"by-name"}', claims(), es256(KEY)),
    "a claim twice": signed_bytes(json.dumps(claims()).encode()[:-1] + b',"sub":"root"}'),
    "a key that it brings itself": token(STRANGER, {"jwk": jwk(STRANGER)}),
    "a key that it brings under a trusted name": token(STRANGER, {"jwk": jwk(STRANGER, kid=KID)}),
    "a key set for a key": signed({"jwk": [jwk(KEY)]}),
    "a private key in it": token(
        STRANGER, {"jwk": jwt.algorithms.ECAlgorithm.to_jwk(STRANGER, as_dict=True)}
    ),
    "a key in it with a chain of strangers": token(STRANGER, {"jwk": {**jwk(STRANGER), "x5c": x5c(_FORGED_ROOT)}}),
    "a key in it with another key's chain": token(KEY, {"jwk": {**jwk(STRANGER), "x5c": x5c(SIGNER)}}),
    "a key in it with a chain that is text": token(STRANGER, {"jwk": {**jwk(STRANGER), "x5c": x5c(SIGNER)[0]}}),
    "a secret in it": token(SECRET, {"jwk": {"kty": "oct", "k": encoded(SECRET)}}, "HS256"),
    "a chain of strangers": token(STRANGER, {"x5c": x5c(_FORGED_ROOT)}),
    "a chain that has a gap": token(STRANGER, {"x5c": x5c(LEAF)}),
    "a chain through somebody who is no authority": token(STRANGER, {"x5c": x5c(LEAF, _NOT_CA)}),
    "a chain that has expired": token(STRANGER, {"x5c": x5c(_EXPIRED)}),
    "a chain of another key": token(KEY, {"x5c": x5c(LEAF, INTERMEDIATE)}),
    "a chain that is too long": token(STRANGER, {"x5c": x5c(LEAF, INTERMEDIATE) * 6}),
    "an empty chain": signed({"x5c": []}),
    "a chain that is text": signed({"x5c": x5c(SIGNER)[0]}),
    "a chain of numbers": signed({"x5c": [1, 2]}),
    "a chain that is not base64": signed({"x5c": ["!"]}),
    "a chain that is no certificate": signed({"x5c": [encoded(b"not DER") + "=="]}),
    "another issuer": signed(iss="evil.example"),
    "no issuer": signed(iss=None),
    "another service": signed(aud="other.example"),
    "other services": signed(aud=["other.example"]),
    "no service": signed(aud=None),
    "a service in an object": signed(aud={SERVICE: True}),
    "an expired one": signed(exp=NOW - 61),
    "no expiry": signed(exp=None),
    "an expiry that is null": signed_bytes(json.dumps({**claims(), "exp": None}).encode()),
    "an expiry that is a float": signed(exp=NOW + 300.0),
    "an expiry that is text": signed(exp=str(NOW + 300)),
    "an expiry that is true": signed(exp=True),
    "an expiry without end": signed_bytes(json.dumps(claims(exp=float("inf"))).encode()),
    "an expiry of many digits": signed_bytes(b'{"exp":%s}' % (b"9" * 5000)),
    "one that is not valid yet": signed(nbf=NOW + 3600),
    "a beginning that is a float": signed(nbf=NOW - 10.5),
    "a time of issue that is text": signed(iat="now"),
    "a name that is a number": signed(sub=7),
    "a name with a line end": signed(sub="anna\nroot"),
    "half of a surrogate pair": signed_bytes(json.dumps(claims(sub="\ud800")).encode()),
    "access that is text": signed(access="repository:team/app:pull"),
    "access that is an object": signed(access=_APP),
    "access of texts": signed(access=["repository:team/app:pull"]),
    "access of nothing": signed(access=[None]),
    "actions that are text": signed(access=[{**_APP, "actions": "pull"}]),
    "actions that are numbers": signed(access=[{**_APP, "actions": [1]}]),
    "a name that is a list": signed(access=[{**_APP, "name": ["team/app"]}]),
    "a type that is a number": signed(access=[{**_APP, "type": 1}]),
    "claims that are a list": signed_bytes(b"[]"),
    "claims that are no JSON": signed_bytes(b"{"),
    "claims that are not UTF-8": signed_bytes(b'{"iss":"\xff"}'),
    "claims that are deep": signed_bytes(b'{"access":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a header that is a list": raw_token([], claims(), es256(KEY)),
    "a header that is deep": raw_token(b"[" * 5000, claims(), es256(KEY)),
    "too long": signed(padding="x" * 20_000),
    "a mebibyte": "a" * 2**20,
    "two parts": signed().rpartition(".")[0],
    "four parts": f"{signed()}.{encoded(b'more')}",
    "five parts": "a.b.c.d.e",
    "no parts": "abc",
    "dots": "..",
    "junk in base64": signed() + "!",
    "not ASCII": "\u00e9.\u00e9.\u00e9",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_token_is_refused_as_invalid(make: Make, text: str) -> None:
    challenge = await refused(make(), f"Bearer {text}", PULL_APP)
    scope = 'scope="repository:team/app:pull"'
    right = f'Bearer realm="https://auth.example/token",service="{SERVICE}",{scope}'
    assert challenge == (right if not text.isascii() else f'{right},error="invalid_token"')


@pytest.mark.parametrize(
    "access",
    [
        [],
        None,
        [{**_APP, "actions": []}],
        [{**_APP, "actions": None}],
        [{**_APP, "actions": ["push"]}],
        [{**_APP, "name": "team/*"}],
        [{**_APP, "name": "team/app/"}],
        [{**_APP, "type": "Repository"}],
        [{**_APP, "type": "registry"}],
        [{**_APP, "type": "repository(plugin)"}],
        [{"name": "team/app", "actions": ["pull"]}],
        [{**_APP, "name": None}],
    ],
)
async def test_a_token_without_the_scope_is_insufficient(make: Make, access: Any) -> None:
    challenge = await refused(make(), f"Bearer {signed(access=access)}", PULL_APP)
    assert challenge.endswith('scope="repository:team/app:pull",error="insufficient_scope"')


async def test_a_claim_that_is_null_is_not_there_and_an_entry_about_nothing_says_nothing(make: Make) -> None:
    """As in Distribution, which takes the tokens of servers that write all members of their own types."""
    nulls = {**claims(), "sub": None, "nbf": None, "iat": None, "access": [{"type": "repository"}, _APP]}
    assert (await ask(make(), signed_bytes(json.dumps(nulls).encode()), PULL_APP)).name == ""
    with pytest.raises(Unauthorized):
        await ask(make(), signed_bytes(json.dumps(nulls).encode()), PUSH_APP)


async def test_v2_itself_takes_any_genuine_token(make: Make) -> None:
    assert (await ask(make(), signed(access=None))).name == "anna"


async def test_every_action_is_asked_for_at_once_and_each_repository_apart(make: Make) -> None:
    wanted = [PULL_APP, PUSH_APP, Access(REPOSITORY, "other", PULL)]
    challenge = await refused(make(), None, *wanted)
    assert challenge.endswith(',scope="repository:team/app:pull,push repository:other:pull"')
    assert await refused(make(), None) == f'Bearer realm="https://auth.example/token",service="{SERVICE}"'
    catalog = Access(REGISTRY, CATALOG, ALL)
    assert (await refused(make(), None, catalog)).endswith(',scope="registry:catalog:*"')
    listing = signed(access=[{"type": "registry", "name": "catalog", "actions": ["*"]}])
    assert (await ask(make(), listing, catalog)).may(catalog)


async def test_the_source_of_a_mount_is_part_of_the_scope(make: Make) -> None:
    mounts = Access(REPOSITORY, "other", PULL)
    with pytest.raises(Unauthorized) as caught:
        await ask(make(), signed(), PULL_APP, PUSH_APP, mounts=mounts)
    challenge = caught.value.headers["WWW-Authenticate"]
    assert challenge.endswith(
        'scope="repository:team/app:pull,push repository:other:pull",error="insufficient_scope"'
    )


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Bearer  {signed()}", f"Bearer {signed()} ", f"Basic {signed()}", signed()],
)
async def test_what_is_no_bearer_token_gets_the_plain_challenge(make: Make, header: str | None) -> None:
    assert "error" not in await refused(make(), header, PULL_APP)


async def test_the_scheme_has_no_case(make: Make) -> None:
    assert await make().authenticate(question(f"bEARER {signed()}", PULL_APP))


@pytest.mark.parametrize("name", ['a",error="x', "a\r\nSet-Cookie: a=b", "A", "\u00e9", "a" * 300, "a b", ""])
async def test_a_name_that_is_none_never_gets_into_a_header(make: Make, name: str) -> None:
    access = Access(REPOSITORY, name, PULL)
    assert await refused(make(), None, access) == f'Bearer realm="https://auth.example/token",service="{SERVICE}"'
    with pytest.raises(NameInvalid):
        await ask(make(), signed(), access)


@pytest.mark.parametrize(
    "others",
    [
        [certificate(STRANGER, "x", ca=True) for _ in range(9)],
        [certificate(slow_key(2048), "x", ca=True)],
        [certificate(ec.generate_private_key(ec.SECP224R1()), "x", ca=True)],
    ],
    ids=["a subject that is there twice", "a key that is slow to check", "a key of an unknown kind"],
)
def test_a_chain_that_is_costly_to_look_at_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, others: list[x509.Certificate]
) -> None:
    """Anybody may send one, and the event loop waits for each: nine of one subject and such a key took a second."""
    trust = keys.read_bundle(bundle(ROOT))
    monkeypatch.setattr("cryptography.x509.verification.PolicyBuilder", lambda: pytest.fail("it was looked at"))
    with pytest.raises(keys.BadKey):
        trust.by_chain(x5c(certificate(STRANGER, "leaf", issuer="x"), *others))


def test_a_key_that_is_slow_to_check_is_no_key_of_ours() -> None:
    with pytest.raises(keys.BadKey, match=r"public exponent of 20[0-9]{2} bits, wanted at most 31"):
        keys.VerifyingKey.of(slow_key(2048).public_key())


async def test_only_the_algorithms_of_the_configuration_count(make: Make) -> None:
    assert await ask(make(("ES256",)), signed())
    assert "invalid_token" in await refused(make(("RS256", "HS256")), f"Bearer {signed()}")


async def test_a_token_that_is_known_is_checked_against_the_clock_again(make: Make) -> None:
    now = [float(NOW)]
    authenticator = make(now=lambda: now[0])
    text = signed(exp=NOW + 300)
    assert await ask(authenticator, text, PULL_APP)
    now[0] = NOW + 359
    assert await ask(authenticator, text, PULL_APP)
    now[0] = NOW + 360
    assert "invalid_token" in await refused(authenticator, f"Bearer {text}", PULL_APP)


async def test_a_token_lives_as_long_as_the_upload_that_it_began_but_not_a_day_longer(make: Make) -> None:
    now = [float(NOW)]
    authenticator = make(now=lambda: now[0])
    text = signed(exp=NOW + 300)
    now[0] = NOW + 20 * 3600
    assert await ask(authenticator, text, PUSH_APP, began=NOW + 290.0)
    for_ever = signed_bytes(json.dumps(claims(exp=10**400)).encode())
    assert await ask(authenticator, for_ever, PUSH_APP, began=NOW + 290.0)
    for began in (None, NOW + 361.0, now[0], now[0] + 3600):
        with pytest.raises(Unauthorized):
            await ask(authenticator, text, PUSH_APP, began=began)
    with pytest.raises(Unauthorized):
        await ask(authenticator, text, Access(REPOSITORY, "other", PUSH), began=NOW + 290.0)
    now[0] = NOW + 290 + 24 * 3600 + 1
    with pytest.raises(Unauthorized):
        await ask(authenticator, text, PUSH_APP, began=NOW + 290.0)


async def test_a_key_that_is_taken_out_of_its_file_is_not_believed_any_more(make: Make, tmp_path: Path) -> None:
    authenticator = make()
    text = token(SECRET, {"kid": "shared"}, "HS256")
    assert await ask(authenticator, text, PULL_APP)
    settle(tmp_path / "jwks.json", json.dumps({"keys": [jwk(STRANGER, kid="new")]}))
    await authenticator.refresh()
    assert "invalid_token" in await refused(authenticator, f"Bearer {text}", PULL_APP)
    assert await ask(authenticator, token(STRANGER, {"kid": "new"}), PULL_APP)
    settle(tmp_path / "jwks.json", "{")
    await authenticator.refresh()
    assert await ask(authenticator, token(STRANGER, {"kid": "new"}), PULL_APP)


def settle(path: Path, content: str) -> None:
    """Write a file, and make it look as if that was some time ago."""
    path.write_text(content)
    os.utime(path, (time.time() - 60, time.time() - 60))


async def test_a_key_that_another_node_has_just_published_is_found_by_its_first_token(
    make: Make, tmp_path: Path
) -> None:
    directory = str(tmp_path / "keys")
    keyring.provide(directory, "ES256")
    authenticator = make(ring=WatchedRing(directory))
    added, _ = keyring.rotate(directory, "ES256", 0, time.time())
    assert await ask(authenticator, sign_token(claims(), added), PULL_APP)


async def test_unknown_keys_make_a_node_look_once_a_second_at_most(make: Make, tmp_path: Path) -> None:
    directory = str(tmp_path / "keys")
    keyring.provide(directory, "ES256")
    looks = 0

    class Counting(WatchedRing):
        async def refresh(self) -> bool:
            nonlocal looks
            looks += 1
            return await super().refresh()

    authenticator = make(ring=Counting(directory))
    began = time.monotonic()
    for _ in range(5):
        requests = [f"Bearer {token(STRANGER, {'kid': str(number)})}" for number in range(50)]
        await asyncio.gather(*(refused(authenticator, request, PULL_APP) for request in requests))
    assert 1 <= looks <= 1 + (time.monotonic() - began)


async def test_a_key_directory_that_hangs_costs_its_tokens_alone(make: Make, tmp_path: Path) -> None:
    directory = str(tmp_path / "keys")
    keyring.provide(directory, "ES256")
    there = keyring.read(directory).keys[0]

    class Hanging(WatchedRing):
        async def refresh(self) -> bool:
            await asyncio.sleep(3600)
            return False

    ring = Hanging(directory, patience=0.1)
    authenticator = make(ring=ring)
    with pytest.raises(Unavailable):
        await ask(authenticator, token(STRANGER, {"kid": "unknown"}), PULL_APP)
    assert await ask(authenticator, sign_token(claims(), there), PULL_APP)


async def test_keys_that_are_found_after_a_request_gave_up_count_at_once(make: Make, tmp_path: Path) -> None:
    """A retired key above all: whoever has it would be let in until the next change."""
    directory = str(tmp_path / "keys")
    keyring.provide(directory, "ES256")
    retired = keyring.read(directory).keys[0]
    found = asyncio.Event()

    class Slow(WatchedRing):
        async def refresh(self) -> bool:
            await found.wait()
            return await super().refresh()

    ring = Slow(directory, patience=0.1)
    authenticator = make(ring=ring)
    keyring.rotate(directory, "ES256", 0, time.time())
    keyring.retire(directory, retired.kid, 0, time.time(), force=True)
    with pytest.raises(Unavailable):
        await ask(authenticator, token(STRANGER, {"kid": "unknown"}), PULL_APP)
    found.set()
    assert ring._look is not None
    await ring._look
    await authenticator.refresh()
    assert "invalid_token" in await refused(authenticator, f"Bearer {sign_token(claims(), retired)}", PULL_APP)


async def test_verified_tokens_are_forgotten_when_there_are_too_many(make: Make) -> None:
    authenticator = make()
    padding = "x" * 10_000
    for number in range(700):
        await ask(authenticator, signed(padding=padding, sub=str(number)))
    assert authenticator._size <= 8 * 1024 * 1024
    assert authenticator._size == sum(length for _, length in authenticator._grants.values())


def test_a_reason_is_told_but_nothing_of_the_token(make: Make) -> None:
    authenticator = make()
    with pytest.raises(Unauthorized) as caught:
        asyncio.run(ask(authenticator, signed(exp=NOW - 100), PULL_APP))
    assert caught.value.message == "authentication required: the token has expired"
    assert caught.value.detail == [{"Type": "repository", "Class": "", "Name": "team/app", "Action": "pull"}]


@pytest.mark.parametrize(
    ("key", "able"),
    [
        (ec_key(), {"ES256"}),
        (ec.generate_private_key(ec.SECP384R1()), {"ES384"}),
        (ed25519.Ed25519PrivateKey.generate(), {"EdDSA"}),
        (RSA_KEY, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ],
)
def test_a_key_verifies_what_is_of_its_kind(key: Any, able: set[str]) -> None:
    assert keys.VerifyingKey.of(key.public_key()).algorithms == able


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not a key set"),
        ("[]", "not a key set"),
        ('{"keys": []}', "not a key set"),
        ('{"keys": [7]}', "key 1: wanted an object with a kid"),
        (json.dumps({"keys": [jwk(KEY)]}), "key 1: wanted an object with a kid"),
        (json.dumps({"keys": [jwk(KEY, kid="a", use="enc")]}), "key 1: its use is not sig"),
        (json.dumps({"keys": [jwk(KEY, kid="a", alg="HS256")]}), "key 1: its alg does not go with its kind"),
        (json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": encoded(b"short")}]}), "a shared secret of 5 bytes"),
        (
            json.dumps(
                {
                    "keys": [
                        jwk(KEY, kid="a"),
                        {**jwt.algorithms.ECAlgorithm.to_jwk(KEY, as_dict=True), "use": "enc"},
                    ]
                }
            ),
            "key 2: this is a private key",
        ),
        (json.dumps({"keys": [{"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"}]}), "cannot be read"),
    ],
)
def test_a_key_set_that_cannot_be_used_says_why(content: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.read_jwks(content.encode())
    assert problem in str(caught.value)
    assert encoded(b"short") not in str(caught.value)


WEAK_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (jwk(RSA_KEY, kid="b", use="enc", alg="RSA-OAEP"), "its use is not sig"),
        (jwk(RSA_KEY, kid="b", alg="RSA-OAEP"), "its alg does not go with its kind"),
        ({**jwk(RSA_KEY, kid="b"), "alg": ["RS256"]}, "its alg does not go with its kind"),
        (jwk(WEAK_KEY, kid="b"), "an RSA key of 1024 bits"),
        ({"kty": "AKP", "alg": "ML-DSA-44", "kid": "b", "pub": "AAAA"}, "cannot be read"),
        ({"kty": "OKP", "crv": "X25519", "kid": "b", "x": encoded(b"x" * 32)}, "cannot be read"),
        ({"kty": "oct", "kid": "b", "k": encoded(b"short")}, "a shared secret of 5 bytes"),
        (jwk(STRANGER, kid="a"), "its kid is another key's too"),
        (jwk(STRANGER), "wanted an object with a kid"),
        (7, "wanted an object with a kid"),
    ],
)
def test_a_key_that_is_not_for_us_is_left_out_of_a_set(
    other: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 7517 section 5."""
    trust = keys.read_jwks(json.dumps({"keys": [jwk(KEY, kid="a"), other]}).encode())
    assert set(trust.keys) == {"a", KID}
    assert trust.keys["a"].key == KEY.public_key()
    (said,) = caplog.messages
    assert said.startswith(f"jwks: left out: key 2: {problem}")


def test_a_weak_certificate_is_left_out_of_a_bundle(caplog: pytest.LogCaptureFixture) -> None:
    weak = certificate(WEAK_KEY, "weak", ca=True)
    trust = keys.read_bundle(bundle(weak, SIGNER))
    assert set(trust.keys) == {KID, keys.fingerprint(KEY.public_key())}
    with pytest.raises(keys.BadKey):
        trust.by_chain(x5c(certificate(STRANGER, "leaf", issuer="weak", by=WEAK_KEY)))
    (said,) = caplog.messages
    assert said.startswith("rootcertbundle: left out: certificate 1: an RSA key of 1024 bits")


def test_a_bundle_that_cannot_be_used_says_why() -> None:
    weak = certificate(WEAK_KEY)
    for content, problem in [(b"", "not a bundle"), (pem(KEY), "not a bundle"), (bundle(weak), "1024 bits")]:
        with pytest.raises(ConfigError) as caught:
            keys.read_bundle(content)
        assert problem in str(caught.value)


def test_the_ids_of_keys_are_those_of_the_standards() -> None:
    # RFC 7638 section 3.1 and RFC 8037 appendix A.3.
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
        "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdA"
        "ZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-"
        "kEgU8awapJzKnqDKgw"
    )
    rsa_jwk = jwt.PyJWK.from_dict({"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256"})
    assert keys.thumbprint(rsa_jwk.key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    okp = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert keys.thumbprint(jwt.PyJWK.from_dict(okp).key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    libtrust = keys.fingerprint(KEY.public_key()).split(":")
    assert [len(group) for group in libtrust] == [4] * 12


def test_delete_is_an_action_of_its_own() -> None:
    grant = Grant("a", 0, 0, {(REPOSITORY, "a"): {PULL, PUSH}})
    assert not grant.may(Access(REPOSITORY, "a", DELETE))
