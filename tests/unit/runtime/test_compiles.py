"""What was compiled is counted, and a step that is compiled again is told with what changed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.runtime import compiles


def batch(rows, dtype=np.float32):
    return {"tokens": np.ones((rows, 2), dtype), "mask": np.ones(rows, bool)}


def test_programs_and_seconds_are_counted():
    compiles.listen()
    compiles.listen()  # once is enough
    compiles.take()
    scale = np.random.default_rng().random()  # so that no earlier test has compiled it
    jax.jit(lambda x: jnp.sin(x) * scale).lower(np.ones(7, np.float32)).compile()
    found = compiles.take()
    assert len(found.programs) == 1
    assert found.secs > 0
    assert "1 programs compiled in" in found.describe()
    assert compiles.take().programs == []


def test_a_step_that_is_compiled_again_is_told_with_what_changed():
    step = jax.jit(lambda batch: {name: x.sum() for name, x in batch.items()})
    watch = compiles.StepWatch(step)

    def call(of):
        step(of)
        watch.after_call(of)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(batch(4))
        call(batch(5))  # the first two calls are free
        call(batch(5))
        call(batch(4))  # known
    message = (
        r"again at its call 5: mask was bool\[4\] and is bool\[6\], tokens was float32\[4, 2\]"
    )
    with pytest.warns(RuntimeWarning, match=message):
        call(batch(6))


def test_another_cause_is_told_as_such():
    step = jax.jit(lambda batch: batch["tokens"].sum())
    watch = compiles.StepWatch(step)
    for _ in range(3):
        step(batch(4))
        watch.after_call(batch(4))
    step(batch(3))
    with pytest.warns(RuntimeWarning, match="not because of the batch's shapes"):
        watch.after_call(batch(4))
