"""D19: a decoder that takes its process along costs one sample, not the run."""

import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.data.death_journal import DeathJournal
from metamorph_jax.data.loader import iterate_steps
from metamorph_jax.errors import UserError

ROWS, STEPS, BAD = 3, 10, -1
# How decoding each of these samples ends the process: the exit code that the parent sees. Two
# workers build steps 2 and 3, then 6 and 7, at about the same time.
ALWAYS = {6: -signal.SIGSEGV, 9: -signal.SIGKILL, 19: 1}
ONCE = {22: -signal.SIGABRT}


def end(code: int) -> None:
    """Ends this process by a signal or with an exit code."""
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(60)  # a signal takes a moment
    os._exit(code)


class Decoder:
    """Builds steps of numbered samples, some of which end the process that decodes them."""

    def __init__(self, folder: Path, always: dict[int, int], once: dict[int, int]):
        self.folder, self.always, self.once = folder, always, once
        self.journal = DeathJournal()

    def decode(self, sample: int) -> int:
        name = f"data.jsonl:{sample}"
        if name in self.journal.blamed():
            return BAD
        with self.journal.entering(name):
            (self.folder / f"{sample}-{os.getpid()}").touch()
            if sample in self.always:
                end(self.always[sample])
            if sample in self.once and self.num_tries(sample) == 1:
                end(self.once[sample])
        return sample

    def __call__(self, step: int) -> dict:
        samples = range(step * ROWS, (step + 1) * ROWS)
        return {"samples": np.array([self.decode(sample) for sample in samples])}

    def num_tries(self, sample: int) -> int:
        return len(list(self.folder.glob(f"{sample}-*")))


def test_d19_samples_that_kill_workers_are_left_out_after_two_deaths(tmp_path, caplog, monkeypatch):
    own = tmp_path / "own"  # other programs have temporary folders, too
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    decoder = Decoder(tmp_path, ALWAYS, ONCE)
    batches = iterate_steps(decoder, 0, 2, 4, decoder.journal)
    found = [next(batches)["samples"].tolist() for _ in range(STEPS)]
    batches.close()
    expected = [BAD if sample in ALWAYS else sample for sample in range(STEPS * ROWS)]
    assert list(itertools.chain(*found)) == expected
    assert decoder.journal.blamed() == {f"data.jsonl:{sample}" for sample in ALWAYS}
    # More are possible: of workers that are being closed for another's death.
    assert all(decoder.num_tries(sample) >= 2 for sample in ALWAYS)
    for sample in (*ALWAYS, *ONCE):
        assert f"data.jsonl:{sample} (tried once more from now on)" in caplog.text
    assert "a data worker died (exit code -11) while decoding " in caplog.text
    assert "data.jsonl:19 (left out from now on)" in caplog.text
    assert "data.jsonl:22 (left out from now on)" not in caplog.text
    assert list(own.glob("metamorph_jax-*")) == []
    assert multiprocessing.active_children() == []


def test_d19_a_worker_that_ends_without_a_word_is_noticed(tmp_path, caplog):
    """With exit code 0, which grain takes for a worker at work."""
    decoder = Decoder(tmp_path, {}, {1: 0})
    batches = iterate_steps(decoder, 0, 1, 1, decoder.journal)
    assert [next(batches)["samples"].tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    batches.close()
    assert "(unknown exit code) while decoding data.jsonl:1 (tried once more" in caplog.text
    assert multiprocessing.active_children() == []


def test_d19_resumed_runs_know_the_blamed(tmp_path):
    decoder = Decoder(tmp_path, {1: -signal.SIGKILL}, {})
    decoder.journal = DeathJournal(["data.jsonl:1"])
    batches = iterate_steps(decoder, 0, 1, 1, decoder.journal)
    assert next(batches)["samples"].tolist() == [0, BAD, 2]
    batches.close()
    assert decoder.num_tries(1) == 0


def dies(step):
    os.kill(os.getpid(), signal.SIGKILL)


def test_d19_deaths_that_no_sample_explains_stop_the_run():
    with pytest.raises(UserError) as caught:
        next(iterate_steps(dies, 7, 1, 1))
    assert str(caught.value).startswith("data workers died 3 times in a row at step 7")
    assert "exit code -9" in str(caught.value) and "data.num_workers" in str(caught.value)
