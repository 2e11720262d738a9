"""The exception for one record that cannot be used, with what kind of trouble it is.

A source that cannot be used at all raises a plain `UserError`. `quarantine.py` decides what
happens to bad samples.
"""

from typing import Literal, get_args

from metamorph_jax.errors import UserError

Reason = Literal[
    "malformed_record",  # not JSON, not UTF-8, too large, wrong types, missing keys
    "wrong_conversation",  # unknown speaker, wrong order, nothing left to say
    "tag_mismatch",  # image tags and images differ in number
    "forbidden_path",  # outside its folder, a URL, a device
    "missing_media",  # no such file, no permission
    "unreadable_media",  # damaged, of another format, not what its name says
    "too_large_media",  # more pixels, frames or bytes than are decoded
    "over_long",  # more tokens or images than a row holds
    "nothing_to_learn",  # no supervised token and no answer image
    "killed_worker",  # decoding it ended the process, twice
]
REASONS: tuple[Reason, ...] = get_args(Reason)
# What repairing files mends, while the records stay the same.
OF_MEDIA: frozenset[Reason] = frozenset(
    {"forbidden_path", "missing_media", "unreadable_media", "too_large_media"}
)


class BadSample(UserError):
    """One record is bad; the message begins with its FILE:LINE.

    Attributes:
        reason: what kind of trouble.
        sha256: of the bytes that are bad (the medium's, or the record's), if they are known.
    """

    def __init__(self, reason: Reason, message: str, sha256: str = ""):
        super().__init__(message)
        self.reason: Reason = reason
        self.sha256 = sha256

    def __reduce__(self) -> tuple:
        return BadSample, (self.reason, str(self), self.sha256)
