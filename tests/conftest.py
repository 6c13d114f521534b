"""Shared fixtures. Tests see no network, no user store and a fixed environment."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random Llama with tokenizer and chat template, as a Hugging Face folder."""
    from support.tiny import build_llama

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    build_llama(folder)
    return folder
