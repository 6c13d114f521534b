"""Files and folders as one checkpoint."""

import json
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from support.gguf_bytes import gguf_bytes, key_value, tensor_info, u32_value

from openhearth.errors import BadFile, ModelNotFound, UnsafeFile
from openhearth.formats import map_tensor, open_checkpoint
from openhearth.spec import read_spec

INDEX = "model.safetensors.index.json"


def write_config(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))


def write_gguf(path, name="t", **options):
    writer = gguf.GGUFWriter(path, "llama", **options)
    rng = np.random.default_rng(0)
    for index in range(5):
        writer.add_tensor(f"{name}.{index}", rng.normal(size=(4, 8)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def sharded(tmp_path):
    """A sharded folder as huggingface_hub writes it, and its tensors."""
    folder = tmp_path / "sharded"
    write_config(folder)
    tensors = {f"layer.{index}": torch.full((8, 16), float(index)) for index in range(6)}
    save_torch_state_dict(tensors, folder, max_shard_size=1100)
    assert (folder / INDEX).exists()
    return folder, tensors


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_a_folder_written_by_transformers_is_read(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    expected = load_file(tiny_folder / "model.safetensors")
    assert checkpoint.format == "safetensors" and checkpoint.metadata == {}
    assert checkpoint.files == (tiny_folder / "model.safetensors",)
    assert checkpoint.config["model_type"] == "llama"
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert open_checkpoint(tiny_folder / "model.safetensors").tensors == checkpoint.tensors


def test_a_sharded_folder_written_by_huggingface_hub_is_read(sharded):
    folder, tensors = sharded
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files) == 3 and list(checkpoint.files) == sorted(checkpoint.files)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert bytes(map_tensor(checkpoint.tensors[name])) == tensor.numpy().tobytes()


def test_links_as_in_the_hugging_face_cache_are_followed(sharded, tmp_path):
    folder, tensors = sharded
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, path in enumerate(folder.iterdir()):
        blob = tmp_path / f"blob{number}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    assert open_checkpoint(snapshot).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors",
                                  "..\\m.safetensors", "c:m.safetensors", ".hidden.safetensors", "m.bin",
                                  "m\0.safetensors", "m\n.safetensors", "..", ""])
def test_an_index_that_leaves_the_folder_is_refused(sharded, name):
    folder, _ = sharded
    edit_index(folder, lambda index: index["weight_map"].update({"layer.0": name}))
    with pytest.raises(BadFile, match="expected the plain name"):
        open_checkpoint(folder)


def drop(name):
    return lambda index: index["weight_map"].pop(name)


INDEX_FAULTS = {
    "map missing": (lambda index: index.pop("weight_map"), "no `weight_map`"),
    "map empty": (lambda index: index["weight_map"].clear(), "no `weight_map`"),
    "map of lists": (lambda index: index["weight_map"].update({"layer.0": ["a"]}), "expected the plain name"),
    "shard missing": (lambda index: index["weight_map"].update({"layer.0": "gone.safetensors"}),
                      "lacks 1 of 4"),
    "tensor named but not there": (lambda index: index["weight_map"].update(
        {"ghost": index["weight_map"]["layer.0"]}), "names 1 tensors that are not in their file"),
    "tensor in another file": (lambda index: index["weight_map"].update(
        {"layer.0": index["weight_map"]["layer.5"]}), "`layer.0`"),
    "tensor not named": (drop("layer.3"), "does not name 1 tensors"),
    "wrong total": (lambda index: index["metadata"].update(total_size=1),
                    "says the tensors have `1` bytes, its files hold 3072"),
}


@pytest.mark.parametrize("case", INDEX_FAULTS)
def test_an_index_that_does_not_fit_its_files_is_refused(sharded, case):
    folder, _ = sharded
    change, message = INDEX_FAULTS[case]
    edit_index(folder, change)
    with pytest.raises(BadFile, match=message) as caught:
        open_checkpoint(folder)
    assert caught.value.hint


def test_an_index_without_total_size_is_read(sharded):
    folder, tensors = sharded
    edit_index(folder, lambda index: index.pop("metadata"))
    assert open_checkpoint(folder).tensors.keys() == tensors.keys()


def test_a_tensor_in_two_shards_is_refused(sharded):
    folder, tensors = sharded
    last = sorted(folder.glob("*.safetensors"))[-1]
    save_file(load_file(last) | {"layer.0": tensors["layer.0"]}, last)
    with pytest.raises(BadFile, match=r"holds tensors of another file: `layer\.0`"):
        open_checkpoint(folder)


