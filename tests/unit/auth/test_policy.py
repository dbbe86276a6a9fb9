"""Who may do what by the policy (cluster/auth/policy.py), and what is wrong with a file."""

from __future__ import annotations

import time

import pytest

from cluster import authority, config
from cluster.auth import policy
from cluster.auth.access import ALL, CATALOG, DELETE, PULL, PUSH, REGISTRY, REPOSITORY, Access
from cluster.auth.policy import EVERY_ACCOUNT, Pattern
from cluster.errors import ConfigError

EXAMPLE = b"""\
groups:
  developers: [anna, ben]
  on: [007]
rules:
  - groups: [developers]
    repositories: [team/**, shared]
    actions: [pull, push]
  - users: [anna]
    repositories: [team/app]
    actions: [delete]
  - groups: [authenticated]
    catalog: true
  - groups: [anonymous]
    repositories: ["public/*"]
    actions: [pull]
  - groups: [on]
    repositories: ["**"]
    actions: ["*"]
"""
RULES = policy.parse(EXAMPLE)
NO_RULES = "line 1: no rules: nobody may do anything"
NAME = "wanted 1 to 255 bytes without a colon, a '#' at the start, or space around it"
NOTHING = "line 2: about nothing: wanted repositories with actions, catalog, or both"


@pytest.mark.parametrize(
    ("user", "repository", "actions"),
    [
        ("anna", "team/app", {PULL, PUSH, DELETE}),
        ("anna", "team/app/deep/er", {PULL, PUSH}),
        ("anna", "team", set()),
        ("anna", "teams/app", set()),
        ("ben", "team/app", {PULL, PUSH}),
        ("ben", "shared", {PULL, PUSH}),
        ("ben", "public/x", {PULL}),
        ("ben", "public/x/y", set()),
        ("carol", "team/app", set()),
        ("carol", "public/x", {PULL}),
        ("", "public/x", {PULL}),
        ("", "team/app", set()),
        ("developers", "team/app", set()),
        ("anonymous", "team/app", set()),
        ("007", "any/thing", {PULL, PUSH, DELETE}),
        ("007", "a" * 300, set()),
    ],
)
def test_rules_only_add(user: str, repository: str, actions: set[str]) -> None:
    assert RULES.actions(user, repository) == actions
    for action in (PULL, PUSH, DELETE):
        assert RULES.permits(user, Access(REPOSITORY, repository, action)) == (action in actions)


def test_the_catalog_is_for_whom_a_rule_grants_it() -> None:
    listing = Access(REGISTRY, CATALOG, ALL)
    assert RULES.permits("carol", listing)
    assert not RULES.permits("", listing)
    assert not RULES.permits("carol", Access(REGISTRY, CATALOG, PULL))
    assert not RULES.permits("carol", Access(REGISTRY, "other", ALL))
    assert not RULES.permits("007", Access("repository(plugin)", "team/app", PULL))


