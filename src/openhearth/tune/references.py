"""Log-probabilities under the weights before tuning, computed once and kept.

They are stored in the run, in a file named after everything that decides them: base weights, type of numbers,
kernels, token ids. A resumed run finds its own file; a rerun under another name finds that of any run beside
it, and copies it.

Does not: hold another model; with LoRA the reference is the base without the adapter, and full fine-tuning
asks before its first step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openhearth.durable import disk_errors
from openhearth.errors import HearthError
from openhearth.models.tensor_files import read_tensors, write_tensors
from openhearth.runs import RunFolder
from openhearth.tune.data.records import Sample
from openhearth.tune.packs import pack_samples, split_batch, trained_logprobs

_AT_ONCE = 256
_NAME = "logprobs"


def reference_sums(run: RunFolder, model: nn.Module, samples: Sequence[Sample], *, base: Mapping[str, str],
                   pack_tokens: int, slot: int | None = None) -> dict[bytes, float]:
    """Return each sample's log-probability (its trained tokens' sum) under the weights before tuning.

    The keys are those of `sample_key`. model: with those weights, and the adapter of slot, None for none.
    base: what names them, and the arithmetic. Raises: NotEnoughDisk.
    """
    file = f"reference-{_key(samples, base)[:32]}.safetensors"
    lengths = [sample.num_trained for sample in samples]
    logprobs_N = _find(run, file, sum(lengths))
    if logprobs_N is None:
        logprobs_N = _compute(model, samples, pack_tokens, slot)
        _write(run.path / file, lambda fresh: write_tensors(fresh, {_NAME: logprobs_N}))
    sums = [float(part.double().sum()) for part in logprobs_N.split(lengths)]
    return {sample_key(sample): total for sample, total in zip(samples, sums, strict=True)}


def sample_key(sample: Sample) -> bytes:
    """Return what stands for a sample's tokens, 16 bytes."""
    content = array("i", sample.token_ids).tobytes() + bytes(sample.is_trained)
    return hashlib.blake2b(content, digest_size=16).digest()


def _key(samples: Sequence[Sample], base: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(base), sort_keys=True).encode())
    for sample in samples:
        digest.update(sample_key(sample))
    return digest.hexdigest()


def _find(run: RunFolder, file: str, count: int) -> Tensor | None:
    """Return what a file of this name holds, in this run or one beside it; None where none is whole."""
    for path in [run.path / file, *sorted(run.path.parent.glob(f"*/{file}"))]:
        with contextlib.suppress(HearthError, KeyError):
            found_N = read_tensors(path)[0][_NAME]
            if found_N.shape == (count,) and found_N.dtype == torch.float32:
                if path.parent != run.path:
                    _write(run.path / file, lambda fresh, path=path: shutil.copyfile(path, fresh))
                return found_N
    return None


def _write(path: Path, write) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path.parent):
        try:
            write(fresh)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def _compute(model: nn.Module, samples: Sequence[Sample], pack_tokens: int, slot: int | None) -> Tensor:
    parts = [torch.empty(0)]
    with torch.no_grad():
        for start in range(0, len(samples), _AT_ONCE):
            some, found = samples[start:start + _AT_ONCE], {}
            for pack in split_batch(some, pack_tokens):
                logprobs_N = trained_logprobs(model, pack_samples(pack), slot)
                split = logprobs_N.split([sample.num_trained for sample in pack])
                found |= dict(zip(pack, split, strict=True))
            parts += [found[sample] for sample in some]
    return torch.cat(parts)
