"""The scope grammar of the token specification (cluster/auth/grants.py)."""

from __future__ import annotations

import pytest

from cluster.auth.access import PULL, PUSH, REPOSITORY, Access
from cluster.auth.grants import MalformedScope, Scope, parse_scopes, scopes_of


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("repository:team/app:pull", Scope("repository", "team/app", ("pull",))),
        ("repository:team/app:pull,push", Scope("repository", "team/app", ("pull", "push"))),
        ("repository:team/app:pull,pull", Scope("repository", "team/app", ("pull",))),
        ("repository:team/app:*", Scope("repository", "team/app", ("*",))),
        ("repository(plugin):team/app:pull", Scope("repository", "team/app", ("pull",))),
        (
            "repository:host.example:5000/team/app:pull",
            Scope("repository", "host.example:5000/team/app", ("pull",)),
        ),
        ("registry:catalog:*", Scope("registry", "catalog", ("*",))),
        ("repository:a:", Scope("repository", "a", ())),
    ],
)
def test_a_scope_is_split_at_its_first_and_its_last_colon(text: str, scope: Scope) -> None:
    assert Scope.parse(text) == scope


@pytest.mark.parametrize(
    "text",
    ["", "repository", "repository:a", "repository::pull", ":a:pull", "repository():a:pull", "repository(a:b:pull",
     "repository:a:PULL", "repository:a:pull,,push", "repository:a:pull;push", "REPOSITORY:a:pull",
     "repository:" + "a" * 1024 + ":pull"],
)  # fmt: skip
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(MalformedScope, match="is not a scope"):
        Scope.parse(text)


def test_scopes_are_repeated_or_separated_by_spaces_and_put_together_by_resource() -> None:
    texts = ["repository:a:pull repository:b:pull", "repository:a:push", ""]
    assert list(map(str, parse_scopes(texts))) == ["repository:a:pull,push", "repository:b:pull"]


def test_a_request_has_a_bounded_number_of_scopes() -> None:
    texts = [f"repository:a{number}:pull" for number in range(33)]
    assert len(parse_scopes(texts[:32])) == 32
    with pytest.raises(MalformedScope, match="33 scopes: at most 32"):
        parse_scopes(texts)


def test_a_challenge_asks_for_all_actions_of_a_repository_in_one_scope() -> None:
    wanted = [Access(REPOSITORY, "a", PULL), Access(REPOSITORY, "a", PUSH), Access(REPOSITORY, "b", PULL)]
    assert list(map(str, scopes_of(wanted))) == ["repository:a:pull,push", "repository:b:pull"]
