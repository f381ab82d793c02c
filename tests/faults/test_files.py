"""Files are replaced wholly or not at all: full disks, crashes at every point of a write, links, stale temporaries."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import SHORT, Nursery, earlier_run, snapshot

from gradsync import files
from gradsync.analysis.output import write
from gradsync.errors import RunError, UsageError
from gradsync.files import SUFFIX, below, remove_stale_temporaries, write_together
from gradsync.results import read_results

POINTS = ("mkstemp", "write", "fsync", "replace", "second replace", "directory fsync")


@contextmanager
def crashing(point: str, crash: Callable[[], None], monkeypatch) -> Iterator[None]:
    """Let the process fail as it reaches ``point`` of ``write_together``."""
    calls = {"fsync": 0, "replace": 0}

    def nth(name: str, due: int, original: Callable) -> Callable:
        def call(*arguments):
            calls[name] += 1
            if calls[name] == due:
                crash()
            return original(*arguments)

        return call

    with monkeypatch.context() as patch:
        if point == "mkstemp":
            patch.setattr(files.tempfile, "mkstemp", lambda **_: crash())
        elif point == "write":
            patch.setattr(files.fcntl, "flock", lambda *_: crash())
        elif "fsync" in point:
            patch.setattr(os, "fsync", nth("fsync", 1 if point == "fsync" else 3, os.fsync))
        else:
            patch.setattr(os, "replace", nth("replace", 1 if point == "replace" else 2, os.replace))
        yield


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_each_file_old_or_new(point, monkeypatch, tmp_path):  # row 9
    """The process is gone at once, as by kill -9: whatever it has left, the next start clears away."""
    old = {tmp_path / "results_ps.json": b"old results", tmp_path / "best.pth": b"old model"}
    new = {path: content.replace(b"old", b"new") for path, content in old.items()}
    write_together(old)
    child = os.fork()
    if child == 0:
        with crashing(point, lambda: os._exit(7), monkeypatch):
            write_together(new)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for path, content in old.items():
        assert path.read_bytes() in (content, new[path])
        if POINTS.index(point) <= POINTS.index("replace"):
            assert path.read_bytes() == content, "nothing is replaced before everything is written"
    remove_stale_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(old)


# Locks and the flush of a directory may be missing on network file systems; nobody fails by that.
@pytest.mark.parametrize("point", [point for point in POINTS if point not in ("write", "directory fsync")])
def test_an_error_leaves_no_temporary_file(point, monkeypatch, tmp_path):  # row 8
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    old = {tmp_path / "a": b"old", tmp_path / "b": b"old"}
    write_together(old)
    with crashing(point, fail, monkeypatch), pytest.raises(OSError, match="Input/output error") as caught:
        write_together(dict.fromkeys(old, b"new"))
    assert caught.value.filename in map(str, old)
    assert sorted(tmp_path.iterdir()) == sorted(old)


def test_a_living_writers_temporary_file_stays(tmp_path):  # row 9
    ours, theirs = tmp_path / f".ours.1{SUFFIX}", tmp_path / f".theirs.2{SUFFIX}"
    ours.touch()
    theirs.touch()
    (tmp_path / ".mine.tmp").touch()
    with open(theirs) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", theirs.name]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "results_ps.json").symlink_to("theirs")
    write_together({tmp_path / "results_ps.json": b"ours"})
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "results_ps.json").is_symlink()


@pytest.mark.parametrize("parts", [("..", "x"), ("/etc/x",), ("a", "..", "..", "x"), ("linked", "x")])
def test_nothing_is_written_outside_the_output_directory(parts, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"output directory|a link"):
        below(tmp_path / "out", *parts)
    assert below(tmp_path / "out", "plots", "a.png") == tmp_path / "out" / "plots" / "a.png"


def test_plots_that_are_a_link_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "plots").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="plots: a link"):
        write(tmp_path, {Path("performance_report.txt"): b"new", Path("plots/a.png"): b"new"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "plots"]


def test_saved_models_that_are_a_link_are_refused(nursery: Nursery, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "saved_models").symlink_to(tmp_path / "elsewhere")
    outcome = nursery.run("all_reduce", tmp_path / "out", ranks=2)
    assert 2 in outcome.codes
    assert len(outcome.errors) == 1
    assert "saved_models: a link" in outcome.errors[0]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_for_the_analyser(tmp_path):  # rows 8 and 10
    before = earlier_run(tmp_path, "ps")
    child = os.fork()
    if child == 0:
        limited(100)
        try:
            write(tmp_path, {Path("plots/a.png"): b"small", Path("performance_report.txt"): bytes(1000)})
        except RunError as error:
            os._exit(5 if "performance_report.txt: cannot be written (File too large)" in str(error) else 6)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert snapshot(tmp_path) == before


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Let ``folder`` be a file system with room for ``size``."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root only")
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this host lets nobody mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


SMALL_MODEL = [*SHORT, "--model", "groupnorm_cnn"]


def test_a_full_disk_at_the_end_of_a_run(nursery: Nursery, tmp_path):  # row 8
    """There is room for the results, but not for the best model."""
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        before = earlier_run(disk, "all_reduce")
        outcome = nursery.run("all_reduce", disk, ranks=2, flags=[*SMALL_MODEL, "--checkpoint-every", "0"])
        after = snapshot(disk)
    after.pop("results_all_reduce.failed.json", None)
    assert outcome.errors == ["error: all_reduce, rank 0: saved_models/all_reduce_best.pth: cannot be written (No "
                              "space left on device); what was there is as it was"]
    assert outcome.codes == [1, 1]
    assert after == before


def test_a_full_disk_for_a_checkpoint(nursery: Nursery, tmp_path):  # rows 8 and 26
    """There is room for one checkpoint (0.5 MB) and a part of the next. Once there is more, the run goes on."""
    disk, flags = tmp_path / "disk", [*SMALL_MODEL, "--checkpoint-every", "1"]
    with small_disk(disk, "900k"):
        before = earlier_run(disk, "all_reduce")
        outcome = nursery.run("all_reduce", disk, ranks=2, flags=flags)
        after = snapshot(disk)
        (error,) = outcome.errors
        assert re.fullmatch(r"error: all_reduce, rank [01]: checkpoints/all_reduce/generation_2\.rank_[01]\.pt: the "
                            r"checkpoint cannot be written \(No space left on device\); the one before it is as it "
                            r"was, and --resume goes on from there", error)
        assert outcome.codes == [1, 1]
        assert {name: after[name] for name in before} == before
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert nursery.run("all_reduce", disk, ranks=2, flags=[*flags, "--resume"]).codes == [0, 0]
        (resumed,) = read_results(disk / "results_all_reduce.json").resumed_at
    assert (resumed.epoch, resumed.step) == (1, 1)
