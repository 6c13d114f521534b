"""Text to token ids and back, with user text that cannot become control tokens.

A control token is one the tokenizer marks as special, or one that ends a turn or marks a gap.
`Tokenizer.encode` gives control tokens for their spelling only with `parse_control=True`; everything else
is data. The backends share one vocabulary and never change after construction, so a tokenizer may be used
from many threads.

Does not: truncate, pad, or add BOS unless asked. Added tokens that are not control tokens
(`<think>`, `<tool_call>` of some families) are matched in all text, as their training did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, models

from openhearth.chat.infill import InfillMarks
from openhearth.chat.text_stream import decode_all, token_bytes_of
from openhearth.errors import BadFile, UsageError

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_BPE_OPTIONS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")


@dataclass(frozen=True)
class Marks:
    """What a checkpoint says about its tokenizer besides the vocabulary.

    prefix_ids, suffix_ids: what `add_special_tokens` puts around a text. special_tokens: name ->
    text, for templates. infill: the marks of a gap, None where it has none.
    Example: ``Marks(bos_token_id=1, eos_token_id=2, prefix_ids=(1,))``.
    """

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    special_tokens: Mapping[str, str] | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    infill: InfillMarks | None = None


class Tokenizer:
    """One checkpoint's tokenizer.

    Attributes: vocab_size (tokens, added ones included), bos_token_id, eos_token_id,
    stop_token_ids, special_tokens, control_tokens (spelling -> id), prefix_ids and infill (as in `Marks`).
    """

    def __init__(self, backend: tokenizers.Tokenizer, marks: Marks) -> None:
        """backend: its vocabulary and added tokens; not changed, and not to be changed afterwards.

        Raises: BadFile when the added tokens have no consistent ids.
        """
        self.bos_token_id = marks.bos_token_id
        self.eos_token_id = marks.eos_token_id
        self.stop_token_ids = marks.stop_token_ids
        self.special_tokens = dict(marks.special_tokens or {})
        self.prefix_ids, self._suffix_ids = marks.prefix_ids, list(marks.suffix_ids)
        self.infill = marks.infill
        self._added = _with_control(backend, marks)
        model = _unmerged(backend.model, [token.content for token in self._added.values() if token.special])
        self._control = _rebuild(backend, self._added, model)
        self._plain = _rebuild(backend, self._added, model)
        self._plain.encode_special_tokens = True
        self.vocab_size = self._control.get_vocab_size()
        self.control_tokens = {
            token.content: token_id for token_id, token in self._added.items() if token.special
        }
        self._control_ids = frozenset(self.control_tokens.values())
        self._control_pattern = re.compile(
            "|".join(re.escape(text) for text in sorted(self.control_tokens, key=len, reverse=True))
            or r"(?!)"
        )
        decoder = backend.decoder
        self._to_bytes, self.num_stripped_spaces = token_bytes_of(decoder.__getstate__() if decoder else None)

    def encode(
        self, text: str, *, add_special_tokens: bool = False, parse_control: bool = False
    ) -> list[int]:
        """Return token ids.

        add_special_tokens: with the BOS and EOS the checkpoint asks for. parse_control: spellings of
        control tokens become those tokens; otherwise no control token comes out of text. Lone
        surrogates count as U+FFFD.
        """
        text = well_formed(text)
        if parse_control:
            token_ids = self._control.encode(text, add_special_tokens=False).ids
        else:
            token_ids = self._plain.encode(text, add_special_tokens=False).ids
            if not self._control_ids.isdisjoint(token_ids):
                # Merges of some vocabularies lead to a control token; its spelling is cut in two.
                cuts = [match.start() + 1 for match in self.find_control(text)]
                token_ids = self.encode_around(text, [(cut, cut, None) for cut in cuts])[0]
        if add_special_tokens:
            return [*self.prefix_ids, *token_ids, *self._suffix_ids]
        return token_ids

    def encode_after(self, text: str) -> list[int]:
        """Return the ids of text that follows other text: no space is put before it.

        Source: `encode_infilling` of Meta's Code Llama, which cuts off the tokens of a character before it.
        """
        before = next(char for char in map(chr, _PRIVATE_USE) if char not in text)
        return self.encode(before + text)[len(self.encode(before)):]

    def encode_parsed(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As ``encode(text, parse_control=True)`` for well-formed text, with each token's characters."""
        encoding = self._control.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_around(
        self,
        text: str,
        spans: Sequence[tuple[int, int, int | None]],
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode text as data, except for spans whose token is given.

        text: well-formed. spans: (start, end, token id), in order and apart; the span's characters
        become that token and nothing else, or no token for None (an empty span is a cut). Returns
        ids and the characters [start, end) of each. Raises: BadFile when the vocabulary gives a
        control token for a single character of text, which nothing can separate.
        """
        stand_in = next(char for char in map(chr, _PRIVATE_USE) if char not in text)
        backend = _rebuild(self._plain, self._added, self._plain.model)
        backend.encode_special_tokens = True
        kinds = {}
        for left, right in ((False, False), (False, True), (True, False), (True, True)):
            kinds[left, right] = stand_in + "01"[left] + "01"[right] + stand_in
        backend.add_tokens(
            [
                AddedToken(spelling, lstrip=left, rstrip=right, special=False, normalized=False)
                for (left, right), spelling in kinds.items()
            ]
        )
        stand_in_ids = {backend.token_to_id(spelling) for spelling in kinds.values()}
        pieces, shifts, position, length = [], [], 0, 0
        for start, end, token_id in spans:
            token = self._added.get(token_id)
            spelling = kinds[(token.lstrip, token.rstrip) if token else (False, False)]
            pieces += [text[position:start], spelling]
            length += start - position + len(spelling)
            shifts.append((length, end - length))
            position = end
        encoding = backend.encode("".join([*pieces, text[position:]]), add_special_tokens=False)
        token_ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        shift, num_done = 0, 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in stand_in_ids:
                span_start, span_end, known_id = spans[num_done]
                shift = shifts[num_done][1]
                num_done += 1
                if known_id is not None:
                    token_ids.append(known_id)
                    offsets.append((span_start, span_end))
            elif token_id in self._control_ids:
                raise BadFile(
                    f"the tokenizer makes the control token `{backend.id_to_token(token_id)}` out of text",
                    why="text from outside could forge it",
                    hint="report this model's tokenizer",
                )
            else:
                token_ids.append(token_id)
                offsets.append((start + shift, end + shift))
        assert num_done == len(spans), (num_done, len(spans))
        return token_ids, offsets

    def find_control(self, text: str, start: int = 0) -> Iterable[re.Match[str]]:
        """Yield matches of control token spellings from left to right, the longest first, apart."""
        return self._control_pattern.finditer(text, start)

    def decode(self, token_ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of the tokens; invalid UTF-8 becomes U+FFFD, unknown ids give no text."""
        token_ids = list(token_ids)
        if self._to_bytes is None:
            return self.decode_whole(token_ids, skip_special=skip_special)
        return decode_all(self, token_ids, skip_special=skip_special)

    @property
    def has_token_bytes(self) -> bool:
        """True when a token's text does not depend on its neighbours, bytes given."""
        return self._to_bytes is not None

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return the bytes of one token; only where `has_token_bytes`. Raises: UsageError below 0."""
        token = self._token(token_id)
        if token is None or (skip_special and token_id in self._control_ids):
            return b""
        return self._to_bytes(token)

    def decode_whole(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text as the decoder of the `tokenizers` library gives it."""
        return self._control.decode(
            [i for i in token_ids if self._token(i) is not None], skip_special_tokens=skip_special
        )

    def token_id(self, token: str) -> int | None:
        """Return the id of a spelling in the vocabulary."""
        return self._control.token_to_id(token)

    def has_same_tokens(self, other: Tokenizer) -> bool:
        """Return whether both give the same spellings the same ids."""
        return self._control.get_vocab() == other._control.get_vocab()

    def _token(self, token_id: int) -> str | None:
        if not 0 <= token_id < 2**32:
            raise UsageError(
                f"token id {token_id} is out of range", why=f"the vocabulary has {self.vocab_size} tokens"
            )
        return self._control.id_to_token(token_id)


def well_formed(text: str) -> str:
    """Return text with U+FFFD for lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def _with_control(backend: tokenizers.Tokenizer, marks: Marks) -> dict[int, AddedToken]:
    """Return the added tokens by id, those that end a turn or mark a gap as control tokens.

    Marks of a gap may be ordinary tokens of a vocabulary; they are added here. A text could hold them else.
    """
    added = backend.get_added_tokens_decoder()
    around = marks.infill.end_ids if marks.infill is not None else frozenset()
    for token_id in (marks.stop_token_ids & added.keys()) | around:
        token = added.get(token_id)
        if token is None:
            added[token_id] = AddedToken(backend.id_to_token(token_id), normalized=False, special=True)
        elif not token.special:
            added[token_id] = AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=True,
            )
    return dict(sorted(added.items()))


def _unmerged(model: models.Model, control: Sequence[str]) -> models.Model:
    """Return a BPE without the merges that make control tokens out of text, as CodeLlama's ` <PRE>`."""
    if not isinstance(model, models.BPE) or model.ignore_merges:
        return model
    made = {text for text in control if [token.value for token in model.tokenize(text)] == [text]}
    if not made:
        return model
    state = json.loads(model.__getstate__())
    merges = [(left, right) for left, right in state["merges"] if left + right not in made]
    options = {name: state[name] for name in _BPE_OPTIONS if state[name] is not None}
    return models.BPE(state["vocab"], merges, **options)


def _rebuild(
    backend: tokenizers.Tokenizer, added: Mapping[int, AddedToken], model: models.Model
) -> tokenizers.Tokenizer:
    """Return a tokenizer of its own, as backend over a model, whose vocabulary and merges it shares."""
    built = tokenizers.Tokenizer(model)
    if backend.normalizer is not None:
        built.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        built.pre_tokenizer = backend.pre_tokenizer
    if backend.decoder is not None:
        built.decoder = backend.decoder
    built.add_tokens(list(added.values()))
    for token_id, token in added.items():
        if built.token_to_id(token.content) != token_id:
            raise BadFile(
                f"added token `{token.content}` has id {token_id}, expected "
                f"{built.token_to_id(token.content)}",
                why="the tokenizer's ids have a gap or a duplicate",
                hint="hearth pull the model again",
            )
    return built
