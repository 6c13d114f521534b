"""Pickles in every wrapping, and configs that name code, are refused."""

import collections
import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from support.gguf_bytes import gguf_bytes, safetensors_bytes

from openhearth.errors import BadFile, UnsafeFile, Unsupported
from openhearth.formats.unsafe import refuse_code_keys, refuse_foreign_classes, sniff


def torch_bytes(**options):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer, **options)
    return buffer.getvalue()


def tar_bytes():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()


def numpy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "x")
    return buffer.getvalue()


STATE = collections.OrderedDict(w=[1.0, 2.0])
UNSAFE = {
    "torch zip": (torch_bytes(), "zip archive with a pickle inside"),
    "torch before 1.6": (torch_bytes(_use_new_zipfile_serialization=False), "pickle of protocol 2"),
    "any zip": (zip_bytes(), "zip archive; torch.save"),
    "tar": (tar_bytes(), "tar archive"),
    "numpy objects": (numpy_bytes(np.array([{}, None], dtype=object)), "numpy array of Python objects"),
    "numpy records with objects": (numpy_bytes(np.zeros(2, dtype=[("a", "i4"), ("b", "O")])),
                                   "numpy array of Python objects"),
    "numpy numbers": (numpy_bytes(np.zeros(2)), "numpy array file"),
    **{f"pickle protocol {number}": (pickle.dumps(STATE, number), f"pickle of protocol {number}")
       for number in range(2, 6)},
    **{f"{kind}, protocol {number}": (pickle.dumps(value, number), "pickle of protocol 0 or 1")
       for number in (0, 1) for kind, value in [("dict", {"a": 1}), ("list", [1, 2]), ("object", STATE)]},
    "call by hand": (b"cos\nsystem\n(S'true'\ntR.", "pickle of protocol 0 or 1"),
    "call by hand with a mark": (b"(cos\nsystem\nS'true'\no.", "pickle of protocol 0 or 1"),
    "instance by hand": (b"(ios\nsystem\n.", "pickle of protocol 0 or 1"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin", "noname"])
@pytest.mark.parametrize("case", UNSAFE)
def test_pickles_are_refused_by_their_bytes_whatever_their_name(tmp_path, case, name):
    raw, reason = UNSAFE[case]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UnsafeFile, match=reason) as caught:
        sniff(path)
    assert name in caught.value.what and "safetensors or GGUF version" in caught.value.hint


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".PTH", ".ckpt", ".pkl"])
def test_unknown_bytes_under_the_name_of_a_pickle_are_refused_as_unsafe(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no magic number here")
    with pytest.raises(UnsafeFile, match="are pickles"):
        sniff(path)


def test_weight_files_are_known_by_their_bytes_whatever_their_name(tmp_path):
    (tmp_path / "a.bin").write_bytes(gguf_bytes())
    (tmp_path / "b.pt").write_bytes(safetensors_bytes({}))
    assert (sniff(tmp_path / "a.bin"), sniff(tmp_path / "b.pt")) == ("gguf", "safetensors")


@pytest.mark.parametrize("raw,kind,message", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", BadFile, "git-lfs pointer"),
    (b"<!DOCTYPE html><html>", BadFile, "a web page"),
    (gzip.compress(b"x", mtime=0), BadFile, "gzip archive"),
    (b"tjgg" + bytes(60), Unsupported, "GGJT file"),
    (b"", BadFile, "empty"),
    (b"plain text", BadFile, "neither a GGUF nor a safetensors file"),
    (b'{"a": 1}', BadFile, "neither a GGUF nor a safetensors file"),
])
def test_other_files_are_refused_with_what_they_are(tmp_path, raw, kind, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(kind, match=message) as caught:
        sniff(path)
    assert not isinstance(caught.value, UnsafeFile) and caught.value.hint


@pytest.mark.parametrize("config,key", [
    ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ({"text_config": {"layers": [{"auto_map": {"a": "b"}}]}}, "auto_map"),
    ({"_attn_implementation": "owner/repo"}, "_attn_implementation"),
    ({"_attn_implementation_internal": "owner/repo"}, "_attn_implementation_internal"),
    ({"_attn_implementation_autoset": "owner/repo"}, "_attn_implementation_autoset"),
    ({"_attn_implementation": {"text": "owner/repo"}}, "_attn_implementation"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"head": {"_target_": "os.system"}}, "_target_"),
    ({"custom_pipelines": {"x": {"impl": "a.B"}}}, "custom_pipelines"),
])
def test_a_config_that_names_code_is_refused_with_the_key(tmp_path, config, key):
    with pytest.raises(UnsafeFile, match=f"its key `{key}`"):
        refuse_code_keys(config, tmp_path / "config.json")


@pytest.mark.parametrize("config", [{}, {"auto_map": None}, {"trust_remote_code": False},
                                    {"_attn_implementation_autoset": True}, {"_attn_implementation": "sdpa"},
                                    {"model_type": "auto_map"}, {"vocab": {"a": 1}, "list": [[1, {"b": 2}]]}])
def test_a_config_that_names_no_code_is_accepted(tmp_path, config):
    assert refuse_code_keys(config, tmp_path / "config.json") is None


OWN = frozenset({"configuration_deepseek", "modeling_deepseek"})


@pytest.mark.parametrize("auto_map", [None, {}, {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
                                      {"AutoModel": "deepseek-ai/V3--modeling_deepseek.DeepseekV3Model",
                                       "AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}])
def test_classes_that_are_here_as_well_are_accepted(tmp_path, auto_map):
    assert refuse_foreign_classes(auto_map, tmp_path / "config.json", OWN) is None


@pytest.mark.parametrize("auto_map", [
    {"AutoModel": "modeling_evil.DeepseekV3Model"},
    {"AutoConfig": "configuration_deepseek.A", "AutoModel": "x.Y"},
    {"AutoModel": "modeling_deepseek--modeling_evil.Evil"}, {"AutoModel": ["modeling_deepseek.A", "evil.B"]},
    {"AutoModel": {}}, ["modeling_deepseek.A"], "modeling_deepseek.A", 7, True])
def test_other_classes_are_refused_whatever_the_value_is_like(tmp_path, auto_map):
    with pytest.raises(UnsafeFile, match="its key `auto_map`"):
        refuse_foreign_classes(auto_map, tmp_path / "config.json", OWN)
