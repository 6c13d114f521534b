"""Which page of the KV cache is used by how many, free, or kept for its content. Integers only.

A full page has a name: the hash of its parent's name and its own token ids, so equal prefixes are
found by content whatever request they came from. A page that nobody uses any more but that has a name
stays cached until room is needed; the one unused for longest goes first.

Does not: hold keys or values, or know requests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class PageTable:
    """Reference counts, free list and prefix cache of a fixed number of pages.

    salt: whatever makes keys and values of equal tokens differ: weights, adapter. used + free +
    cached = total holds at all times. Example: ``PageTable(1024, 16, salt="sha256:...")``.
    """

    def __init__(self, num_pages: int, page_size: int, *, salt: str, has_prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.root = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        self._has_prefix_cache = has_prefix_cache
        # Low pages and recently freed ones are handed out first: memory never needed is never touched.
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_users = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._page_of_name: dict[bytes, int] = {}
        self._name_of_page: dict[int, bytes] = {}

    def root_of(self, adapter_version: str | None, salt: str = "") -> bytes:
        """Return what the names of a sequence's pages begin with, given its adapter and its cache salt."""
        root = self.root
        for text in (adapter_version, salt):
            if text:
                root = hashlib.blake2b(text.encode(), key=root, digest_size=16).digest()
        return root

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds and whose content may be found again."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages that at least one sequence holds."""
        return self.num_pages - self.num_available

    def num_users(self, page: int) -> int:
        """Return how many sequences hold the page."""
        return self._num_users[page]

    def allocate(self) -> int:
        """Return a page with one user; its content is undefined. The caller checked num_available."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of_name[self._name_of_page.pop(page)]
        self._num_users[page] = 1
        return page

    def acquire(self, page: int) -> None:
        """Add a user to a page that is used or cached."""
        if self._num_users[page] == 0:
            del self._cached[page]
        self._num_users[page] += 1

    def release(self, page: int) -> None:
        """Take a user away; the last one leaves the page cached when it has a name, free otherwise."""
        assert self._num_users[page] > 0, f"page {page} is released more often than acquired"
        self._num_users[page] -= 1
        if self._num_users[page] == 0:
            if page in self._name_of_page:
                self._cached[page] = None
            else:
                self._free.append(page)

    def name(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """Return the name of a full page whose predecessor is called parent (`root` for the first)."""
        return hashlib.blake2b(array("q", token_ids).tobytes(), key=parent, digest_size=16).digest()

    def register(self, page: int, name: bytes) -> None:
        """Name a full page, so that `find` returns it; the first page of that name stays the one."""
        if self._has_prefix_cache and name not in self._page_of_name and page not in self._name_of_page:
            self._page_of_name[name] = page
            self._name_of_page[page] = name

    def find(self, name: bytes) -> int | None:
        """Return the page of that name, used or cached."""
        return self._page_of_name.get(name)

    def drop_cached(self) -> None:
        """Forget every page that nobody uses."""
        for page in self._cached:
            del self._page_of_name[self._name_of_page.pop(page)]
            self._free.append(page)
        self._cached.clear()

    def check(self) -> None:
        """Assert that every page is exactly one of used, free and cached, and that names agree."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page, users in enumerate(self._num_users) if users > 0}
        assert min(self._num_users) >= 0
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & cached or free & used or cached & used), "a page is in two states"
        assert len(used) + len(free) + len(cached) == self.num_pages, "a page is lost"
        assert cached <= self._name_of_page.keys() and not free & self._name_of_page.keys()
        assert {name: page for page, name in self._name_of_page.items()} == self._page_of_name
