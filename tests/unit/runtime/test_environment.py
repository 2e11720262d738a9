"""Who a process is, from the variables that launchers set."""

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.runtime.environment import ALONE, Place, check_alone, find_place, first_host

PLAIN = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_nothing_says_that_there_are_others():
    assert find_place({}) is None
    assert find_place(PLAIN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert find_place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_place({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    # The script of a job is no step of it.
    assert find_place({"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None


def test_plain_variables():
    place = find_place(PLAIN)
    assert place == Place("plain variables", "host:1234", 4, 3)
    assert place.describe() == "process 3 of 4 (plain variables, host:1234)"


def test_plain_variables_win_over_those_of_slurm():
    assert find_place(SLURM | PLAIN).count == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not"),
        ({"JAX_PROCESS_ID": "4"}, "expected 0 to 3"),
        ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID=one: expected a number"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "expected HOST:PORT"),
    ],
)
def test_plain_variables_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        find_place(PLAIN | changes)


def test_slurm_gives_a_process_all_devices_of_its_node():
    place = find_place(SLURM)
    assert place == Place("SLURM", f"gpu07:{61440 + 5000 % 4096}", 2, 1, None)


def test_slurm_processes_that_share_a_node_have_one_device_each():
    place = find_place(SLURM | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "5"})
    assert place.local_devices == (5,)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[007,009-015]", "node007"),
        ("node[3]", "node3"),
        ("rack1-[04-05]-gpu,x", "rack1-04-gpu"),
        ("rack[1,3]n[01-04]", "rack1n01"),
        ("rack[1-3]n[01,04]-gpu,x", "rack1n01-gpu"),
    ],
)
def test_first_host_of_a_slurm_list(node_list, host):
    assert first_host(node_list) == host


@pytest.mark.parametrize(
    "variables",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
        {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"},
        {"JAX_NUM_PROCESSES": "auto"},
    ],
)
def test_jax_finds_out_itself_on_tpus(variables):
    place = find_place(variables)
    assert place.coordinator is None and place.count is None and place.index is None


def test_a_program_that_works_alone_refuses_others():
    check_alone({}, "generate")
    with pytest.raises(UserError, match="generate works in one process, but this is process 3"):
        check_alone(PLAIN, "generate")


def test_what_a_process_of_several_starts_can_be_alone():
    of_several = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    of_slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "TPU_WORKER_HOSTNAMES": "a,b"}
    check_alone(of_several | of_slurm | ALONE, "a program")
    with pytest.raises(UserError, match="works in one process"):
        check_alone(of_several, "a program")
