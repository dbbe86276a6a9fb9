"""Manifests: each rule of their grammar, and bytes that are made to break a reader of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ManifestInvalid
from cluster.oci.digest import Digest
from cluster.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    LIMIT,
    MEDIA_TYPES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    Platform,
    parse_manifest,
    parse_stored,
    plain_media_type,
    stored_media_type,
)

CONFIG, LAYER = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DIGESTS = [Digest.of(bytes([number])) for number in range(4)]
Json = dict[str, Any]


def descriptor(number: int, media_type: str = LAYER, **more: object) -> Json:
    return {"mediaType": media_type, "digest": str(DIGESTS[number]), "size": number, **more}


def image(**more: object) -> Json:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(0, CONFIG),
        "layers": [descriptor(1), descriptor(2)],
        **more,
    }


def index(**more: object) -> Json:
    children = [descriptor(1, OCI_MANIFEST), descriptor(2, OCI_INDEX)]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children, **more}


def read(value: object, content_type: str | None = None) -> Manifest:
    return parse_manifest(json.dumps(value).encode(), content_type)


def without(value: Json, *keys: str) -> Json:
    return {key: item for key, item in value.items() if key not in keys}


def refused(content: bytes | object, content_type: str | None = None) -> str:
    """Why a manifest is refused; fails when it is taken, or when the reason is a long one."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(data, content_type)
    reason = str(caught.value.detail)
    assert len(reason) < 2000
    reason.encode("utf-8")  # it goes into an answer
    return reason


# -- What is taken


def test_an_image_names_its_config_and_then_its_layers() -> None:
    manifest = read(image())
    assert [blob.digest for blob in manifest.blobs] == DIGESTS[:3]
    assert (manifest.media_type, manifest.config_media_type) == (OCI_MANIFEST, CONFIG)
    assert manifest.children == ()


def test_an_index_names_its_children_with_their_platforms() -> None:
    platform = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    manifest = read(index(manifests=[descriptor(1, OCI_MANIFEST, platform=platform), descriptor(2, OCI_INDEX)]))
    assert [child.digest for child in manifest.children] == DIGESTS[1:3]
    assert [child.platform for child in manifest.children] == [Platform("arm64", "linux"), None]
    assert manifest.media_type == OCI_INDEX


@pytest.mark.parametrize("media_type", sorted(MEDIA_TYPES))
def test_each_media_type_is_read_by_its_own_rules(media_type: str) -> None:
    indexes = (OCI_INDEX, DOCKER_LIST)
    value = index(mediaType=media_type) if media_type in indexes else image(mediaType=media_type)
    if media_type == OCI_ARTIFACT:
        value = {"mediaType": OCI_ARTIFACT, "artifactType": "a/b", "blobs": [descriptor(1)]}
    manifest = read(value, media_type)
    assert manifest.media_type == media_type
    assert bool(manifest.children) == (media_type in indexes)


@pytest.mark.parametrize(
    ("value", "content_type", "media_type"),
    [
        (without(image(), "mediaType"), OCI_MANIFEST, OCI_MANIFEST),
        (without(image(), "mediaType"), None, OCI_MANIFEST),
        (without(index(), "mediaType"), OCI_INDEX, OCI_INDEX),
        (without(index(), "mediaType"), None, OCI_INDEX),
        (image(), None, OCI_MANIFEST),
        (image(), f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST),
        (image(), f" {OCI_MANIFEST} ", OCI_MANIFEST),
    ],
)
def test_the_media_type_comes_from_the_bytes_or_from_the_request(
    value: Json, content_type: str | None, media_type: str
) -> None:
    assert read(value, content_type).media_type == media_type


@pytest.mark.parametrize(
    "value",
    [
        image(layers=[]),
        image(layers=None),
        index(manifests=[]),
        index(manifests=None),
        image(annotations={}),
        image(annotations=None, subject=None, artifactType=None),
        image(**{"org.example.custom": {"any": ["thing", 1.5, None, True]}, "": 1}),
        image(config=descriptor(0, EMPTY, data="e30="), artifactType="application/vnd.example"),
        image(layers=[descriptor(1, urls=["https://example.com/layer"])]),
        image(layers=[descriptor(1, urls=None, annotations=None, platform=None)]),
        image(layers=[descriptor(1), descriptor(1)]),
        image(layers=[{**descriptor(1), "size": 2**63 - 1}]),
        image(annotations={"smile": "\U0001f600", "nul": "\0"}),
    ],
)
def test_what_the_specification_leaves_open_is_taken(value: Json) -> None:
    assert read(value).media_type in MEDIA_TYPES


