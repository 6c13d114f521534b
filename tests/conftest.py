"""Shared fixtures. Tests see no network, no user store and a fixed environment."""

import os
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# On a busy machine threads that spin at barriers make every torch operation wait for a scheduler tick.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random Llama with tokenizer and chat template, as a Hugging Face folder."""
    from support.tiny import build_llama

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    build_llama(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_path():
    """The default model's GGUF file: HEARTH_TEST_SMOLLM2, else the user's store; never fetched here."""
    from pathlib import Path

    from openhearth import hub
    from openhearth.config import Config

    if os.environ.get("HEARTH_TEST_SMOLLM2"):
        path = Path(os.environ["HEARTH_TEST_SMOLLM2"])
    else:
        stored = hub.find("smollm2", Config.from_env())
        path = stored.path if stored else None
    if path is None or not path.exists():
        pytest.fail("the default model is not on this machine: hearth pull smollm2")
    return path
