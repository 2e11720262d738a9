"""Prompts that still say which of their characters are texts, control tokens and pictures.

The chat template runs over marks, one for each text and picture of the conversation; what it
writes around them is its own. Texts are put in afterwards, with an escape character wherever they
spell what would count.
"""

import itertools
import re

# Private characters; texts that hold them are escaped, too.
_ESCAPE = "\U000f0002"  # the next character is only a character
_BORDER = "\U000f0003"  # no token spans this place
_FIRST_MARK = 0x100000
_MARKS = re.compile("([\U00100000-\U0010ffff])")
_EDGE = "\u2003"  # white space that templates do not write: gone, if the template strips content
_IMAGE = object()  # a picture among the parts of a message
_KEYS = ("image", "url", "path", "base64")


class PromptCode:
    """Writes and reads the prompts of one tokenizer.

    Args:
        image_token: what stands for a picture.
        control_tokens: what else counts.
    """

    def __init__(self, image_token, control_tokens):
        self._image_token = image_token
        meant = {image_token, *control_tokens, _ESCAPE, _BORDER}
        spelled = "|".join(map(re.escape, sorted(meant, key=len, reverse=True)))
        self._starts = re.compile(f"(?={spelled})")
        self._pieces = re.compile(f"{_ESCAPE}(?P<literal>.)|(?P<meant>{spelled})", re.DOTALL)

    def write(self, messages, template):
        """Returns the prompt of a conversation, and the pictures that its messages hold.

        Args:
            messages: {"role", "content"}, see `MetaMorphProcessor.apply_chat_template`.
            template: messages whose contents are strings -> what they are written as.

        Raises:
            ValueError: The template leaves out a part of a message or writes one twice.
        """
        marked, parts, images = [], [], []
        for message in messages:
            own, first = _parts(message.get("content"), images), len(parts)
            is_answer = message["role"] == "assistant"
            for number, part in enumerate(own):
                parts.append((part, number == 0, number == len(own) - 1, is_answer))
            marks = "".join(chr(_FIRST_MARK + index) for index in range(first, len(parts)))
            marked.append({"role": message["role"], "content": f"{_EDGE}{marks}{_EDGE}"})
        pieces = _MARKS.split(template(marked))
        if [ord(mark) - _FIRST_MARK for mark in pieces[1::2]] != list(range(len(parts))):
            raise ValueError(
                "the chat template leaves out a part of this conversation, writes one twice, or "
                "does not take content that is a string"
            )
        literals = pieces[::2]
        pieces[1::2] = [
            self._fill(part, before, after)
            for part, (before, after) in zip(parts, itertools.pairwise(literals), strict=True)
        ]
        pieces[::2] = [literal.removeprefix(_EDGE).removesuffix(_EDGE) for literal in literals]
        return "".join(pieces), images

    def _fill(self, part, before, after):
        """Returns what takes the place of a mark between two texts of the template."""
        content, is_first, is_last, is_answer = part
        if content is _IMAGE:
            return self._image_token
        if is_first and not before.endswith(_EDGE):
            content = content.lstrip()
        if is_last and not after.startswith(_EDGE):
            content = content.rstrip()
        # The model goes on from the answer's header, so no token joins the two.
        return (_BORDER if is_first and is_answer else "") + self.escape(content)

    def escape(self, text):
        """Returns a text in which nothing that is spelled is meant."""
        return self._starts.sub(_ESCAPE, text)

    def read(self, prompt):
        """Yields (texts, meant, span) in order.

        Texts are those since the last piece, between which no token may span. `meant` is the
        control token or `image_token` behind them, None at the end; `span` is where it stands.
        """
        texts, end = [""], 0
        for match in self._pieces.finditer(prompt):
            texts[-1] += prompt[end : match.start()] + (match["literal"] or "")
            end, meant = match.end(), match["meant"]
            if meant == _BORDER:
                texts.append("")
            elif meant not in (None, _ESCAPE):
                yield texts, meant, match.span()
                texts = [""]
        texts[-1] += prompt[end:]
        yield texts, None, (len(prompt), len(prompt))


def _parts(content, images):
    """Returns texts and `_IMAGE`s of a message, neighbouring texts as one; at least one part.

    Pictures that the message holds are appended to `images`.
    """
    if not isinstance(content, list):
        content = [{"type": "text", "text": content or ""}]
    parts = []
    for part in content:
        if part["type"] == "image":
            parts.append(_IMAGE)
            images += [part[key] for key in _KEYS if part.get(key) is not None][:1]
        elif part["type"] != "text":
            raise ValueError(f"a part of a message is of type {part['type']!r}, not text or image")
        elif parts and isinstance(parts[-1], str):
            parts[-1] += part["text"]
        elif part["text"]:
            parts.append(part["text"])
    return parts or [""]
