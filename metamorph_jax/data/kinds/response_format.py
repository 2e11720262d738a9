"""LLaVA-1.5's requests for a form of answer."""

import dataclasses
import re

from metamorph_jax.data.conversation import Conversation, Text, Turn

# **Source:** LLaVA-1.5 (arXiv:2310.03744), table of the instruction mix.
RESPONSE_FORMATS = {
    "short_answer": "Answer the question using a single word or phrase.",
    "option_letter": "Answer with the option's letter from the given choices directly.",
    "caption": "Provide a one-sentence caption for the provided image.",
    "region": "Provide a short description for this region.",
}
REGION_BOX = "Provide the bounding box coordinate of the region this sentence describes."
_BOX = re.compile(r"\s*\[[\d.,\s]+\]")


def add_response_format(conversation: Conversation, name: str) -> Conversation:
    """Returns the conversation with the request on a new line behind its first question.

    A question that holds it already stays as it is. `region` asks for coordinates if the answer is
    a box in brackets, otherwise for a description.

    Args:
        conversation: of any kind.
        name: of RESPONSE_FORMATS, or "none".
    """
    if name == "none":
        return conversation
    turns = list(conversation.turns)
    place = next(index for index, turn in enumerate(turns) if turn.role == "user")
    request = RESPONSE_FORMATS[name]
    if name == "region" and place + 1 < len(turns) and _BOX.match(_words(turns[place + 1])):
        request = REGION_BOX
    if request in _words(turns[place]):
        return conversation
    parts = list(turns[place].parts)
    last = parts.pop() if parts and isinstance(parts[-1], Text) else Text("")
    parts.append(Text(last.text.rstrip("\n") + f"\n{request}"))
    turns[place] = dataclasses.replace(turns[place], parts=tuple(parts))
    return dataclasses.replace(conversation, turns=tuple(turns))


def _words(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))
