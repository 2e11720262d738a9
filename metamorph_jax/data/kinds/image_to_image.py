"""Edits: an image and an instruction, answered with another image."""

from typing import Any

from metamorph_jax.data.conversation import Conversation, Image, Text, read_conversation
from metamorph_jax.data.kinds.material import Material, images_in
from metamorph_jax.data.media import ImageBytes

# Names of the instruction in published sets, InstructPix2Pix's among them.
_INSTRUCTIONS = ("instruction", "edit_prompt", "edit")


def image_to_image(material: Material) -> Conversation:
    """Returns a record's turns with images on both sides, or those made of a raw edit.

    A raw edit is {"image", "edited_image", "instruction"}, or two images and the instruction.

    **Source:** image, space, instruction -> image, as in MetaMorph's files.

    Raises:
        BadSample: images are missing on a side, or there is neither conversation nor edit.
    """
    if material.record.turns:
        conversation = read_conversation(material.record)
        sides = {turn.is_answer for turn in conversation.turns if images_in(turn)}
        if sides != {True, False}:
            raise material.bad(
                "wrong_conversation",
                "'image_to_image' needs an image in a question and one in an answer; set the "
                "source's kind to 'conversation' to take the record as it is",
            )
        return conversation
    before, after = _pair(material)
    return material.dialogue([Image(before), Text(f" {_instruction(material)}")], [Image(after)])


def _pair(material: Material) -> tuple[str | ImageBytes, str | ImageBytes]:
    record = material.record
    images = list(record.images)
    if record.extra.get("edited_image") is not None:
        images.append(_edited_image(material))
    if len(images) != 2:
        raise material.bad(
            "tag_mismatch",
            f"the edit has {len(images)} image(s), expected two: 'image' and 'edited_image', or "
            "both under 'images'",
        )
    return images[0], images[1]


def _edited_image(material: Material) -> str | ImageBytes:
    value: Any = material.record.extra["edited_image"]
    if isinstance(value, dict):  # as image columns of parquet files are stored
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return ImageBytes(value, "edited_image")
    if isinstance(value, ImageBytes) or (isinstance(value, str) and value):
        return value
    raise material.bad(
        "malformed_record", "'edited_image' is no image; expected a path or an image's bytes"
    )


def _instruction(material: Material) -> str:
    for key in _INSTRUCTIONS:
        value = material.record.extra.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise material.bad(
        "malformed_record", f"the edit has no instruction; give one under {_INSTRUCTIONS[0]!r}"
    )
