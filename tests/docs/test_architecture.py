"""docs/architecture.md names real files and real functions."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py): ([A-Za-z_][\w.]*)`", TEXT)))
FILES = sorted(set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|toml))[`:]", TEXT)))


def test_the_page_names_enough_to_be_worth_checking():
    assert len(NAMES) >= 25


@pytest.mark.parametrize("file,name", NAMES)
def test_name_exists(file, name):
    module = importlib.import_module("openhearth." + file.removesuffix(".py").replace("/", "."))
    target = module
    for part in name.split("."):
        fields = getattr(target, "__dataclass_fields__", {})
        assert hasattr(target, part) or part in fields, f"{file} has no {name}"
        target = getattr(target, part, None)


@pytest.mark.parametrize("file", FILES)
def test_file_exists(file):
    assert (ROOT / "src" / "openhearth" / file).exists() or (ROOT / file).exists()
