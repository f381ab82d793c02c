"""The scripts as users start them: by torchrun, from another directory, with good and with bad flags."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gradsync.profiling import STEPS
from gradsync.results import read_results

TOP = Path(__file__).resolve().parent.parent


def torchrun(script: str, ranks: int, flags: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
               str(TOP / script), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)


def check_traces(folder: Path) -> None:
    """One a rank, in which each steady step has its phases by name."""
    replica = {"step": STEPS, "pull": STEPS, "forward_backward": STEPS, "push": STEPS}
    server = {"receive_gradients": 2 * STEPS, "update": STEPS, "send_parameters": 2 * STEPS}  # of two workers
    assert sorted(path.name for path in folder.iterdir()) == [f"ps_rank{rank}.json" for rank in range(3)]
    for rank, expected in enumerate((server, replica, replica)):
        events = json.loads((folder / f"ps_rank{rank}.json").read_text())["traceEvents"]
        names = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
        assert {name: names[name] for name in expected} == expected


@pytest.mark.slow
def test_parameter_server_speaks_as_users_know_it(tmp_path):
    run = torchrun("ps_train.py", 3, ["--max-steps", "3", "--profile"], tmp_path)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "Starting Parameter Server Training"
    assert lines[1] == "World Size: 3, PS: Rank 0, Workers: Rank 1-2"
    starts = ["Epoch [1/1]", "[Worker-1] Train Phase: 100%|####", "[Epoch 1] Train Loss: ", "[Epoch 1] Train Time: ",
              "[Epoch 1] Avg Batch Time: ", "[Epoch 1] Avg Comm Time (Pull): ", "[Epoch 1] Val Loss: ",
              "[PS] Epoch [1] Completed in ", "[PS] Avg Comm Time (Send Params): "]
    found = [next(number for number, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert found == sorted(found)
    assert [line.startswith(start) for line in lines for start in starts].count(True) == len(starts)
    assert read_results(tmp_path / "results_ps.json").num_workers == 2
    assert (tmp_path / "saved_models" / "ps_best.pth").is_file()
    check_traces(tmp_path / "profiles")


@pytest.mark.slow
def test_bad_input_is_said_once_by_all_ranks_together(tmp_path):
    run = torchrun("baseline_multi_card.py", 3, ["--lr", "-1"], tmp_path)
    assert run.returncode == 1  # torchrun's own, whatever its ranks return
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [
        "error: --lr: -1 is out of range; give a number above 0 and at most 1e+06"]
    assert list(tmp_path.iterdir()) == []
