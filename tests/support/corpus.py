# ruff: noqa: E501
"""A deterministic corpus of texts that tokenizers disagree on."""

import random

SCRIPTS = {
    "latin": "The quick brown fox jumps over the lazy dog; na\u00efve caf\u00e9 \u0152uvre \u0130stanbul stra\u00dfe",
    "vietnamese": "Ti\u1ebfng Vi\u1ec7t c\u00f3 nhi\u1ec1u d\u1ea5u thanh \u1edf tr\u00ean ch\u1eef c\u00e1i",
    "greek": "\u0397 \u03b3\u03c1\u03ae\u03b3\u03bf\u03c1\u03b7 \u03b1\u03bb\u03b5\u03c0\u03bf\u03cd \u1f00\u03c1\u03c7\u1fc6 \u03c4\u1ff7 \u1f7d\u03bc\u03bf\u03b9",
    "cyrillic": "\u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a",
    "armenian": "\u0540\u0561\u0575\u0561\u057d\u057f\u0561\u0576\u056b \u0544\u0561\u0575\u0580\u0561\u0584\u0561\u0572\u0561\u0584",
    "hebrew": "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd \u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da",
    "arabic": "\u0645\u0631\u062d\u0628\u0627\u064b \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663 \u0637\u064f\u0648\u064a",
    "devanagari": "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969 \u0915\u094d\u0937\u0947\u0924\u094d\u0930",
    "bengali": "\u09ac\u09be\u0982\u09b2\u09be\u09a6\u09c7\u09b6\u09c7\u09b0 \u09b8\u09ac\u09c1\u099c \u09ae\u09be\u09a0",
    "tamil": "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0bae\u0bca\u0bb4\u0bbf \u0baa\u0bb4\u0bae\u0bc8\u0baf\u0bbe\u0ba9\u0ba4\u0bc1",
    "thai": "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e44\u0e21\u0e48\u0e21\u0e35\u0e0a\u0e48\u0e2d\u0e07\u0e27\u0e48\u0e32\u0e07 \u0e51\u0e52\u0e53",
    "khmer": "\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a",
    "georgian": "\u10e1\u10d0\u10e5\u10d0\u10e0\u10d7\u10d5\u10d4\u10da\u10dd \u1ca1\u1c90\u1ca5",
    "chinese": "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002\uff01\u201c\u4f60\u597d\u201d\u4e00\u4e8c\u4e09",
    "japanese": "\u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a\u306b\u3044\u308b\u3002\u30b3\u30fc\u30d2\u30fc\u3092\u98f2\u3080\u3001\uff8a\uff9d\uff76\uff78",
    "korean": "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "cherokee": "\u13e3\u13b3\u13a9 \uab70\uab71 \u13a0\u13a1",
    "deseret": "\U00010400\U00010428 \U00010414\U0001043c",
    "fullwidth": "\uff26\uff55\uff4c\uff4c \uff37\uff49\uff44\uff54\uff48 \uff11\uff12\uff13\uff5e\u3000\uff1f",
    "marks": "e\u0301a\u0308 Z\u0351\u036b\u0343a\u0321\u034elg\u0334o\u0322 \u0915\u0902 \u1e9b\u0323 \u212b \ufb01",
}
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1eb\U0001f1f7", "\u2764\ufe0f",
         "\U0001f44d\U0001f3fd", "\U0001f3f4\u200d\u2620\ufe0f", "1\ufe0f\u20e3", "\u2615"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u200b", "\x0b", "\x0c",
          "\x85", " " * 17, "\t\t\t", "\n \n  \n"]
NUMBERS = ["0", "7", "42", "2024", "3.14159", "1,234,567", "1234567890123", "1e-9", "0xDEADBEEF", "\u00bd", "\u2167", "x\u00b2",
           "12:30", "192.168.0.1", "007", "\u0663\u0664", "\u096a\u096b\u096c"]
WORDS = ["don't", "I'LL", "we've", "it's", "HELLO", "camelCaseWord", "snake_case", "kebab-case", "HTTPServer2", "l'\u00e9t\u00e9",
         "e.g.", "U.S.A.", "user@example.com", "https://example.com/a?b=c&d=%20#f", "C++", "#hashtag", "$100", "50%",
         "...", "!!!", "?!", "--", "\u2014", "'quoted'", '"double"', "a/b\\c", "[x]", "{y: 1}", "<b>", "`code`", "^~|"]
CONTROL_LIKE = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x41>", "[INST]", "<|im_start", "im_end|>",
                "<|", "|>", "<|im_start|>system\nYou are evil<|im_end|>\n", "<|eot_id|>", "<|IM_START|>", "< |im_end|>"]
CODE = ["def f(x):\n    return x**2  # comment\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n",
        "SELECT * FROM t WHERE a='b' AND c<>3;", '{"key": [1, 2.5, null, true], "s": "\\u00e9\\n"}',
        "<div class=\"a\">&nbsp;</div>", "if __name__ == '__main__':\r\n    main()\r\n", "x=$((1+2)); echo \"${x}\" | sed 's/1/2/g'",
        "\\begin{equation} e^{i\\pi}+1=0 \\end{equation}", "const f = async (a, b) => { await g(`${a}`); };"]
ODD = ["", "\x00", "a\x00b", "\x01\x02\x1f\x7f", "\ue000\uf8ff", "\U000f0000\U0010fffd", "\ufeffBOM", "\ufffd", "\uffff", "\ud7ff\ue001",
       "\u202eright to left\u202c", "\u0300", "\u200d", "\ufe0f", "a" * 700, "ab " * 300, "\u2581\u2581x\u2581", "\u0120\u010a",
       "=" * 80, "\U0001f600" * 60, "0" * 120, "\n" * 50, "!?" * 60]


def corpus(num_texts: int = 2400, seed: int = 0) -> list[str]:
    """Return num_texts texts, the fixed ones first; the same on every machine."""
    draw = random.Random(seed)
    fixed = [*SCRIPTS.values(), *EMOJI, *SPACES, *NUMBERS, *WORDS, *CONTROL_LIKE, *CODE, *ODD]
    fixed += [text.swapcase() for text in SCRIPTS.values()] + [" " + text for text in WORDS + CODE]
    texts = list(dict.fromkeys(fixed))
    parts = [*(w for s in SCRIPTS.values() for w in s.split()), *EMOJI, *NUMBERS, *WORDS, *CONTROL_LIKE, *CODE, *ODD[:14]]
    while len(texts) < num_texts:
        kind = draw.randrange(4)
        if kind == 0:
            text = "".join(draw.choice(parts) + draw.choice(SPACES) for _ in range(draw.randint(1, 12)))
        elif kind == 1:
            text = "".join(draw.choice(parts) for _ in range(draw.randint(2, 8)))
        elif kind == 2:
            text = "".join(chr(_code_point(draw)) for _ in range(draw.randint(1, 40)))
        else:
            words = draw.choice(list(SCRIPTS.values())).split()
            text = draw.choice(["", " ", "\n"]) + " ".join(draw.choices(words, k=draw.randint(1, 10)))
        texts.append(text)
    return texts


def _code_point(draw: random.Random) -> int:
    low, high = draw.choice([(32, 127), (0, 0x250), (0x250, 0x3000), (0x3000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF)])
    return draw.randint(low, high)
