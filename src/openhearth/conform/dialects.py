"""The checks of every dialect, in the order in which they run."""

from openhearth.conform import anthropic, ollama, openai, openai_more, responses, tokenizing

DIALECTS = {"openai": (*openai.CHECKS, *openai_more.CHECKS, *responses.CHECKS), "anthropic": anthropic.CHECKS,
            "ollama": ollama.CHECKS, "tokenize": tokenizing.CHECKS}

__all__ = ["DIALECTS"]
