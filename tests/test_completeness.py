"""Nothing is left out: each error code has its class, each endpoint its route and test, each cited rule its row."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator

import falcon.testing
import pytest

from cluster import config, errors
from cluster.api import routes
from cluster.app import Parts, create_app
from cluster.storage.memory import MemoryDriver, MemoryUploads

TESTS = os.path.dirname(os.path.abspath(__file__))
API_TESTS = os.path.join(TESTS, "api")
ARCHITECTURE = os.path.join(os.path.dirname(TESTS), "ARCHITECTURE.md")
UUID, DIGEST = "0b1c2d3e-1111-4222-8333-444455556666", "sha256:" + "0" * 64

# OCI distribution-spec, "Error Codes"; the spec fixes no status, these are Distribution's.
OCI_CODES = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 404,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 400,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
}
DISTRIBUTIONS_CODES = {
    "UNKNOWN": 500,
    "UNAVAILABLE": 503,
    "RANGE_INVALID": 416,
    "TAG_INVALID": 400,
    "PAGINATION_NUMBER_INVALID": 400,
}

# OCI distribution-spec (development text), "Endpoints", and Docker's catalog.
ENDPOINTS = [
    ("end-1", "GET", "/v2/"),
    ("end-2", "GET", f"/v2/a/blobs/{DIGEST}"),
    ("end-2", "HEAD", f"/v2/a/blobs/{DIGEST}"),
    ("end-3", "GET", "/v2/a/manifests/latest"),
    ("end-3", "HEAD", "/v2/a/manifests/latest"),
    ("end-4a", "POST", "/v2/a/blobs/uploads/"),
    ("end-4b", "POST", f"/v2/a/blobs/uploads/?digest={DIGEST}"),
    ("end-4c", "POST", "/v2/a/blobs/uploads/?digest-algorithm=sha512"),
    ("end-5", "PATCH", f"/v2/a/blobs/uploads/{UUID}"),
    ("end-6", "PUT", f"/v2/a/blobs/uploads/{UUID}?digest={DIGEST}"),
    ("end-7a", "PUT", "/v2/a/manifests/latest"),
    ("end-7b", "PUT", f"/v2/a/manifests/{DIGEST}?tag=a&tag=b"),
    ("end-8a", "GET", "/v2/a/tags/list"),
    ("end-8b", "GET", "/v2/a/tags/list?n=1&last=a"),
    ("end-9", "DELETE", "/v2/a/manifests/latest"),
    ("end-10", "DELETE", f"/v2/a/blobs/{DIGEST}"),
    ("end-11", "POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=b"),
    ("end-12a", "GET", f"/v2/a/referrers/{DIGEST}"),
    ("end-12b", "GET", f"/v2/a/referrers/{DIGEST}?artifactType=a/b"),
    ("end-13", "GET", f"/v2/a/blobs/uploads/{UUID}"),
    ("end-14", "DELETE", f"/v2/a/blobs/uploads/{UUID}"),
    ("catalog", "GET", "/v2/_catalog"),
]


def subclasses(parent: type[errors.RegistryError]) -> list[type[errors.RegistryError]]:
    found = []
    for child in parent.__subclasses__():
        found += [child, *subclasses(child)]
    return found


@pytest.fixture(scope="module")
def client() -> falcon.testing.TestClient:
    driver = MemoryDriver()
    loaded = config.parse("version: 0.1\nstorage: {inmemory: {}}\n", {})
    return falcon.testing.TestClient(create_app(loaded.config, Parts(driver, MemoryUploads(driver), [b"x"])).edge)


def test_every_error_code_has_exactly_one_class_and_the_status_that_clients_know() -> None:
    classes = defaultdict(list)
    for child in errors.RegistryError.__subclasses__():
        classes[child.code].append(child)
    assert {code: len(found) for code, found in classes.items() if len(found) != 1} == {}
    assert {code: found[0].status for code, found in classes.items()} == OCI_CODES | DISTRIBUTIONS_CODES


def test_a_narrower_class_keeps_the_code_of_its_parent() -> None:
    for child in subclasses(errors.RegistryError):
        if child not in errors.RegistryError.__subclasses__():
            assert child.code == child.__base__.code
            assert child.status != child.__base__.status, f"{child.__name__} is its parent by another name"


def test_every_class_has_a_message_of_its_own_and_is_drawn_in_the_tree() -> None:
    messages = defaultdict(list)
    for child in subclasses(errors.RegistryError):
        messages[child.message].append(child.__name__)
        drawn = re.search(rf"\b{child.__name__}\b[^\n]*?\b{child.status}\b", str(errors.__doc__))
        assert drawn is not None, f"{child.__name__} is not in the tree of errors.py with its status"
    assert {message: names for message, names in messages.items() if len(names) > 1} == {}


@pytest.mark.parametrize(("endpoint", "method", "path"), ENDPOINTS)
def test_every_endpoint_of_the_specification_is_served(
    client: falcon.testing.TestClient, endpoint: str, method: str, path: str
) -> None:
    options = client.simulate_options(path)
    assert options.status_code == 200, f"{endpoint}: there is no route for {path}"
    assert method in options.headers["Allow"].split(", "), f"{endpoint}: {path} does not take {method}"


def test_every_route_has_a_resource(client: falcon.testing.TestClient) -> None:
    table = [route for route in vars(routes).values() if isinstance(route, routes.Route)]
    assert len(table) > 10
    for route in table:
        path = route.template.format(name="a", digest=DIGEST, reference="latest", uuid=UUID)
        assert client.simulate_options(path).status_code == 200, route.template


def test_every_endpoint_has_a_test_that_is_named_after_it() -> None:
    names = []
    for file_name in os.listdir(API_TESTS):
        if file_name.startswith("test_"):
            with open(os.path.join(API_TESTS, file_name), encoding="utf-8") as file:
                names += re.findall(r"^def (test_\w+)", file.read(), re.MULTILINE)
    for endpoint in {endpoint for endpoint, _, _ in ENDPOINTS}:
        wanted = re.compile(rf"_{endpoint.replace('-', '_')}(_|$)")
        assert any(wanted.search(name) for name in names), f"no test in tests/api is named after {endpoint}"


# Uploads, tags, blobs, invariants, promises: words of two digits at most, so neither ES256 nor a hash is one.
RULE = re.compile(r"\b[UTBJP][1-9][0-9]?\b")


def python_files() -> Iterator[str]:
    for top in (os.path.join(os.path.dirname(TESTS), "cluster"), TESTS):
        for directory, _, names in os.walk(top):
            yield from (os.path.join(directory, name) for name in names if name.endswith(".py"))


def prose(source: str) -> Iterator[str]:
    """The comments and the docstrings of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def cited(source: str) -> set[str]:
    return {rule for text in prose(source) for rule in RULE.findall(text)}


def test_every_rule_that_is_cited_has_a_row_in_the_architecture() -> None:
    with open(ARCHITECTURE, encoding="utf-8") as file:
        defined = re.findall(r"^\| ([UTBJP][0-9]+) \|", file.read(), re.MULTILINE)
    assert len(defined) == len(set(defined)), "a rule is defined twice"
    unknown = {}
    for path in python_files():
        with open(path, encoding="utf-8") as file:
            if missing := cited(file.read()) - set(defined):
                unknown[path] = missing
    assert unknown == {}


def test_rules_are_found_where_they_are_cited_and_nowhere_else() -> None:
    source = (
        '''"""Rules T1 to T5."""\n\ndef f():\n    """Seals it (rule U2, B1)."""\n    return "P9"  # ES256, J5\n'''
    )
    assert cited(source) == {"T1", "T5", "U2", "B1", "J5"}
