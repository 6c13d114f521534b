"""A model behind HTTP, in the dialects that clients already speak."""

from openhearth.server.access import is_loopback, log_line
from openhearth.server.app import build_app
from openhearth.server.keys import Keys, read_keys
from openhearth.server.response_store import ResponseStore
from openhearth.server.running import Server, address_of, bind
from openhearth.server.served import Limits, Served

__all__ = [
    "Keys",
    "Limits",
    "ResponseStore",
    "Served",
    "Server",
    "address_of",
    "bind",
    "build_app",
    "is_loopback",
    "log_line",
    "read_keys",
]
