"""Where parts run, as drills write it down for `up`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster import places
from cluster.errors import ConfigError
from cluster.places import Place


def test_places_come_back_as_they_were_written(tmp_path: Path) -> None:
    place = Place("10.0.0.2", ["nsenter", "--net=x", "--"], ["--more"], {"A": "b"}, {"redis": {"addrs": ["r:1"]}})
    (tmp_path / "places.json").write_text(json.dumps({"node-1": asdict(place)}), encoding="utf-8")
    assert places.read(str(tmp_path / "places.json")) == {"node-1": place}


@pytest.mark.parametrize("text", ["", "[]", '{"node-1": 3}', '{"node-1": {"hosts": "x"}}'])
def test_what_is_no_place_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "places.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"places\.json.*wanted a JSON object of places"):
        places.read(str(tmp_path / "places.json"))


def test_a_place_changes_what_it_names_and_nothing_beside_it() -> None:
    config = {
        "storage": {"filesystem": {"rootdirectory": "/a"}, "delete": {"enabled": True}},
        "http": {"addr": ":1"},
    }
    laid = places.laid_over(config, {"storage": {"filesystem": {"rootdirectory": "/b"}}, "redis": {"addrs": ["r"]}})
    assert laid == {
        "storage": {"filesystem": {"rootdirectory": "/b"}, "delete": {"enabled": True}},
        "http": {"addr": ":1"},
        "redis": {"addrs": ["r"]},
    }
    assert config["storage"]["filesystem"] == {"rootdirectory": "/a"}
