"""One update, and going on exactly where another process stopped."""

import dataclasses

import pytest
import torch

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import save_checkpoint
from metamorph_jax.visualizer.dataset import load_picture_data, noise_generator
from metamorph_jax.visualizer.diffusion import create_noise_scheduler, diffusion_loss, draw_noise
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.trainer import Trainer
from tests.visualizer_files import MODEL, RUN, write_data


@pytest.fixture
def data(tmp_path):
    return load_picture_data(*write_data(tmp_path), MODEL, create_latents(MODEL.latents))


def with_training(**changes):
    return dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, **changes))


def test_first_update_is_adamw_on_the_first_batch(data):
    config = with_training(schedule="cosine", warmup_steps=0, max_grad_norm=None)
    trainer, twin = Trainer(config, data), Trainer(config, data)
    values = trainer.update()

    model = twin.visualizer
    rows = data.batch_indices(0, 0, 4)
    noise = draw_noise(data.latents[rows], MODEL.diffusion, 0.1, noise_generator(0, 0))
    scheduler = create_noise_scheduler(MODEL.diffusion)
    loss = diffusion_loss(model, scheduler, data.latents[rows], data.tokens[rows], noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    loss.backward()
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    optimizer.step()
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert values["learning_rate"] == 1e-3
    for ours, theirs in zip(trainer.visualizer.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_clipping_limits_the_update(data):
    trainer = Trainer(with_training(max_grad_norm=1e-3, warmup_steps=0), data)
    assert trainer.update()["grad_norm"] > 1e-3  # what is reported is the norm before
    total = sum(p.grad.square().sum() for p in trainer.visualizer.parameters()).sqrt()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)


def test_resumed_run_is_bit_equal_to_the_unbroken_one(data, tmp_path):
    unbroken = Trainer(RUN, data)
    expected = [unbroken.update() for _ in range(6)]
    first = Trainer(RUN, data)
    found = [first.update() for _ in range(3)]
    folder = save_checkpoint(tmp_path / "run", first.visualizer, first.state(), keep=2)
    torch.manual_seed(99)  # the process's own random state must not matter
    second = Trainer(RUN, data)
    second.restore(folder)
    found += [second.update() for _ in range(3)]
    assert found == expected
    for ours, theirs in zip(
        second.visualizer.parameters(), unbroken.visualizer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_seed_decides_everything(data):
    first = Trainer(RUN, data).update()
    assert Trainer(RUN, data).update() == first
    assert Trainer(dataclasses.replace(RUN, seed=1), data).update() != first


def test_not_finite_loss_stops_before_the_update(data):
    trainer = Trainer(RUN, data)
    trainer.update()
    with torch.no_grad():
        trainer.visualizer.unet.conv_out.bias.fill_(torch.nan)
    before = [p.detach().clone() for p in trainer.visualizer.parameters()]
    with pytest.raises(UserError, match="step 2: loss nan"):
        trainer.update()
    assert trainer.step == 1
    for ours, theirs in zip(trainer.visualizer.parameters(), before, strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


def saved(data, tmp_path):
    trainer = Trainer(RUN, data)
    trainer.update()
    return save_checkpoint(tmp_path / "run", trainer.visualizer, trainer.state(), keep=2)


def test_checkpoint_of_another_recipe_is_refused(data, tmp_path):
    folder = saved(data, tmp_path)
    with pytest.raises(UserError) as error:
        Trainer(with_training(learning_rate=2e-3), data).restore(folder)
    assert "config.training.learning_rate: 0.001 there, 0.002 here" in str(error.value)


def test_checkpoint_of_other_pictures_is_refused(data, tmp_path):
    folder = saved(data, tmp_path)
    with pytest.raises(UserError, match="the features or their image paths are others"):
        Trainer(RUN, dataclasses.replace(data, fingerprint="other")).restore(folder)


def test_model_knows_the_encoder_of_its_features(data):
    assert Trainer(RUN, data).visualizer.encoder_fingerprint is None
    data = dataclasses.replace(data, encoder_fingerprint="abc")
    assert Trainer(RUN, data).visualizer.encoder_fingerprint == "abc"


def test_a_run_may_be_made_longer(data, tmp_path):
    trainer = Trainer(with_training(total_steps=9), data)
    trainer.restore(saved(data, tmp_path))
    assert trainer.step == 1
