"""The policy: a small YAML file that says which accounts may do what with which repositories.

    groups:
      developers: [anna, ben]
    rules:
      - groups: [developers]          # accounts by `users`, groups by `groups`; a rule holds for all of them
        repositories: [team/**]       # `*`: any part of a component; `**`: one or more components
        actions: [pull, push]         # pull, push, delete, or "*" for all three
      - groups: [authenticated]       # everybody with an account
        catalog: true                 # may list all repositories
      - groups: [anonymous]           # everybody, with or without an account
        repositories: [public/*]
        actions: [pull]

Rules only add: whoever no rule lets do something may not do it. Owns the file's grammar and its mistakes, each told
with its line; a rule that can never match is one. Reads no file; who somebody is, is decided before (htpasswd.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import yaml

from cluster.auth.access import ALL, CATALOG, DELETE, PULL, PUSH, REGISTRY, REPOSITORY, Access
from cluster.auth.passwords import ANONYMOUS, AUTHENTICATED, PasswordRefused, check_name
from cluster.errors import ConfigError, NameInvalid
from cluster.oci.reference import NAME_LIMIT, RepositoryName

ACTIONS = (PULL, PUSH, DELETE)
_BUILT_IN = (AUTHENTICATED, ANONYMOUS)
_RULE_KEYS = ("users", "groups", "repositories", "actions", "catalog")
_DECISIONS = 10_000  # that are remembered: users times repositories
_INSIDE, _WHOLE = "*", "**"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which repositories a rule is about."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ValueError for what is no pattern, and for one that no repository's name can match."""
        parts = tuple(text.split("/"))
        if any(_WHOLE in part and part != _WHOLE for part in parts):
            raise ValueError(f"{text!r}: ** stands alone between slashes, * stands for a part of a component")
        try:
            # Where anything in place of a star makes a valid name, a letter does.
            RepositoryName.parse(text.replace(_WHOLE, "a").replace(_INSIDE, "a"))
        except NameInvalid as error:
            raise ValueError(f"no repository can match {text!r}: {error.detail}") from None
        return cls(parts)

    def matches(self, repository: str) -> bool:
        """Takes time in proportion to the name, whatever the pattern is."""
        components = repository.split("/")
        reached = {0}  # how many components the parts so far can stand for
        for part in self.parts:
            if part == _WHOLE:
                reached = set(range(min(reached, default=len(components)) + 1, len(components) + 1))
            else:
                here = (count for count in reached if count < len(components))
                reached = {count + 1 for count in here if fnmatchcase(components[count], part)}
        return len(components) in reached

    def __str__(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the file."""

    number: int  # from 1
    line: int
    users: frozenset[str]
    groups: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    actions: frozenset[str]
    catalog: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """Why somebody may do something."""

    rule: Rule
    pattern: Pattern
    through: str  # a group; empty when the rule names the account itself


@dataclass(frozen=True)
class Rules:
    """The policy of a file."""

    rules: Sequence[Rule]
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def permits(self, user: str, access: Access) -> bool:
        """Whether a rule grants that; `user` is empty for whoever has no account."""
        if access.type == REPOSITORY:
            return access.action in self.actions(user, access.name)
        return (access.type, access.name, access.action) == (REGISTRY, CATALOG, ALL) and self.lists(user)

    def actions(self, user: str, repository: str) -> frozenset[str]:
        """What somebody may do with a repository."""
        return self._decide(user, repository) if len(repository) <= NAME_LIMIT else frozenset()

    def lists(self, user: str) -> bool:
        """Whether somebody may list all repositories."""
        return any(rule.catalog for rule, _ in self._rules_of(user))

    @property
    def is_open(self) -> bool:
        """Whether somebody without an account may do anything at all."""
        return any(True for _ in self._rules_of(""))

    def explain(self, user: str, repository: str) -> dict[str, list[Reason]]:
        """For each action the rules that grant it."""
        reasons: dict[str, list[Reason]] = {action: [] for action in ACTIONS}
        for rule, through in self._rules_of(user):
            pattern = next((pattern for pattern in rule.patterns if pattern.matches(repository)), None)
            if pattern is not None:
                for action in rule.actions:
                    reasons[action].append(Reason(rule, pattern, through))
        return reasons

    @functools.cached_property
    def _decide(self) -> Callable[[str, str], frozenset[str]]:
        """Remembers what was decided: the rules do not change, another file makes other rules."""

        @functools.lru_cache(_DECISIONS)
        def decide(user: str, repository: str) -> frozenset[str]:
            reasons = self.explain(user, repository)
            return frozenset(action for action, found in reasons.items() if found)

        return decide

    def _rules_of(self, user: str) -> Iterator[tuple[Rule, str]]:
        """The rules that hold for somebody, each with the group that makes it so."""
        for rule in self.rules:
            if user in rule.users:
                yield rule, ""
            elif (through := next((name for name in rule.groups if self._is_in(user, name)), None)) is not None:
                yield rule, through

    def _is_in(self, user: str, group: str) -> bool:
        if group in _BUILT_IN:
            return group == ANONYMOUS or bool(user)
        return user in self.groups[group]


# What holds without a file, as in Distribution: every account may do everything.
EVERY_ACCOUNT = Rules(
    [Rule(0, 0, frozenset(), (AUTHENTICATED,), (Pattern.parse(_WHOLE),), frozenset(ACTIONS), catalog=True)]
)
# What holds where nobody is asked who they are.
EVERYBODY = Rules(
    [Rule(0, 0, frozenset(), (ANONYMOUS,), (Pattern.parse(_WHOLE),), frozenset(ACTIONS), catalog=True)]
)


def parse(content: bytes) -> Rules:
    """Read a policy file. ConfigError with everything that is wrong, each with its line."""
    reader = _Reader()
    try:
        root = yaml.compose(content.decode(), yaml.SafeLoader)
        rules = reader.file(root)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{place}not YAML: {error.problem or error.context}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(["not YAML: not UTF-8 text, or a character that cannot be in it"]) from None
    except RecursionError:
        raise ConfigError(["nested too deeply"]) from None
    if reader.problems:
        raise ConfigError(reader.problems)
    return rules


class _Reader:
    """Walks the nodes of the file, and gathers what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def file(self, root: yaml.Node | None) -> Rules:
        if root is None:
            self.problems.append("line 1: an empty file, wanted rules")
            return Rules([])
        sections = self._map(root, ("groups", "rules"), "the file")
        groups = self._groups(sections["groups"]) if "groups" in sections else {}
        if "rules" not in sections:
            self._note(root, "no rules: nobody may do anything")
            return Rules([])
        entries = self._list(sections["rules"], "rules")
        return Rules([self._rule(number, entry, groups) for number, entry in enumerate(entries, 1)], groups)

    def _groups(self, node: yaml.Node) -> dict[str, frozenset[str]]:
        groups = {}
        for name, members in self._map(node, None, "groups").items():
            if name in _BUILT_IN:
                self._note(members, f"the group {name} is built in: choose another name")
            groups[name] = self._users(members, f"group {name}")
        return groups

    def _rule(self, number: int, node: yaml.Node, groups: Mapping[str, frozenset[str]]) -> Rule:
        keys = self._map(node, _RULE_KEYS, "a rule")

        def texts(key: str) -> list[str]:
            return self._texts(keys[key], key) if key in keys else []

        names, patterns, actions = texts("groups"), texts("repositories"), texts("actions")
        for name in names:
            if name not in groups and name not in _BUILT_IN:
                self._note(keys["groups"], f"there is no group {name!r}: this rule can never match through it")
        if not {"users", "groups"} & set(keys):
            self._note(node, "for nobody: wanted users, groups or both")
        catalog = "catalog" in keys and self._truth(keys["catalog"], "catalog")
        if "repositories" not in keys and not catalog:
            self._note(node, "about nothing: wanted repositories with actions, catalog, or both")
        if ("repositories" in keys) != ("actions" in keys):
            self._note(node, "wanted repositories and actions together")
        return Rule(
            number,
            _line(node),
            self._users(keys["users"], "users") if "users" in keys else frozenset(),
            tuple(name for name in names if name in groups or name in _BUILT_IN),
            tuple(self._patterns(keys["repositories"], patterns)) if patterns else (),
            frozenset(self._actions(keys["actions"], actions)) if actions else frozenset(),
            catalog,
        )

    def _users(self, node: yaml.Node, what: str) -> frozenset[str]:
        names = self._texts(node, what)
        for name in names:
            try:
                check_name(name)
            except PasswordRefused as refused:
                self._note(node, f"{what}: {refused}")
        return frozenset(names)

    def _patterns(self, node: yaml.Node, texts: Sequence[str]) -> Iterator[Pattern]:
        for text in texts:
            try:
                yield Pattern.parse(text)
            except ValueError as error:
                self._note(node, str(error))

    def _actions(self, node: yaml.Node, texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            if text == ALL:
                yield from ACTIONS
            elif text in ACTIONS:
                yield text
            else:
                self._note(node, f"found action {text!r}, wanted {', '.join(ACTIONS)} or {ALL!r}")

    # -- YAML's own forms

    def _map(self, node: yaml.Node, known: Sequence[str] | None, what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._note(node, f"{what}: wanted keys and values")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._text(key, f"a key of {what}")
            if known is not None and name not in known:
                self._note(key, f"unknown key {name!r} in {what}, wanted {', '.join(known)}")
            elif name in found:
                self._note(key, f"{name!r} is written twice")
            else:
                found[name] = value
        return found

    def _list(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._note(node, f"{what}: wanted a list with at least one entry")
            return []
        return list(node.value)

    def _texts(self, node: yaml.Node, what: str) -> list[str]:
        return [text for entry in self._list(node, what) if (text := self._text(entry, what))]

    def _text(self, node: yaml.Node, what: str) -> str:
        """Whatever is written, as it is written: an account may be called 007, on, or null."""
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self._note(node, f"{what}: wanted text")
            return ""
        return str(node.value)

    def _truth(self, node: yaml.Node, what: str) -> bool:
        if not isinstance(node, yaml.ScalarNode) or node.value not in ("true", "false"):
            self._note(node, f"{what}: wanted true or false")
        return str(node.value) == "true"

    def _note(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"line {_line(node)}: {problem}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
