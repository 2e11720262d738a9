"""`generation_config.json` of an exported folder."""

from collections.abc import Sequence
from typing import Any

from metamorph_jax.data.tokenizer import Tokenizer


def generation_json(tokenizer: Tokenizer, stop: Sequence[int], vocab_size: int) -> dict[str, Any]:
    """Returns what ends an answer and what one may not contain: control tokens and unused rows.

    Tokens around images are among them: `generate` answers in text, and MetaMorph's
    `generate_multimodal` knows when they may stand.

    Args:
        tokenizer: of the model.
        stop: ids that end an answer.
        vocab_size: rows of the tables.
    """
    unused = range(tokenizer.vocab_size, vocab_size)
    return {
        "bos_token_id": tokenizer.special.begin_of_text,
        "eos_token_id": list(stop),
        "pad_token_id": tokenizer.special.pad,
        "suppress_tokens": sorted({*tokenizer.control_ids, *unused} - {*stop}),
        "do_sample": False,
        "max_new_tokens": 512,
    }
