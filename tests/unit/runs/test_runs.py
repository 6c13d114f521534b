"""Run directories: checkpoints that survive, metrics that rewind, a page that fetches nothing."""

import os
import re
import resource
import signal
import struct

import pyarrow.parquet
import pytest
from tensorboardX.proto.event_pb2 import Event

from openhearth.errors import BadFile, ModelNotFound, NotEnoughDisk, UsageError
from openhearth.runs import (
    RunFolder,
    SampledRollout,
    find_run,
    list_runs,
    read_rollouts,
    render_page,
    rollout_steps,
    write_rollouts,
    writing_events,
)


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
    assert page.count("<svg") == 2 and "a&lt;b" in page and page.count("<script>") == 1
    assert "location.reload" in page, "a page of a run that goes on loads itself again"
    assert not re.search(r"https?:|src=|href=|url\(|@import", page)
    points = re.findall(r'<path d="M([^"]+)"', page)[0].split("L")
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert len(points) <= 601 and list(xs) == sorted(xs) and list(ys) == sorted(ys), "a falling curve"
    assert "not finished" in page and render_page("a", {}, [], {"x": 1}).count("<svg") == 0


def sampled(step, sample, text="4", verdict="correct", reward=1.0):
    return SampledRollout(step, "sum/0", sample, "3 + 1 =", text, verdict, reward, "", 2, "stop")


def test_rollouts_are_one_table_for_any_reader_of_parquet(run):
    rows = [sampled(1, 0), sampled(1, 1, "<b>5", "wrong", 0.0), sampled(2, 0, "?", "grader_failed", None)]
    for step in (1, 2):
        write_rollouts(run, step, [row for row in rows if row.step == step])
    assert rollout_steps(run) == [1, 2]
    assert read_rollouts(run, 1) == rows[:2] and read_rollouts(run, 2) == rows[2:]
    table = pyarrow.parquet.read_table(run.path / "rollouts")
    assert table.column("reward").to_pylist() == [1.0, 0.0, None] and table.num_rows == 3
    page = render_page("a", {}, [], None, rows)
    assert "step 1: 1 of 2 right" in page and "&lt;b&gt;5" in page and "<b>" not in page
    (run.path / "rollouts" / "step-00000002.parquet").write_bytes(b"no table")
    with pytest.raises(BadFile):
        read_rollouts(run, 2)


def test_tensorboard_reads_the_metrics_and_hides_what_a_killed_run_did_beyond(run):
    with writing_events(run, 1) as write:
        write({"step": 1, "loss": 2.0, "level": 0})
        write({"step": 2, "loss": 1.5, "level": 0})
    with writing_events(run, 2) as write:
        write({"step": 2, "loss": 1.25, "level": 0})
    files = sorted((run.path / "tensorboard").iterdir(), key=lambda path: int(path.suffix[1:]))
    events = [event for path in files for event in read_events(path)]
    losses = [(event.step, value.simple_value) for event in events for value in event.summary.value
              if value.tag == "loss"]
    assert losses == [(1, 2.0), (2, 1.5), (2, 1.25)]
    starts = [event.step for event in events if event.session_log.status == event.session_log.START]
    assert starts[-1] == 2, "readers drop what stands at this step and beyond in earlier files"


def read_events(path):
    """The records of an event file: length, checksum, bytes, checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12:place + 12 + length])
        place += 16 + length
