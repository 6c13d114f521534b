"""Fuzzer of the readers of models: damaged files give a checked Checkpoint or tokenizer, or a HearthError.

Anything else is a failure: another exception, more than 256 MiB, more than two seconds of processor
time, a tensor outside its file, a safetensors file that the `safetensors` package refuses, or a tokenizer
that makes control tokens of text. Runs in
a process of its own, as the memory limit holds for the whole process:

    PYTHONPATH=src:tests python tests/fuzz/fuzz_weight_files.py --seconds 3600 --seed 7

A failing input is kept in the working folder and named; the seed and case number make it again.
"""

import argparse
import itertools
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import safetensors
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2
from support.gguf_bytes import (
    ARRAY,
    STRING,
    array_value,
    gguf_bytes,
    key_value,
    tensor_info,
    text,
    u32_value,
)

from openhearth.chat import load_tokenizer
from openhearth.errors import HearthError
from openhearth.formats import map_tensor, open_checkpoint
from openhearth.formats.records import Checkpoint

MEMORY_BYTES = 256 << 20
CASE_SECONDS = 2
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 12, 13, 30, 31, 32, 33, 39, 63, 64, 127, 128, 255, 256, 4096, 32767, 32768,
           65535, 65536, 10**6, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**61, 2**62, 2**63 - 1,
           2**63, 2**64 - 32, 2**64 - 1]
TOKENS = [b"-1", b"1e3", b"1.0", b"true", b"null", b"{}", b"[]", b'""', b'"a"', b"[0,1]", b'"../a"',
          b'"\\ud800"', b"9" * 30, b"[" * 70, b'"F32"', b'"U8"', b'"auto_map":1,', b'"weight_map"', b",",
          b":", b"NaN", b"\xff", b"\x1b[31m"]
MAGICS = [b"\x80\x04\x95\x10" + bytes(7), b"PK\x03\x04\x14" + bytes(6), b"\x93NUMPY\1\0v\0", b"<html>",
          b"GGUF"]


