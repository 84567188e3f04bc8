"""The same program in two processes, and in one with the same global batch."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("distributed_program.py")
ROOT = Path(__file__).parents[3]
COMPARABLE = ["plain", "shuffled", "generator", "weighted", "accumulated", "frozen", "nan1", "nan3"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of both ranks, their output, and the folder they saved to."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What torchrun sets, without waiting for it to start.
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder)],
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)], outputs, folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Results of a single process."""
    spec = importlib.util.spec_from_file_location("distributed_program", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.run(tmp_path_factory.mktemp("one"), 1)


def test_loss_curves_are_those_of_one_process(one, two):
    (first, _), _, _ = two
    for name in COMPARABLE:
        assert first[name]["step"] == one[name]["step"], name
        assert len(first[name]["history"]) == 2
        for metrics, expected in zip(first[name]["history"], one[name]["history"], strict=True):
            assert metrics == pytest.approx(expected, rel=1e-6), name
        assert first[name]["weights"] == pytest.approx(one[name]["weights"], rel=1e-6, abs=1e-9), name


def test_processes_agree(two):
    (first, second), _, _ = two
    for name in first:
        assert first[name].get("weights") == second[name].get("weights"), name
        assert first[name].get("metrics") == second[name].get("metrics"), name
        assert first[name].get("losses") == second[name].get("losses"), name


def test_metrics_are_those_of_one_process(one, two):
    # 19 images in three batches and 5 in three: the processes have different numbers of them.
    (first, _), _, _ = two
    assert first["segmentation"]["metrics"] == pytest.approx(one["segmentation"]["metrics"], rel=1e-6)
    assert first["detection"]["metrics"] == pytest.approx(one["detection"]["metrics"], rel=1e-6)
    assert first["find_lr"]["losses"] == pytest.approx(one["find_lr"]["losses"], rel=1e-6)


def test_every_process_has_as_many_batches(two):
    (first, second), _, _ = two
    # 61 samples in two parts and batches of 4: 8 batches with the incomplete one, 7 without; 2 epochs.
    assert [first[name]["step"] for name in ("uneven", "dropped", "batches", "norm")] == [16, 14, 16, 16]
    assert all(first[name]["step"] == second[name]["step"] for name in ("uneven", "dropped", "batches", "norm"))


def test_rank_zero_alone_prints_and_calls_back(two):
    (first, second), outputs, _ = two
    assert "Epoch 2/2" in outputs[0][0]
    assert outputs[1][0] == ""
    assert len(first["plain"]["history"]) == 2
    assert second["plain"]["history"] == []


def test_checkpoints_are_those_of_one_process(two):
    (first, _), _, folder = two
    state = torch.load(folder / "plain.last.pth", weights_only=True)
    assert set(state["model"]) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    saved = torch.cat([value.double().flatten() for value in state["model"].values()])
    assert saved.tolist() == first["plain"]["weights"]
    assert not list(folder.glob(".*"))


def test_resumed_training_ends_at_the_same_weights(two):
    (first, _), _, _ = two
    assert "weights" not in first["interrupted"]
    assert first["resumed"]["weights"] == first["whole"]["weights"]
    assert first["resumed"]["history"] == first["whole"]["history"][-1:]


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, str(PROGRAM), str(tmp_path)],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "rank1.json").exists()
