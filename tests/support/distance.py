"""How far our float32 logits are from those of transformers, for each of several texts.

Run as `python -m support.distance GGUF_FILE TEXTS`, where TEXTS is JSON, a list of lists of token ids; prints
a list of largest differences. A process of its own, because HEARTH_ISA is read once.
"""

import json
import sys
from pathlib import Path

import torch

from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.spec import read_spec
from support.packs import run_whole


def load_ours(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    return load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32)


def load_theirs(gguf_path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name,
                                                dtype=torch.float32).eval()


def largest_difference(ours, theirs, token_ids):
    with torch.inference_mode():
        want_TV = theirs(torch.tensor([token_ids])).logits[0]
        return (ours.logits(run_whole(ours, token_ids)) - want_TV).abs().max().item()


def main():
    gguf_path, ids_path = map(Path, sys.argv[1:])
    ours, theirs = load_ours(gguf_path), load_theirs(gguf_path)
    texts = json.loads(ids_path.read_text(encoding="utf-8"))
    print(json.dumps([largest_difference(ours, theirs, ids) for ids in texts]))


if __name__ == "__main__":
    main()
