"""A model behind HTTP, in the dialects that clients already speak."""

from openhearth.server.access import log_line
from openhearth.server.app import build_app
from openhearth.server.running import Patience, Server
from openhearth.server.served import Limits, Served

__all__ = ["Limits", "Patience", "Served", "Server", "build_app", "log_line"]
