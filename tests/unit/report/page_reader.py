"""Reads a page as a browser would, and says what it would load."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

_VOID = {"meta", "img", "br"}
_LOADING = {"src", "href", "srcset", "data", "poster", "action"}


class PageReader(HTMLParser):
    """Text, images and every address of a page; raises if tags do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.images, self.addresses, self.tags, self._open = "", [], [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name in _LOADING:
                self.addresses.append(value)
            if tag == "img" and name == "alt":
                assert value
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data + " "

    @property
    def is_self_contained(self) -> bool:
        """Whether every address is inside the page."""
        return all(address.startswith(("data:", "#")) for address in self.addresses)


def decode_image(uri: str) -> Image.Image:
    """Returns the picture in a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
