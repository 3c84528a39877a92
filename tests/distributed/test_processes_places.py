"""Where a process belongs: what is given, what the launcher tells, what a cluster tells, and nothing by halves."""

import pytest

from jaxdl.distributed.processes import NAMES, launched, place
from jaxdl.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.fixture
def surroundings(monkeypatch):
    """`surroundings(variables)` sets them, after all that could tell a place has been removed."""

    def use(variables):
        for name in (*NAMES, *SLURM, *OPEN_MPI, "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


def test_what_is_given_counts_before_what_the_launcher_tells(surroundings):
    surroundings(dict(zip(NAMES, ("127.0.0.1:4000", "2", "1"), strict=True)))
    assert launched()
    assert place(None, None, None) == ("127.0.0.1", 4000, 2, 1, None)
    assert place("[::1]:70", 3, 0) == ("::1", 70, 3, 0, None)


def test_a_cluster_tells_the_place(surroundings):
    surroundings(SLURM)
    # Job 4096 is 2 ** 12: the first of the last 4096 ports.
    assert not launched() and place(None, None, None) == ("node003", 61440, 8, 5, [1])
    surroundings(OPEN_MPI)
    assert place(None, None, None) == ("10.96.0.1", 61442, 4, 2, [0])


def test_where_nobody_tells_it_is_said_what_to_do(surroundings):
    surroundings({})
    with pytest.raises(
        InputError, match=r"no launcher or cluster was detected. Give all three, or start .* jaxdl.launch"
    ):
        place(None, None, None)


def test_a_cluster_that_tells_half_is_bad_input(surroundings):
    surroundings(OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;carrier pigeon"})
    with pytest.raises(InputError, match="must be given, as the cluster does not tell them: Could not parse"):
        place(None, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "given together, got no coordinator"),
        (("a:1", None, None), "given together, got no processes and no process_id"),
        ((4000, 2, 0), "coordinator must be HOST:PORT with a port from 1 to 65535, got 4000"),
        (("here", 2, 0), "coordinator must be HOST:PORT .* got 'here'"),
        ((":4000", 2, 0), "coordinator must be HOST:PORT .* got ':4000'"),
        (("here:http", 2, 0), "coordinator must be HOST:PORT .* got 'here:http'"),
        (("here:65536", 2, 0), "coordinator must be HOST:PORT .* got 'here:65536'"),
        (("here:-1", 2, 0), "coordinator must be HOST:PORT .* got 'here:-1'"),
        (("a:1", 0, 0), "processes must be at least 1, got 0"),
        (("a:1", -2, 0), "processes must be at least 1, got -2"),
        (("a:1", 2.0, 0), "processes must be a whole number, got 2.0"),
        (("a:1", True, 0), "processes must be a whole number, got True"),
        (("a:1", 2, 2), "process_id must be from 0 to 1 with 2 processes, got 2"),
        (("a:1", 2, -1), "process_id must be from 0 to 1 with 2 processes, got -1"),
        (("a:1", 2, "one"), "process_id must be a whole number, got 'one'"),
    ],
)
def test_what_cannot_be_is_bad_input(surroundings, given, message):
    surroundings({})
    with pytest.raises(InputError, match=message):
        place(*given)


def test_bad_input_of_the_launchers_variables_names_them(surroundings):
    surroundings({"JAXDL_COORDINATOR": "127.0.0.1:4000", "JAXDL_PROCESSES": "two", "JAXDL_PROCESS_ID": "0"})
    with pytest.raises(InputError, match="JAXDL_PROCESSES must be a whole number, got 'two'"):
        place(None, None, None)
    surroundings({"JAXDL_PROCESSES": "2", "JAXDL_PROCESS_ID": "0"})
    with pytest.raises(InputError, match="given together, got no JAXDL_COORDINATOR"):
        place(None, None, None)
