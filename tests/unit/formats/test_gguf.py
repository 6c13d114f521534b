"""The GGUF reader against files written by the `gguf` package, and against files made to break it."""

import os
import time

import gguf
import numpy as np
import pytest
from support.gguf_bytes import ARRAY, STRING, array_value, gguf_bytes, string_value, tensor_info, text, u64

from openhearth.errors import BadFile, ModelNotFound, Unsupported
from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.formats.gguf import read_gguf
from openhearth.formats.mapping import map_tensor

KINDS = gguf.GGMLQuantizationType
VALUES = gguf.GGUFValueType


def write_with_gguf(path, *, tensors=None, values=(), alignment=None, endianess=gguf.GGUFEndian.LITTLE):
    """tensors: name -> (raw array, type)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value, kind in values:
        writer.add_key_value(key, value, kind, VALUES.STRING if kind == VALUES.ARRAY and value
                             and isinstance(value[0], str) else None)
    for name, (raw, kind) in (tensors or {}).items():
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for rows, (name, block) in enumerate(BLOCK_TYPES.items(), start=1):
        raw = rng.integers(0, 256, (rows, 3, block.num_bytes * 2), dtype=np.uint8)
        if name == "F32":
            raw = raw.view(np.float32)
        elif name == "F16":
            raw = raw.view(np.float16)
        tensors[f"blk.{rows}.{name.lower()}"] = (raw, KINDS[name])
    return tensors


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path, alignment):
    path = write_with_gguf(tmp_path / "m.gguf", tensors=random_tensors(), alignment=alignment)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    assert {entry.type for entry in ours.tensors.values()} == set(BLOCK_TYPES)
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.type, entry.num_bytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert entry.offset == tensor.data_offset
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        view = map_tensor(entry)
        assert view.readonly and bytes(view) == tensor.data.tobytes()


def test_values_of_every_kind_are_those_the_gguf_package_wrote(tmp_path):
    values = [("a.u8", 255, VALUES.UINT8), ("a.i8", -128, VALUES.INT8), ("a.u16", 65535, VALUES.UINT16),
              ("a.i16", -32768, VALUES.INT16), ("a.u32", 2**32 - 1, VALUES.UINT32),
              ("a.i32", -2**31, VALUES.INT32), ("a.u64", 2**64 - 1, VALUES.UINT64),
              ("a.i64", -2**63, VALUES.INT64), ("a.f32", 0.5, VALUES.FLOAT32), ("a.f64", 0.1, VALUES.FLOAT64),
              ("a.yes", True, VALUES.BOOL), ("a.no", False, VALUES.BOOL),
              ("a.text", "Gr\u00fc\u00dfe \u732b\n", VALUES.STRING),
              ("a.texts", ["", "b", "\u00e9", "\U0001f600"], VALUES.ARRAY),
              ("a.ints", [1, -2, 3], VALUES.ARRAY), ("a.floats", [0.5, -1.25], VALUES.ARRAY),
              ("a.flags", [True, False], VALUES.ARRAY)]
    path = write_with_gguf(tmp_path / "m.gguf", values=values)
    metadata = read_gguf(path).metadata
    assert metadata["general.architecture"] == "llama"
    for key, value, _ in values:
        assert metadata[key] == value and type(metadata[key]) is type(value), key
    assert all(type(item) is bool for item in metadata["a.flags"])


def test_nested_and_empty_arrays_are_read(tmp_path):
    inner = (4).to_bytes(4, "little") + u64(2) + bytes([1, 0, 0, 0, 2, 0, 0, 0])
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([array_value("nested", ARRAY, 2, inner * 2),
                                 array_value("empty", STRING, 0)]))
    assert read_gguf(path).metadata == {"nested": [[1, 2], [1, 2]], "empty": []}


def test_version_2_is_read_like_version_3(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([string_value("a", "b")], [tensor_info("t", [4])], bytes(16), version=2))
    found = read_gguf(path)
    assert found.metadata == {"a": "b"} and found.tensors["t"].shape == (4,)


def test_a_header_with_the_vocabulary_of_a_large_model_is_read_within_two_seconds(tmp_path):
    tokens = b"".join(text(f"token number {index}") for index in range(150_000))
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([array_value("tokens", STRING, 150_000, tokens),
                                 array_value("merges", STRING, 150_000, tokens)]))
    start = time.process_time()
    metadata = read_gguf(path).metadata
    assert time.process_time() - start < 2.0
    assert metadata["merges"][149_999] == "token number 149999"


def test_big_endian_files_are_refused_by_name(tmp_path):
    path = write_with_gguf(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(Unsupported, match="big-endian"):
        read_gguf(path)


@pytest.mark.parametrize("version", [0, 1, 4, 2**31])
def test_other_versions_are_refused_by_number(tmp_path, version):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(version=version))
    with pytest.raises(Unsupported, match=f"GGUF version {version}" if version != 2**31 else "big-endian"):
        read_gguf(path)


@pytest.mark.parametrize("name", sorted({kind.name for kind in KINDS} - BLOCK_TYPES.keys()))
def test_types_that_are_not_read_are_refused_by_name(tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [tensor_info("output.weight", [256], KINDS[name].value)], bytes(4096)))
    with pytest.raises(Unsupported, match=rf"`output.weight` has the GGML type {name}\n") as caught:
        read_gguf(path)
    assert "Q4_K" in caught.value.why and caught.value.hint


@pytest.mark.parametrize("number,name", [(4, "Q4_2"), (33, "Q4_0_8_8"), (37, "IQ4_NL_4_8"),
                                         (999, "number 999")])
def test_types_that_ggml_dropped_or_does_not_have_are_refused(tmp_path, number, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [tensor_info("t", [256], number)], bytes(4096)))
    with pytest.raises(Unsupported, match=f"GGML type {name}"):
        read_gguf(path)


def test_a_file_cut_anywhere_is_refused_as_truncated(tmp_path):
    whole = write_with_gguf(tmp_path / "whole.gguf", tensors=random_tensors(),
                            values=[("a.texts", ["x", "yy"], VALUES.ARRAY), ("a.f", 1.5, VALUES.FLOAT32)])
    raw = whole.read_bytes()
    end = max(entry.offset + entry.num_bytes for entry in read_gguf(whole).tensors.values())
    first = min(entry.offset for entry in read_gguf(whole).tensors.values())
    path = tmp_path / "cut.gguf"
    for length in [*range(1, first + 1, 3), *range(first + 1, end, 997), end - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(BadFile, match="truncated or corrupted"):
            read_gguf(path)
    path.write_bytes(raw[:end])
    assert len(read_gguf(path).tensors) == len(BLOCK_TYPES)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(ModelNotFound, match="no file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(BadFile, match="not a regular file"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="not a regular file"):
        read_gguf(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(BadFile, match="empty: 0 bytes"):
        read_gguf(tmp_path / "empty")


def test_a_file_that_became_shorter_is_refused_when_its_tensor_is_mapped(tmp_path):
    path = write_with_gguf(tmp_path / "m.gguf", tensors=random_tensors())
    entry = list(read_gguf(path).tensors.values())[-1]
    os_size = entry.offset + entry.num_bytes - 1
    with path.open("r+b") as file:
        file.truncate(os_size)
    with pytest.raises(BadFile, match=f"has {os_size} bytes"):
        map_tensor(entry)
