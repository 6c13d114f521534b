"""Models behind HTTP, in the dialects that clients already speak."""

from openhearth.server.access import log_line
from openhearth.server.adapters import assign_adapters
from openhearth.server.app import build_app
from openhearth.server.models import Models, Offer
from openhearth.server.planning import LoadPlan, plan_models, usable_memory
from openhearth.server.response_store import ResponseStore
from openhearth.server.running import Patience, Server
from openhearth.server.served import Limits, Served

__all__ = ["Limits", "LoadPlan", "Models", "Offer", "Patience", "ResponseStore", "Served", "Server",
           "assign_adapters", "build_app", "log_line", "plan_models", "usable_memory"]
