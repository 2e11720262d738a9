"""One update, and going on exactly where another process stopped."""

import dataclasses

import pytest
import torch
from accelerate.state import AcceleratorState

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import load_training_state, save_checkpoint
from metamorph_jax.visualizer.diffusion import create_noise_scheduler
from metamorph_jax.visualizer.feed import Feed
from metamorph_jax.visualizer.painter import Painter
from metamorph_jax.visualizer.parts import keep_parts, load_parts
from metamorph_jax.visualizer.settings import PaintSettings
from metamorph_jax.visualizer.trainer import Trainer
from tests import tolerances
from tests.visualizer_files import (
    MODEL,
    RUN,
    SD_RUN,
    open_training_data,
    write_data,
    write_stable_diffusion,
)


@pytest.fixture
def data(tmp_path):
    return open_training_data(RUN, write_data(tmp_path))


def with_training(config=RUN, **changes):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def run(trainer, config, data, last):
    """Makes updates up to `last`; returns what they report."""
    return [trainer.update(batch) for batch in Feed(data, config).steps(trainer.step, last)]


def first_batch(config, data):
    return next(Feed(data, config).steps(0, 1))


def test_first_update_is_adamw_on_the_first_batch(data):
    config = with_training(schedule="cosine", warmup_steps=0, max_grad_norm=None)
    trainer, twin = Trainer(config, data), Trainer(config, data)
    (values,) = run(trainer, config, data, 1)

    model = twin.visualizer
    (rows,) = first_batch(config, data)
    noise, alphas = rows.noise, create_noise_scheduler(MODEL.diffusion).alphas_cumprod
    signal = alphas[rows.noise.timesteps].sqrt()[:, None, None, None]
    rest = (1 - alphas[noise.timesteps]).sqrt()[:, None, None, None]
    context = model.condition(rows.tokens) * ~noise.is_dropped[:, None, None]
    predicted = model.unet(signal * rows.latents + rest * noise.epsilon, noise.timesteps, context)
    loss = (predicted.sample - (signal * noise.epsilon - rest * rows.latents)).square().mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    loss.backward()
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    optimizer.step()
    assert values["loss"] == pytest.approx(loss.item(), abs=tolerances.DIFFUSION_LOSS)
    assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert values["learning_rate"] == 1e-3
    for ours, theirs in zip(trainer.visualizer.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_clipping_limits_the_update(data):
    config = with_training(max_grad_norm=1e-3, warmup_steps=0)
    trainer = Trainer(config, data)
    (values,) = run(trainer, config, data, 1)
    assert values["grad_norm"] > 1e-3  # what is reported is the norm before
    total = sum(p.grad.square().sum() for p in trainer.visualizer.parameters()).sqrt()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"ema_decay": 0.9}, {"mixed_precision": "bf16", "ema_decay": 0.9}], ids=str
)
def test_resumed_run_is_bit_equal_to_the_unbroken_one(data, tmp_path, settings, other_precision):
    config = with_training(**settings)
    unbroken, first = Trainer(config, data), Trainer(config, data)
    for trainer in (unbroken, first):
        trainer.start()
    expected = run(unbroken, config, data, 6)
    found = run(first, config, data, 3)
    folder = save_checkpoint(tmp_path / "run", first.visualizer, first.state(), keep=2)
    torch.manual_seed(99)  # the process's own random state must not matter
    second = Trainer(config, data)
    second.restore(folder)
    found += run(second, config, data, 6)
    assert found == expected
    ours, theirs = second.state(), unbroken.state()
    assert ours.ema.keys() == theirs.ema.keys()
    assert bool(ours.ema) == bool(settings)
    for a, b in (
        (second.visualizer.state_dict(), unbroken.visualizer.state_dict()),
        (ours.tensors, theirs.tensors),
        (ours.ema, theirs.ema),
    ):
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_averages_follow_the_weights_slowly(data):
    config = with_training(ema_decay=0.999, warmup_steps=0)
    trainer = Trainer(config, data)
    trainer.start()
    name, before = "positions", trainer.visualizer.positions.detach().clone()
    run(trainer, config, data, 1)  # diffusers' first decay is 0, its second 2 / 11
    first = trainer.visualizer.positions.detach().clone()
    assert torch.equal(trainer.state().ema[name], first)
    assert not torch.equal(first, before)
    run(trainer, config, data, 2)
    expected = first + (trainer.visualizer.positions - first) * (1 - 2 / 11)
    assert torch.allclose(trainer.state().ema[name], expected, rtol=0, atol=1e-7)


def test_accumulation_learns_the_same(data):
    whole, parts = RUN, with_training(grad_accum_steps=2)
    expected = run(Trainer(whole, data), whole, data, 4)
    found = run(Trainer(parts, data), parts, data, 4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=tolerances.FLOAT32_TRAINED)


