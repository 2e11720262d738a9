"""Questions about images; image-caption pairs become requests for a caption."""

from metamorph_jax.data.conversation import Conversation, Image, Text, read_conversation
from metamorph_jax.data.kinds.material import Material
from metamorph_jax.data.kinds.wordings import CAPTION_REQUESTS


def image_qa(material: Material) -> Conversation:
    """Returns a record's turns, or a request for the caption of its image and that caption.

    Raises:
        BadSample: tags and images differ in number, or there is neither conversation nor caption.
    """
    if material.record.turns:
        return read_conversation(material.record)
    caption = material.caption()
    request = material.draw.choice("wording", CAPTION_REQUESTS)
    image = Image(material.record.images[0])
    return material.dialogue([image, Text(f"\n{request}")], [Text(caption)])
