"""Files cut short at every sixteenth or with a byte changed, and files that would run code: one line, never a trace."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import sample_results
import torch
from jobs import Nursery, refusal, snapshot
from PIL import Image

import analyze_results
from gradsync.errors import UsageError
from gradsync.models import groupnorm_cnn, load_weights
from gradsync.results import read_results

SIXTEENTHS = range(16)


@pytest.fixture(scope="module")
def results_text() -> bytes:
    return json.dumps(sample_results.sample("ps", epochs=2, steps=8)).encode()


@pytest.mark.parametrize("sixteenth", SIXTEENTHS)
def test_truncated_results(sixteenth, results_text, tmp_path):  # row 10
    path = tmp_path / "results_ps.json"
    path.write_bytes(results_text[: len(results_text) * sixteenth // 16])
    with pytest.raises(UsageError, match=r"results_ps\.json: line 1: not JSON .* is the file truncated"):
        read_results(path)


@pytest.mark.parametrize("sixteenth", SIXTEENTHS)
def test_a_changed_byte_in_results(sixteenth, results_text, tmp_path):  # row 10
    """Read as something else that is valid, or refused by name; nothing in between."""
    damaged = bytearray(results_text)
    damaged[len(damaged) * sixteenth // 16] ^= 0x40
    path = tmp_path / "results_ps.json"
    path.write_bytes(damaged)
    line = refusal(lambda: read_results(path))
    assert line is None or line.startswith(f"{path}: ")


@pytest.mark.parametrize(("text", "named"), [
    ('{"method": "ps", "best_accuracy": 1e999}', "best_accuracy is not a finite number"),
    ('{"method": "ps", "other": {"deep": [NaN]}}', "other.deep.0 is not a finite number"),
    ('{"method": "ps", "other": ' + "[" * 40 + "]" * 40 + "}", "nested too deeply"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ('{"method": "ps", "world_size": 1' + "0" * 400 + "}", "world_size is too large a number"),
    ('{"method": "ps", "world_size": 1' + "0" * 5000 + "}", "not JSON"),
    ('{"method": "ps", "epochs": 3}', "key epochs"),
    ('["ps"]', "holds a list"),
])
def test_results_that_are_none(text, named, tmp_path):  # row 10
    path = tmp_path / "results_ps.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_results(path)
    assert named in str(caught.value)


def test_an_earlier_report_stays_where_the_results_are_damaged(results_text, tmp_path, capsys):  # row 10
    (tmp_path / "performance_report.txt").write_text("an earlier report")
    (tmp_path / "results_ps.json").write_bytes(results_text[:-9])
    before = snapshot(tmp_path)
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(groupnorm_cnn(10, 1).state_dict(), path)
    return path.read_bytes()


@pytest.mark.parametrize("sixteenth", SIXTEENTHS)
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_damaged_weights(sixteenth, damage, weights, tmp_path):  # row 20
    """A changed byte within a tensor is another number, which no format can tell; anything else is refused."""
    path, place = tmp_path / "weights.pth", len(weights) * sixteenth // 16
    path.write_bytes(weights[:place] if damage == "truncated"
                     else weights[:place] + bytes([weights[place] ^ 0x40]) + weights[place + 1 :])
    line = refusal(lambda: load_weights(groupnorm_cnn(10, 1), path, replace_head=False))
    assert line.startswith(f"--weights {path}: ") if line else damage == "changed"


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("environment", ["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_a_pickle_that_would_write_a_file(as_archive, environment, tmp_path, monkeypatch):  # row 22
    if environment:
        monkeypatch.setenv(environment, "1")
    path, trace = tmp_path / "weights.pth", tmp_path / "written"
    if as_archive:
        torch.save({"weight": Malicious(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Malicious(trace)}))
    with pytest.raises(UsageError, match="not a state dict that can be loaded safely"):
        load_weights(groupnorm_cnn(10, 1), path, replace_head=False)
    assert not trace.exists()
    if as_archive:
        torch.load(path, weights_only=False)  # the planted pickle does what it is feared for
        assert trace.exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_is_named(workers, nursery: Nursery, tmp_path):  # row 14
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    damaged = tmp_path / "train" / "b" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    flags = ["--data-dir", str(tmp_path), "--model", "groupnorm_cnn", "--image-size", "16", "--workers", workers,
             "--batch-size", "4", "--max-steps", "2", "--timeout", "20"]
    outcome = nursery.run("all_reduce", tmp_path / "out", ranks=2, flags=flags)
    (error,) = outcome.errors
    assert error.startswith(("error: all_reduce, rank 0: ", "error: all_reduce, rank 1: "))
    assert f"{damaged}: cannot be read as an image" in error
    assert outcome.codes == [1, 1]
    assert "Traceback" not in outcome.output
