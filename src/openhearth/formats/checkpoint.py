"""A model on disk, whatever its form, as one checked `Checkpoint`.

Forms: a GGUF file (all parts when split); a folder with `config.json` and `model.safetensors` or
`model.safetensors.index.json`; a folder with exactly one GGUF model. Symbolic links are followed,
as the Hugging Face cache is made of them; names inside an index may not leave the folder.

Does not: read weights, or check that an architecture has all its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, ModelNotFound, UnsafeFile
from openhearth.formats.gguf_split import part_paths, read_gguf_model
from openhearth.formats.json_files import read_json_object
from openhearth.formats.mapping import damaged
from openhearth.formats.quoting import quoted, quoted_list
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.formats.safetensors import read_safetensors
from openhearth.formats.unsafe import PICKLE_SUFFIXES, WAY_OUT, refuse_code_keys, sniff

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20  # the index of DeepSeek-R1 (163 files, 91,991 tensors) has 9 MB
MAX_SHARDS = 4096


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and check all headers of the model at path.

    Raises: ModelNotFound when nothing is there; UnsafeFile for pickles and for a config that names
    code; Unsupported for file versions and tensor types this version does not read, by name;
    BadFile for everything else that is missing, truncated, corrupted or ambiguous.
    """
    path = Path(path)
    try:
        is_folder = path.is_dir()
    except ValueError:  # a NUL byte in the path
        is_folder = False
    if is_folder:
        return _open_folder(path)
    if sniff(path) == "gguf":
        return read_gguf_model(path)
    if path.name == SINGLE:
        return _open_safetensors(path.parent, (path,))
    raise BadFile(f"{quoted(path)} is one safetensors file, not a model",
                  why=f"a model is a folder with {CONFIG} and {SINGLE} or {INDEX}", hint="give the folder")


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(child.name for child in folder.iterdir())
    except OSError as error:
        raise BadFile(f"cannot read the folder {quoted(folder)}: {error.strerror}",
                      hint="check its permissions") from None
    if SINGLE in names:
        return _open_safetensors(folder, (folder / SINGLE,))
    if INDEX in names:
        return _open_sharded(folder)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return _open_only_gguf(folder, ggufs)
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    if pickles:
        raise UnsafeFile(f"{quoted(folder)} has only pickled weights: {quoted_list(pickles)}",
                         why="loading a pickle runs code of its author", hint=WAY_OUT)
    kind = BadFile if CONFIG in names else ModelNotFound
    found = quoted_list(names) if names else "nothing"
    raise kind(f"{quoted(folder)} holds no weights",
               why=f"expected {SINGLE}, {INDEX} or one GGUF file, found {found}",
               hint="hearth pull REF fetches a whole model")


def _open_only_gguf(folder: Path, names: list[str]) -> Checkpoint:
    models = {part_paths(folder / name)[0] for name in names}
    if len(models) > 1:
        raise BadFile(f"{quoted(folder)} holds {len(models)} GGUF models: "
                      f"{quoted_list(model.name for model in models)}",
                      why="which one to use has to be said", hint="give the path of one file")
    first = folder / names[0]
    sniff(first)
    return read_gguf_model(first)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise BadFile(f"{quoted(folder)} has weights but no {CONFIG}", why="it says what the weights are",
                      hint="fetch the whole model: hearth pull REF")
    config = read_json_object(path, MAX_CONFIG_BYTES)
    # Whether its own classes are known is seen where the architecture is (`spec/from_config.py`).
    refuse_code_keys({key: value for key, value in config.items() if key != "auto_map"}, path)
    return config


def _open_safetensors(folder: Path, files: tuple[Path, ...]) -> Checkpoint:
    config = _read_config(folder)
    tensors: dict[str, TensorEntry] = {}
    for path in files:
        if sniff(path) != "safetensors":
            raise BadFile(f"{quoted(path)} is a GGUF file under the name of a safetensors file",
                          hint="rename it to end in .gguf and give its path")
        found = read_safetensors(path).tensors
        twice = tensors.keys() & found.keys()
        if twice:
            raise damaged(f"{quoted(path)} holds tensors of another file: {quoted_list(twice)}")
        tensors.update(found)
    return Checkpoint(folder, "safetensors", files, {}, config, tensors)


def _open_sharded(folder: Path) -> Checkpoint:
    path = folder / INDEX
    index = read_json_object(path, MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(f"{quoted(path)} has no `weight_map`", "it says which file holds each tensor")
    names = {name if isinstance(name, str) else repr(name) for name in weight_map.values()}
    if len(names) > MAX_SHARDS:
        raise damaged(f"{quoted(path)} names {len(names)} files, the limit is {MAX_SHARDS}")
    for name in names:
        _check_shard_name(name, path)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BadFile(f"{quoted(folder)} lacks {len(missing)} of {len(names)} weight files",
                      why=f"{INDEX} names {quoted_list(missing)}",
                      hint="fetch the missing files: hearth pull REF")
    checkpoint = _open_safetensors(folder, tuple(folder / name for name in sorted(names)))
    _check_index(path, weight_map, index.get("metadata"), checkpoint)
    return checkpoint


def _check_shard_name(name: str, path: Path) -> None:
    is_plain = name.endswith(".safetensors") and not name.startswith(".") and name.isprintable()
    if not is_plain or any(mark in name for mark in "/\\:"):
        raise damaged(f"{quoted(path)} names the weight file {quoted(name)}",
                      "expected the plain name of a .safetensors file in the same folder")


def _check_index(path: Path, weight_map: dict[str, str], about: Any, checkpoint: Checkpoint) -> None:
    wrong = [name for name, file in weight_map.items()
             if name not in checkpoint.tensors or checkpoint.tensors[name].path.name != file]
    if wrong:
        raise damaged(f"{quoted(path)} names {len(wrong)} tensors that are not in their file",
                      f"index and weight files do not belong together: {quoted_list(wrong)}")
    unnamed = checkpoint.tensors.keys() - weight_map.keys()
    if unnamed:
        raise damaged(f"{quoted(path)} does not name {len(unnamed)} tensors of its files",
                      f"index and weight files do not belong together: {quoted_list(unnamed)}")
    stated = about.get("total_size") if isinstance(about, dict) else None
    total = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    if stated is not None and stated != total:
        raise damaged(f"{quoted(path)} says the tensors have {quoted(stated)} bytes, its files hold {total}")
