"""What a registry does not do now: writes while read-only, deletes that are off, one body too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import falcon
import falcon.testing
from falcon.testing import Result

from tests.api.conftest import CONFIG, MANIFEST, Api, Json, MakeApi, encode, extend, refusal, sha

CONTENT = b"content"
READ_ONLY = {"maintenance": {"readonly": {"enabled": True}}}


def test_a_read_only_registry_answers_every_read(make_api: MakeApi) -> None:
    manifest = make_api().push_image("a", "v1")
    api = make_api(storage=READ_ONLY)
    for path in (
        "/v2/",
        "/v2/_catalog",
        "/v2/a/tags/list",
        "/v2/a/manifests/v1",
        f"/v2/a/manifests/{sha(manifest)}",
        f"/v2/a/blobs/{sha(b'layer')}",
        f"/v2/a/referrers/{sha(manifest)}",
    ):
        assert api.get(path).status_code == 200, path
        assert api.head(path).status_code == 200, path


def test_a_read_only_registry_refuses_every_write_and_changes_nothing(make_api: MakeApi) -> None:
    writable = make_api()
    manifest = writable.push_image("a", "v1")
    session = writable.append(writable.start("a"), CONTENT)
    api = make_api(storage=READ_ONLY)
    before = api.snapshot()
    answers = [
        api.post("/v2/a/blobs/uploads/"),
        api.post(extend("/v2/a/blobs/uploads/", digest=sha(CONTENT)), body=CONTENT),
        api.post(extend("/v2/b/blobs/uploads/", mount=sha(b"layer"), **{"from": "a"})),
        api.patch(session, body=CONTENT),
        api.finish(session, sha(CONTENT)),
        api.delete(session),
        api.put_manifest("a", "v2", manifest),
        api.put_manifest("a", sha(manifest), manifest),
        api.delete("/v2/a/manifests/v1"),
        api.delete(f"/v2/a/manifests/{sha(manifest)}"),
        api.delete(f"/v2/a/blobs/{sha(b'layer')}"),
    ]
    for answer in answers:
        assert refusal(answer) == (405, "UNSUPPORTED")
        assert answer.headers["Allow"] == "GET, HEAD"
    assert api.snapshot() == before
    assert api.get(session).status_code == 204
    assert writable.finish(session, sha(CONTENT)).status_code == 201


def test_where_deletes_are_off_only_deletes_are_refused(make_api: MakeApi) -> None:
    api = make_api(storage={"delete": {"enabled": False}})
    manifest = api.push_image("a", "v1")
    before = api.snapshot()
    for reference in ("v1", sha(manifest), "none", "sha256:zz"):
        answer = api.delete(f"/v2/a/manifests/{reference}")
        assert refusal(answer) == (405, "UNSUPPORTED")
        assert answer.headers["Allow"] == "GET, HEAD, PUT"
    assert api.snapshot() == before
    assert api.delete(api.start("a")).status_code == 204, "to give up an upload is not to delete content"
    assert api.put_manifest("a", "v2", manifest).status_code == 201


def test_a_body_too_many_is_429_and_says_when_to_come_again(make_api: MakeApi) -> None:
    """While one body comes in, others are refused; when it has come there is room again."""
    api = make_api(cluster={"maxuploads": 1})
    first, second = api.start("a"), api.start("a")
    digest = {"digest": sha(CONTENT)}
    others = [
        ("PATCH", second),
        ("PUT", extend(second, **digest)),
        ("POST", extend("/v2/a/blobs/uploads/", **digest)),
    ]
    sent, refused = falcon.async_to_sync(meanwhile, api, first, others)
    for answer in refused:
        assert refusal(answer) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) > 0
    assert sent.status == 202
    assert api.finish(second, sha(CONTENT), CONTENT).status_code == 201
    assert api.get(first).headers["Range"] == f"0-{len(CONTENT) - 1}"


async def meanwhile(
    api: Api, location: str, others: list[tuple[str, str]]
) -> tuple[falcon.testing.ASGIResponseEventCollector, list[Result]]:
    """PATCH a body that comes only after these other requests have been answered."""
    asked, come = asyncio.Event(), asyncio.Event()

    async def receive() -> Json:
        asked.set()
        await come.wait()
        return {"type": "http.request", "body": CONTENT, "more_body": False}

    path, _, query = location.partition("?")
    scope = falcon.testing.create_scope(path, query, "PATCH", content_length=len(CONTENT))
    sent = falcon.testing.ASGIResponseEventCollector()
    async with falcon.testing.ASGIConductor(api.app) as conductor:
        slow = asyncio.create_task(api.app(scope, receive, sent.collect))
        await asyncio.wait_for(asked.wait(), 10)
        answers = [await conductor.simulate_request(method, url, body=CONTENT) for method, url in others]
        come.set()
        await slow
    return sent, answers


def test_large_manifests_that_are_being_sent_have_a_bound_and_small_ones_pass(api: Api) -> None:
    """Whoever begins a large manifest and goes on slowly holds memory: of that, there is only so much."""
    config = api.push("a", b"{}")
    small: Json = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}
    small["config"] = {"mediaType": CONFIG, "digest": config, "size": 2}
    large = encode({**small, "annotations": {"a": "x" * 4_000_000}})
    refused, passed, late = falcon.async_to_sync(stalled, api, encode(small), large)
    assert refusal(refused) == (429, "TOOMANYREQUESTS")
    assert int(refused.headers["Retry-After"]) > 0
    assert passed.status_code == 201
    assert late.status_code == 201, "what was given up has left its room"


async def stalled(api: Api, small: bytes, large: bytes) -> list[Result]:
    """PUT a large manifest and a small one while sixteen large ones are under way, and a large one after these."""
    begun, gone = asyncio.Semaphore(0), asyncio.Event()

    def receive() -> Callable[[], Awaitable[Json]]:
        async def next_event(events: Iterator[Json]) -> Json:
            for event in events:
                return {"type": "http.request", **event}
            begun.release()
            await gone.wait()
            return {"type": "http.disconnect"}

        return partial(next_event, iter([{"body": large[:300_000], "more_body": True}]))

    headers = {"Content-Type": MANIFEST}
    scope = partial(falcon.testing.create_scope, "/v2/a/manifests/t", "", "PUT", headers)
    async with falcon.testing.ASGIConductor(api.app) as conductor:
        slow = [
            asyncio.create_task(
                api.app(
                    scope(content_length=4 << 20), receive(), falcon.testing.ASGIResponseEventCollector().collect
                )
            )
            for _ in range(16)
        ]
        for _ in slow:
            await asyncio.wait_for(begun.acquire(), 10)
        put = partial(conductor.simulate_put, "/v2/a/manifests/t", headers=headers)
        answers = [await put(body=large), await put(body=small)]
        gone.set()
        await asyncio.gather(*slow)
        return [*answers, await put(body=large)]
