"""Requests for an image, answered with one."""

from metamorph_jax.data.conversation import Conversation, Image, Text, read_conversation
from metamorph_jax.data.kinds.material import Material, images_in


def text_to_image(material: Material) -> Conversation:
    """Returns a record's turns, one of whose answers is an image, or a request made of a caption.

    **Source:** request and answer are those of MetaMorph's README.

    Raises:
        BadSample: no answer holds an image, or there is neither conversation nor caption.
    """
    if material.record.turns:
        conversation = read_conversation(material.record)
        if not any(turn.is_answer and images_in(turn) for turn in conversation.turns):
            raise material.bad(
                "wrong_conversation",
                "no answer holds an image, which 'text_to_image' is about; put \"<image>\" into "
                "one, or set the source's kind to 'conversation'",
            )
        return conversation
    caption = material.caption()
    return material.dialogue(
        [Text(f"Generate an image of {caption}")],
        [Text("Here is an image based on your request: "), Image(material.record.images[0])],
    )
