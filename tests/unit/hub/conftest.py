"""Small real models and a store of their own for every test."""

import random
from pathlib import Path

import pytest

from openhearth.config import Config


def write_gguf(path: Path, num_bytes: int = 4096, seed: int = 0) -> bytes:
    """Write a GGUF file with one random tensor by the `gguf` package; return its bytes."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random {seed}")
    writer.add_tensor(
        "blk.0.attn_norm.weight",
        numpy.frombuffer(random.Random(seed).randbytes(num_bytes // 4 * 4), dtype=numpy.float32),
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def make_gguf(tmp_path):
    """Returns bytes of a GGUF file: ``make_gguf(num_bytes, seed)``."""

    def make(num_bytes: int = 4096, seed: int = 0) -> bytes:
        return write_gguf(tmp_path / f"made-{seed}-{num_bytes}.gguf", num_bytes, seed)

    return make


@pytest.fixture
def config(tmp_path):
    """Settings with a store, a cache and an endpoint of the test's own; nothing listens there yet."""
    return Config(
        home=tmp_path / "home",
        is_offline=False,
        hf_endpoint="http://127.0.0.1:9",
        hf_token=None,
        hf_cache=tmp_path / "hf" / "hub",
    )
