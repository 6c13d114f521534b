"""Models on disk and where they come from: references, store, catalogue, sources, transfer."""

from openhearth.hub.catalogue import DEFAULT_MODEL, CatalogueEntry, load_catalogue, recommended_sampling
from openhearth.hub.leftovers import Leftover, leftovers
from openhearth.hub.pull import bytes_on_disk, find, list_sources, pull
from openhearth.hub.records import (
    DATA_SUFFIXES,
    Listing,
    OnProgress,
    Progress,
    Ref,
    RemoteFile,
    StoredModel,
    data_files,
    is_dataset,
)
from openhearth.hub.refs import format_ref, parse_ref
from openhearth.hub.sourcing import newer_listing
from openhearth.hub.store import Store

__all__ = [
    "DATA_SUFFIXES",
    "DEFAULT_MODEL",
    "CatalogueEntry",
    "Leftover",
    "Listing",
    "OnProgress",
    "Progress",
    "Ref",
    "RemoteFile",
    "Store",
    "StoredModel",
    "bytes_on_disk",
    "data_files",
    "find",
    "format_ref",
    "is_dataset",
    "leftovers",
    "list_sources",
    "load_catalogue",
    "newer_listing",
    "parse_ref",
    "pull",
    "recommended_sampling",
]
