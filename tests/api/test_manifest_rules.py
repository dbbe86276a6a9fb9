"""end-7 refuses manifests whose references are missing, or which the configuration forbids."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.api.conftest import (
    CONFIG,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Api,
    MakeApi,
    descriptor,
    encode,
    errors,
    index,
    refusal,
    sha,
)

NON_DISTRIBUTABLE = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
]


def missing(content: bytes, media_type: str = MANIFEST, **more: object) -> dict[str, Any]:
    """A descriptor of something that nobody pushed."""
    return descriptor(b"missing " + content, media_type, **more)


def put(api: Api, value: dict[str, Any] | bytes, media_type: str | None = None) -> int:
    """The status of a PUT by tag; a refusal must be in the right form and must have changed nothing."""
    before = api.snapshot()
    answer = api.put_manifest("a", "v1", value, media_type)
    if answer.status_code != 201:
        assert errors(answer)
        assert api.snapshot() == before
    return answer.status_code


# -- References


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_every_blob_that_is_missing_is_named(api: Api, algorithm: str) -> None:
    layers = [descriptor(content, algorithm=algorithm) for content in (b"one", b"two", b"one")]
    value = api.image("a", layers=layers)
    before = api.snapshot()
    answer = api.put_manifest("a", "v1", value)
    assert answer.status_code == 400
    assert {entry["code"] for entry in errors(answer)} == {"MANIFEST_BLOB_UNKNOWN"}
    named = sorted(entry["detail"] for entry in errors(answer))
    assert named == sorted({layer["digest"] for layer in layers})
    assert api.snapshot() == before
    for content in (b"one", b"two"):
        api.push("a", content, algorithm)
    assert put(api, value) == 201


def test_a_blob_of_another_repository_is_missing_here(api: Api) -> None:
    api.image("b")
    value = api.image("a")
    for blob in (b"{}", b"layer"):
        api.delete(f"/v2/a/blobs/{sha(blob)}")
        assert put(api, value) == 400
        api.push("a", blob)
    assert put(api, value) == 201


def test_a_missing_config_is_a_missing_blob(api: Api) -> None:
    assert put(api, api.image("a", config=missing(b"config", CONFIG))) == 400


def test_an_index_needs_its_children_in_the_same_repository(api: Api) -> None:
    elsewhere = api.push_image("b")
    value = index(descriptor(elsewhere, MANIFEST), missing(b"child"))
    answer = api.put_manifest("a", "v1", value)
    assert refusal(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert sorted(entry["detail"] for entry in errors(answer)) == sorted(
        child["digest"] for child in value["manifests"]
    )


def test_an_index_may_hold_indexes_nothing_and_blobs(api: Api) -> None:
    """Build caches list layers in an index."""
    child = api.push_image("a")
    inner = index(descriptor(child, MANIFEST))
    assert api.put_manifest("a", sha(encode(inner)), inner).status_code == 201
    assert put(api, index(descriptor(encode(inner), INDEX), descriptor(child, MANIFEST))) == 201
    assert put(api, index()) == 201
    assert put(api, index(descriptor(b"layer"))) == 201


@pytest.mark.parametrize("media_type", NON_DISTRIBUTABLE)
def test_a_layer_that_may_not_be_distributed_need_not_be_there(api: Api, media_type: str) -> None:
    layer = missing(b"layer", media_type, urls=["https://example.com/layer"])
    assert put(api, api.image("a", layers=[layer])) == 201
    assert put(api, api.image("a", layers=[missing(b"layer", media_type)])) == 400  # nobody could pull it


def test_a_url_does_not_stand_in_for_a_layer_that_may_be_distributed(api: Api) -> None:
    value = api.image("a", layers=[missing(b"layer", urls=["https://example.com/layer"])])
    assert refusal(api.put_manifest("a", "v1", value)) == (400, "MANIFEST_BLOB_UNKNOWN")


def test_a_subject_need_not_be_there(api: Api) -> None:
    value = api.image("a", subject=missing(b"subject"))
    answer = api.put_manifest("a", "v1", value)
    assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, value["subject"]["digest"])


def test_a_sparse_registry_takes_manifests_whose_content_is_not_there(make_api: MakeApi) -> None:
    api = make_api(cluster={"sparse": True})
    image = {"schemaVersion": 2, "mediaType": MANIFEST, "config": missing(b"config", CONFIG), "layers": []}
    for value in (image, {**image, "layers": [missing(b"layer")]}, index(missing(b"child"))):
        assert put(api, value) == 201


# -- validation.* and policy.* of the configuration


def urls(*values: str) -> list[dict[str, Any]]:
    return [descriptor(b"layer", urls=list(values))]


@pytest.mark.parametrize(
    ("allow", "deny", "url", "status"),
    [
        ([], [], "https://example.com/layer", 201),
        ([], [], "http://example.com:8080/layer?x=y", 201),
        ([], [], "ftp://example.com/layer", 400),
        ([], [], "file:///etc/passwd", 400),
        ([], [], "https://example.com/layer#fragment", 400),
        ([], [], "https:///layer", 400),
        ([], [], "//example.com/layer", 400),
        ([], [], "https://[::1/layer", 400),
        ([], [], "", 400),
        (["^https?://([^/]+\\.)*example\\.com/"], [], "https://www.example.com/layer", 201),
        (["^https?://([^/]+\\.)*example\\.com/"], [], "https://example.org/layer", 400),
        ([], ["^https?://www\\.example\\.com/"], "https://www.example.com/layer", 400),
        ([], ["^https?://www\\.example\\.com/"], "https://example.com/layer", 201),
        (["example"], ["secret"], "https://example.com/secret", 400),
    ],
)
def test_the_urls_of_a_layer_must_be_allowed(
    make_api: MakeApi, allow: list[str], deny: list[str], url: str, status: int
) -> None:
    api = make_api(validation={"manifests": {"urls": {"allow": allow, "deny": deny}}})
    assert put(api, api.image("a", layers=urls(url))) == status


@pytest.mark.parametrize("rule", ["allow", "deny"])
def test_no_url_takes_a_pattern_long(make_api: MakeApi, rule: str) -> None:
    """The pattern is that of Distribution's documentation; this URL would hold Python's own matcher for hours."""
    api = make_api(validation={"manifests": {"urls": {rule: [r"^https?://([^/]+\.)*example\.com/"]}}})
    value = api.image("a", layers=urls("http://" + "a." * 100_000 + "/"))
    started = time.process_time()  # of which others on this machine take nothing
    assert put(api, value) == (400 if rule == "allow" else 201)
    assert time.process_time() - started < 5


def test_one_forbidden_url_among_many_is_enough(make_api: MakeApi) -> None:
    api = make_api(validation={"manifests": {"urls": {"deny": ["evil"]}}})
    value = api.image("a", layers=urls("https://example.com/a", "https://evil.example.com/b"))
    assert refusal(api.put_manifest("a", "v1", value)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    ("indexes", "platform", "status"),
    [
        ({"platforms": "all"}, {"architecture": "amd64", "os": "linux"}, 400),
        ({"platforms": "all"}, None, 400),
        ({"platforms": "none"}, {"architecture": "amd64", "os": "linux"}, 201),
        ({"platforms": "none"}, None, 201),
        ({"platforms": "list"}, {"architecture": "amd64", "os": "linux"}, 400),
        ({"platforms": "list"}, {"architecture": "arm64", "os": "linux"}, 201),
        ({"platforms": "list"}, {"architecture": "amd64", "os": "windows"}, 201),
        ({"platforms": "list"}, None, 201),
    ],
)
def test_the_configuration_says_which_children_of_an_index_must_be_there(
    make_api: MakeApi, indexes: dict[str, Any], platform: dict[str, str] | None, status: int
) -> None:
    if indexes["platforms"] == "list":
        indexes = {**indexes, "platformlist": [{"architecture": "amd64", "os": "linux"}]}
    api = make_api(validation={"manifests": {"indexes": indexes}})
    child = missing(b"child", **({"platform": platform} if platform else {}))
    assert put(api, index(child)) == status


def test_without_validation_children_and_urls_are_free_but_blobs_must_be_there(make_api: MakeApi) -> None:
    api = make_api(validation={"disabled": True, "manifests": {"urls": {"deny": ["."]}}})
    assert put(api, index(missing(b"child"))) == 201
    assert put(api, api.image("a", layers=urls("ftp://example.com/layer"))) == 201
    assert put(api, api.image("a", layers=[missing(b"layer")])) == 400


@pytest.mark.parametrize(
    ("classes", "config", "status"),
    [
        (["image"], CONFIG, 201),
        (["image"], "application/vnd.docker.plugin.v1+json", 403),
        (["plugin"], "application/vnd.docker.plugin.v1+json", 201),
        (["plugin"], CONFIG, 403),
        (["image", "plugin"], "application/vnd.docker.plugin.v1+json", 201),
        ([], "application/vnd.docker.plugin.v1+json", 201),
        (["image", "plugin"], "application/vnd.cncf.helm.config.v1+json", 403),
        (["image"], "application/vnd.oci.empty.v1+json", 403),
        (["image"], "application/vnd.oci.image.config.v1+json", 201),
    ],
)
@pytest.mark.parametrize("media_type", [MANIFEST, DOCKER_MANIFEST])
def test_the_policy_says_which_classes_are_taken(
    make_api: MakeApi, media_type: str, classes: list[str], config: str, status: int
) -> None:
    api = make_api(policy={"repository": {"classes": classes}})
    value = api.image("a", mediaType=media_type, config=descriptor(b"{}", config))
    answer = api.put_manifest("a", "v1", value, media_type)
    assert answer.status_code == status
    if status == 403:
        assert refusal(answer) == (403, "DENIED")
