"""How much memory keys and values may take, and taking it without touching it."""

# L layers, N pages in the cache, B tokens per page, K kv heads, F elements of a head's part

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

from openhearth import hardware
from openhearth.engine.settings import EngineSettings
from openhearth.errors import NotEnoughMemory, UsageError
from openhearth.kernels.attention.cache import CACHE_DTYPES, part_size
from openhearth.kernels.attention.inputs import KvCache
from openhearth.spec import ModelSpec
from openhearth.units import format_bytes

RESERVE_BYTES = 256 * 2**20
"""Left for workspace and the rest of the machine, besides a fifth of what is free."""
MIN_TOKENS = 256
SMALL_PAGE_TOKENS = 2048
"""Of every layer, from the first: their memory comes in the system's small pages. A short answer then takes
what it writes, and waits for no two huge pages in every layer to be cleared."""
COMFORT_TOKENS = 16384
"""One user needs no more than two contexts, or this many tokens when contexts are short."""


class PagedCache:
    """Keys and values of all layers, and copies between their pages. dtype: that of the cache.

    Pages that were never written take no memory on the CPU: they are mapped, not filled. Behind the first
    SMALL_PAGE_TOKENS of a layer the system is asked for huge pages.
    """

    def __init__(self, spec: ModelSpec, num_pages: int, page_size: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        shape = (spec.num_cached_layers, num_pages, page_size, spec.cache_heads,
                 part_size(spec.cache_head_dim, dtype))
        self._keys_LNBKF = _zeros(shape, dtype, device)
        self._values_LNBKF = self._keys_LNBKF if spec.are_values_in_keys else _zeros(shape, dtype, device)
        self.kv = KvCache(tuple(self._keys_LNBKF), tuple(self._values_LNBKF))

    def copy_pages(self, copies: list[tuple[int, int]]) -> None:
        """Copy (source, target) pages in every layer, in order."""
        for source, target in copies:
            for pages_LNBKF in {id(one): one for one in (self._keys_LNBKF, self._values_LNBKF)}.values():
                pages_LNBKF[:, target] = pages_LNBKF[:, source]


def page_bytes(spec: ModelSpec, page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one page: keys and values of page_size tokens in every layer.

    dtype: that of the cache.
    """
    part_bytes = part_size(spec.cache_head_dim, dtype) * dtype.itemsize
    num_parts = 1 if spec.are_values_in_keys else 2
    return num_parts * spec.num_cached_layers * page_size * spec.cache_heads * part_bytes


def cache_dtype_of(settings: EngineSettings, model_dtype: torch.dtype) -> torch.dtype:
    """Return the type that keys and values are kept in."""
    return CACHE_DTYPES.get(settings.cache_dtype, model_dtype)


def choose_num_pages(spec: ModelSpec, settings: EngineSettings, dtype: torch.dtype,
                     available_bytes: int, draft_page_bytes: int = 0) -> int:
    """Return how many pages the cache has; that of a draft model has as many, of draft_page_bytes each.

    cache_bytes says it when set; otherwise two contexts, as far as four fifths of available_bytes
    less RESERVE_BYTES hold them. Raises: NotEnoughMemory when not even MIN_TOKENS (or the context, if
    shorter) fit; UsageError when the context asked for is longer than the model's.
    """
    context = settings.context_length or spec.max_position
    if context > spec.max_position:
        raise UsageError(f"context of {context} tokens is longer than the model's",
                         why=f"it was made for up to {spec.max_position} tokens",
                         hint=f"--context {spec.max_position}")
    one_page = page_bytes(spec, settings.page_size, dtype) + draft_page_bytes
    usable_bytes = max(0, available_bytes * 4 // 5 - RESERVE_BYTES)
    wanted_pages = _pages_for(max(2 * context, COMFORT_TOKENS), settings.page_size)
    least_pages = _pages_for(min(context, MIN_TOKENS), settings.page_size)
    if settings.cache_bytes is None:
        num_pages = min(wanted_pages, usable_bytes // one_page)
        found = f"{format_bytes(available_bytes)} are free, {format_bytes(usable_bytes)} of them usable"
        hint = "free memory, or choose a smaller model or --cache int8"
    else:
        num_pages = settings.cache_bytes // one_page
        found = f"cache_bytes is {format_bytes(settings.cache_bytes)}"
        hint = f"EngineSettings(cache_bytes={least_pages * one_page})"
    if num_pages < least_pages:
        least_tokens, least_bytes = least_pages * settings.page_size, least_pages * one_page
        raise NotEnoughMemory(f"a cache for {least_tokens} tokens needs {format_bytes(least_bytes)}",
                              why=found, hint=hint)
    return num_pages


def available_bytes(device: torch.device) -> int:
    """Return the memory a new allocation on the device can take now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return hardware.read_memory().available_bytes


def _pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    num_numbers = torch.Size(shape).numel()
    if device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = num_numbers * dtype.itemsize
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise NotEnoughMemory(f"the cache needs {format_bytes(2 * num_bytes)} of memory", why=str(error),
                              hint="a shorter context: --context 2048") from error
    layer_bytes = num_bytes // shape[0]
    small_bytes = layer_bytes * SMALL_PAGE_TOKENS // max(1, shape[1] * shape[2])
    for start in range(0, num_bytes, layer_bytes):
        first = -(-(start + small_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < start + layer_bytes:
            with contextlib.suppress(AttributeError, OSError):  # no huge pages: slower, not different
                pages.madvise(mmap.MADV_HUGEPAGE, first, start + layer_bytes - first)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
