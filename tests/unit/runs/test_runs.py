"""Run directories: checkpoints that survive, metrics that rewind, a page that fetches nothing."""

import os
import re
import resource
import signal

import pytest

from openhearth.errors import ModelNotFound, NotEnoughDisk, UsageError
from openhearth.runs import RunFolder, find_run, list_runs, render_page


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path, "one")
    made.write_config({"method": "sft"})
    return made


def save(run, step, text="state"):
    with run.checkpoints.writing(step) as folder:
        (folder / "state.json").write_text(f"{text} {step}")


def read(run):
    found = run.checkpoints.newest()
    return found and (found.step, (found.path / "state.json").read_text())


def test_the_newest_checkpoint_replaces_the_one_before_it(run):
    assert read(run) is None
    save(run, 2)
    save(run, 4)
    assert read(run) == (4, "state 4")
    assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step-00000004"]


def test_an_error_while_writing_leaves_the_one_before_it(run):
    save(run, 2)
    with pytest.raises(RuntimeError), run.checkpoints.writing(4) as folder:
        (folder / "state.json").write_text("half")
        raise RuntimeError
    assert read(run) == (2, "state 2")
    assert len(list(run.checkpoints.folder.iterdir())) == 1


@pytest.mark.parametrize("harm", [lambda path: (path / "state.json").write_text("other"),
                                  lambda path: (path / "state.json").unlink(),
                                  lambda path: (path / "manifest.json").write_text("{"),
                                  lambda path: (path / "more").write_text("")])
def test_a_damaged_checkpoint_is_not_used(run, harm):
    save(run, 2)
    (run.checkpoints.folder / "step-00000002").rename(run.checkpoints.folder / "kept")
    save(run, 4)
    (run.checkpoints.folder / "kept").rename(run.checkpoints.folder / "step-00000002")
    harm(run.checkpoints.folder / "step-00000004")
    assert read(run) == (2, "state 2")


def test_a_full_disk_is_an_error_that_keeps_the_last_checkpoint(run):
    save(run, 2)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
        with pytest.raises(NotEnoughDisk):
            save(run, 4, text="too long for the disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(run) == (2, "state 2")


def test_a_run_is_held_by_one_and_leftovers_of_killed_writers_go(run):
    save(run, 2)
    (run.checkpoints.folder / ".writing.1").mkdir()
    with run.working():
        assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step-00000002"]
        same = RunFolder(run.path.parents[1], "one")
        with pytest.raises(UsageError, match="another process"), same.working():
            pass


def test_metrics_rewind_to_a_step_and_lose_a_torn_line(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 1 / step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    run.rewind_metrics(2)
    run.append_metrics({"step": 3, "loss": 9.0})
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_output_replaces_the_one_before_it_in_one_step(run):
    for text in ("first", "second"):
        with run.writing_output() as folder:
            (folder / "a").write_text(text)
    with pytest.raises(RuntimeError), run.writing_output() as folder:
        raise RuntimeError
    assert (run.output / "a").read_text() == "second"


def test_runs_are_found_by_name(run, tmp_path):
    os.mkdir(tmp_path / "runs" / "empty")
    assert [one.name for one in list_runs(tmp_path)] == ["one"]
    assert find_run(tmp_path, "one").config() == {"method": "sft"}
    with pytest.raises(ModelNotFound, match="there are: one"):
        find_run(tmp_path, "two")
    for name in ("../x", "", "a/b", ".hidden"):
        with pytest.raises(UsageError):
            RunFolder(tmp_path, name)


def test_the_page_draws_every_curve_and_asks_nobody(run):
    metrics = [{"step": step, "loss": 5 / step, "rate": 1e30, "note": "x"} for step in range(1, 2000)]
    page = render_page("a<b", {"data": "<script>"}, [*metrics, {"step": 2000, "loss": float("nan")}], None)
    assert page.count("<svg") == 2 and "a&lt;b" in page and "<script>" not in page
    assert not re.search(r"https?:|src=|href=|url\(|@import", page)
    points = re.findall(r'<path d="M([^"]+)"', page)[0].split("L")
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert len(points) <= 601 and list(xs) == sorted(xs) and list(ys) == sorted(ys), "a falling curve"
    assert "not finished" in page and render_page("a", {}, [], {"x": 1}).count("<svg") == 0
