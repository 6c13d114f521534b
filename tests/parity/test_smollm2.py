"""SmolLM2-135M-Instruct against transformers on the same GGUF file, fp32 on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.distance import load_ours, load_theirs
from support.packs import PagedRunner, run_whole

from openhearth.kernels import select

NUM_NEW = 64
PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village", "def fibonacci(n):\n    ",
    "Water boils at a temperature of", "The three primary colours are", "In 1969, humans first",
    "To make bread you need flour,", "Die Hauptstadt von Deutschland ist", "La tour Eiffel se trouve",
    "import numpy as np\n\ndef mean(x):", "Q: What is 12 times 7?\nA:", "The opposite of hot is",
    "Photosynthesis is the process by which", "SELECT name FROM users WHERE", "Dear Sir or Madam,\n\n",
    "The largest planet in our solar system", "A haiku about the sea:\n", "1, 1, 2, 3, 5, 8,",
    "Breaking news: scientists have discovered",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
]

FILES = ("LICENSE", "src/openhearth/units.py")
MAX_TOKENS = 1500

PASSAGE = (
    "The river rose in the night, and by morning the lower fields were under water. Old Martha stood at "
    "the kitchen window with a cup of tea and counted the cattle that her son had driven up the hill "
    "before dawn. There were forty-one of them, which meant that two were missing, and she said so when "
    "he came in with mud to his knees. He answered that the brindled cow had broken the fence again and "
    "taken her calf to the wood, where the ground was dry; he would fetch them when he had eaten. Nobody "
    "in the valley remembered a flood so early in the year.")


@pytest.fixture(scope="module")
def ours(smollm2_path):
    return load_ours(smollm2_path)


@pytest.fixture(scope="module")
def theirs(smollm2_path):
    return load_theirs(smollm2_path)


@pytest.fixture(scope="module")
def tokenizer(smollm2_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]


@pytest.fixture(scope="module")
def texts(tokenizer, prompts):
    """Token ids of 24 texts: the prompts alone and joined, prose, a licence, code."""
    root = Path(__file__).parents[2]
    longer = [" ".join(PROMPTS), PASSAGE, *((root / name).read_text(encoding="utf-8") for name in FILES)]
    return [*prompts, *(tokenizer(text, add_special_tokens=False).input_ids[:MAX_TOKENS] for text in longer)]


def test_it_has_the_published_number_of_parameters(ours):
    assert ours.spec.num_parameters == 134_515_008


def test_logits_of_the_reference_kernels_equal_those_of_transformers(texts, smollm2_path, tmp_path):
    """They are the same operations of torch, in a process that was told to use them."""
    ids_path = tmp_path / "texts.json"
    ids_path.write_text(json.dumps(texts), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "support.distance", str(smollm2_path), str(ids_path)],
                          cwd=Path(__file__).parents[1], env={**os.environ, "HEARTH_ISA": "reference"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    distances = json.loads(done.stdout)
    assert len(distances) == len(texts) == 24
    assert max(distances) <= 1e-4


def test_logits_are_within_1e_4_of_float64(ours, theirs, texts):
    """Both round; ours must stay below 1e-4 on each text, where theirs does not, and be closer over all."""
    from transformers import LlamaForCausalLM

    exact = LlamaForCausalLM(theirs.config).double().eval()
    exact.load_state_dict(theirs.state_dict())
    squares = {"ours": 0.0, "theirs": 0.0}
    for ids in texts:
        with torch.inference_mode():
            want_TV = exact(torch.tensor([ids])).logits[0]
            ours_TV = (ours.logits(run_whole(ours, ids)) - want_TV).abs_()
            theirs_TV = (theirs(torch.tensor([ids])).logits[0] - want_TV).abs_()
        if select.chosen().is_native:
            assert ours_TV.max() <= 1e-4
        squares["ours"] += ours_TV.square().sum().item()
        squares["theirs"] += theirs_TV.square().sum().item()
    assert squares["ours"] <= squares["theirs"]


def test_greedy_continuations_of_64_tokens_are_those_of_transformers(ours, theirs, prompts):
    """Ours decode together from a paged cache; each next token must be transformers' own argmax.

    By induction that is transformers' greedy continuation, at the price of one forward per prompt.
    """
    runner = PagedRunner(ours, num_pages=20 * 16, page_size=16)
    texts = {index: list(prompt) for index, prompt in enumerate(prompts)}
    chunks = texts
    for _ in range(NUM_NEW):
        hidden = runner.step(chunks)
        last = torch.stack([hidden[index][-1] for index in texts])
        with torch.inference_mode():
            chosen = ours.logits(last).argmax(-1).tolist()
        chunks = {index: [token] for index, token in zip(texts, chosen, strict=True)}
        texts = {index: ids + chunks[index] for index, ids in texts.items()}
    for index, ids in texts.items():
        start = len(prompts[index])
        with torch.inference_mode():
            want = theirs(torch.tensor([ids[:-1]])).logits[0, start - 1:].argmax(-1).tolist()
        assert ids[start:] == want, PROMPTS[index]