def test_checkpointed_activations_learn_the_same(data):
    config = with_training(gradient_checkpointing=True)
    expected = run(Trainer(RUN, data), RUN, data, 2)
    for ours, theirs in zip(run(Trainer(config, data), config, data, 2), expected, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_frozen_unet_stays_and_the_projector_learns(data):
    config = with_training(train_unet=False, warmup_steps=0)
    trainer = Trainer(config, data)
    before = {name: p.detach().clone() for name, p in trainer.visualizer.named_parameters()}
    run(trainer, config, data, 2)
    changed = {n for n, p in trainer.visualizer.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if not name.startswith("unet.")}
    assert {name.split("/")[1] for name in trainer.state().tensors} == changed


def test_bfloat16_learns_nearly_the_same_and_keeps_float32_weights(data, other_precision):
    config = with_training(mixed_precision="bf16")
    trainer = Trainer(config, data)
    found = run(trainer, config, data, 4)
    AcceleratorState._reset_state()
    other = Trainer(RUN, data)
    for ours, theirs in zip(found, run(other, RUN, data, 4), strict=True):
        assert ours["loss"] != theirs["loss"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerances.BFLOAT16)
    state = trainer.state()
    values = [*trainer.visualizer.parameters(), *state.tensors.values()]
    assert {value.dtype for value in values} == {torch.float32}
    # Four updates of 1e-3 at most apart, and far from where both began.
    settings, tokens = PaintSettings(num_steps=8), first_batch(RUN, data)[0].tokens
    ours, theirs, fresh = (
        Painter(model.visualizer, settings).paint(tokens, 1.0, range(4)).pictures.astype(int)
        for model in (trainer, other, Trainer(RUN, data))
    )
    assert 0 < abs(ours - theirs).mean() < 0.25 * abs(theirs - fresh).mean()


def test_empty_places_count_nothing(data):
    (rows,) = first_batch(RUN, data)
    trainer = Trainer(RUN, data)
    empty = rows._replace(is_bad=torch.tensor([False, True, False, False]))
    poisoned = empty._replace(latents=rows.latents.index_fill(0, torch.tensor([1]), 3.0))
    values = trainer.update([poisoned])
    assert values == Trainer(RUN, data).update([empty])
    assert values["loss"] < Trainer(RUN, data).update([rows])["loss"]


def test_seed_decides_everything(data):
    first = run(Trainer(RUN, data), RUN, data, 1)
    assert run(Trainer(RUN, data), RUN, data, 1) == first
    other = dataclasses.replace(RUN, seed=1)
    assert run(Trainer(other, data), other, data, 1) != first


def test_not_finite_loss_stops_before_the_update(data):
    trainer = Trainer(RUN, data)
    run(trainer, RUN, data, 1)
    with torch.no_grad():
        trainer.visualizer.unet.conv_out.bias.fill_(torch.nan)
    before = [p.detach().clone() for p in trainer.visualizer.parameters()]
    with pytest.raises(UserError, match="step 2: loss nan"):
        run(trainer, RUN, data, 2)
    assert trainer.step == 1
    for ours, theirs in zip(trainer.visualizer.parameters(), before, strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


def saved(data, tmp_path, config=RUN):
    trainer = Trainer(config, data)
    run(trainer, config, data, 1)
    return save_checkpoint(tmp_path / "run", trainer.visualizer, trainer.state(), keep=2)


def test_checkpoint_of_another_recipe_is_refused(data, tmp_path):
    folder = saved(data, tmp_path)
    with pytest.raises(UserError) as error:
        Trainer(with_training(learning_rate=2e-3), data).restore(folder)
    assert "config.training.learning_rate: 0.001 there, 0.002 here" in str(error.value)


def test_recipes_from_before_newer_keys_are_continued(data, tmp_path):
    trainer = Trainer(RUN, data)
    run(trainer, RUN, data, 1)
    state = trainer.state()
    del state.recipe["data"], state.recipe["stable_diffusion"], state.recipe["model"]["view"]
    for name in ("ema_decay", "train_unet", "mixed_precision"):
        del state.recipe["training"][name]
    folder = save_checkpoint(tmp_path / "run", trainer.visualizer, state, keep=2)
    Trainer(RUN, data).restore(folder)


def test_checkpoint_of_other_pictures_is_refused(data, tmp_path):
    folder = saved(data, tmp_path)
    other = open_training_data(RUN, write_data(tmp_path / "other", count=11))
    with pytest.raises(UserError, match="the features or the list of pictures are others"):
        Trainer(RUN, other).restore(folder)


def test_a_run_may_be_made_longer(data, tmp_path):
    trainer = Trainer(with_training(total_steps=9), data)
    trainer.restore(saved(data, tmp_path))
    assert trainer.step == 1


def test_stable_diffusion_is_where_training_starts(tmp_path):
    folder = write_stable_diffusion(tmp_path / "sd")
    parts = load_parts(folder, SD_RUN.model)
    keep_parts(parts, tmp_path / "kept")
    config = dataclasses.replace(SD_RUN, stable_diffusion=str(folder))
    sources = write_data(tmp_path / "data", size=(20, 16))
    data = sources.open_data(config.model, None)
    trainer = Trainer(config, data, load_parts(tmp_path / "kept", SD_RUN.model))
    trainer.start()
    unet = trainer.visualizer.unet.state_dict()
    (rows,) = first_batch(config, data)
    assert rows.squares.shape == (4, 16, 16, 3)
    _, latents = trainer.encode(rows)
    assert latents.shape == (4, 4, 8, 8)
    before = {name: value.clone() for name, value in unet.items()}
    assert all(abs(v["loss"] - 1) < 0.5 for v in run(trainer, config, data, 3))
    assert any(not torch.equal(before[name], value) for name, value in unet.items())


def test_state_round_trip_keeps_averages(data, tmp_path):
    config = with_training(ema_decay=0.5)
    folder = saved(data, tmp_path, config)
    assert (
        load_training_state(folder).ema.keys()
        == dict(Trainer(config, data).visualizer.named_parameters()).keys()
    )
