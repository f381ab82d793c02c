"""The documents say nothing that the project does not have, and the two READMEs say the same."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from doc_commands import SCRIPTS, TOP
from doc_names import FENCE, LINK, SPAN, commands, complaints, refused

README, CHINESE = TOP / "README.md", TOP / "docs" / "README_CN.md"
REFERENCE = TOP / "docs" / "QUICK_REFERENCE.txt"
DOCUMENTS = [README, *sorted((TOP / "docs").glob("*.md")), *sorted((TOP / "docs").glob("*.txt"))]
SOUND = """
# A heading

Text with a [link](ARCHITECTURE.md#map), `average_gradients`, `ParameterServerWorker.pull`, `Method.update`,
`probe.exposed_communication`, `epochs[].server.wait`, `gradsync/results.py`, `plots/`, `results_ps_flat.json`,
`speedup.png`, `--backend gloo`, `torch.compile`, `no data set there`, `2 * (N - 1) * M` and [another](#a-heading).

```bash
OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 all_reduce_train.py --variant overlapped   # a comment
sudo python benchmarks/emulated_cluster.py --rate 1gbit --methods ps
./run_all_experiments.sh --study classic --help
```
"""
FAULTS = {
    "a flag that is gone": ("`--gone`", "--gone"),
    "a flag that never took this": ("`--backend mpi`", "--backend does not take mpi"),
    "a flag that takes nothing": ("`--channels-last yes`", "--channels-last does not take yes"),
    "a flag in a block of anything": ("```\nflag --gone\n```", "--gone: no such flag"),
    "a function that is gone": ("`average_all_gradients`", "average_all_gradients: no such name"),
    "a call of a function that is gone": ("`train_everything()`", "no such name"),
    "a method that is gone": ("`ParameterServerWorker.fetch`", "no such name"),
    "a method of another class": ("`AllReduce.answer_round`", "no such name"),
    "a class in a drawing": ("```\nring.py: RingServer\n```", "RingServer: no such name"),
    "a function in a drawing": ("```\nmain.py -> go_round()\n```", "go_round: no such name"),
    "one of several values": ("`ps_train.py [--mode sync|ring]`", "--mode does not take ring"),
    "one of several variants": ("all_reduce[_flat|_ring]", "_ring: no variant"),
    "a class that is gone": ("`RingAllReduce.step`", "no such name"),
    "a module that is gone": ("`gradsync.ring`", "no such name"),
    "a name that torch does not have": ("`torch.reduce_everything`", "no such name"),
    "a key that is gone": ("`epochs[].train_speed`", "no such name"),
    "a key one level too high": ("`probe.train_time`", "no such name"),
    "a file that is gone": ("`gradsync/carousel.py`", "gradsync/carousel.py: no such file"),
    "a file in a block of anything": ("```\nsee carousel.py\n```", "carousel.py: no such file"),
    "a picture that nothing draws": ("`ring_speed.png`", "ring_speed.png: no such file"),
    "results of no variant": ("`results_all_reduce_ring.json`", "no such file"),
    "a directory that is gone": ("`rings/`", "no such directory"),
    "a message that nobody prints": ("`the ring is broken`", "says that nowhere"),
    "a link to nothing": ("[see](RINGS.md)", "RINGS.md: a link to nothing"),
    "a link to no heading": ("[see](ARCHITECTURE.md#rings)", "a link to nothing"),
    "a command with a wrong flag": ("```bash\npython analyze_results.py --result-dir x\n```", "--result-dir"),
    "a command with a wrong value": ("```bash\n./run_all_experiments.sh --methods ring\n```", "ring"),
    "a command whose flags contradict each other": ("```bash\n./run_all_experiments.sh --weak\n```", "--weak"),
    "a flag of another method": ("```bash\ntorchrun ps_train.py --variant flat\n```", "--variant"),
    "a flag of torchrun that is gone": ("```bash\ntorchrun --ranks=4 ps_train.py\n```", "--ranks"),
    "a script that is gone": ("```bash\npython ring_train.py\n```", "ring_train.py: no script"),
    "a program of others": ("```bash\nmpirun -n 4 ps_train.py\n```", "mpirun"),
    "a cluster's comparison": ("```bash\npython benchmarks/emulated_cluster.py --methods ring\n```", "ring"),
    "a cluster's script": ("```bash\npython benchmarks/emulated_cluster.py --script ring.py\n```", "no script"),
    "a benchmark's row": ("```bash\npython benchmarks/sync_benchmark.py --rows ring\n```", "--rows ring"),
    "rows that one job cannot hold": ("```bash\npython benchmarks/sync_benchmark.py --rows rpc,rpc_sockets\n```",
                                      "--rows rpc,rpc_sockets"),
    "a command in a sentence": ("`python check_environment.py --ranks 4`", "--ranks"),
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_quotes_only_what_is_there(path):
    assert complaints(path.read_text(), path.parent) == []


def test_all_documents_are_there_and_show_commands():
    names = {path.name for path in DOCUMENTS}
    assert {"README.md", "README_CN.md", "ARCHITECTURE.md", "EXPERIMENT_GUIDE.md", "QUICK_REFERENCE.txt"} <= names
    for name, fewest in (("README.md", 9), ("EXPERIMENT_GUIDE.md", 25), ("QUICK_REFERENCE.txt", 12)):
        path = next(path for path in DOCUMENTS if path.name == name)
        assert len(commands(path.read_text())) >= fewest


def test_a_sound_text_passes():
    assert complaints(SOUND, TOP / "docs") == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    planted, complaint = FAULTS[fault]
    found = complaints(f"{SOUND}\n{planted}\n", TOP / "docs")
    assert any(complaint in line for line in found), found


def test_a_wrong_command_in_plain_text_is_caught():
    assert complaints("COMMANDS\n  python check_environment.py --nproc 4   # fine\n", TOP / "docs") == []
    assert complaints("COMMANDS\n  python check_environment.py --ranks 4\n", TOP / "docs") != []


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".py")])
def test_a_script_shows_commands_that_it_takes(script):
    shown = commands(ast.get_docstring(ast.parse((TOP / script).read_text())))
    assert shown
    assert [why for line in shown if (why := refused(line))] == []


def test_the_reference_is_one_page_of_a_terminal():
    lines = REFERENCE.read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80


def outline(text: str) -> list[int]:
    """The levels of the headings."""
    return [len(hashes) for hashes in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]


def bare_commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in commands(text)]


def quoted_code(text: str) -> list[str]:
    return sorted(SPAN.findall(FENCE.sub("", text)))


def figures(text: str) -> list[list[str]]:
    """The numbers in each row of each table."""
    rows = re.findall(r"^\|.*", FENCE.sub("", text), re.MULTILINE)
    return [re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", row) for row in rows]


def targets(text: str, path) -> list[str]:
    """What the links lead to, except from one README to the other."""
    found = [target if "://" in target else str((path.parent / target).resolve()) for target in LINK.findall(text)]
    return sorted(set(found) - {str(README), str(CHINESE)})


@pytest.mark.parametrize("part", [outline, bare_commands, quoted_code, figures], ids=lambda part: part.__name__)
def test_both_readmes_have_the_same(part):
    assert part(CHINESE.read_text()) == part(README.read_text())


def test_both_readmes_link_to_the_same():
    assert targets(CHINESE.read_text(), CHINESE) == targets(README.read_text(), README)
