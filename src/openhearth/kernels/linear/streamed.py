"""Weights that do not all fit into memory: the first ones stay, the others are packed again for every use.

What is packed is read from the mapped file, so that the system keeps in its cache what it has room for. A
pack has the bits of a `PackedWeight`, whatever stays in memory. First come, first kept: a decoder reads its
weights in one order, so that replacing the least recently used one would always throw out what is needed
next; and of a layer's experts those that are asked for most are most likely the first to come.

Does not: read ahead, or learn.
"""

# T rows, K inputs, N outputs

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.kernels.linear.packed import PANEL, PackedWeight, RowParts


class Budget:
    """Memory that packed weights may stay in, shared by those of one model.

    limit_bytes: for all that stay; one buffer as large as the largest pack comes on top. read_bytes: packed
    again so far. Example: ``Budget(16 << 30)``.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = self.read_bytes = 0
        self._passing = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor | None:
        """Return memory to stay in, zeroed, or None when there is none left."""
        if self.kept_bytes + num_bytes > self.limit_bytes:
            return None
        self.kept_bytes += num_bytes
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def pass_through(self, num_bytes: int, *, is_padded: bool) -> Tensor:
        """Return the buffer for a weight that does not stay; valid until the next call.

        is_padded: some of the bytes will not be written, and all are zeroed.
        """
        if self._passing.numel() < num_bytes:
            self._passing = torch.empty(num_bytes, dtype=torch.uint8)
        self.read_bytes += num_bytes
        taken = self._passing[:num_bytes]
        return taken.zero_() if is_padded else taken


class StreamedWeight(PackedWeight):
    """A weight [N, K] that is packed when it is used. Use one at a time: a pack may last until the next one.

    Example: ``StreamedWeight(RowParts.whole(number_rows(weight_NK)), None, Budget(1 << 30))``.
    """

    def __init__(self, parts: RowParts, bias_N: Tensor | None, budget: Budget) -> None:
        self._describe(parts)
        self.versions = (None,)
        self._parts, self._budget = parts, budget
        self._kept: Tensor | None = None
        self._filling: Tensor | None = None
        self._set_bias(bias_N)

    @property
    def packed(self) -> Tensor:
        """The bytes, read now where they do not stay."""
        if self._filling is not None:
            return self._filling
        if self._kept is not None:
            return self._kept
        kept = self._filling = self._budget.take(self.num_bytes)
        if kept is None:
            is_padded = self.num_outputs % PANEL != 0 or self.num_inputs % PANEL != 0
            self._filling = self._budget.pass_through(self.num_bytes, is_padded=is_padded)
        try:
            self._write_parts(self._parts)
            self._kept = kept
            return self._filling
        finally:
            self._filling = None

    def gather_rows(self, row_ids_T: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """As `PackedWeight.gather_rows`; no other rows are read."""
        self._check_rows(row_ids_T)
        if len(row_ids_T) == 0:
            return torch.empty(0, self.num_inputs, dtype=self.dtype if dtype is None else dtype)
        return PackedWeight(self._parts.chosen(row_ids_T)).unpack(dtype)
