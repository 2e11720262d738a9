"""A small data set, written and read without TensorFlow."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.tfds import _fields
from metamorph_jax.errors import UserError
from tests.source_files import check_promises, png

COUNT = 5
Text = tfds.features.Text


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Images with everything that can be said of them."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "text": Text(),
            "conversations": tfds.features.Sequence({"from": Text(), "value": Text()}),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(COUNT)}

    def _generate_examples(self, count):
        for n in range(count):
            turns = [{"from": "human", "value": "<image> é"}, {"from": "gpt", "value": f"{n}"}]
            # An encoded image is stored as it is; encoding an array would need TensorFlow.
            image = io.BytesIO(png(n))
            yield n, {"image": image, "label": n % 2, "text": f"t{n}", "conversations": turns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    Pictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_records(folder):
    path = f"tfds:pictures/train?data_dir={folder}"
    records = check_promises(open_source(path), survives_fork=False)
    assert [record.images for record in records] == [(ImageBytes(png(n)),) for n in range(COUNT)]
    assert [record.turns[1].text for record in records] == [str(n) for n in range(COUNT)]
    assert records[3].turns[0].text == "<image> é"
    assert records[3].extra == {"label": "dog", "text": "t3"} and records[3].caption is None
    assert records[3].where == f"{path}:4"


def test_version_and_part_of_a_split(folder):
    source = open_source(f"tfds:pictures:1.2.0/train[1:3]?data_dir={folder}")
    assert [record.turns[1].text for record in source] == ["1", "2"]
    whole = open_source(f"tfds:pictures/train?data_dir={folder}")
    assert source.fingerprint != whole.fingerprint


def test_tensorflow_is_not_imported(folder):
    code = (
        "import sys; from metamorph_jax.data.sources import open_source;"
        f"open_source('tfds:pictures/train?data_dir={folder}')[0];"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tfds:pictures", "expected tfds:NAME/SPLIT"),
        ("tfds:/train", "expected tfds:NAME/SPLIT"),
        ("tfds:pictures/", "expected tfds:NAME/SPLIT"),
        ("tfds:pictures/train?where=here", "expected tfds:NAME/SPLIT"),
        ("tfds:pictures/train?here", "expected tfds:NAME/SPLIT"),
        ("tfds:nothing/train?data_dir={folder}", "download_and_prepare"),
        ("tfds:pictures:9.9.9/train?data_dir={folder}", "download_and_prepare"),
        ("tfds:pictures/test?data_dir={folder}", "Unknown split"),
        ("tfds:pictures/train[:0]?data_dir={folder}", "of 0 length"),
    ],
)
def test_data_set_that_is_not_there(folder, path, message):
    path = path.format(folder=folder)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"label": 1}, {"label": "dog", "caption": "dog"}),
        ({"label": -1}, {"label": None, "caption": None}),
        ({"label": 0, "text": b"a cat"}, {"label": "cat", "caption": "a cat"}),
        ({"caption": b"x", "text": b"y"}, {"caption": "x", "text": "y"}),
        ({"size": np.array([1, 2]), "text": b"y"}, {"size": [1, 2], "caption": "y"}),
    ],
)
def test_what_features_mean(example, expected):
    names = {"label": ["cat", "dog"]} if "label" in example else {}
    assert _fields(example, names) == expected