def test_a_config_that_names_code_refuses_the_folder(tiny_folder, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(tiny_folder, folder)
    write_config(folder, text_config={"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}})
    with pytest.raises(UnsafeFile, match="auto_map"):
        open_checkpoint(folder)


def test_a_config_that_names_other_classes_than_those_here_refuses_the_folder(tiny_folder, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    write_config(folder, **config | {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}})
    with pytest.raises(UnsafeFile, match="auto_map"):
        read_spec(open_checkpoint(folder))


def test_a_folder_without_a_config_is_refused(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "model.safetensors", tmp_path)
    with pytest.raises(BadFile, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_a_pickle_named_as_safetensors_is_refused(tmp_path):
    write_config(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeFile, match="zip archive"):
        open_checkpoint(tmp_path)


def test_a_folder_with_only_pickles_says_so(tmp_path):
    write_config(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"only pickled weights: `pytorch_model\.bin`") as caught:
        open_checkpoint(tmp_path)
    assert "safetensors" in caught.value.hint


def test_a_pickle_beside_safetensors_is_left_alone(tiny_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(tiny_folder, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert open_checkpoint(folder).format == "safetensors"


def test_a_gguf_file_and_a_folder_with_just_that_file_are_the_same_model(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "README.md").write_text("x")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint == open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.config, len(checkpoint.tensors)) == ("gguf", {}, 5)
    assert checkpoint.path == tmp_path / "m.gguf" and checkpoint.files == (tmp_path / "m.gguf",)


def test_a_folder_with_several_gguf_models_names_them(tmp_path):
    for name in ("b.Q8_0.gguf", "a.Q4_0.gguf"):
        write_gguf(tmp_path / name)
    with pytest.raises(BadFile, match=r"2 GGUF models: `a\.Q4_0\.gguf`, `b\.Q8_0\.gguf`"):
        open_checkpoint(tmp_path)


def test_parts_written_by_the_gguf_package_are_followed_from_any_of_them(tmp_path):
    write_gguf(tmp_path / "m.gguf", split_max_tensors=2)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [part.name for part in parts] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for path in [*parts, tmp_path]:
        checkpoint = open_checkpoint(path)
        assert checkpoint.files == tuple(parts)
        assert checkpoint.metadata["general.architecture"] == "llama"
        assert not [key for key in checkpoint.metadata if key.startswith("split.")]
    (tmp_path / "whole").mkdir()
    write_gguf(tmp_path / "whole" / "m.gguf")
    whole = open_checkpoint(tmp_path / "whole" / "m.gguf")
    assert {name: bytes(map_tensor(entry)) for name, entry in checkpoint.tensors.items()} == {
        name: bytes(map_tensor(entry)) for name, entry in whole.tensors.items()}


def test_a_missing_part_is_named(tmp_path):
    write_gguf(tmp_path / "m.gguf", split_max_tensors=2)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    for path in (tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf", tmp_path):
        with pytest.raises(BadFile, match=r"`m-00002-of-00003\.gguf`"):
            open_checkpoint(path)


def part(number, count, total=1, name="t"):
    values = [key_value("split.no", 2, number.to_bytes(2, "little")),
              key_value("split.count", 2, count.to_bytes(2, "little")),
              key_value("split.tensors.count", 5, total.to_bytes(4, "little"))]
    return gguf_bytes(values, [tensor_info(name, [4])], bytes(32))


SPLIT_FAULTS = {
    "parts swapped": ([part(1, 2, 2, "a"), part(0, 2, 2, "b")],
                      "named part 1 of 2, its header says part `2` of `2`"),
    "part of another split": ([part(0, 2, 2, "a"), part(1, 3, 2, "b")], "says part `2` of `3`"),
    "part without the keys": ([part(0, 2, 2, "a"), gguf_bytes([], [tensor_info("b", [4])], bytes(32))],
                              "of `0`"),
    "keys of another kind": ([part(0, 2, 2, "a"), gguf_bytes([u32_value("split.count", 2), key_value(
        "split.no", 8, bytes(8))])], "says part `` of `2`"),
    "tensor in two parts": ([part(0, 2, 2, "a"), part(1, 2, 2, "a")], "holds tensors of another part: `a`"),
    "wrong number of tensors": ([part(0, 2, 9, "a"), part(1, 2, 9, "b")], "says the model has `9` tensors"),
}


@pytest.mark.parametrize("case", SPLIT_FAULTS)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, case):
    contents, message = SPLIT_FAULTS[case]
    for number, raw in enumerate(contents, start=1):
        (tmp_path / f"m-{number:05}-of-{len(contents):05}.gguf").write_bytes(raw)
    with pytest.raises(BadFile, match=message):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("name", ["m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-00001-of-99999.gguf"])
def test_impossible_part_numbers_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(part(0, 2))
    with pytest.raises(BadFile, match="is named part"):
        open_checkpoint(tmp_path / name)


def test_a_part_that_lost_its_name_is_refused(tmp_path):
    (tmp_path / "renamed.gguf").write_bytes(part(1, 3))
    with pytest.raises(BadFile, match="its header says part `2` of `3`"):
        open_checkpoint(tmp_path / "renamed.gguf")


def test_a_single_shard_is_no_model(sharded):
    folder, _ = sharded
    with pytest.raises(BadFile, match="one safetensors file, not a model") as caught:
        open_checkpoint(sorted(folder.glob("*.safetensors"))[0])
    assert caught.value.hint == "give the folder"


def test_nothing_an_empty_folder_and_a_folder_of_other_things_are_told_apart(tmp_path):
    with pytest.raises(ModelNotFound, match="no file"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(ModelNotFound, match="found nothing"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelNotFound, match=r"found `notes\.txt`"):
        open_checkpoint(tmp_path)
    write_config(tmp_path)
    with pytest.raises(BadFile, match="holds no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(BadFile, match="cannot open"):
        open_checkpoint("a\0b")


def test_opening_a_checkpoint_imports_neither_torch_nor_numpy(tiny_folder):
    code = ("import sys, pathlib; from openhearth.formats import open_checkpoint\n"
            f"assert open_checkpoint(pathlib.Path({str(tiny_folder)!r})).tensors\n"
            "assert not {'torch', 'numpy'} & sys.modules.keys()")
    from openhearth import __file__ as package
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": package.rsplit("/", 2)[0]},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
