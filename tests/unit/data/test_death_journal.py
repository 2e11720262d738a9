import multiprocessing
import os
import pickle

from metamorph_jax.data.death_journal import DeathJournal, WorkerSlots, being_decoded


def test_two_deaths_blame_a_sample():
    journal = DeathJournal(["c"])
    assert journal.count(["a", "b"]) == ["a", "b"]
    assert journal.blamed() == {"c"}
    assert journal.count(["a", "c"]) == ["a"]
    assert journal.blamed() == {"a", "c"}
    assert pickle.loads(pickle.dumps(journal)).blamed() == {"a", "c"}


def test_the_main_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with DeathJournal().entering("a"):
        assert being_decoded() == ["a"]
    assert being_decoded() == os.listdir(tmp_path) == []


def work(slots, last):
    slots.enroll()
    journal = DeathJournal()
    with journal.entering("a long name: data.jsonl:10"):
        pass
    if last:
        with journal.entering(last):
            os._exit(1)


def test_a_dead_workers_file_names_what_it_was_decoding():
    slots = WorkerSlots()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(slots, last)) for last in ("", "b\udcff ü")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert slots.dead() == {workers[0].pid: "", workers[1].pid: "b\udcff ü"}
    assert being_decoded() == ["b\udcff ü"]
    slots.close()
