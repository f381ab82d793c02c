"""Bad input: exit code 2 and one line that names the flag, file or directory, before any process group exists."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import all_reduce_train
import baseline_multi_card
import ps_train
from gradsync.main import run_script
from gradsync.models import groupnorm_cnn

METHODS = {"all_reduce": all_reduce_train.AllReduce, "ps": ps_train.ParameterServerWorker,
           "single": baseline_multi_card.SingleDevice}


@pytest.fixture(autouse=True)
def no_process_group(monkeypatch, tmp_path):
    """Refusing comes first: a process group or a training step would be a failure of the test."""
    def unexpected(*args, **kwargs):
        raise AssertionError("a process group was made for refused input")

    monkeypatch.setattr(torch.distributed, "init_process_group", unexpected)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def images(folder: Path, per_class: dict[str, int]) -> None:
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(np.full((16, 16, 3), 40 * number % 256, np.uint8)).save(folder / name / f"{number}.png")


def refused(capsys, argv: list[str], method: str = "all_reduce", ranks: int = 1, monkeypatch=None) -> str:
    """Run, expect exit 2 and exactly one line on stderr, and return it."""
    if ranks > 1:
        for name, value in {"RANK": 0, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": ranks}.items():
            monkeypatch.setenv(name, str(value))
    server = ps_train.ParameterServer if method == "ps" else None
    before = sorted(Path().rglob("*"))
    assert run_script(lambda launch: METHODS[method], server=server, argv=argv) == 2
    assert [path for path in sorted(Path().rglob("*")) if path not in before] == [], "refusing leaves nothing behind"
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


NUMBERS = [
    ("--batch-size", "0"), ("--batch-size", "-3"), ("--batch-size", "many"), ("--batch-size", "1.5"),
    ("--epochs", "0"), ("--epochs", "nan"), ("--workers", "-1"), ("--workers", "x"), ("--lr", "0"), ("--lr", "-1"),
    ("--lr", "inf"), ("--lr", "nan"), ("--lr", "fast"), ("--seed", "-1"), ("--seed", "4294967296"), ("--seed", "abc"),
    ("--momentum", "1"), ("--weight-decay", "-0.1"), ("--timeout", "0"), ("--max-steps", "0"), ("--image-size", "7"),
    ("--global-batch-size", "0"), ("--lr-schedule", "linear"), ("--dataset", "mnist"), ("--backend", "mpi"),
    ("--amp", "int8"), ("--model", "resnet19"),
]


@pytest.mark.parametrize(("flag", "value"), NUMBERS)
def test_values_out_of_range(flag, value, capsys):  # row 19
    assert flag in refused(capsys, [f"{flag}={value}"])


def test_unknown_flag(capsys):
    assert "--learning-rate" in refused(capsys, ["--learning-rate", "0.1"])


def test_empty_global_shares(capsys, monkeypatch):  # row 15
    line = refused(capsys, ["--global-batch-size", "3"], ranks=4, monkeypatch=monkeypatch)
    assert "--global-batch-size 3" in line
    assert "4" in line


FOLDERS = [  # row 12 and 13: what train/ and val/ hold, and what the line must name
    (None, {"a": 1}, ["train", "missing"]),
    ({"a": 1}, None, ["val", "missing"]),
    ({}, {"a": 1}, ["train", "empty"]),
    ({"a": 1}, {}, ["val", "empty"]),
    ({"a": 1, "b": 1}, {"a": 1, "b": 0}, ["val/", "b"]),
    ({"a": 1, "b": 1}, {"a": 1}, ["lacks b", "besides nothing"]),
    ({"a": 1}, {"a": 1, "c": 1}, ["lacks nothing", "besides c"]),
]


@pytest.mark.parametrize(("train", "val", "named"), FOLDERS)
def test_image_folders(train, val, named, capsys, tmp_path):
    for split, classes in (("train", train), ("val", val)):
        if classes is not None:
            (tmp_path / "pictures" / split).mkdir(parents=True)
            images(tmp_path / "pictures" / split, classes)
    line = refused(capsys, ["--dataset", "imagefolder", "--data-dir", "pictures"])
    assert all(word in line for word in ["pictures", *named]), line


def test_fewer_samples_than_replicas(capsys, tmp_path, monkeypatch):  # row 15
    for split in ("train", "val"):
        images(tmp_path / split, {"a": 1, "b": 1})
    assert "2 training samples for 4 replicas" in refused(capsys, [], ranks=4, monkeypatch=monkeypatch)


@pytest.mark.parametrize("dataset", ["auto", "imagefolder", "cifar10"])
def test_explicit_data_dir_without_data(dataset, capsys):  # row 12
    line = refused(capsys, ["--data-dir", "no where", "--dataset", dataset])
    assert "no where" in line


def test_missing_cifar10_offers_digits(capsys):
    line = refused(capsys, ["--dataset", "cifar10"])
    assert "--download" in line
    assert "--dataset digits" in line


@pytest.mark.parametrize(("servers", "ranks", "needed"), [(1, 1, 2), (2, 2, 3), (3, 2, 4)])
def test_parameter_server_needs_a_worker(servers, ranks, needed, capsys, monkeypatch):  # row 16
    line = refused(capsys, ["--num-servers", str(servers)], method="ps", ranks=ranks, monkeypatch=monkeypatch)
    assert f"--num-servers {servers} needs {needed} ranks or more" in line
    assert f"got {ranks}: start it with torchrun --nproc_per_node={needed}" in line


GPUS = [  # row 17: GPUs on the host, ranks, what the line must name
    (0, 2, ["--backend nccl", "no GPU", "gloo"]),
    (1, 4, ["--backend nccl", "4 ranks", "1 GPU", "--nproc_per_node=1", "gloo"]),
]


@pytest.mark.parametrize(("gpus", "ranks", "named"), GPUS)
def test_nccl_without_enough_gpus(gpus, ranks, named, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    line = refused(capsys, ["--backend", "nccl"], ranks=ranks, monkeypatch=monkeypatch)
    assert all(word in line for word in named), line


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("written by a pickle",))


def write_weights(kind: str, path: Path) -> None:
    state = groupnorm_cnn(10, 1).state_dict()
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are not weights")
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "nested":
        torch.save({"model": state}, path)
    elif kind == "malicious":
        torch.save({"weight": Malicious()}, path)
    elif kind == "malicious plain pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "other model":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    elif kind == "other classes":
        torch.save(groupnorm_cnn(1000, 1).state_dict(), path)


WEIGHTS = ["missing", "truncated", "empty", "text", "list", "nested", "malicious", "malicious plain pickle",
           "other model", "other classes"]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("unsafe_default", [False, True])
def test_weights(kind, unsafe_default, capsys, monkeypatch, tmp_path):  # rows 20, 21, 22
    if unsafe_default:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_weights(kind, tmp_path / "weights.pth")
    line = refused(capsys, ["--weights", "weights.pth"])
    assert "--weights weights.pth" in line
    if kind == "other classes":
        assert "1000" in line
        assert "10" in line
    assert not Path("written by a pickle").exists()


def test_output_dir_is_a_file(capsys, tmp_path):  # row 23
    (tmp_path / "taken").write_text("mine")
    assert "--output-dir taken" in refused(capsys, ["--output-dir", "taken"])
    assert (tmp_path / "taken").read_text() == "mine"


def test_output_dir_is_read_only(capsys, monkeypatch, tmp_path):  # row 23
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere, so the answer of the system is played
        monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))
    assert "--output-dir locked: not writable" in refused(capsys, ["--output-dir", "locked"])


def test_batchnorm_cannot_normalise_one_sample(capsys):
    line = refused(capsys, ["--model", "resnet18", "--global-batch-size", "1"], method="single")
    assert "--global-batch-size" in line
