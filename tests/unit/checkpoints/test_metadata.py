import dataclasses
import json

import pytest

from metamorph_jax.checkpoints.metadata import FORMAT_VERSION, CheckpointMeta, library_versions
from metamorph_jax.errors import UserError
from tests.unit.checkpoints.examples import make_meta


def test_json_round_trip():
    meta = dataclasses.replace(make_meta(12), recipe="prompt = 'drei, 三, \"3\"\\n'")
    assert CheckpointMeta.from_json(meta.to_json(), "meta.json") == meta


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_unknown_format_version_names_both(version):
    values = json.loads(make_meta(1).to_json()) | {"format_version": version}
    with pytest.raises(UserError) as caught:
        CheckpointMeta.from_json(json.dumps(values), "some/meta.json")
    message = str(caught.value)
    assert f"format version {version}" in message
    assert f"reads version {FORMAT_VERSION}" in message
    assert "some/meta.json" in message


def test_missing_and_surplus_fields_are_refused():
    values = json.loads(make_meta(1).to_json())
    del values["stage"]
    with pytest.raises(UserError, match="stage_step"):
        CheckpointMeta.from_json(json.dumps(values | {"phase": "x"}), "meta.json")


def test_versions_name_the_libraries_that_are_here():
    import jax

    versions = library_versions()
    assert versions["jax"] == jax.__version__
    assert versions["orbax-checkpoint"][0].isdigit()
