"""Rows from a hub's data set: fetched once, then offline; refused with what would work."""

import json

import pytest
from support.hub_server import HubServer
from support.transfers import config_for, isolate_pip

from openhearth import hub
from openhearth.cli.facts import gather
from openhearth.errors import ModelNotFound, Offline
from openhearth.tune.data import Row, read_rows
from openhearth.tune.data.sources import find_files


@pytest.fixture
def server(monkeypatch, tmp_path):
    isolate_pip(monkeypatch, tmp_path)
    with HubServer(page_size=2) as server:
        yield server


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


FILES = {"README.md": b"---\nlicense: mit\n---\n", "data/train-00000.jsonl": lines("a", "b"),
         "data/train-00001.jsonl": lines("c"), "data/test.jsonl": lines("d"), "script.py": b"print()"}


def texts(files):
    rows = [row for path in files for row in read_rows(path)]
    assert all(isinstance(row, Row) for row in rows)
    return [row.fields["text"] for row in rows]


def test_a_data_set_is_its_training_rows_and_stays_without_the_hub(server, tmp_path):
    server.add_repo("datasets/o/n", FILES)
    assert texts(find_files(["hub:datasets/o/n"], config_for(server, tmp_path))) == ["a", "b", "c"]
    offline = config_for(server, tmp_path, HEARTH_OFFLINE="1")
    assert "it is a data set" in gather(hub.find("hub:datasets/o/n", offline))["unsupported"]
    server.requests.clear()
    assert texts(find_files(["hub:datasets/o/n"], offline)) == ["a", "b", "c"]
    assert not server.requests
    with pytest.raises(Offline, match="hub:datasets/o/other"):
        find_files(["hub:datasets/o/other"], offline)


def test_a_file_and_a_revision_of_a_data_set_can_be_named(server, tmp_path):
    commit = server.add_repo("datasets/o/n", FILES)
    server.add_repo("datasets/o/n", {"data/test.jsonl": lines("new")})
    config = config_for(server, tmp_path)
    assert texts(find_files(["hub:datasets/o/n:data/test.jsonl"], config)) == ["new"]
    assert texts(find_files([f"hub:datasets/o/n@{commit}:data/test.jsonl"], config)) == ["d"]
    stored = hub.find(f"hub:datasets/o/n@{commit}:data/test.jsonl", config)
    assert stored.revision == commit and stored.source.endswith(f"@{commit}:data/test.jsonl")


def test_a_data_set_without_rows_is_refused(server, tmp_path):
    server.add_repo("datasets/o/n", {"images/cat.png": b"x"})
    with pytest.raises(ModelNotFound, match="has no rows"):
        find_files(["hub:datasets/o/n"], config_for(server, tmp_path))


def test_a_model_of_an_owner_called_datasets_is_still_a_model(server, tmp_path):
    server.add_repo("datasets/n", {"config.json": b"{}", "model.safetensors": b"x"})
    assert [file.path for file in hub.list_sources("hub:datasets/n", config_for(server, tmp_path)).files] == [
        "config.json", "model.safetensors"]
