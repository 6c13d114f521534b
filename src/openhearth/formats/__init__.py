"""Bounded readers for weight files. Records here, readers beside them."""

from openhearth.formats.checkpoint import open_checkpoint
from openhearth.formats.gguf import read_gguf
from openhearth.formats.json_files import read_json
from openhearth.formats.mapping import map_tensor
from openhearth.formats.records import Checkpoint, TensorEntry, WeightFile
from openhearth.formats.safetensors import read_safetensors
from openhearth.formats.unsafe import refuse_code_keys
from openhearth.formats.writing import write_safetensors

__all__ = ["Checkpoint", "TensorEntry", "WeightFile", "map_tensor", "open_checkpoint", "read_gguf",
           "read_json", "read_safetensors", "refuse_code_keys", "write_safetensors"]