def test_a_sha512_descriptor_is_as_good_as_a_sha256_one() -> None:
    digest = Digest.of(b"x", "sha512")
    manifest = read(image(layers=[{**descriptor(1), "digest": str(digest)}]))
    assert manifest.blobs[1].digest == digest


def test_a_subject_is_read_from_images_indexes_and_artifacts_but_not_from_dockers_types() -> None:
    subject = descriptor(3, OCI_MANIFEST)
    for value in (image(), index(), {"mediaType": OCI_ARTIFACT, "artifactType": "a/b"}):
        manifest = read({**value, "subject": subject})
        assert manifest.subject is not None
        assert manifest.subject.digest == DIGESTS[3]
    for media_type, value in ((DOCKER_MANIFEST, image()), (DOCKER_LIST, index())):
        assert read({**value, "mediaType": media_type, "subject": subject}).subject is None


@pytest.mark.parametrize(
    ("value", "artifact_type"),
    [
        (image(artifactType="a/b"), "a/b"),
        (image(), CONFIG),
        (image(artifactType=""), CONFIG),
        (index(artifactType="a/b"), "a/b"),
        (index(), None),
    ],
)
def test_a_referrers_list_names_the_artifact_type_or_that_of_the_config(
    value: Json, artifact_type: str | None
) -> None:
    listed = read({**value, "annotations": {"k": "v"}}).descriptor(DIGESTS[0], 7).to_dict()
    expected = {"mediaType": value["mediaType"], "digest": str(DIGESTS[0]), "size": 7, "annotations": {"k": "v"}}
    assert listed == expected | ({"artifactType": artifact_type} if artifact_type else {})


@pytest.mark.parametrize(
    ("header", "media_type"),
    [
        (None, ""),
        ("", ""),
        ("a/b", "a/b"),
        ("a/b;q=1;x=y", "a/b"),
        ("a/b ; charset=utf-8", "a/b"),
        (";", ""),
        ("A/B+Json", "a/b+json"),
    ],
)
def test_parameters_of_a_content_type_do_not_count(header: str | None, media_type: str) -> None:
    assert plain_media_type(header) == media_type


# -- What is refused


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"\0",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"null",
        b"true",
        b'"text"',
        b"5",
        b"not JSON",
        b"<html></html>",
        b"\xef\xbb\xbf{}",  # a byte order mark
        b"\xff\xfe{\0}\0",  # UTF-16
        b'{"schemaVersion": 2,}',
        b"{'schemaVersion': 2}",
        b'{"schemaVersion": 2} {}',
        b'{"schemaVersion": 2}\0',
        b'{"a": "\xc3\x28"}',  # not UTF-8
        b'{"a": "\xed\xa0\x80"}',  # a surrogate, encoded
        b'{"a": "\n"}',
    ],
)
def test_bytes_that_are_no_json_object_are_refused(content: bytes) -> None:
    refused(content)
    refused(content, OCI_MANIFEST)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E400", "9" * 4301])
def test_numbers_that_json_does_not_know_or_nobody_can_hold_are_refused(text: str) -> None:
    refused(json.dumps(image(custom="@")).replace('"@"', text).encode())
    refused(json.dumps(image(schemaVersion="@")).replace('"@"', text).encode())
    refused(json.dumps(image(config={**descriptor(0), "size": "@"})).replace('"@"', text).encode())


def test_a_number_of_a_million_digits_is_refused_without_being_computed() -> None:
    refused(b'{"schemaVersion": ' + b"7" * 1_000_000 + b"}")


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"\uDFFF\uD800", r"a\ud800b", r"\ud83d \ude00"])
def test_half_of_a_surrogate_pair_is_refused_in_keys_and_in_values(text: str) -> None:
    refused(json.dumps(image(annotations={"k": "@"})).replace("@", text).encode())
    refused(json.dumps(image(custom={"@": 1})).replace("@", text).encode())


