"""Measuring on a machine whose driver hangs, or which does not have what is asked for."""

import asyncio
import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
import pytest

from runner.agent.telemetry.gpu import Gpus, visible_indexes
from runner.agent.telemetry.system import SystemMeter


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A driver of one GPU; its utilisation can be read while the event is set, and otherwise the call hangs."""
    runs = threading.Event()
    runs.set()

    def utilization(handle: object) -> object:
        runs.wait()
        return types.SimpleNamespace(gpu=75)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: object(),
        "nvmlDeviceGetName": lambda handle: "G",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=10, used=4),
        "nvmlDeviceGetUtilizationRates": utilization,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 1 / 0,  # whatever a driver's bug raises
        "nvmlDeviceGetPowerUsage": lambda handle: 250_000,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    yield runs
    runs.set()


def test_the_machine_is_measured_and_rates_are_there_from_the_second_time_on(tmp_path: Path) -> None:
    meter = SystemMeter(Gpus(seconds_max=5), tmp_path, seconds_max=5)

    async def measure() -> list[dict[str, float]]:
        return [(await meter.measure(os.getpid()))[0][0] for _ in range(2)]

    first, second = asyncio.run(measure())
    assert first["system/trainer_memory_bytes"] > 2**20
    assert set(second) - set(first) >= {"system/network_receive_rate", "system/network_send_rate"}
    assert second["system/memory_bytes"] > 2**20


def test_a_driver_that_hangs_holds_up_nothing_and_is_asked_again_once_it_has_answered(
    tmp_path: Path,
    driver: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", lambda handle, sensor: 60)
    gpus = Gpus(seconds_max=5)
    assert [gpu.model for gpu in gpus.found] == ["G"]
    meter = SystemMeter(gpus, tmp_path, seconds_max=2)

    async def measure() -> None:
        assert (await meter.measure())[1][1] == {"gpu": "0"}
        driver.clear()
        for _ in range(5):
            ((values, context),) = await meter.measure()
            assert "system/memory_bytes" in values
            assert context == {}
        driver.set()
        await asyncio.wrap_future(gpus.thread.submit(lambda: None))
        assert (await meter.measure())[1][0]["system/gpu_percent"] == 75

    asyncio.run(measure())
    assert capsys.readouterr().out.count("no answer in 2 s") == 1


def test_what_fails_is_left_out_and_told_once_and_the_rest_is_measured(
    tmp_path: Path,
    driver: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise RuntimeError("no such counters here")

    monkeypatch.setattr(psutil, "disk_io_counters", fail)
    meter = SystemMeter(Gpus(seconds_max=5), tmp_path, seconds_max=5)

    async def measure() -> None:
        for _ in range(3):
            ((values, _),) = await meter.measure()
            assert {"system/cpu_percent", "system/memory_bytes", "system/disk_free_bytes"} <= set(values)

    asyncio.run(measure())
    told = capsys.readouterr().out + caplog.text
    assert told.count("no such counters here") == 1
    assert told.count("ZeroDivisionError") == 1


def test_a_driver_that_hangs_from_the_start_is_a_machine_without_gpus(
    driver: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.clear()
    monkeypatch.setattr(pynvml, "nvmlInit", driver.wait)
    assert Gpus(seconds_max=0.05).found == []


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        ("0,2", [0, 2]),
        ("2, 0", [2, 0]),
        ("GPU-bb", [1]),
        ("GPU-b", [1]),
        ("GPU-", []),
        ("1,7,0", [1]),
        ("-1", []),
        ("", []),
        ("0,-1,1", [0]),
        ("1,1", []),
    ],
)
def test_a_runner_uses_the_gpus_that_cuda_would(visible: str, indexes: list[int]) -> None:
    assert visible_indexes(visible, ["GPU-aa1", "GPU-bb2", "GPU-aa3"]) == indexes
