"""A small byte-level BPE with the control tokens of all chat styles, trained on the corpus."""

from support.chat_styles import CONTROL
from support.corpus import CODE, SCRIPTS


def train_tokenizer(vocab_size, added):
    """Return a `tokenizers.Tokenizer`. added: texts that become tokens without being control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*SCRIPTS.values(), *CODE] * 2,
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=CONTROL, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer
