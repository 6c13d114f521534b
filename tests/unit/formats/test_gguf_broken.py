"""GGUF files made to break the reader: each is refused with the file, the numbers and a next step."""

import pytest
from support.gguf_bytes import (
    ARRAY,
    STRING,
    array_value,
    gguf_bytes,
    key_value,
    string_value,
    tensor_info,
    text,
    u32_value,
    u64,
)

from openhearth.errors import BadFile
from openhearth.formats.gguf import MAX_KEY_VALUES, MAX_TENSORS, read_gguf
from openhearth.formats.gguf_values import MAX_ARRAY_DEPTH, MAX_ARRAY_ELEMENTS, MAX_HEADER_BYTES

HUGE = 2**64 - 1
BROKEN = {
    "magic of another format": (b"GGML" + bytes(64), "starts with b'GGML'"),
    "nothing after the magic": (b"GGUF", "the version needs 4 bytes at byte 4, the file has 4"),
    "three bytes": (b"GGU", "the magic number needs 4 bytes"),
    "tensor count over the limit": (gguf_bytes(num_tensors=HUGE), f"{HUGE}, the limit is {MAX_TENSORS}"),
    "tensor count beyond the file": (gguf_bytes(num_tensors=MAX_TENSORS), "needs 1572864 bytes at byte 16"),
    "key count over the limit": (gguf_bytes(num_key_values=HUGE), f"{HUGE}, the limit is {MAX_KEY_VALUES}"),
    "key count beyond the file": (gguf_bytes(num_key_values=MAX_KEY_VALUES), "needs 212992 bytes"),
    "one key fewer than counted": (gguf_bytes([string_value("abc", "defgh")], num_key_values=2),
                                   "key 1 is empty"),
    "key length near 2**64": (gguf_bytes([u64(HUGE) + bytes(20)]), f"{HUGE} bytes long"),
    "key longer than 65535": (gguf_bytes([string_value("k" * 65536, "v")]), "65536 bytes long"),
    "key beyond the file": (gguf_bytes([u64(60000) + bytes(20)]), "needs 60000 bytes"),
    "empty key": (gguf_bytes([string_value("", "v")]), "key 0 is empty"),
    "duplicate key": (gguf_bytes([string_value("k", "v"), string_value("k", "v")]), "`k` occurs twice"),
    "key in latin-1": (gguf_bytes([string_value(b"k\xe9y", "v")]), "key 0 at byte 32 is not valid UTF-8"),
    "value in latin-1": (gguf_bytes([string_value("k", b"\xff")]), "the value of `k` at byte .* UTF-8"),
    "value with a surrogate": (gguf_bytes([string_value("k", b"\xed\xa0\x80")]), "UTF-8"),
    "value length near 2**64": (gguf_bytes([key_value("k", STRING, u64(HUGE))]), f"{HUGE} bytes long"),
    "value type 13": (gguf_bytes([key_value("k", 13, bytes(8))]), "`k` has value type 13"),
    "value type 2**32 - 1": (gguf_bytes([key_value("k", 2**32 - 1, bytes(8))]), "has value type 4294967295"),
    "boolean 2": (gguf_bytes([key_value("k", 7, b"\2")]), "boolean 2"),
    "boolean 255 in an array": (gguf_bytes([array_value("k", 7, 3, b"\0\1\xff")]), "boolean 255"),
    "array of type 13": (gguf_bytes([array_value("k", 13, 1, bytes(8))]), "`k` has value type 13"),
    "array length near 2**64": (gguf_bytes([array_value("k", 4, HUGE)]), "the limit is"),
    "array length beyond the file": (gguf_bytes([array_value("k", 4, 1000, bytes(40))]), "needs 4000 "),
    "array whose bytes wrap around 2**64": (gguf_bytes([array_value("k", 11, 2**61 + 1)]), "the limit is"),
    "string array beyond the file": (gguf_bytes([array_value("k", STRING, 90, bytes(64))]), "needs 720 "),
    "string array whose item is beyond the file": (
        gguf_bytes([array_value("k", STRING, 2, text("a") + u64(2**40))]),
        "item 1 of the value of `k` needs 1099511627776 bytes"),
    "string array whose item is near 2**64": (
        gguf_bytes([array_value("k", STRING, 2, text("a") + u64(HUGE))]), "item 1 of"),
    "string array in latin-1": (gguf_bytes([array_value("k", STRING, 2, text("a") + text(b"\xe9"))]),
                                "item 1 of the value of `k` at byte .* is not valid UTF-8"),
    "array bomb of empty arrays": (gguf_bytes([array_value("k", ARRAY, MAX_ARRAY_ELEMENTS)]),
                                   "the limit is 131072"),
    "tensor without a name": (gguf_bytes([], [tensor_info("", [4])], bytes(16)), "tensor 0 has no name"),
    "tensor name of 257 bytes": (gguf_bytes([], [tensor_info("n" * 257, [4])], bytes(16)), "257 bytes long"),
    "tensor name in latin-1": (gguf_bytes([], [tensor_info(b"\xe9", [4])], bytes(16)), "UTF-8"),
    "duplicate tensor": (gguf_bytes([], [tensor_info("t", [4]), tensor_info("t", [4], offset=32)], bytes(64)),
                         "two tensors have the name `t`"),
    "five dimensions": (gguf_bytes([], [tensor_info("t", [1] * 5)], bytes(16)), "5 dimensions"),
    "2**32 - 1 dimensions": (gguf_bytes([], [tensor_info("t", [4], num_dims=2**32 - 1)], bytes(16)),
                             "has 4294967295 dimensions"),
    "dimension zero": (gguf_bytes([], [tensor_info("t", [4, 0])], bytes(16)), r"shape \[0, 4\]"),
    "dimension -1": (gguf_bytes([], [tensor_info("t", [HUGE])], bytes(16)), "elements"),
    "product that wraps around 2**64": (gguf_bytes([], [tensor_info("t", [2**32, 2**32, 1, 1])], bytes(16)),
                                        r"shape \[1, 1, 4294967296, 4294967296\]"),
    "product just over 2**63": (gguf_bytes([], [tensor_info("t", [2**62, 2])], bytes(16)), "elements"),
    "bytes that wrap around 2**64": (gguf_bytes([], [tensor_info("t", [2**62])], bytes(16)),
                                     "ends at byte 18446744073709551"),
    "row that is no multiple of the block": (gguf_bytes([], [tensor_info("t", [33, 32], 2)], bytes(4096)),
                                             "rows of 33, type Q4_0 needs a multiple of 32"),
    "row of half a K block": (gguf_bytes([], [tensor_info("t", [128], 12)], bytes(4096)), "multiple of 256"),
    "offset that is not aligned": (gguf_bytes([], [tensor_info("t", [4], offset=16)], bytes(64)),
                                   "offset 16, expected a multiple of 32"),
    "offset beyond the file": (gguf_bytes([], [tensor_info("t", [4], offset=2**20)], bytes(64)),
                               "tensor `t` ends at byte"),
    "offset near 2**64": (gguf_bytes([], [tensor_info("t", [4], offset=2**64 - 32)], bytes(64)),
                          "ends at byte 18446744073709551"),
    "tensor one byte beyond the file": (gguf_bytes([], [tensor_info("t", [4])], bytes(15)),
                                        "ends at byte 80, the file has 79"),
    "no data at all": (gguf_bytes([], [tensor_info("t", [4])]), "ends at byte"),
    "two tensors in one place": (gguf_bytes([], [tensor_info("a", [8]), tensor_info("b", [8])], bytes(64)),
                                 "tensors `a` and `b` overlap"),
    "tensors that overlap in part": (
        gguf_bytes([], [tensor_info("a", [16]), tensor_info("b", [8], offset=32)], bytes(64)), "overlap"),
    "alignment zero": (gguf_bytes([u32_value("general.alignment", 0)]), "general.alignment is `0`"),
    "alignment four": (gguf_bytes([u32_value("general.alignment", 4)]), "power of two from 8"),
    "alignment 48": (gguf_bytes([u32_value("general.alignment", 48)]), "general.alignment is `48`"),
    "alignment 2**31": (gguf_bytes([u32_value("general.alignment", 2**31)]), "to 65536"),
    "alignment as text": (gguf_bytes([string_value("general.alignment", "32")]), "alignment is `32`"),
    "alignment as boolean": (gguf_bytes([key_value("general.alignment", 7, b"\1")]), "alignment is `True`"),
    "alignment as float": (gguf_bytes([key_value("general.alignment", 6, b"\0\0\0B")]), "is `32.0`"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_the_numbers_and_a_hint(tmp_path, case):
    raw, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=message) as caught:
        read_gguf(path)
    assert "broken.gguf" in caught.value.what and caught.value.hint


def test_arrays_nested_too_deep_are_refused(tmp_path):
    nested = (4).to_bytes(4, "little") + u64(0)
    for _ in range(MAX_ARRAY_DEPTH):
        nested = ARRAY.to_bytes(4, "little") + u64(1) + nested
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([key_value("k", ARRAY, nested)]))
    with pytest.raises(BadFile, match="nests arrays deeper"):
        read_gguf(path)


def test_array_elements_of_all_keys_count_towards_one_limit(tmp_path):
    half = MAX_ARRAY_ELEMENTS // 2 + 1
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([array_value(key, 0, half, bytes(half)) for key in "ab"]))
    with pytest.raises(BadFile, match=f"length of the value of `b` is {half}, the limit is {half - 2}"):
        read_gguf(path)


def test_a_header_over_the_size_limit_is_refused_though_the_file_is_long_enough(tmp_path):
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(gguf_bytes([key_value("k", STRING, u64(MAX_HEADER_BYTES))]))
        file.truncate(MAX_HEADER_BYTES + 4096)
    with pytest.raises(BadFile, match=r"header is larger than the limit of 128\.0 MiB"):
        read_gguf(path)


def test_terminal_escapes_in_names_do_not_reach_the_message(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [tensor_info("\x1b[31m`red`\n", [4])]))
    with pytest.raises(BadFile) as caught:
        read_gguf(path)
    assert "\x1b" not in str(caught.value) and r"`\x1b[31m'red'\n`" in str(caught.value)
