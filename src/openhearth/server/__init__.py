"""Models behind HTTP, in the dialects that clients already speak."""

from openhearth.server.access import is_loopback, log_line
from openhearth.server.adapters import assign_adapters
from openhearth.server.app import build_app
from openhearth.server.keys import Keys, read_keys
from openhearth.server.models import Models, Offer
from openhearth.server.planning import LoadPlan, plan_models, usable_memory
from openhearth.server.running import Server, address_of, bind
from openhearth.server.served import Limits, Served

__all__ = [
    "Keys",
    "Limits",
    "LoadPlan",
    "Models",
    "Offer",
    "Served",
    "Server",
    "address_of",
    "assign_adapters",
    "bind",
    "build_app",
    "is_loopback",
    "log_line",
    "plan_models",
    "read_keys",
    "usable_memory",
]
