"""One completion on its way: its tokens, how far its keys and values are computed, and in which pages."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from openhearth.engine.records import Reader, Sampling, TokenMask
from openhearth.kernels.sampling import TokenCounts


@dataclass(eq=False)
class Sequence:
    """State of completion `index` of a request.

    order: place in the line of all sequences ever submitted; a smaller one is served first.
    token_ids: prompt and completion. num_computed: leading tokens whose keys and values are in
    pages. page_names: names of leading full pages, as far as they were needed. num_registered: pages
    among them that the prefix cache was told of. num_cached: prompt tokens found in the prefix cache.
    followers: the request's other completions, which wait to share this one's prompt.
    adapter_slot: of the adapter its rows take, None for none; root: what its page names begin with, which
    tells adapters apart. reader: takes the prompt's hidden states, of which it has had num_read; such a
    sequence computes all of them, and leaves the prefix cache alone. mask: its token mask, made when the
    first token is drawn.
    """

    request_id: int
    index: int
    order: int
    sampling: Sampling
    token_ids: list[int]
    num_prompt: int
    num_computed: int = 0
    pages: array = field(default_factory=lambda: array("q"))
    page_names: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    num_cached: int = 0
    counts: TokenCounts | None = None
    followers: list[Sequence] = field(default_factory=list)
    is_running: bool = False
    adapter_slot: int | None = None
    root: bytes = b""
    reader: Reader | None = None
    num_read: int = 0
    mask: TokenMask | None = None

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_completion(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt

    def append(self, token_id: int) -> None:
        """Add a drawn token."""
        self.token_ids.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)
