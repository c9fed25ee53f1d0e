"""What launchers set, and what is left of it in a shell, a container or a job."""

import pytest

from lorakit.cli.launched import is_first, is_launched_in_parallel, should_print_error
from lorakit.distributed import processes
from lorakit.distributed.launcher import require_launcher_variables
from lorakit.errors import ClusterError

WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def launched(monkeypatch):
    """Sets these variables and no others of a launcher."""

    def set_only(variables):
        for name in WHOLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


@pytest.mark.parametrize("variables", [{}, {"RANK": "3"}, {"WORLD_SIZE": "1"}, WHOLE])
def test_no_launcher_and_a_whole_one_are_accepted(variables, launched):
    launched(variables)
    require_launcher_variables()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"WORLD_SIZE": "2"},
            "no RANK, no LOCAL_RANK, no MASTER_PORT, no MASTER_ADDR with WORLD_SIZE=2",
        ),
        (WHOLE | {"RANK": "2"}, "RANK='2' with WORLD_SIZE=2"),
        (WHOLE | {"RANK": "one"}, "RANK='one' with WORLD_SIZE=2"),
        (WHOLE | {"MASTER_PORT": "123456"}, "MASTER_PORT='123456' with WORLD_SIZE=2"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
    ],
)
def test_what_is_missing_or_wrong_is_an_error_that_each_process_prints(variables, said, launched):
    launched(variables)
    is_launched_in_parallel(), is_first()  # they are asked where errors and signals are printed
    with pytest.raises(ClusterError, match=f"got {said} in the environment,") as caught:
        processes.init_process_groups(use_cpu=True)
    assert should_print_error(caught.value)


def test_a_port_that_is_taken_is_named(launched, monkeypatch):
    def fail(**_):
        raise processes.distributed.DistNetworkError("address already in use")

    launched(WHOLE)
    monkeypatch.setattr("accelerate.PartialState", fail)
    with pytest.raises(ClusterError, match=r"Process 1 of 2 .* at 127.0.0.1:29500") as caught:
        processes.init_process_groups(use_cpu=True)
    assert should_print_error(caught.value)
