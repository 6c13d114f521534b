"""The safetensors reader against files written, and files rejected, by the `safetensors` package."""

import json

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from support.gguf_bytes import safetensors_bytes, u64

from openhearth.errors import BadFile, HearthError, ModelNotFound, Unsupported
from openhearth.formats.json_files import MAX_DEPTH
from openhearth.formats.mapping import map_tensor
from openhearth.formats.safetensors import MAX_HEADER_BYTES, MAX_HEADER_VALUES, TYPE_BITS, read_safetensors

TORCH_TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int16,
               torch.int32, torch.int64, torch.uint8, torch.uint16, torch.bool, torch.float8_e4m3fn,
               torch.float8_e5m2]


def entry(shape, begin, end, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_of_every_type_lie_where_the_package_finds_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{index}": torch.randint(0, 2, (index + 1, 3), generator=generator).to(dtype)
               for index, dtype in enumerate(TORCH_TYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.empty(0, 7), "long name \u732b": torch.ones(5)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt", "note": "a \"b\" \u00e9"})
    found = read_safetensors(tmp_path / "m.safetensors")
    assert found.metadata == {"format": "pt", "note": "a \"b\" \u00e9"}
    assert found.tensors.keys() == tensors.keys()
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as theirs:
        for name, tensor in tensors.items():
            ours = found.tensors[name]
            piece = theirs.get_slice(name)
            assert (ours.type, list(ours.shape)) == (piece.get_dtype(), piece.get_shape())
            assert bytes(map_tensor(ours)) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert map_tensor(ours).readonly


def test_numpy_files_are_read_the_same(tmp_path):
    from safetensors.numpy import save_file as save_numpy
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_numpy({"w": weights}, tmp_path / "m.safetensors")
    found = read_safetensors(tmp_path / "m.safetensors").tensors["w"]
    assert np.array_equal(np.frombuffer(map_tensor(found), np.float32).reshape(found.shape), weights)


EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
DEEP = b'{"a":' * 200 + b"{}" + b"}" * 200
BROKEN = {
    "seven bytes": (bytes(7), "7 bytes"),
    "header length near 2**64": (u64(2**64 - 1) + b"{}", "the limit is 100000000"),
    "header length over the limit": (u64(MAX_HEADER_BYTES + 1) + b"{}", "100000001 bytes long"),
    "header beyond the file": (safetensors_bytes({}, length=100), "header ends at byte 108, the file has 10"),
    "header that starts with a space": (safetensors_bytes(b" {}"), "starts with b' '"),
    "empty header": (safetensors_bytes(b""), "starts with b''"),
    "header that is a list": (safetensors_bytes(b"[]"), r"starts with b'\['"),
    "header cut inside": (safetensors_bytes(b'{"a":'), "cannot be read"),
    "header in latin-1": (safetensors_bytes(b'{"\xe9":{}}'), "not valid UTF-8"),
    "two headers": (safetensors_bytes(b"{}{}"), "Extra data"),
    "lone surrogate in a name": (safetensors_bytes(b'{"\\ud800":' + EMPTY + b"}"), "not valid UTF-8"),
    "nested header": (safetensors_bytes(DEEP), f"deeper than {MAX_DEPTH}"),
    "nested until the stack would end": (
        safetensors_bytes(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "deeper"),
    "list bomb": (safetensors_bytes(b'{"a":[' + b"0," * MAX_HEADER_VALUES + b"0]}"), "the limit is 1000000"),
    "number with 5000 digits": (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "too many digits"),
    "duplicate tensor": (safetensors_bytes(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}"), "the key `a` twice"),
    "duplicate field": (safetensors_bytes(b'{"a":{"dtype":"I8",' + EMPTY[1:] + b"}"), "key `dtype` twice"),
    "metadata that is a list": (safetensors_bytes({"__metadata__": []}), "something other than texts"),
    "metadata with a number": (safetensors_bytes({"__metadata__": {"a": 1}}), "something other than texts"),
    "tensor that is a text": (safetensors_bytes({"a": "x"}), "exactly the fields"),
    "field missing": (safetensors_bytes({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "exactly the fields"),
    "field too many": (safetensors_bytes({"a": {**entry([1], 0, 1), "x": 1}}, b"x"), "exactly the fields"),
    "dtype that is a number": (safetensors_bytes({"a": entry([1], 0, 1, 8)}, b"x"), "dtype that is no text"),
    "negative dimension": (safetensors_bytes({"a": entry([-1], 0, 1)}, b"x"), r"shape `\[-1\]`"),
    "dimension that is a float": (safetensors_bytes({"a": entry([1.0], 0, 1)}, b"x"), r"shape `\[1\.0\]`"),
    "dimension that is a boolean": (safetensors_bytes({"a": entry([True], 0, 1)}, b"x"), r"shape `\[True\]`"),
    "shape that is a number": (safetensors_bytes({"a": entry(1, 0, 1)}, b"x"), "shape `1`"),
    "shape of 17 dimensions": (safetensors_bytes({"a": entry([1] * 17, 0, 1)}, b"x"), "at most 16"),
    "shape whose product is over 2**63": (
        safetensors_bytes({"a": entry([2**32, 2**32], 0, 1)}, b"x"), "elements"),
    "shape whose bytes wrap around 2**64": (safetensors_bytes({"a": entry([2**61], 0, 0, "F64")}), "needs"),
    "offsets that are negative": (safetensors_bytes({"a": entry([1], -1, 0)}, b"x"), "data_offsets"),
    "offsets that run backwards": (safetensors_bytes({"a": entry([1], 1, 0)}, b"x"), "data_offsets"),
    "offsets of three numbers": (
        safetensors_bytes({"a": {**entry([1], 0, 1), "data_offsets": [0, 1, 2]}}, b"x"), "data_offsets"),
    "offsets beyond 2**63": (safetensors_bytes({"a": entry([1], 2**64, 2**64 + 1)}, b"x"), "data_offsets"),
    "size that is not the shape's": (safetensors_bytes({"a": entry([2], 0, 3)}, b"xxx"), "has 3 bytes"),
    "half a byte": (safetensors_bytes({"a": entry([1], 0, 1, "F4")}, b"x"), "needs 4 bits"),
    "tensor beyond the file": (safetensors_bytes({"a": entry([8], 0, 8)}, b"1234567"), "truncated"),
    "bytes after the last tensor": (safetensors_bytes({"a": entry([1], 0, 1)}, b"xy"), "belong to no tensor"),
    "gap at the start": (safetensors_bytes({"a": entry([1], 1, 2)}, b"xy"), "leaves a gap"),
    "gap between tensors": (safetensors_bytes({"a": entry([1], 0, 1), "b": entry([1], 2, 3)}, b"xyz"),
                            "leaves a gap"),
    "overlap": (safetensors_bytes({"a": entry([2], 0, 2), "b": entry([2], 1, 3)}, b"xyz"), "overlaps"),
    "two tensors in one place": (safetensors_bytes({"a": entry([1], 0, 1), "b": entry([1], 0, 1)}, b"x"),
                                 "overlaps"),
}
# What we refuse beyond the package: ambiguity, and sizes no weight has.
STRICTER = {"duplicate tensor", "duplicate field", "field too many", "shape of 17 dimensions", "list bomb",
            "header that starts with a space"}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_the_numbers_and_a_hint(tmp_path, case):
    raw, message = BROKEN[case]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=message) as caught:
        read_safetensors(path)
    assert "broken.safetensors" in caught.value.what and caught.value.hint


@pytest.mark.parametrize("case", sorted(BROKEN.keys() - STRICTER))
def test_the_package_refuses_the_broken_file_too(tmp_path, case):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BROKEN[case][0])
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "np"):
        pass


def test_an_unknown_dtype_is_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry([1], 0, 1, "F3")}, b"x"))
    with pytest.raises(Unsupported, match="dtype `F3`"):
        read_safetensors(path)


@pytest.mark.parametrize("dtype", sorted(TYPE_BITS))
def test_every_dtype_we_know_is_known_to_the_package_with_the_same_size(tmp_path, dtype):
    num_bytes = TYPE_BITS[dtype]
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry([8], 0, num_bytes, dtype)}, bytes(num_bytes)))
    assert read_safetensors(path).tensors["a"].num_bytes == num_bytes
    with safetensors.safe_open(path, "np") as theirs:
        assert theirs.get_slice("a").get_dtype() == dtype


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_file({"a": torch.arange(10.0), "b": torch.ones(3, 3)}, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(HearthError):
            read_safetensors(path)


def test_a_padded_header_is_read(tmp_path):
    header = json.dumps({"a": entry([1], 0, 1)}).encode() + b" " * 11
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(header, b"x"))
    assert bytes(map_tensor(read_safetensors(path).tensors["a"])) == b"x"


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound):
        read_safetensors(tmp_path / "none.safetensors")
