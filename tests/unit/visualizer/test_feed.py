"""What each process computes in a step."""

import dataclasses

import pytest
import torch

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.feed import Feed
from metamorph_jax.visualizer.order import batch_indices
from tests.visualizer_files import RUN, SD_RUN, open_training_data, write_data


@pytest.fixture
def data(tmp_path):
    return open_training_data(RUN, write_data(tmp_path))


def with_parts(count, **changes):
    training = dataclasses.replace(RUN.training, grad_accum_steps=count, **changes)
    return dataclasses.replace(RUN, training=training)


def all_of(parts, name):
    return torch.cat([getattr(rows, name) for rows in parts])


def test_rows_are_the_pictures_of_the_order(data):
    (rows,) = next(Feed(data, RUN).steps(2, 3))
    order = batch_indices(10, RUN.seed, 2, 4).tolist()
    assert torch.equal(rows.tokens, torch.stack([data.features.row(i) for i in order]))
    assert torch.equal(rows.latents, torch.stack([data.latents.row(i) for i in order]))
    assert (rows.seen, rows.squares, rows.complaints) == (None, None, [])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_and_parts_share_one_batch(data, num_workers):
    (whole,) = list(Feed(data, RUN).steps(0, 3))[1]
    config = dataclasses.replace(
        with_parts(2), data=dataclasses.replace(RUN.data, num_workers=num_workers)
    )
    parts = [list(Feed(data, config, (rank, 2)).steps(0, 3))[1] for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    rows = [*parts[0], *parts[1]]
    assert torch.equal(all_of(rows, "latents"), whole.latents)
    assert torch.equal(torch.cat([part.noise.epsilon for part in rows]), whole.noise.epsilon)


def test_a_batch_that_does_not_divide_is_told(data):
    with pytest.raises(UserError, match=r"batch_size=4 is no multiple of 3 processes x grad_acc"):
        Feed(data, RUN, (0, 3))


@pytest.mark.parametrize(("view", "same"), [("squash", False), ("same_crop", True), ("pad", True)])
def test_views_of_a_wide_picture(tmp_path, view, same):
    sources = write_data(tmp_path, size=(32, 16))
    model = dataclasses.replace(SD_RUN.model, view=view)
    data = sources.open_data(model, None)
    data = dataclasses.replace(data, features=None, encoder_size=16)
    (rows,) = next(Feed(data, dataclasses.replace(SD_RUN, model=model)).steps(0, 1))
    assert rows.seen.shape == rows.squares.shape == (4, 16, 16, 3)
    assert torch.equal(rows.seen, rows.squares) == same
    has_borders = (rows.squares[:, [0, -1]] == 127).all() and (rows.squares[:, 5:11] != 127).any()
    assert has_borders == (view == "pad")


def test_bad_pictures_leave_their_place_empty(tmp_path):
    sources = write_data(tmp_path)
    data = sources.open_data(SD_RUN.model, None)
    bad = batch_indices(10, SD_RUN.seed, 0, 4)[2].item()
    (sources.image_root / f"{bad}.png").write_bytes(b"no picture")
    (rows,) = next(Feed(data, SD_RUN).steps(0, 1))
    assert rows.is_bad.tolist() == [False, False, True, False]
    assert rows.squares[2].max() == rows.tokens[2].abs().max() == 0
    (complaint,) = rows.complaints
    assert complaint["picture"] == f"{bad}.png"
    assert f"{bad}.png" in complaint["message"]


def test_pixels_of_another_size_are_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match=r"0\.png: 9x7 pixels, expected 8x8"):
        open_training_data(RUN, write_data(tmp_path, size=(9, 7)))
