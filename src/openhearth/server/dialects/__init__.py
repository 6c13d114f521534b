"""The dialects that the server speaks, one file each, and what of them it does not serve yet.

Paths that change what is stored are made over their store: `responses_dialect`, `pulling_dialect`."""

from openhearth.server.dialects.anthropic import ANTHROPIC
from openhearth.server.dialects.fim import FIM
from openhearth.server.dialects.ollama import OLLAMA
from openhearth.server.dialects.ollama_embed import OLLAMA_EMBED
from openhearth.server.dialects.ollama_pull import pulling_dialect
from openhearth.server.dialects.openai import OPENAI
from openhearth.server.dialects.ranking import RANKING
from openhearth.server.dialects.responses import responses_dialect
from openhearth.server.dialects.tokenizing import TOKENIZING

DIALECTS = (OPENAI, FIM, ANTHROPIC, OLLAMA, OLLAMA_EMBED, RANKING, TOKENIZING)

NOT_SERVED = {
    **dict.fromkeys(("/v1/conversations", "/v1/responses/compact"), "this version does not have it"),
    **dict.fromkeys(("/api/push", "/api/create", "/api/copy", "/api/delete"),
                    "models are changed by `hearth pull` and `hearth rm`, not over the network"),
}
"""Paths that clients of these dialects know, and why they are answered with 404."""

__all__ = ["DIALECTS", "NOT_SERVED", "pulling_dialect", "responses_dialect"]
