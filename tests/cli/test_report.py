"""`rpo-verl report`: what it reads, what it computes, and the page in a real browser."""

import json
import math
import shutil
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from rpo_verl.tools.cli.main import app
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.report.charts import axis_range, build_charts, generated_tokens, totals
from rpo_verl.tools.report.page import _lines, cautions, render, write_report
from rpo_verl.tools.report.runs import differing_settings, load_run, read_metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CASES = Path(__file__).parent / "cases" / "report"
STEPS = 12
ACCURACY = "val-core/maths/acc/mean@1"


def metrics(step, rpo, shift=0.0):
    """One step as veRL logs it; step 0 is the validation before training."""
    data = {ACCURACY: 0.5 + 0.02 * step + shift} if step % 4 == 0 else {}
    if step == 0:
        return data
    data |= {
        "timing_s/step": 6.0, "timing_s/gen": 3.0, "timing_s/old_log_prob": 1.0, "timing_s/update_actor": 1.5,
        "critic/score/mean": 0.5, "prompt_length/mean": 50.0, "response_length/mean": 150.0,
        "perf/total_num_tokens": 12800.0,
    }  # fmt: skip
    if rpo:
        data |= {
            "timing_s/gen": 1.0, "timing_s/step": 4.0, "timing_s/rpo_injection": 0.1,
            "rpo/tokens/generated_total": 900, "rpo/left_out/generated_total": 100, "rpo/tokens/reused_total": 8700,
            "rpo/prefix/length_mean": 136.0, "rpo/suffix/length_mean": 14.0, "rpo/cache/hit_rate": 1.0,
            "rpo/cache/correct_share": 0.8, "rpo/cache/age_mean": step / 2,
            "rpo/groups/no_signal_share_before_shaping": 0.7, "rpo/groups/no_signal_share_after_shaping": 0.4,
        }  # fmt: skip
    return data


