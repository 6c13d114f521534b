"""Tokenizers, chat templates and text streaming: everything between text and token ids."""

from openhearth.chat.load import load_tokenizer
from openhearth.chat.stops import StopStrings
from openhearth.chat.text_stream import TextStream
from openhearth.chat.tokenizer import Tokenizer

__all__ = ["StopStrings", "TextStream", "Tokenizer", "load_tokenizer"]
