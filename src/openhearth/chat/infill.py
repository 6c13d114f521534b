"""Filling in a middle: the tokens that mark a gap's two sides, and the prompt that they make.

The marks go into a prompt as ids and the texts around the gap as data, so that nothing in a text can become
a mark. Sources of spellings, keys and orders: llama.cpp (`llama-vocab.cpp` and `format_prompt_infill`, 2026),
`CodeLlamaTokenizer` of transformers 5.23.0, `encode_fim` of mistral-common 1.13.0, and cards of the models.

Does not: know whether a model was taught to fill in middles; many have the tokens of a relative that was. Nor
does it name the files around the gap, as repository prompts do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openhearth.errors import Unsupported

if TYPE_CHECKING:
    from openhearth.chat.tokenizer import Tokenizer

_STYLES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # CodeLlama
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4
    ("[PREFIX]", "[SUFFIX]"),  # Codestral: without a mark of the middle
)
"""Spellings of the marks of prefix, suffix and middle, by family."""

_ENDS = (
    "<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|fim_repo|>", "<|repo_name|>", "<repo_name>", "<reponame>",
    "<|file_sep|>", "<file_sep>", "<|file_separator|>", "<filename>", "\u2581<EOT>",
)
"""What begins another file, or fills up, where a middle is done; besides the tokens that end a turn."""

_GGUF_KEYS = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),
)
"""Names of the marks' ids in `tokenizer.ggml.*`; the second row is the older one, of CodeLlama."""

_GGUF_END_KEYS = ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id", "eot_token_id")


@dataclass(frozen=True)
class InfillMarks:
    """The tokens around a gap. end_ids: they end what is filled in, besides the model's own stop tokens.

    middle_id None: the suffix comes first, and the prefix, last, is continued.
    Example: ``InfillMarks(10, 11, 12, frozenset({10, 11, 12, 13}))``.
    """

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    end_ids: frozenset[int]

    def around(self, prefix: Sequence[Any], suffix: Sequence[Any]) -> list[Any]:
        """Return the marks with what is between them, in the model's order."""
        if self.middle_id is None:
            return [self.suffix_id, *suffix, self.prefix_id, *prefix]
        return [self.prefix_id, *prefix, self.suffix_id, *suffix, self.middle_id]


@dataclass(frozen=True)
class Infill:
    """A prompt with a gap, by the texts before and after it.

    Example: ``Infill("def add(a, b):", "    return total")``.
    """

    prefix: str
    suffix: str


def find_infill(added: Mapping[str, int], end_of_turn: Sequence[str],
                gguf: Callable[[str], int | None] = lambda key: None) -> InfillMarks | None:
    """Return a vocabulary's marks; None where it has none.

    added: spelling -> id of its added tokens. end_of_turn: spellings of tokens that end a turn. gguf: key ->
    the id that `tokenizer.ggml.<key>` names; these go before spellings.
    """
    found = [[gguf(key) for key in keys] for keys in _GGUF_KEYS]
    found += [[added.get(text) for text in style] for style in _STYLES]
    marks = next((ids for ids in found if None not in ids and len(set(ids)) == len(ids)), None)
    if marks is None:
        return None
    ends = {*map(added.get, (*_ENDS, *end_of_turn)), *map(gguf, _GGUF_END_KEYS)}
    return InfillMarks(marks[0], marks[1], marks[2] if len(marks) > 2 else None,
                       frozenset({*marks, *ends} - {None}))


def infill_prompt(tokenizer: Tokenizer, prompt: Infill, name: str) -> list[int]:
    """Return the token ids that ask for what is between two texts, with BOS where the tokenizer adds one.

    SentencePiece puts a space before a text: the prefix has it, the suffix goes on without, as these models
    were taught. name: of the model, for the error. Raises: Unsupported where the tokenizer has no marks.
    """
    if tokenizer.infill is None:
        raise Unsupported(
            f"`{name}` does not support insert",
            why="its tokenizer has no tokens that mark the text before and after a gap",
            hint="leave `suffix` out to continue the text, or use a model such as Qwen2.5-Coder",
        )
    prefix, suffix = tokenizer.encode(prompt.prefix), tokenizer.encode(prompt.suffix)
    if tokenizer.num_stripped_spaces:
        prefix = tokenizer.encode_after(" " + prompt.prefix) if prompt.prefix else []
        suffix = tokenizer.encode_after(prompt.suffix)
    return [*tokenizer.prefix_ids, *tokenizer.infill.around(prefix, suffix)]