def test_without_a_file_every_account_may_do_everything_and_nobody_else_anything() -> None:
    assert EVERY_ACCOUNT.actions("anyone", "a/b") == {PULL, PUSH, DELETE}
    assert EVERY_ACCOUNT.lists("anyone")
    assert EVERY_ACCOUNT.actions("", "a/b") == set()
    assert not EVERY_ACCOUNT.is_open
    assert RULES.is_open


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "a/bb", "xa/b"]),
        ("a/*", ["a/b", "a/b-c.d"], ["a", "a/b/c", "b/a"]),
        ("*", ["a", "abc"], ["a/b"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab/c"]),
        ("**/a", ["b/a", "c/b/a"], ["a", "b/ab"]),
        ("a/**/b", ["a/x/b", "a/x/y/b", "a/b/b"], ["a/b", "a/x/bb"]),
        ("**/**", ["a/b", "a/b/c"], ["a"]),
        ("a-*", ["a-b"], ["a", "ab"]),
        ("*-a-*", ["x-a-y", "x-a-a-y"], ["x-ay"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a_*_b", ["a__b", "a_x_b"], ["a_b"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [name for name in matching if not parsed.matches(name)] == []
    assert [name for name in others if parsed.matches(name)] == []


@pytest.mark.parametrize(
    "pattern",
    ["", "/", "a/", "/a", "a//b", "A", "a**", "**a", "a/***", "a b", "-a", "a-", "*-", "a..b", "a:b", "a?", "[a]",
     "a/" * 130 + "a", "host:5000/a", "*/_x", "../a"],
)  # fmt: skip
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"no repository can match|stands alone"):
        Pattern.parse(pattern)


def test_no_pattern_takes_long() -> None:
    began = time.process_time()
    for pattern, name in [
        ("*a" * 60 + "b", "a" * 255),
        ("/".join(["**"] * 30), "/".join(["a"] * 127)),
        ("/".join(["**", "a"] * 30) + "/b", "/".join(["a"] * 127)),
    ]:
        assert Pattern.parse(pattern).matches(name) == (pattern[-1] == "*")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["line 1: an empty file, wanted rules"]),
        ("rules: []", ["line 1: rules: wanted a list with at least one entry"]),
        ("groups: {a: [b]}", [NO_RULES]),
        ("- a", ["line 1: the file: wanted keys and values", NO_RULES]),
        (
            "rules:\n- {users: [a], repositories: [b], actions: [pull], allow: true}",
            ["line 2: unknown key 'allow' in a rule, wanted users, groups, repositories, actions, catalog"],
        ),
        ("rule: []", ["line 1: unknown key 'rule' in the file, wanted groups, rules", NO_RULES]),
        (
            "rules:\n- groups: [nobody]\n  catalog: true",
            ["line 2: there is no group 'nobody': this rule can never match through it"],
        ),
        (
            "groups: {a: []}\nrules:\n- {groups: [a], catalog: true}",
            ["line 1: group a: wanted a list with at least one entry"],
        ),
        (
            "groups: {anonymous: [a]}\nrules:\n- {users: [a], catalog: true}",
            ["line 1: the group anonymous is built in: choose another name"],
        ),
        (
            "groups:\n  team: [anna, authenticated]\nrules:\n- users: ['a:b', ' x', anonymous]\n  catalog: true",
            [
                "line 2: group team: user 'authenticated': in a policy this is a group",
                f"line 4: users: user 'a:b': {NAME}",
                f"line 4: users: user ' x': {NAME}",
                "line 4: users: user 'anonymous': in a policy this is a group",
            ],
        ),
        ("rules:\n- catalog: true", ["line 2: for nobody: wanted users, groups or both"]),
        ("rules:\n- users: []\n  catalog: true", ["line 2: users: wanted a list with at least one entry"]),
        ("rules:\n- users: [a]", [NOTHING]),
        ("rules:\n- {users: [a], catalog: false}", [NOTHING]),
        ("rules:\n- {users: [a], repositories: [b]}", ["line 2: wanted repositories and actions together"]),
        ("rules:\n- {users: [a], catalog: yes}", ["line 2: catalog: wanted true or false", NOTHING]),
        (
            "rules:\n- users: [a]\n  repositories: [Team/*]\n  actions: [pull, write]",
            [
                "line 3: no repository can match 'Team/*': 'Team/a': wanted lower-case components of a-z and 0-9, "
                "joined inside by '.', '_', '__' or '-' and separated by '/'",
                "line 4: found action 'write', wanted pull, push, delete or '*'",
            ],
        ),
        ("rules:\n- users: a\n  catalog: true", ["line 2: users: wanted a list with at least one entry"]),
        ("rules:\n- users: [[a]]\n  catalog: true", ["line 2: users: wanted text"]),
        ("rules:\n- users: [a]\n  users: [b]\n  catalog: true", ["line 3: 'users' is written twice"]),
        ("rules: [", ["line 1: not YAML: expected the node content, but found '<stream end>'"]),
        ("rules: *a", ["line 1: not YAML: found undefined alias 'a'"]),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_its_line(text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        policy.parse(text.encode())
    assert caught.value.problems == problems


def test_what_is_no_text_is_refused() -> None:
    for content in (b"\xff", b"\0", b"[" * 100_000):
        with pytest.raises(ConfigError):
            policy.parse(content)


def test_explain_says_by_which_rule() -> None:
    assert authority.explain(RULES, "anna", "team/app") == [
        "anna may pull, push, delete in team/app",
        "  pull: rule 1 (line 5), team/**, as one of the group developers",
        "  push: rule 1 (line 5), team/**, as one of the group developers",
        "  delete: rule 2 (line 8), team/app, by name",
    ]
    assert authority.explain(RULES, "anonymous", "team/app") == [
        "anonymous may do nothing in team/app",
        "  pull: by no rule",
        "  push: by no rule",
        "  delete: by no rule",
    ]
    assert authority.explain(EVERY_ACCOUNT, "anna", "a")[1] == (
        "  pull: there is no policy: every account may do everything, as one of the group authenticated"
    )


OPEN = 'version: "0.1"\nstorage: {inmemory: {}}\n'


def test_explain_says_that_a_registry_without_auth_is_open_to_everybody() -> None:
    rules = authority.policy_of(config.parse(OPEN, {}).config)
    assert authority.explain(rules, "anonymous", "a/b") == [
        "anonymous may pull, push, delete in a/b",
        "  pull: there is no auth in the configuration: everybody may do everything",
        "  push: there is no auth in the configuration: everybody may do everything",
        "  delete: there is no auth in the configuration: everybody may do everything",
    ]
    closed = OPEN + "auth: {htpasswd: {realm: r, path: /p}}\n"
    assert authority.policy_of(config.parse(closed, {}).config) is EVERY_ACCOUNT


@pytest.mark.parametrize("name", ["TEAM/app", "team//app", "", "a" * 256])
def test_explain_refuses_what_no_repository_can_be_called(name: str) -> None:
    with pytest.raises(ConfigError, match="no repository can have this name: "):
        authority.explain(RULES, "anna", name)
