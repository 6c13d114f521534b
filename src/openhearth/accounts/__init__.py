"""Who may use a server, how much, and what they used: keys, limits and usage, kept in the store's folder."""

from openhearth.accounts.database import path_of
from openhearth.accounts.key_file import read_keys
from openhearth.accounts.key_store import KeyStore
from openhearth.accounts.keys import Key, KeyLimits, Keys, hash_secret
from openhearth.accounts.metering import Meter
from openhearth.accounts.usage import Totals, Usage, UsageStore

__all__ = [
    "Key",
    "KeyLimits",
    "KeyStore",
    "Keys",
    "Meter",
    "Totals",
    "Usage",
    "UsageStore",
    "hash_secret",
    "path_of",
    "read_keys",
]