def test_a_whole_surrogate_pair_is_a_character() -> None:
    content = json.dumps(image(annotations={"k": "@"})).replace("@", r"\ud83d\ude00").encode()
    assert parse_manifest(content).annotations == {"k": "\U0001f600"}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(image()).encode().replace(b'"layers"', b'"config": {}, "layers"'),
        json.dumps(image()).encode().replace(b'"schemaVersion": 2', b'"schemaVersion": 2, "schemaVersion": 2'),
        json.dumps(image(custom={"a": 1})).encode().replace(b'"a": 1', b'"a": 1, "b": 2, "a": 3'),
        json.dumps(image()).encode().replace(b'"size": 1', b'"size": 1, "size": 1'),
        json.dumps(image(custom={"a": 1})).encode().replace(b'"a": 1', b'"a": 1, "\\u0061": 3'),
    ],
)
def test_a_key_that_is_there_twice_is_refused_at_any_depth(content: bytes) -> None:
    """Two readers could see two manifests: one takes the first key, another the last."""
    assert "twice" in refused(content)


@pytest.mark.parametrize("depth", [1_000, 100_000, 1_500_000])
def test_json_that_is_nested_deeply_is_refused_and_nothing_breaks(depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        nested = (opening * depth + b"1" + closing * depth)[:LIMIT]
        refused(nested)
        refused(b'{"schemaVersion": 2, "custom": ' + nested)
    whole = json.dumps(image(custom="@")).encode().replace(b'"@"', b"[" * depth + b"]" * depth)
    refused(whole)


def test_json_that_is_deep_and_holds_a_surrogate_is_refused_too() -> None:
    """The look for surrogates must not fall over what reading has just survived."""
    for depth in (300, 600, 900, 950, 990):
        whole = json.dumps(image(custom="@")).encode()
        refused(whole.replace(b'"@"', b"[" * depth + rb'"\ud800"' + b"]" * depth))


@pytest.mark.parametrize("layers", ["0", "{}", "[]", '""', "null"])
def test_a_million_layers_that_are_none_are_refused(layers: str) -> None:
    many = ",".join([layers] * (LIMIT // (len(layers) + 1) - 1000)).encode()
    refused(json.dumps(image(layers=["@"])).encode().replace(b'"@"', many))


def test_as_many_layers_as_fit_are_taken() -> None:
    count = 25_000
    manifest = read(image(layers=[descriptor(1)] * count))
    assert len(manifest.blobs) == count + 1


@pytest.mark.parametrize(
    "value",
    [
        without(image(), "schemaVersion"),
        image(schemaVersion=1),
        image(schemaVersion=3),
        image(schemaVersion=2.0),
        image(schemaVersion="2"),
        image(schemaVersion=True),
        image(schemaVersion=None),
        image(schemaVersion=[2]),
        without(index(), "schemaVersion"),
        index(schemaVersion=1),
    ],
)
def test_the_schema_version_must_be_the_number_two(value: Json) -> None:
    assert "schemaVersion" in refused(value)


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        (image(), OCI_INDEX),
        (index(), OCI_MANIFEST),
        (image(), DOCKER_MANIFEST),
        (image(mediaType=DOCKER_MANIFEST), OCI_MANIFEST),
        (image(mediaType="application/json"), None),
        (image(mediaType="text/html"), "text/html"),
        (image(mediaType=[OCI_MANIFEST]), None),
        (image(mediaType=5), OCI_MANIFEST),
        (image(mediaType=f"{OCI_MANIFEST};x=y"), OCI_MANIFEST),
        (without(image(), "mediaType"), "application/json"),
        (without(image(), "mediaType"), "application/octet-stream"),
        (without(image(), "mediaType"), DOCKER_MANIFEST),
        (without(index(), "mediaType"), DOCKER_LIST),
        (without(image(), "mediaType"), OCI_INDEX),
        (without(index(), "mediaType"), OCI_MANIFEST),
        (without(image(), "mediaType"), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_a_manifest_that_is_not_what_it_is_said_to_be_is_refused(value: Json, content_type: str | None) -> None:
    refused(value, content_type)


@pytest.mark.parametrize(
    "value",
    [
        image(manifests=[]),
        image(mediaType=DOCKER_MANIFEST, manifests=[]),
        index(config=descriptor(0)),
        index(layers=[]),
        index(mediaType=DOCKER_LIST, config=descriptor(0)),
        index(mediaType=DOCKER_LIST, layers=[descriptor(1)]),
        {**without(image(), "mediaType"), "manifests": []},
    ],
)
def test_content_that_could_be_taken_for_an_image_and_for_an_index_is_refused(value: Json) -> None:
    refused(value)


@pytest.mark.parametrize("key", ["config", "layers"])
@pytest.mark.parametrize("value", [None, 5, "text", True, [[]], [None], [5], {"digest": []}, {}])
def test_config_and_layers_must_be_there_and_be_descriptors(key: str, value: object) -> None:
    if (key, value) != ("layers", None):
        refused(image(**{key: value}))
    refused(without(image(), key))


@pytest.mark.parametrize("value", [5, "text", {}, [None], [5], [[]], [{}]])
def test_the_children_of_an_index_must_be_a_list_of_descriptors(value: object) -> None:
    refused(index(manifests=value))
    refused(without(index(), "manifests"))


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": None},
        {"digest": 5},
        {"digest": ""},
        {"digest": "sha256:"},
        {"digest": "sha256:../../../../../../etc/passwd"},
        {"digest": "sha256:" + "../" * 21 + "x"},
        {"digest": "../../" + str(DIGESTS[0])},
        {"digest": str(DIGESTS[0]).upper()},
        {"digest": str(DIGESTS[0])[:-1]},
        {"digest": "md5:" + "0" * 32},
        {"digest": str(DIGESTS[0]) + "\0"},
        {"digest": [str(DIGESTS[0])]},
        {"size": None},
        {"size": -1},
        {"size": 1.0},
        {"size": "1"},
        {"size": True},
        {"size": 2**63},
        {"size": 10**39},
        {"mediaType": None},
        {"mediaType": ""},
        {"mediaType": 5},
        {"urls": "https://example.com"},
        {"urls": [5]},
        {"urls": [None]},
        {"platform": "linux"},
        {"platform": {"architecture": 5}},
        {"platform": []},
    ],
)
def test_a_descriptor_that_breaks_a_rule_is_refused_wherever_it_stands(changes: Json) -> None:
    broken = {**descriptor(1), **changes}
    for value in (
        image(config=broken),
        image(layers=[descriptor(1), broken]),
        image(subject=broken),
        index(manifests=[broken]),
        index(subject=broken),
        {"mediaType": OCI_ARTIFACT, "blobs": [broken]},
    ):
        refused(value)


@pytest.mark.parametrize("value", [5, "text", [], True, {"k": 5}, {"k": None}, {"k": ["v"]}])
def test_annotations_must_be_texts(value: object) -> None:
    refused(image(annotations=value))
    refused(index(annotations=value))


@pytest.mark.parametrize("value", [5, [], {}, True])
def test_an_artifact_type_must_be_a_text(value: object) -> None:
    refused(image(artifactType=value))


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        (image(), OCI_MANIFEST),
        (index(mediaType=DOCKER_LIST), DOCKER_LIST),
        ({"mediaType": DOCKER_MANIFEST}, DOCKER_MANIFEST),
        ({"config": None}, OCI_MANIFEST),
        ({"manifests": 5}, OCI_INDEX),
        ({"MediaType": DOCKER_LIST}, DOCKER_LIST),
        ({"Config": {}, "manifests": None}, OCI_MANIFEST),
        ({"Manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2, "manifests": None}, OCI_INDEX),
        ({"config": {}, "manife\u017ft\u017f": []}, OCI_INDEX),  # a long s is an s to Go
    ],
)
def test_what_is_on_storage_is_named_without_being_judged(value: Json, media_type: str) -> None:
    assert stored_media_type(json.dumps(value).encode()) == media_type


@pytest.mark.parametrize("inside", [b'"caf\xe9"', b"9" * 5000, b"1e999", b'"\\ud800"'])
def test_what_go_reads_in_a_manifest_on_storage_is_read(inside: bytes) -> None:
    """Distribution takes bytes that are no UTF-8, and numbers of any length, where it does not look at them."""
    content = json.dumps(image(x="X")).encode().replace(b'"X"', inside)
    assert stored_media_type(content) == parse_stored(content).media_type == OCI_MANIFEST


def test_the_children_of_an_index_on_storage_are_those_that_have_a_digest() -> None:
    platform = {"Architecture": "amd64", "os": "linux"}
    entries = [{"digest": str(DIGESTS[0]), "platform": platform}, {"Digest": str(DIGESTS[1])}, {"digest": "x"}, 5]
    children = parse_stored(json.dumps(index(mediaType=DOCKER_LIST, manifests=entries)).encode()).children
    assert [child.digest for child in children] == DIGESTS[:2]
    assert [child.platform for child in children] == [Platform("amd64", "linux"), Platform("", "")]
    assert parse_stored(json.dumps(index(manifests=5)).encode()).children == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"mediaType": 5}',
        b'{"mediaType": "x"}',
        b"\xff",
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_on_storage_and_cannot_be_named_is_no_manifest(content: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        stored_media_type(content)


@pytest.mark.parametrize(
    "value",
    [
        image(MediaType=OCI_INDEX),
        image(MEDIATYPE="x"),
        image(Manifests=[descriptor(1)]),
        image(Subject=None),
        image() | {"\u017fubject": descriptor(1)},
        index(manifests=[descriptor(1, OCI_MANIFEST, Digest=str(DIGESTS[2]))]),
        index(manifests=[descriptor(1, OCI_MANIFEST, platform={"OS": "linux", "architecture": "arm"})]),
        image(config=descriptor(1, CONFIG, MediaType=EMPTY)),
    ],
)
def test_a_field_in_another_case_is_refused(value: Json) -> None:
    """We would not see it, and whoever reads the manifest by Go's rules would."""
    with pytest.raises(ManifestInvalid, match="wanted"):
        read(value)


def test_names_that_are_nobodys_field_may_have_any_case() -> None:
    assert read(image(annotations={"MediaType": "x", "Config": "y"}, Custom={"Digest": 1})).annotations


# -- What holds for everything

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
shapes = st.sampled_from([image(), index(), {"mediaType": OCI_ARTIFACT, "blobs": [descriptor(1)]}])
types = st.none() | st.sampled_from(sorted(MEDIA_TYPES)) | st.text(max_size=20)


@given(st.binary(max_size=300), types)
def test_any_bytes_are_a_manifest_or_refused(content: bytes, content_type: str | None) -> None:
    try:
        parse_manifest(content, content_type)
    except ManifestInvalid:
        pass


@given(shapes, st.data(), values, types)
def test_any_value_in_any_place_is_taken_or_refused(
    shape: Json, data: st.DataObject, value: object, content_type: str | None
) -> None:
    altered = json.loads(json.dumps(shape))
    place: Any = altered
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from([*keys, "subject"] if isinstance(place, dict) else keys))
        inner = place[key] if key in keys else None
        if not inner or not isinstance(inner, dict | list) or data.draw(st.booleans()):
            break
        place = inner
    place[key] = value
    try:
        manifest = read(altered, content_type)
    except ManifestInvalid as error:
        str(error.detail).encode("utf-8")
        return
    assert manifest.media_type in MEDIA_TYPES
    json.dumps(manifest.descriptor(DIGESTS[0], 1).to_dict())
    if "mediaType" in altered or not content_type:
        assert seen(parse_stored(json.dumps(altered).encode())) == seen(manifest)


def seen(manifest: Manifest) -> tuple[object, ...]:
    """What pushes and reads have to agree on."""
    return (
        manifest.media_type,
        manifest.subject and manifest.subject.digest,
        [child.digest for child in manifest.children],
        manifest.artifact_type,
        manifest.config_media_type,
        manifest.annotations or None,
    )
