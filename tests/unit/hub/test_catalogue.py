"""The catalogue of short names and one's own additions to it."""

import pytest

from openhearth.errors import BadFile
from openhearth.hub import DEFAULT_MODEL, StoredModel, load_catalogue, recommended_sampling

OWN = """
[{name}]
file = "m.gguf"
size = 12
sha256 = "{digest}"
sources = ["https://models.example/m.gguf"]
"""


def write_own(config, text):
    config.home.mkdir(parents=True, exist_ok=True)
    (config.home / "catalogue.toml").write_text(text)


def test_the_default_model_is_pinned_and_has_two_sources(config):
    entry = load_catalogue(config)[DEFAULT_MODEL]
    assert (entry.size, entry.licence) == (98362432, "Apache-2.0")
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert [source.split(":")[0] for source in entry.sources] == ["hub", "index"]
    assert entry.sampling == {"temperature": 0.2, "top_p": 0.9}


def test_an_own_entry_is_added_and_may_replace_one(config):
    write_own(config, OWN.format(name="mine", digest="a" * 64) + OWN.format(name="smollm2", digest="b" * 64))
    catalogue = load_catalogue(config)
    assert catalogue["mine"].size == 12
    assert catalogue["smollm2"].sha256 == "b" * 64


@pytest.mark.parametrize(
    "text,reason",
    [
        (OWN.format(name="mine", digest="A" * 64), "sha256"),
        (OWN.format(name="mine", digest="../" * 21 + "a"), "sha256"),
        (OWN.format(name="mine", digest="a" * 64).replace("12", "-1"), "size"),
        (OWN.format(name="mine", digest="a" * 64).replace('"m.gguf"', '"../m.gguf"'), "relative path"),
        (
            OWN.format(name="mine", digest="a" * 64).replace("https://models.example/m.gguf", "/etc/passwd"),
            "source",
        ),
        (OWN.format(name="mine", digest="a" * 64) + "surprise = 1\n", "surprise"),
        (OWN.format(name="mine", digest="a" * 64) + "sampling = {temprature = 1}\n", "temperature"),
        (OWN.format(name='"a/b"', digest="a" * 64), "short name"),
        ("mine = 1", "table"),
        ("not toml", "Expected"),
    ],
)
def test_a_malformed_own_catalogue_is_refused_by_name(config, text, reason):
    write_own(config, text)
    with pytest.raises(BadFile) as caught:
        load_catalogue(config)
    assert "catalogue.toml" in str(caught.value) and reason in str(caught.value)


def test_sampling_is_recommended_for_the_weights_not_for_the_name(config, tmp_path):
    digest = load_catalogue(config)[DEFAULT_MODEL].sha256
    known = StoredModel("./copy.gguf", tmp_path, "", {}, digest, 1)
    assert recommended_sampling(known, config) == {"temperature": 0.2, "top_p": 0.9}
    assert recommended_sampling(StoredModel(DEFAULT_MODEL, tmp_path, "", {}, "0" * 64, 1), config) == {}
    write_own(config, OWN.format(name="mine", digest="0" * 64) + "sampling = {top_k = 5}\n")
    assert recommended_sampling(StoredModel("x", tmp_path, "", {}, "0" * 64, 1), config) == {"top_k": 5}
