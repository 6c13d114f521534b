"""Key-values of a GGUF header, read with every length checked before it is used.

Layout: the GGUF specification in ggml's docs/gguf.md and `gguf-py` 0.19.0 (constants.py,
gguf_writer.py). Does not: know what any key means; `gguf.py` asks for the few it needs.
"""

from __future__ import annotations

import struct
from mmap import mmap
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile
from openhearth.formats.mapping import damaged
from openhearth.formats.quoting import quoted
from openhearth.units import format_bytes

# Key-values and tensor infos together. The largest public tokenizers take about 20 MB.
MAX_HEADER_BYTES = 128 << 20
# Array elements of all key-values together; a vocabulary of 262,144 has about 1.3 million.
MAX_ARRAY_ELEMENTS = 4 << 20
MAX_KEY_BYTES = 65535  # docs/gguf.md: keys are at most 2**16 - 1 bytes
MAX_ARRAY_DEPTH = 4
NESTED_ARRAY_COST = 32  # an array inside an array counts as so many elements; known files have none

STRING, ARRAY, BOOL = 8, 9, 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class HeaderCursor:
    """A position in the header of a mapped GGUF file that never passes its end.

    Every method names what it reads, for the message. All raise BadFile when the bytes are not there
    or break the format. Example: ``HeaderCursor(mapping, path).u32("the version")``.
    """

    def __init__(self, buffer: mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.limit = min(len(buffer), MAX_HEADER_BYTES)
        self.pos = 0
        self.num_elements = 0

    def take(self, num_bytes: int, what: str) -> int:
        """Step over num_bytes and return where they start."""
        start = self.pos
        if num_bytes > self.limit - start:
            raise self._cut_short(num_bytes, start, what)
        self.pos = start + num_bytes
        return start

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit integer."""
        return _U32.unpack_from(self.buffer, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit integer."""
        return _U64.unpack_from(self.buffer, self.take(8, what))[0]

    def count(self, what: str, *, limit: int, item_bytes: int) -> int:
        """Read a u64 that counts items of at least item_bytes each, all of which must fit in the rest."""
        count = self.u64(what)
        if count > limit:
            raise self.broken(f"{what} is {count}, the limit is {limit}")
        if count * item_bytes > self.limit - self.pos:
            raise self._cut_short(count * item_bytes, self.pos, f"{count} items ({what})")
        return count

    def string(self, what: str, *, max_bytes: int = MAX_HEADER_BYTES) -> str:
        """Read a length and as many bytes of UTF-8. Raises: BadFile."""
        num_bytes = self.u64(f"the length of {what}")
        if num_bytes > max_bytes:
            raise self.broken(f"{what} is {num_bytes} bytes long, the limit is {max_bytes}")
        start = self.take(num_bytes, what)
        try:
            return self.buffer[start:self.pos].decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} at byte {start} is not valid UTF-8") from None

    def value(self, type_number: int, what: str, depth: int = 0) -> Any:
        """Read one value: int, float, bool, str, or a list of them."""
        if type_number == STRING:
            return self.string(what)
        if type_number == ARRAY:
            return self._array(what, depth + 1)
        return self._numbers(type_number, 1, what)[0]

    def broken(self, why: str) -> BadFile:
        """Return the error for a header that breaks the format."""
        return damaged(f"{quoted(self.path)} is not a valid GGUF file", why)

    def _array(self, what: str, depth: int) -> list[Any]:
        if depth > MAX_ARRAY_DEPTH:
            raise self.broken(f"{what} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        type_number = self.u32(f"the element type of {what}")
        self._check_type(type_number, what)
        item_bytes = {STRING: 8, ARRAY: 12}.get(type_number) or struct.calcsize(_FORMATS[type_number])
        cost = NESTED_ARRAY_COST if type_number == ARRAY else 1
        left = (MAX_ARRAY_ELEMENTS - self.num_elements) // cost
        count = self.count(f"the length of {what}", limit=left, item_bytes=item_bytes)
        self.num_elements += count * cost
        if type_number == STRING:
            return self._strings(count, what)
        if type_number == ARRAY:
            return [self._array(what, depth + 1) for _ in range(count)]
        return self._numbers(type_number, count, what)

    def _numbers(self, type_number: int, count: int, what: str) -> list[Any]:
        self._check_type(type_number, what)
        layout = f"<{count}{_FORMATS[type_number]}"
        numbers = list(struct.unpack_from(layout, self.buffer, self.take(struct.calcsize(layout), what)))
        if type_number != BOOL:
            return numbers
        if count and max(numbers) > 1:
            raise self.broken(f"{what} holds the boolean {max(numbers)}; only 0 and 1 are defined")
        return [number == 1 for number in numbers]

    def _check_type(self, type_number: int, what: str) -> None:
        if type_number not in _FORMATS and type_number not in (STRING, ARRAY):
            raise self.broken(f"{what} has value type {type_number}; types 0 to 12 are defined")

    def _strings(self, count: int, what: str) -> list[str]:
        # `string` inlined: a vocabulary and its merges are some 300,000 calls.
        buffer, limit, pos, unpack = self.buffer, self.limit, self.pos, _U64.unpack_from
        strings = []
        for index in range(count):
            start = pos + 8
            if start > limit:
                raise self._cut_short(8, pos, f"the length of item {index} of {what}")
            pos = start + unpack(buffer, pos)[0]
            if pos > limit:
                raise self._cut_short(pos - start, start, f"item {index} of {what}")
            try:
                strings.append(buffer[start:pos].decode())
            except UnicodeDecodeError:
                raise self.broken(f"item {index} of {what} at byte {start} is not valid UTF-8") from None
        self.pos = pos
        return strings

    def _cut_short(self, wanted: int, start: int, what: str) -> BadFile:
        size = len(self.buffer)
        if self.limit < size and start + wanted <= size:
            return self.broken(f"its header is larger than the limit of {format_bytes(MAX_HEADER_BYTES)}: "
                               f"{what} ends at byte {start + wanted}")
        return damaged(f"{quoted(self.path)} is truncated or corrupted",
                       f"{what} needs {wanted} bytes at byte {start}, the file has {size}")
