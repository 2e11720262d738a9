"""Alone, agreeing is the plain call; what several processes do is in e2e/test_processes.py."""

import jax
import pytest

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.errors import UserError
from metamorph_jax.runtime import agreement
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.signals import StopRequest


def fail():
    raise UserError("no")


def test_alone_everything_is_the_plain_call(tmp_path):
    assert agreement.is_first()
    assert agreement.exchange("a") == ["a"]
    assert agreement.from_first(True) == 1
    assert agreement.together("x", lambda: 5) == agreement.first_then_others("x", lambda: 5) == 5
    for function in (agreement.together, agreement.first_then_others):
        with pytest.raises(UserError, match=r"^no$"):
            function("do it", fail)
    agreement.check_same("numbers", "5")
    agreement.check_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_alone_a_wish_to_end_counts_at_once():
    vote = agreement.Vote(create_mesh(MeshConfig(), jax.devices()[:1]), [0])
    assert not vote(False, [0])
    assert vote(True, [0])


def test_a_vote_ends_the_run_of_whoever_shares_a_group_but_not_its_marks(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "exchange", lambda host: ["a", "b"])
    vote = agreement.Vote(create_mesh(MeshConfig(fsdp=4), jax.devices()[:4]), [0, 0, 2, 2])
    assert not any([vote(False, [1, 1, 3, 3]), vote(False, [1, 1, 3, 4]), vote(False, [0] * 4)][:2])
    assert vote(False, [0] * 4)
    with pytest.raises(UserError, match="processes 0 on a and 0 on a have other rows"):
        vote.check("have other rows")
    wishes = agreement.Vote(create_mesh(MeshConfig(fsdp=4), jax.devices()[:4]), [0, 0, 2, 2])
    assert [wishes(True, [0] * 4), wishes(False, [0] * 4), wishes(False, [0] * 4)] == [0, 1, 0]
    wishes.check("is not told")


def test_a_stop_that_was_asked_for_elsewhere_is_one_here():
    stop = StopRequest()
    assert not agreement.any_stop(stop)
    stop.ask("SIGTERM")
    assert agreement.any_stop(stop)
    assert stop.signal_name == "SIGTERM"