def write_run(folder, rpo, shift=0.0, settings=None):
    folder.mkdir()
    lines = [json.dumps({"step": step, "data": metrics(step, rpo, shift)}) for step in range(STEPS + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if settings:
        (folder / "hydra" / ".hydra").mkdir(parents=True)
        (folder / "hydra" / ".hydra" / "config.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def runs(tmp_path):
    """A baseline without RPO, and two seeds with it."""
    settings = {"algorithm": {"adv_estimator": "grpo"}, "data": {"seed": 1}}
    write_run(tmp_path / "base", rpo=False, settings=settings)
    for seed in (1, 2):
        own = settings | {"data": {"seed": seed}, "rpo": {"truncation": {"max_fraction": 0.1}}}
        write_run(tmp_path / f"rpo{seed}", rpo=True, shift=0.05 * seed, settings=own)
    return [f"grpo={tmp_path / 'base'}", f"rpo={tmp_path / 'rpo1'}", f"rpo={tmp_path / 'rpo2'}"]


@pytest.fixture
def page(runs, tmp_path):
    out = tmp_path / "out" / "report.html"
    result = CliRunner().invoke(app, ["report", *runs, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def chart(runs, key):
    return next(chart for chart in build_charts([load_run(run) for run in runs]) if chart.key == key)


def test_accuracy_against_time_tokens_and_steps(runs):
    views = chart(runs, "accuracy0").views
    assert list(views) == ["training time, minutes", "generated tokens, thousands", "steps"]
    grpo, rpo = views["training time, minutes"]
    assert grpo.x == pytest.approx([0.0, 0.4, 0.8, 1.2])
    assert rpo.x == pytest.approx([0.0, 0.4 * 4 / 6, 0.8 * 4 / 6, 1.2 * 4 / 6])
    grpo, rpo = views["generated tokens, thousands"]
    assert grpo.x[-1] == pytest.approx(12 * 12.8 * 0.75)
    assert rpo.x[-1] == pytest.approx(12 * (9.6 - 8.7 + 0.1))  # groups left out included


def test_seeds_have_a_mean_and_a_spread(runs):
    grpo, rpo = chart(runs, "accuracy0").views["steps"]
    assert rpo.y == pytest.approx([0.575, 0.655, 0.735, 0.815])
    assert rpo.spread == pytest.approx([0.05 / 2**0.5] * 4)
    assert grpo.spread == [0.0] * 4


def test_where_the_time_goes(runs):
    bars = chart(runs, "time").bars
    assert bars["grpo"] == pytest.approx({"rollout": 3.0, "log-probs": 1.0, "actor's update": 1.5, "rest": 0.5})
    assert bars["rpo"] == pytest.approx({"rollout": 1.1, "log-probs": 1.0, "actor's update": 1.5, "rest": 0.4})


def test_a_run_without_rpo_is_all_suffix(runs):
    views = chart(runs, "lengths").views
    assert [line.name for line in views["prefix"]] == ["rpo"]
    assert [(line.name, line.y[0]) for line in views["suffix"]] == [("grpo", 150.0), ("rpo", 14.0)]
    assert generated_tokens(load_run(runs[0]), {}) == 0.0


def test_groups_that_dapo_left_out_were_generated_too(tmp_path):
    run = load_run(str(write_run(tmp_path / "dapo", rpo=False, settings={"data": {"train_batch_size": 8}})))
    batch = {name: run.steps[1][name] for name in run.steps[1]}
    assert generated_tokens(run, batch) == pytest.approx(9600)
    assert generated_tokens(run, batch | {"training/filter_groups/evicted_samples": 4}) == pytest.approx(14400)


def test_a_file_has_the_settings_beside_it_and_no_others(tmp_path):
    for name in ("grpo", "rpo"):
        folder = write_run(tmp_path / name, rpo=name == "rpo", settings={"data": {"seed": name}})
        (folder / "metrics.jsonl").rename(tmp_path / f"{name}.jsonl")
    assert load_run(str(tmp_path / "rpo.jsonl")).settings == {}
    (tmp_path / "rpo" / "hydra" / ".hydra").rename(tmp_path / "rpo" / ".hydra")
    assert load_run(str(tmp_path / "rpo.jsonl")).settings == {"data.seed": "rpo"}


def test_a_path_with_an_equals_sign(tmp_path):
    run = load_run(str(write_run(tmp_path / "lr=1e-4", rpo=False)))
    assert run.label == "lr=1e-4"


def test_totals_are_means_over_validation_sets(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    names = ("val-core/a/b/acc/mean@1", "val-core/c/acc/mean@1")
    values = {1: (0.3, 0.5), 2: (0.2, 0.9), 3: (0.4, 0.4)}
    lines = [
        json.dumps({"step": step, "data": {"timing_s/step": 1} | dict(zip(names, pair, strict=True))})
        for step, pair in values.items()
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    run = load_run(str(folder))
    (row,) = totals([run])
    assert (row["accuracy at the end"], row["best accuracy"]) == (pytest.approx(0.4), pytest.approx(0.55))
    titles = [chart.title for chart in build_charts([run])]
    assert titles[:2] == ["Validation: a/b", "Validation: c"]


def test_a_run_that_resumed_says_where_it_begins(tmp_path):
    folder = write_run(tmp_path / "resumed", rpo=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()[6:]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    run = load_run(str(folder))
    assert "begins with step 6" in render([run], [])


def test_what_failures_cost_has_a_line(tmp_path):
    path = write_run(tmp_path / "run", rpo=True) / "metrics.jsonl"
    assert "lost to failures" not in render([load_run(str(path))], [])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[3:5]:
        line["data"] |= {"rpo/response/failed_total": 5, "rpo/groups/failed_total": 1, "rpo/left_out/failed_total": 0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = render([load_run(str(path))], [])
    assert "lost to failures: 10 responses without a rollout or a reward; 2 groups without a single response." in page


def test_settings_that_differ(runs):
    differing = differing_settings([load_run(run) for run in runs])
    assert differing == {"data.seed": [1, 1, 2], "rpo.truncation.max_fraction": ["–", 0.1, 0.1]}


def test_tensorboard_event_files_say_the_same(tmp_path, runs):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "events")) as writer:
        for step in range(STEPS + 1):
            for name, value in metrics(step, rpo=True, shift=0.05).items():
                writer.add_scalar(name, value, step)
    events, lines = load_run(str(tmp_path / "events")), load_run(runs[1].partition("=")[2])
    assert events.steps.keys() == lines.steps.keys()
    for step, values in lines.steps.items():
        assert events.steps[step] == pytest.approx(values, rel=1e-6)


def test_a_run_in_progress_is_read_up_to_its_last_line(tmp_path):
    folder = write_run(tmp_path / "run", rpo=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "da')
    assert max(load_run(str(folder)).steps) == STEPS


def test_metrics_are_numbers_in_step_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "data": {"a": 1, "b": "text", "c": true}}\n{"step": 1, "data": {"a": 0.5}}\n{"ste')
    assert list(read_metrics(path).items()) == [(1, {"a": 0.5}), (2, {"a": 1.0})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "no training step"),
        ('{"step": 1, "data": {"critic/score/mean": 1}}\n', "no training step"),
        ('{"step": 1}\n{"step": 2, "data": {}}\n', ":1: not a record"),
    ],
)
def test_what_is_no_run(tmp_path, content, message):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CommandError, match=message):
        load_run(str(path))


def test_a_folder_of_several_runs_has_to_be_narrowed(runs, tmp_path):
    with pytest.raises(CommandError, match=r"several runs; name one of them: .*base.*rpo1"):
        load_run(str(tmp_path))
    result = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "does not exist" in result.output


def test_the_page_stands_alone_and_pictures_lie_beside_it(page):
    # plotly's own source names the makers of maps it could draw.
    text = page.read_text().replace(get_plotlyjs(), "")
    assert len(text) < 200_000
    assert not any(f"{attribute}http" in text for attribute in ('src="', "src=", 'href="', "url("))
    assert {path.suffix for path in page.parent.iterdir()} == {".html", ".png"}
    for name in ("accuracy0", "accuracy0-1", "accuracy0-2", "time", "lengths", "signal-1"):
        assert (page.parent / f"report-{name}.png").stat().st_size > 5000


# ---- logs with gaps, repeats and other formats


def case(name):
    return load_run(str(CASES / f"{name}.jsonl"))


def line(run, key, view=""):
    (found,) = next(chart for chart in build_charts([run]) if chart.key == key).views[view]
    return dict(zip(found.x, found.y, strict=True))


def holes(points):
    return [x for x, y in points.items() if math.isnan(y)]


def write_metrics(path, *records):
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in records))
    return str(path)


def test_a_complete_log_has_no_gap():
    run = case("ok")
    assert cautions([run]) == []
    assert totals([run])[0]["accuracy at the end"] == 0.5
    assert totals([case("unordered")])[0] == totals([run])[0] | {"run": "unordered"}


def test_records_of_one_step_are_merged():
    run = case("val_in_own_record")
    assert run.steps[10].keys() > {"timing_s/step", "val-core/MATH-500/acc/mean@1"}
    (row,) = totals([run])
    assert (row["steps"], row["accuracy at the end"], row["training time, s"]) == (10, 0.77, 100.0)


def test_a_resumed_run_replaces_the_steps_that_were_lost(tmp_path):
    run = case("overlap_appended")
    assert list(run.steps) == list(range(15))
    assert [run.steps[step]["timing_s/step"] for step in (7, 8, 14)] == [10.0, 20.0, 20.0]
    first = [(step, {"timing_s/step": 1.0, "a": step}) for step in range(1, 9)]
    later = [(step, {"timing_s/step": 2.0}) for step in range(4, 6)]
    run = load_run(write_metrics(tmp_path / "m.jsonl", *first, *later))
    assert list(run.steps) == [1, 2, 3, 4, 5]  # the log of steps 6 to 8 is that of a run that did not go on
    assert "a" not in run.steps[4]


def test_two_runs_in_one_file_are_refused(tmp_path):
    runs = [(step, {"timing_s/step": time}) for time in (1.0, 2.0) for step in range(1, 5)]
    with pytest.raises(CommandError, match=r"two runs are in one place: steps 1 to 4 in .* then steps 1 to 4"):
        load_run(write_metrics(tmp_path / "m.jsonl", *runs))
    same = load_run(write_metrics(tmp_path / "m.jsonl", *runs[:4], *runs[:4]))  # the same log twice is one run
    assert totals([same])[0]["training time, s"] == 4.0


def write_events(folder, name, values):
    """An event file as tensorboard writes it: step → metric → value."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / f"events.out.tfevents.{name}.host").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        for step, metrics in values.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()])
            writer.write(Event(wall_time=float(step), step=step, summary=summary).SerializeToString())


def test_two_runs_in_one_tensorboard_folder_are_refused(tmp_path):
    for file in json.loads((CASES / "tensorboard_restarted_shorter.json").read_text())["event_files"]:
        first, last = file["steps"]
        steps = {step: {"timing_s/step": file["timing_s/step"]} for step in range(first, last + 1)}
        write_events(tmp_path / "runs", file["file_time"], steps)
    with pytest.raises(CommandError, match=r"steps 1 to 20 in .*1700000000.*then steps 1 to 10 in .*1700001000"):
        load_run(str(tmp_path / "runs"))
    one = load_run(str(tmp_path / "runs" / "events.out.tfevents.1700001000.host"))
    assert totals([one])[0]["training time, s"] == 300.0


def test_a_resumed_run_in_a_tensorboard_folder(tmp_path):
    write_events(tmp_path / "runs", 1, {step: {"timing_s/step": 1.0, "a": 1.0} for step in range(1, 9)})
    write_events(tmp_path / "runs", 2, {step: {"timing_s/step": 2.0} for step in range(5, 11)})
    run = load_run(str(tmp_path / "runs"))
    assert [metrics["timing_s/step"] for metrics in run.steps.values()] == [1.0] * 4 + [2.0] * 6
    assert "a" not in run.steps[5]


def test_nan_in_event_files_is_a_gap(tmp_path):
    (file,) = json.loads((CASES / "tensorboard_nan.json").read_text())["event_files"]
    steps = {step: {"timing_s/step": 10.0, "critic/score/mean": 0.5} for step in range(1, file["steps"][1] + 1)}
    for name, nans in file["nan"].items():
        for step in nans:
            steps[step][name] = math.nan
    write_events(tmp_path / "runs", file["file_time"], steps)
    run = load_run(str(tmp_path / "runs"))
    assert holes(line(run, "reward")) == [5]
    assert totals([run])[0]["training time, s"] == 90.0
    assert any("timing_s/step is NaN or null in 1 steps (7)" in caution for caution in cautions([run]))


def test_the_accuracy_at_the_end_is_never_an_earlier_one(tmp_path):
    (row,) = totals([case("nan_last_val")])
    assert (row["accuracy at the end"], row["best accuracy"]) == (None, 0.45)
    assert holes(line(case("nan_last_val"), "accuracy0", "steps")) == [10]
    assert "in 1 steps (10)" in cautions([case("nan_last_val")])[0]
    run = case("overlap_appended")
    assert totals([run])[0]["accuracy at the end"] is None
    assert "The last validation is that of step 10 (0.550)" in cautions([run])[0]
    time, two = {"timing_s/step": 1.0}, {"val-core/a/acc/mean@1": 0.5, "val-core/b/acc/mean@1": 0.9}
    half = {"val-core/a/acc/mean@1": 0.6}
    for last in (half, half | {"val-core/b/acc/mean@1": None}):
        run = load_run(write_metrics(tmp_path / "m.jsonl", (1, time | two), (2, time | last)))
        (row,) = totals([run])
        assert (row["accuracy at the end"], row["best accuracy"]) == (None, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("name", "caution", "total", "value"),
    [
        ("gaps", "3 steps between 1 and 10 are missing from the log (3, 4, 7)", "steps", 7),
        ("nan_time", "timing_s/step is NaN or null in 1 steps (6)", "training time, s", 90.0),
        ("null_len", "is missing, zero, NaN or null in 1 steps (6)", "generated tokens", 14400.0),
    ],
)
def test_totals_say_what_they_leave_out(name, caution, total, value, tmp_path):
    run = case(name)
    assert caution in "".join(cautions([run]))
    assert totals([run])[0][total] == pytest.approx(value)
    result = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    assert caution in result.output


def test_gaps_are_drawn_as_gaps():
    assert holes(line(case("gaps"), "reward")) == [3, 7]
    assert holes(line(case("null_len"), "lengths", "suffix")) == [6]
    chart = next(chart for chart in build_charts([case("gaps")]) if chart.key == "reward")
    (curve,) = _lines(chart, "", {"gaps": "#000000"}).data
    assert curve.y[2] is None
    assert not curve.connectgaps
    assert "markers" in curve.mode  # a point between two gaps would be invisible


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_length/mean": None},
        {"response_length/mean": float("nan")},
        {"prompt_length/mean": 0, "response_length/mean": 0},
        {"perf/total_num_tokens": None},
    ],
)
@pytest.mark.parametrize("rpo", [False, True])
def test_unknown_lengths_have_a_message_with_a_way_on(tmp_path, change, rpo):
    run = load_run(write_metrics(tmp_path / "m.jsonl", *((n, metrics(n, rpo) | change) for n in range(1, 4))))
    assert totals([run])[0]["generated tokens"] is None
    assert "Log veRL's metrics unfiltered" in "".join(cautions([run]))
    write_report([run], tmp_path / "report.html")
    assert "<td>–</td>" in (tmp_path / "report.html").read_text()


def test_missing_lengths(tmp_path):
    log = [(n, {k: v for k, v in metrics(n, False).items() if "length" not in k}) for n in range(1, 4)]
    run = load_run(write_metrics(tmp_path / "m.jsonl", *log))
    assert "in 3 steps (1, 2, 3)" in "".join(cautions([run]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((CASES / "utf16.jsonl").read_bytes(), "iconv -f UTF-16 -t UTF-8"),
        ((CASES / "half_line_in_middle.jsonl").read_bytes(), r":12: not a record .*sed -i 12d"),
        (b'{"step": 1.5, "data": {"timing_s/step": 1}}\n', ":1: .*step=1.5 is not a whole number"),
        (b'{"step": NaN, "data": {"timing_s/step": 1}}\n', ":1: not a record"),
        (b"[5]\n", ":1: not a record"),
        (b"5\n", ":1: not a record"),
        (b'[{"step": 1, "data": {}}]', "is one JSON array"),
        ('{"caf\u00e9": 1}\n'.encode("latin-1"), ":1: .*not UTF-8"),
    ],
)
def test_logs_that_cannot_be_read_have_a_message_with_a_way_on(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(CommandError, match=message):
        load_run(str(tmp_path / "m.jsonl"))


def test_a_log_with_a_byte_order_mark(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + (CASES / "ok.jsonl").read_bytes())
    assert load_run(str(tmp_path)).steps == case("ok").steps
    (tmp_path / "m.jsonl").write_bytes((CASES / "utf16.jsonl").read_bytes())
    with pytest.raises(CommandError, match="iconv"):
        load_run(str(tmp_path))


def test_settings_that_cannot_be_read(tmp_path):
    folder = write_run(tmp_path / "run", rpo=False, settings={"a": 1})
    (folder / "hydra" / ".hydra" / "config.yaml").write_text("a: [1")
    with pytest.raises(CommandError, match=r"config\.yaml is not readable"):
        load_run(str(folder))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.5], (0.0, 1.0)),
        ([3000.0], (0.0, 6000.0)),
        ([0.0, 0.0], (0.0, 1.0)),
        ([-2.0], (-4.0, 0.0)),
        ([0.33, 0.33 + 1e-15, math.nan], (0.0, 0.66)),
        ([0.5, 0.6], None),
        ([math.nan], None),
        ([], None),
    ],
)
def test_the_axis_of_a_flat_line(values, expected):
    assert axis_range(values) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("last", "tick"), [(1, 1), (3, 1), (12, 1), (40, None)])
def test_axes_of_steps_have_whole_numbers(tmp_path, last, tick):
    log = [(n, {"timing_s/step": 1.0, "critic/score/mean": 0.0}) for n in range(1, last + 1)]
    run = load_run(write_metrics(tmp_path / "m.jsonl", *log))
    chart = next(chart for chart in build_charts([run]) if chart.key == "reward")
    layout = _lines(chart, "", {"m": "#000000"}).layout
    assert (layout.xaxis.tickformat, layout.xaxis.dtick) == (",d", tick)
    assert layout.yaxis.range == (0.0, 1.0)


def test_names_are_neither_formulas_nor_markup(tmp_path):
    data = {"timing_s/step": 1.0, r"val-core/$\nofrac{$<b>x</b>/acc/mean@1": 0.5, "val-core/\ud83d/acc/mean@1": 0.5}
    run = load_run("_$\\nofrac{$ <i>x</i>=" + write_metrics(tmp_path / "m.jsonl", (1, data), (2, data)))
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<b>x</b>" not in text
    assert "<i>x</i>" not in text
    assert (tmp_path / "report-accuracy1.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which .ci/run installs")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


#: Boxes of the texts of every visible picture, and pairs of them that overlap.
BOXES = """() => [...document.querySelectorAll('.view:not([hidden]) .plot')].map(plot => {
  const texts = [...plot.querySelectorAll('.xtitle, .ytitle, .xtick text, .ytick text, .legendtext')]
    .filter(text => text.textContent.trim());
  const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
  const clash = ([, a], [, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const frame = plot.getBoundingClientRect();
  return {
    chart: plot.closest('section').id,
    texts: boxes.length,
    overlapping: boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => clash(a, b)).map(b => [a[0], b[0]])),
    cut: boxes.filter(([, box]) => box.left < -1 || box.right > window.innerWidth + 1 ||
                                   box.bottom > frame.bottom + 1 || box.top < frame.top - 1).map(([text]) => text),
  };
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(page, browser, width):
    view = browser.new_page(viewport={"width": width, "height": 900})
    errors = []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    view.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else errors.append(request.url),
    )
    view.goto(page.as_uri())

    def check():
        # Pictures follow the width of the window in their own time.
        view.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=10_000)
        view.wait_for_timeout(400)
        plots = view.evaluate(BOXES)
        assert len(plots) == 7
        for plot in plots:
            assert plot["texts"] > 4, plot
            assert not plot["overlapping"], plot
            assert not plot["cut"], plot

    check()
    sections = view.locator("section.chart:has(.switch)")
    assert sections.count() == 4
    for number in range(sections.count()):
        section = sections.nth(number)
        buttons = section.locator(".switch button")
        for pressed in range(buttons.count()):
            buttons.nth(pressed).click()
            assert buttons.nth(pressed).get_attribute("aria-pressed") == "true"
            shown = [not section.locator(".view").nth(i).is_hidden() for i in range(buttons.count())]
            assert shown == [i == pressed for i in range(buttons.count())]
        check()
    # A click on a name in the legend hides its curve.
    reward = view.locator("#reward")
    curves = reward.locator(".scatterlayer .trace .js-line")
    before = curves.count()
    reward.locator(".legendtoggle").first.click()
    view.wait_for_timeout(600)
    assert curves.count() == before - 1
    assert not errors
    view.close()
