"""Event files: readable records, purge mark, pictures; written without torch."""

import struct
import subprocess
import sys

import numpy as np

from metamorph_jax.metrics.writers import MetricWriter

CHECK_NO_TORCH = """
import sys
from metamorph_jax.metrics.writers import MetricWriter
writer = MetricWriter(sys.argv[1])
writer.write_scalars(1, {"loss": 1.0})
writer.close()
assert "torch" not in sys.modules and "tensorflow" not in sys.modules
"""


def events(folder):
    """Returns the events of all files of a TensorBoard folder, oldest file first."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + size]
            (checksum,) = struct.unpack("<I", data[12 + size : 16 + size])
            assert checksum == masked_crc32c(body)
            found.append(Event.FromString(body))
            data = data[16 + size :]
    return found


def test_scalars_and_images_are_recorded(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write_scalars(3, {"loss": 0.5, "stage": "vpit", "nan": float("nan")})
    writer.write_images(4, {"picture": np.full((5, 6, 3), 200, np.uint8)})
    writer.close()
    head, scalars, images = events(tmp_path / "tb")
    assert head.file_version == "brain.Event:2"
    assert scalars.step == 3
    assert [value.tag for value in scalars.summary.value] == ["loss"]
    assert scalars.summary.value[0].simple_value == 0.5
    (picture,) = images.summary.value
    assert (picture.image.height, picture.image.width) == (5, 6)
    assert picture.image.encoded_image_string.startswith(b"\x89PNG")


def test_resumed_run_hides_the_steps_it_repeats(tmp_path):
    for last in (4, 3):
        writer = MetricWriter(tmp_path)
        if last == 3:
            writer.truncate_after(2)
        writer.write_scalars(last, {"loss": 1.0})
        writer.close()
    marks = [event for event in events(tmp_path / "tb") if event.HasField("session_log")]
    assert [event.step for event in marks] == [3]


def test_writing_does_not_import_torch(tmp_path):
    subprocess.run([sys.executable, "-c", CHECK_NO_TORCH, str(tmp_path)], check=True)
