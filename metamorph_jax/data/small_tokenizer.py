"""Trains a small byte-level BPE tokenizer with the Llama-3 splitting rule and special tokens.

For experiments with a few hundred ids. The folder it writes is an ordinary Hugging Face one:
`transformers` loads it, and so does `tokenizer.py`.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image_start>",
    "<image_end>",
)
# Source: `pre_tokenizer` of the published Llama-3 tokenizer.json.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> int:
    """Writes a tokenizer folder and returns its number of ids.

    Args:
        texts: what it should be good at; frequent words become one id.
        vocab_size: upper bound of the number of ids, the 256 bytes and the special tokens included.
        folder: where `tokenizer.json` and its companions go; created if missing.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Added afterwards: behind the ordinary ids, and outside the vocabulary that spells texts.
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    begin = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_companions(folder)
    return tokenizer.get_vocab_size()


def _write_companions(folder: Path) -> None:
    """Writes what `transformers` reads besides `tokenizer.json`."""
    roles = {
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": "<|eot_id|>",
        "pad_token": "<|end_of_text|>",
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, fields in {
        "tokenizer_config.json": config | roles,
        "special_tokens_map.json": roles,
    }.items():
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
