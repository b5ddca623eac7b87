"""Room for workers: counted per machine, and what is said, and done, while there is too little."""

import logging

import pytest

from jobs import cluster_room
from jobs.cluster_room import Need, RoomWatch, count_room
from pipeline.runs.job import TrainingFailed


def machine(cpus: float, gpus: float = 0.0, alive: bool = True) -> dict:
    resources = {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("machines", "threads", "use_gpu", "room"),
    [
        ([machine(3), machine(3)], 2, False, 2),  # not 3: no worker lies on two machines
        ([machine(4), machine(4, alive=False)], 1, False, 4),
        ([machine(8, 2), machine(1, 4), machine(16)], 1, True, 3),
        ([{"Alive": True, "Resources": {}}], 1, False, 0),  # a head that takes no work
        ([], 1, False, 0),
    ],
)
def test_room_is_counted_machine_by_machine(machines, threads, use_gpu, room) -> None:
    assert count_room(machines, threads, use_gpu) == room


@pytest.mark.parametrize(
    ("room", "use_gpu", "enough", "said"),
    [
        (4, False, True, None),
        (3, False, True, "room for 3 of 4 workers (1 CPU each): training begins with 3"),
        (1, False, False, "room for 1 of 4 workers (1 CPU each): waiting for 2, for 3600 s at most"),
        (2, True, True, "room for 2 of 4 workers (1 CPU and a GPU each): training begins with 2"),
    ],
)
def test_too_few_machines_are_told_once(room, use_gpu, enough, said, caplog: pytest.LogCaptureFixture) -> None:
    watch = RoomWatch(Need(4, 2, 1, use_gpu), lambda: room, lambda: 0.0)
    assert watch.has_room() is enough
    assert (said in caplog.text) if said else not caplog.text
    caplog.clear()
    assert watch.has_room() is enough
    assert not caplog.text


def test_a_wait_is_told_now_and_then_and_has_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    """A machine is lost after 100 s, comes back after 1 000 s, and is lost for good after 2 000 s."""
    now = 0.0
    watch = RoomWatch(Need(2, 2, 1, False), lambda: 1 if 100 <= now < 1000 or now >= 2000 else 2, lambda: now)
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingFailed, match="in 3600 s; start more nodes"):
        while now < 10_000:
            watch.has_room()
            now += 5
    assert now == 2000 + cluster_room.WAIT_SECONDS
    waits = [record for record in caplog.records if "waiting for" in record.getMessage()]
    assert len(waits) == 900 / cluster_room.SAY_SECONDS + cluster_room.WAIT_SECONDS / cluster_room.SAY_SECONDS
    assert sum("again" in record.getMessage() for record in caplog.records) == 1
