"""`rpo-verl report`: what it reads, what it computes, and the page in a real browser."""

import json
import shutil

import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from rpo_verl.tools.cli.main import app
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.report.charts import build_charts, generated_tokens, totals
from rpo_verl.tools.report.page import render
from rpo_verl.tools.report.runs import differing_settings, load_run, read_metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
