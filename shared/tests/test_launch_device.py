"""``--device``: the processor that was asked for, or one line with what is there."""

import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from frugal_shared.config import ProcessConfig, RunConfig
from frugal_shared.errors import UsageError
from frugal_shared.launch import launch, use_device

KNOWN = ("WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")


@pytest.fixture
def machine(monkeypatch):
    """Make PyTorch believe in a machine with some GPUs; return the numbers that become the current one."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)

    def machine(kind, count):
        current = [0]
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: count)
        monkeypatch.setattr("torch.accelerator.current_device_index", lambda: current[-1])
        monkeypatch.setattr("torch.accelerator.set_device_index", current.append)
        return current

    return machine


def told():
    """Return what Accelerate is told about the device."""
    return {name: value for name, value in os.environ.items() if name in KNOWN[1:]}


@pytest.mark.parametrize("config", [ProcessConfig(cpu=True), ProcessConfig(device="cpu")])
def test_the_cpu_is_taken_where_there_is_a_gpu(machine, config):
    machine("cuda", 1)
    with use_device(config):
        assert told() == {"ACCELERATE_USE_CPU": "true"}
    assert told() == {}


@pytest.mark.parametrize("device", [None, "cuda"])
def test_the_gpu_is_left_to_accelerate(machine, device):
    current = machine("cuda", 2)
    with use_device(ProcessConfig(device=device)):
        assert (told(), current) == ({}, [0])


def test_a_gpu_by_number_is_accelerates_and_pytorchs(machine):
    current = machine("cuda", 2)
    with use_device(ProcessConfig(device="cuda:1")):
        assert (told(), current) == ({"ACCELERATE_TORCH_DEVICE": "cuda:1"}, [0, 1])
    assert (told(), current) == ({}, [0, 1, 0])


def test_the_command_runs_on_the_device(machine):
    machine("cuda", 2)
    during = []
    launch(lambda: during.append(told()), ProcessConfig(device="cuda:1"), "delta_dit", [])
    assert during == [{"ACCELERATE_TORCH_DEVICE": "cuda:1"}]


def test_accelerate_computes_on_the_gpu_with_the_number(machine, monkeypatch):
    machine("cuda", 2)
    for state in (AcceleratorState, PartialState):  # what other tests' Accelerators share
        monkeypatch.setattr(state, "_shared_state", {})
    with use_device(ProcessConfig(device="cuda:1")):
        assert str(Accelerator().device) == "cuda:1"


@pytest.mark.parametrize(
    "kind, count, device, allowed",
    [
        (None, 0, "cuda", "cpu"),
        (None, 0, "cuda:1", "cpu"),
        (None, 0, "gpu", "cpu"),
        ("cuda", 2, "cuda:2", "cpu, cuda, cuda:0, cuda:1"),
        ("cuda", 1, "mps", "cpu, cuda, cuda:0"),
        ("mps", 1, "cuda", "cpu, mps, mps:0"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine, kind, count, device, allowed):
    machine(kind, count)
    with pytest.raises(UsageError) as error:
        launch(lambda: pytest.fail("ran"), ProcessConfig(device=device), "delta_dit", [])
    assert str(error.value) == f"device={device!r} is not there; allowed: {allowed}"


def test_accelerate_launch_cpu_contradicts_a_gpu(machine, monkeypatch):
    machine("cuda", 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with (
        pytest.raises(UsageError, match="device='cuda' contradicts --cpu of accelerate launch"),
        use_device(ProcessConfig(device="cuda")),
    ):
        pass


def test_several_processes_have_a_gpu_each(machine, monkeypatch):
    machine("cuda", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with use_device(ProcessConfig(device="cuda")):
        assert told() == {}
    with (
        pytest.raises(UsageError, match="device='cuda:1' is one for 2 processes; allowed: cuda"),
        use_device(ProcessConfig(device="cuda:1")),
    ):
        pass


@pytest.mark.parametrize("kind", [None, "mps"])
def test_several_processes_without_gpus_of_their_own_are_on_the_cpu(machine, monkeypatch, kind):
    machine(kind, 0 if kind is None else 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with use_device(ProcessConfig()):
        assert told() == {"ACCELERATE_USE_CPU": "true"}


CONTRADICTIONS = [
    ({"cpu": True, "device": "cuda"}, "device='cuda' contradicts cpu=True; allowed: one of them"),
    ({"num_processes": 2, "device": "cuda:1"}, "device='cuda:1' is one for num_processes=2; allowed: cuda or cpu"),
    ({"timeout": 0.0}, "timeout=0.0 is not possible; allowed: above 0, up to 525600 minutes"),
    ({"timeout": float("nan")}, "timeout=nan is not possible; allowed: above 0, up to 525600 minutes"),
    ({"timeout": float("inf")}, "timeout=inf is not possible; allowed: above 0, up to 525600 minutes"),
    ({"resume": True, "overwrite": True}, "overwrite=True contradicts resume=True; allowed: one of them"),
]


@pytest.mark.parametrize("options, line", CONTRADICTIONS, ids=[str(options) for options, _ in CONTRADICTIONS])
def test_options_that_contradict_each_other_are_refused(options, line):
    with pytest.raises(UsageError) as error:
        RunConfig(**options)
    assert str(error.value) == line


@pytest.mark.parametrize(
    "options",
    [
        {"cpu": True, "device": "cpu"},
        {"num_processes": 2, "device": "cuda"},
        {"num_processes": 1, "device": "cuda:1"},
        {"timeout": 0.5},
        {"resume": True},
        {"overwrite": True},
    ],
)
def test_options_that_fit_are_taken(options):
    config = RunConfig(**options)
    assert {name: getattr(config, name) for name in options} == options
