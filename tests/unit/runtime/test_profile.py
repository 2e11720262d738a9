"""A trace of some steps."""

import jax.numpy as jnp
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.runtime.profile import Profiler, parse_span


@pytest.mark.parametrize("text", ["10", "10:", "a:b", "15:10", "0:3", "-1:3"])
def test_spans_that_are_none(text):
    with pytest.raises(UserError, match=f"--profile={text}: expected FIRST:LAST"):
        parse_span(text)


def test_the_span_is_traced_and_no_other_step(tmp_path, capsys):
    profiler = Profiler(parse_span("2:3"), tmp_path)
    for step in range(1, 6):
        profiler.before(step)
        assert profiler._is_running == (step in (2, 3))
        profiler.after(step, {"loss": jnp.zeros(()) + step})
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    assert str(tmp_path) in capsys.readouterr().out


def test_a_run_that_ends_early_still_has_its_trace(tmp_path):
    profiler = Profiler((1, 9), tmp_path)
    profiler.before(4)
    profiler.close()
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_nothing_is_traced_unless_asked_for(tmp_path):
    profiler = Profiler(None, tmp_path)
    profiler.before(1)
    profiler.after(1, {})
    profiler.close()
    assert not list(tmp_path.iterdir())
