"""Which pictures a step sees."""

import torch

from metamorph_jax.visualizer.order import batch_indices, make_generator, row_generator


def test_every_epoch_shows_every_picture_once_in_its_own_order():
    seen = torch.cat([batch_indices(10, 0, step, 4) for step in range(5)])  # two epochs of ten
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(batch_indices(10, 0, 2, 4), seen[8:12])
    assert not torch.equal(batch_indices(10, 1, 0, 10), seen[:10])
    assert len(batch_indices(10, 0, 0, 25)) == 25


def test_generators_differ_in_every_number():
    draws = {
        torch.rand(1, generator=make_generator(*numbers)).item()
        for numbers in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    draws.add(torch.rand(1, generator=row_generator(0, 1, 2)).item())
    assert len(draws) == 5
