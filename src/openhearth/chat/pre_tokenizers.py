"""How text is cut before byte-level BPE, by the name a GGUF file stores in `tokenizer.ggml.pre`.

A wrong cut still runs and gives other tokens, so a name that is not here is refused. Patterns are
those of each family's own `tokenizer.json`, in the regex dialect of the `tokenizers` library; the
names and their grouping follow llama.cpp (`src/llama-vocab.cpp`, commit 00ad355).

Does not: choose by anything but the name. `default` (files converted before names existed) is cut
as GPT-2, which is what `transformers` 5.23 does with it too.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from openhearth.errors import Unsupported


@dataclass(frozen=True)
class PreTokenizer:
    """One family's cut.

    splits: patterns applied one after the other, matches isolated. uses_gpt2_regex: cut by GPT-2's
    own pattern after them. is_nfc: text is composed first. ignores_merges: a piece that is a token
    is that token, whatever its merges. adds_bos: when the file does not say.
    Example: ``PreTokenizer(splits=(r"\\p{N}",), uses_gpt2_regex=True)`` (SmolLM).
    """

    splits: tuple[str, ...] = ()
    uses_gpt2_regex: bool = False
    is_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return the normaliser in front of the cut, or None."""
        return normalizers.NFC() if self.is_nfc else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the cut, byte-level spelling included."""
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.uses_gpt2_regex)
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.splits]
        return pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level


# Letters that have case, as DeepSeek's first tokenizers list them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370"
    "-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-"
    "\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a"
    "-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-"
    "\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_UPPER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = rf"{_LOWER_WORD}|{_UPPER_WORD}|\p{{N}}|{_TAIL_SLASH}"
_GPT4O = rf"{_LOWER_WORD}{_CONTRACTION}?|{_UPPER_WORD}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
_UPPER_HERE, _LOWER_HERE = (rf"{kind[:-1]}&&[^\p{{Han}}]]" for kind in (_UPPER, _LOWER))
_KIMI_K2 = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_HERE}*{_LOWER_HERE}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_HERE}+{_LOWER_HERE}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_TAIL}"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

_GPT2_FAMILY = PreTokenizer(uses_gpt2_regex=True)
_NEOX_FAMILY = PreTokenizer(uses_gpt2_regex=True, is_nfc=True)
_DIGITS_FAMILY = PreTokenizer((r"\p{N}",), uses_gpt2_regex=True)
_LLAMA3_FAMILY = PreTokenizer((_LLAMA3,), ignores_merges=True, adds_bos=True)
_QWEN2_FAMILY = PreTokenizer((_QWEN2,), is_nfc=True)
_GPT4O_FAMILY = PreTokenizer((_GPT4O,))
_DEEPSEEK_V3_FAMILY = PreTokenizer(_DEEPSEEK_V3)

PRE_TOKENIZERS = {
    "default": _GPT2_FAMILY,
    "gpt-2": _GPT2_FAMILY,
    "phi-2": _GPT2_FAMILY,
    "olmo": _NEOX_FAMILY,
    "mpt": _NEOX_FAMILY,
    "smollm": _DIGITS_FAMILY,
    "starcoder": _DIGITS_FAMILY,
    "refact": _DIGITS_FAMILY,
    "codeshell": _DIGITS_FAMILY,
    "command-r": PreTokenizer((r"\p{N}",), uses_gpt2_regex=True, is_nfc=True),
    "llama-bpe": _LLAMA3_FAMILY,
    "llama3": _LLAMA3_FAMILY,
    "llama-v3": _LLAMA3_FAMILY,
    "falcon3": _LLAMA3_FAMILY,
    "lfm2": _LLAMA3_FAMILY,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "glm4": PreTokenizer((_LLAMA3,)),
    "qwen2": _QWEN2_FAMILY,
    "deepseek-r1-qwen": _QWEN2_FAMILY,
    "qwen35": PreTokenizer((_QWEN35,), is_nfc=True),
    "tekken": PreTokenizer((_TEKKEN,), ignores_merges=True, adds_bos=True),
    "gpt-4o": _GPT4O_FAMILY,
    "llama4": _GPT4O_FAMILY,
    "deepseek-llm": PreTokenizer(
        (
            "[\r\n]",
            rf"\s?[{_CASED}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            r"\p{N}",
        )
    ),
    "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": _DEEPSEEK_V3_FAMILY,
    "hunyuan-dense": _DEEPSEEK_V3_FAMILY,
    "kimi-k2": PreTokenizer((_KIMI_K2,), ignores_merges=True),
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """Return the cut that `tokenizer.ggml.pre` names. Raises: Unsupported, naming it."""
    if name not in PRE_TOKENIZERS:
        raise Unsupported(
            f"pre-tokenizer `{name[:80]}` is not supported",
            why=f"a guess would give other tokens; known: {', '.join(sorted(PRE_TOKENIZERS))}",
            hint="use the model's safetensors folder, which carries its tokenizer.json",
        )
    return PRE_TOKENIZERS[name]