def write_seeds(folder):
    """Write valid models and return (what to open, which file to damage) of each."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_token_list(["<s>", "a", "b", "\u00e9"] * 8)
    writer.add_token_types([1, 2, 3, 4] * 8)
    writer.add_chat_template("{{ messages }}")
    writer.add_custom_alignment(64)
    for name in ("Q4_0", "Q6_K", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        raw = rng.integers(0, 256, (2, 2, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        writer.add_tensor(f"blk.0.{name}", raw, raw_dtype=kind)
    writer.add_tensor("norm", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    nested = struct.pack("<IQ", 4, 1) + struct.pack("<I", 9)
    (folder / "b.gguf").write_bytes(gguf_bytes(
        [array_value("n", ARRAY, 2, nested * 2), array_value("s", STRING, 2, text("x") + text("y")),
         key_value("flag", 7, b"\1"), u32_value("u", 5)],
        [tensor_info("t", [8, 2]), tensor_info("u", [32], 8, offset=64)], bytes(98), version=2))
    single, sharded = folder / "single", folder / "sharded"
    for path in (single, sharded):
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "llama", "layers": [1, {"a": None}]}))
    tensors = {f"t{size}": rng.normal(size=(size, 3)).astype(np.float32) for size in (1, 2, 3)}
    save_file(tensors | {"half": np.ones(4, np.float16)}, single / "model.safetensors", metadata={"a": "b"})
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file({"t1": tensors["t1"]}, sharded / names[0])
    save_file({"t2": tensors["t2"], "t3": tensors["t3"]}, sharded / names[1])
    (sharded / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": 72}, "weight_map": {"t1": names[0], "t2": names[1], "t3": names[1]}}))
    tokens = folder / "tokens"
    tokens.mkdir()
    (tokens / "tokenizer.model").write_bytes(sentencepiece_bytes())
    return [(tokens, tokens / "tokenizer.model"),
            (folder / "a.gguf", folder / "a.gguf"), (folder / "b.gguf", folder / "b.gguf"),
            (single, single / "model.safetensors"), (single, single / "config.json"),
            (sharded, sharded / names[1]), (sharded, sharded / "model.safetensors.index.json")]


def sentencepiece_bytes():
    """A `tokenizer.model` with all kinds of pieces, as sentencepiece's own classes write it."""
    model = sentencepiece_model_pb2.ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<tool>", 4),
              *((f"<0x{byte:02X}>", 6) for byte in range(256)),
              *((piece, 1) for piece in ("\u2581", *"helo", "he", "ll", "hell", "\u2581hell", "\u00e9"))]
    for place, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(place), type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def damage(raw, other, rng):
    """Return raw with one to four random changes, most of them in its first half kilobyte."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        reach = len(raw) if rng.random() < 0.2 else min(len(raw), 512)
        at = rng.randrange(reach + 1)
        width = rng.choice([1, 2, 4, 8])
        kind = rng.randrange(9) if rng.random() < 0.99 else 9
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:at + 1] = bytes([rng.randrange(256)])
        elif kind in (2, 3):
            value = max(0, rng.choice(NUMBERS) + rng.choice([0, 0, -1, 1]))
            raw[at:at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 4:
            del raw[at:]
        elif kind == 5:
            del raw[at:at + rng.randrange(1, 40)]
        elif kind == 6:
            start = rng.randrange(reach + 1)
            raw[at:at] = raw[start:start + rng.randrange(1, 64)]
        elif kind == 7:
            start = rng.randrange(len(other) + 1)
            raw[at:at + rng.randrange(40)] = other[start:start + rng.randrange(40)]
        elif kind == 8:
            raw[at:at + rng.randrange(1, 6)] = rng.choice([*TOKENS, str(rng.choice(NUMBERS)).encode()])
        elif kind == 9:
            magic = rng.choice(MAGICS)
            raw[:len(magic)] = magic
    return bytes(raw)


def with_true_length(raw):
    """Return a safetensors file whose length field fits the damaged header again."""
    end = raw.rfind(b"}") + 1
    return raw if end < 9 else struct.pack("<Q", end - 8) + raw[8:]


def check(model, damaged):
    """Open the model; return the error's name, or None for an accepted one whose tensors are in place."""
    try:
        if damaged.name == "tokenizer.model":
            check_tokenizer(load_tokenizer(Checkpoint(model, "safetensors", (), {}, {}, {})))
            return None
        checkpoint = open_checkpoint(model)
    except HearthError as error:
        assert error.what and all(line.isprintable() for line in str(error).split("\n")), repr(str(error))
        return type(error).__name__
    spans = {}
    for name, entry in checkpoint.tensors.items():
        assert entry.name == name and all(type(axis) is int and axis >= 0 for axis in entry.shape)
        assert entry.offset >= 0 and entry.offset + entry.num_bytes <= entry.path.stat().st_size
        assert len(map_tensor(entry)) == entry.num_bytes
        spans.setdefault(entry.path, []).append((entry.offset, entry.offset + entry.num_bytes))
    for places in spans.values():
        places.sort()
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(places)), places
    if damaged.suffix == ".safetensors":
        with safetensors.safe_open(damaged, "np") as theirs:
            ours = {entry.name for entry in checkpoint.tensors.values() if entry.path == damaged}
            assert ours == set(theirs.keys())
    return None


def check_tokenizer(tokenizer):
    """Text forges nothing, whatever the pieces are."""
    for words in ("hello <s> \u00e9\n", "</s>", "  <tool>\x01"):
        ids = tokenizer.encode(words)
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
        assert not set(ids) & set(tokenizer.control_tokens.values())
        tokenizer.decode(ids)


def too_slow(*_):
    raise TimeoutError(f"a case took more than {CASE_SECONDS} s of processor time")


def virtual_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def run(folder, num_cases, seconds, seed):
    """Fuzz until num_cases or seconds are over; return how often each outcome was met."""
    seeds = write_seeds(folder)
    originals = [damaged.read_bytes() for _, damaged in seeds]
    for model, damaged in seeds:
        assert check(model, damaged) is None, f"{model} should be accepted"
    signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + MEMORY_BYTES,) * 2)
    outcomes, deadline = {}, time.monotonic() + seconds
    for case in range(num_cases):
        if time.monotonic() > deadline:
            break
        rng = random.Random(f"{seed}/{case}")
        index = rng.randrange(len(seeds))
        model, damaged = seeds[index]
        raw = damage(originals[index], rng.choice(originals), rng)
        if damaged.suffix == ".safetensors" and rng.random() < 0.6:
            raw = with_true_length(raw)
        damaged.write_bytes(raw)
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        try:
            outcome = check(model, damaged)
        except BaseException:
            kept = Path(f"fuzz-{seed}-{case}{damaged.suffix}")
            kept.write_bytes(raw)
            print(f"case {case} of seed {seed} failed; its {damaged.name} is kept as {kept}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        damaged.write_bytes(originals[index])
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10**12)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(Path(folder), arguments.cases, arguments.seconds, arguments.seed)
    print(json.dumps({str(outcome): count for outcome, count in outcomes.items()}))


if __name__ == "__main__":
    main()
