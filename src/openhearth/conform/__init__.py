"""Does a server speak its dialects? Checks of what goes over the wire, against any server."""

from openhearth.conform.dialects import DIALECTS
from openhearth.conform.records import Exchange, Outcome, Result
from openhearth.conform.running import conform

__all__ = ["DIALECTS", "Exchange", "Outcome", "Result", "conform"]
