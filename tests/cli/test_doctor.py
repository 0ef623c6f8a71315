"""`rpo-verl doctor`: its findings. Calls share the tests' process, because importing veRL takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from hydra import compose, initialize_config_module
from typer.testing import CliRunner
from verl.plugin.platform import get_platform

from rpo_verl.tools.cli.main import app
from rpo_verl.upstream.preflight import CheckInputs

COMMAND = Path(sys.executable).parent / "rpo-verl"


def arguments(data_dir, *overrides):
    fitting = {
        "data.train_files": f"{data_dir}/train.parquet",
        "data.val_files": f"{data_dir}/val.parquet",
        "data.max_prompt_length": "72",
        "data.max_response_length": "208",
        "actor_rollout_ref.model.path": str(TINY / "checkpoint"),
        "data.train_batch_size": "4",
        "algorithm.adv_estimator": "grpo",
        "actor_rollout_ref.rollout.n": "8",
        "actor_rollout_ref.actor.ppo_mini_batch_size": "4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": "8",
        "reward.custom_reward_function.path": str(TINY / "reward.py"),
    }
    fitting |= dict(override.split("=", 1) for override in overrides)
    return ["doctor", "--json", "+platform=cpu", *(f"{key}={value}" for key, value in fitting.items())]


@pytest.fixture
def examine(data_dir, monkeypatch):
    """Call the command, and return its findings."""
    get_platform()  # Settles the platform of this process, which other tests share.

    def call(*overrides, expect, platform="cpu"):
        command = arguments(data_dir, *overrides)
        monkeypatch.setenv("VERL_PLATFORM", platform)
        monkeypatch.setattr(sys, "argv", ["rpo-verl", *command])
        result = CliRunner().invoke(app, command)
        assert result.exit_code == expect, result.output
        return json.loads(result.stdout)

    return call


def failures(findings):
    return {finding["check"]: finding["details"] for finding in findings if not finding["ok"]}


def test_a_training_that_would_run(examine):
    findings = examine(expect=0)
    assert not failures(findings)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert {"python", "verl", "plug-in loaded by veRL", "upstream names", "devices", "memory"} <= set(details)
    assert details["data"].startswith("8 questions; of the first 8 the longest has")
    # 8 questions, 300 + 4 * (question + 208) bytes each.
    assert "kB" in details["experience cache"]


def test_lean_alone(examine):
    findings = examine("+lean=enabled", expect=0)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert details["configuration groups"] == "lean"
    assert "experience cache" not in details
    assert failures(examine("+lean=enabled", "lean.poll_interval_s=0", expect=1))


@pytest.mark.parametrize(
    ("override", "check", "fragment"),
    [
        ("rpo.reward.lo=7", "configuration", "Could not override 'rpo.reward.lo'"),
        ("actor_rollout_ref.rollout.n=1", "configuration", "rollout.n=1"),
        ("+rpo=no_such_group", "configuration", "no_such_group"),
        ("data.max_prompt_length=20", "data", "8 are longer than data.max_prompt_length=20"),
        ("data.train_files=nowhere.parquet", "data", "nowhere.parquet"),
        ("data.val_files=nowhere.parquet", "data", "nowhere.parquet"),
        ("data.prompt_key=question", "data", "no column question"),
        ("trainer.device=cuda", "devices", "but no GPU here"),
        ("algorithm.adv_estimator=gae", "configuration", "critic"),
        ("algorithm.adv_estimator=rpo", "configuration", "that is RPO itself"),
        ("algorithm.adv_estimator=gropo", "veRL's settings", "algorithm.adv_estimator=gropo: veRL knows gae, "),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=8", "veRL's settings", "train_batch_size (4) must be >= "),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=null", "veRL's settings",
         "rollout.log_prob_micro_batch_size"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=12", "veRL's settings",
         "a device gets 32 rows of a mini-batch (actor.ppo_mini_batch_size=4 x rollout.n=8, over 1 devices), and they "
         "must be a multiple of it. Set 4"),
        ("data.train_batch_size=16", "data", "data.train_batch_size=16, but data.train_files has 8 rows"),
        ("data.train_max_samples=2", "data", "data.train_files has 2 rows"),
        ("data.train_files=null", "data", "data.train_files=null"),
        ("data.train_files=true", "configuration values", "data.train_files=True: must be the path of a file"),
        ("data.val_files=[1]", "configuration values", "data.val_files=[1]: must be the path of a file"),
        ("data.val_files=[]", "data", "data.val_files=[]"),
        ("actor_rollout_ref.model.path=/nowhere/model", "model", "actor_rollout_ref.model.path=/nowhere/model"),
        ("reward.custom_reward_function.path=nowhere.py", "reward function",
         "reward.custom_reward_function.path=nowhere.py: no such file"),
        ("reward.custom_reward_function.path=1", "reward function",
         "reward.custom_reward_function.path=1: must be text"),
        ("reward.custom_reward_function.path=pkg://no.such.module", "reward function", "no module no.such.module"),
        ("reward.custom_reward_function.name=compute_scores", "reward function",
         "reward.custom_reward_function.name=compute_scores"),
        ("reward.reward_manager.name=null", "reward function",
         "reward.reward_manager.name=null: must be the name of a manager"),
        ("reward.reward_manager.source=import", "reward function", "reward.reward_manager.source=import"),
        ("trainer.resume_mode=resume", "checkpoint", "trainer.resume_mode=resume"),
        ("rpo.truncation.min_tokens=208", "configuration", "rpo.truncation.min_tokens=208"),
        ("rpo.reward.correct_above=nan", "configuration", "rpo.reward.correct_above=nan"),
        ("rpo.reward.alpha=inf", "configuration", "rpo.reward.alpha=inf"),
        ("rpo.cache.max_age=1", "configuration", "rpo.cache.max_age"),
        ("actor_rollout_ref.actor.clip_ratio=nan", "configuration values", "actor_rollout_ref.actor.clip_ratio=nan"),
    ],
)  # fmt: skip
def test_a_training_that_would_not(examine, override, check, fragment):
    # An option needs its group on the command line.
    group = ["+rpo=enabled"] if override.startswith("rpo.") and "reward.lo" not in override else []
    found = failures(examine(*group, override, expect=1))
    assert list(found) == [check]
    assert fragment in found[check]


@pytest.mark.parametrize("path", ["/nowhere/global_step_3", "relative/folder", "null"])
def test_a_checkpoint_that_is_not_there(examine, path):
    found = failures(examine("trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}", expect=1))
    assert list(found) == ["checkpoint"]
    assert f"trainer.resume_from_path={path}" in found["checkpoint"]


def question(content="5a", **columns):
    return {"prompt": [{"role": "user", "content": content}], **columns}


TRUTH = {"data_source": "t", "reward_model": {"ground_truth": "5", "style": "rule"}}
GOOD = question(**TRUTH)
#: As in veRL's format, but for one thing: rows, whether they would train, what is said of the file.
ROWS = {
    "null prompt": ([question("30a+1", **TRUTH), {"prompt": None, **TRUTH}], False, "row 2: prompt is null"),
    "null content": ([question(None, **TRUTH)], False, "row 1: prompt has no content in message 1 (user)"),
    "empty prompt": ([GOOD, GOOD, {"prompt": [], **TRUTH}], False, "row 3: prompt has no messages"),
    "text for a prompt": ([{"prompt": "5a", **TRUTH}], False, "row 1: prompt is str '5a', not a list of messages"),
    "no role": ([{"prompt": [{"content": "5a"}], **TRUTH}], False, "row 1: prompt has no role in message 1"),
    "empty file": ([], False, "has no rows"),
    "no reward_model": ([question(data_source="t")], True, "no column reward_model"),
    "no columns for the reward": ([question()], True, "no column data_source or reward_model"),
    "no ground truth": ([GOOD, question(data_source="t", reward_model={"ground_truth": None, "style": "rule"})], True,
                        "row 2: reward_model has no ground_truth"),
    "reward_model as text": ([question(data_source="t", reward_model='{"ground_truth": "5"}')], False,
                             "row 1: reward_model is '{\"ground_truth\": \"5\"}'"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("case", ROWS)
def test_rows_of_a_data_file(examine, tmp_path, case, suffix):
    rows, trains, said = ROWS[case]
    path = tmp_path / f"train.{suffix}"
    write_rows(path, rows)
    settings = ["data.train_batch_size=1", "actor_rollout_ref.actor.ppo_mini_batch_size=1"]
    findings = examine(f"data.train_files={path}", *settings, expect=0 if trains else 1)
    (finding,) = (one for one in findings if said in one["details"])
    assert finding["check"] == "data"
    assert finding["details"].startswith(str(path))
    assert (finding["ok"], set(failures(findings))) == (trains, set() if trains else {"data"})
    if trains:
        assert finding["warning"]


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("truths", "ok"), [(["", "5", "7", "3"], True), ([""] * 4, False)])
def test_ground_truths_that_nothing_can_match(examine, tmp_path, truths, ok):
    rows = [question(data_source="math", reward_model={"style": "rule", "ground_truth": truth}) for truth in truths]
    write_rows(tmp_path / "train.parquet", rows)
    findings = examine(
        f"data.train_files={tmp_path}/train.parquet", "reward.custom_reward_function.path=pkg://rpo_verl.rewards.math",
        expect=int(not ok),
    )  # fmt: skip
    (found,) = [finding for finding in findings if finding["check"] == "ground truths"]
    assert found["ok"] == ok and "row 1: the ground truth" in found["details"]


def test_rows_that_verl_filters_are_a_warning(examine, tmp_path):
    path = tmp_path / "train.jsonl"
    write_rows(path, [GOOD, {"prompt": None, **TRUTH}])
    settings = ["data.train_batch_size=1", "actor_rollout_ref.actor.ppo_mini_batch_size=1"]
    findings = examine(f"data.train_files={path}", *settings, "data.filter_overlong_prompts=true", expect=0)
    (finding,) = (one for one in findings if "row 2: prompt is null" in one["details"])
    assert finding["warning"]
    assert "veRL filters such rows" in finding["details"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.txt", "5a", "veRL reads .parquet, .json and .jsonl files"),
        ("train.parquet", "no Parquet", "cannot be read"),
        ("train.jsonl", '{"prompt": [{"role"', "line 1 is no JSON"),
        ("train.jsonl", '"text"\n', "row 1 is str, not an object"),
    ],
)
def test_a_file_that_is_no_data(examine, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    found = failures(examine(f"data.train_files={tmp_path / name}", expect=1))
    assert list(found) == ["data"]
    assert found["data"].startswith(f"{tmp_path / name}: ")
    assert said in found["data"]


@pytest.mark.parametrize("option", ["+rpo.truncation.max_tokens=50", "+lean.share_prefix=true"])
def test_an_option_without_its_group(examine, option):
    key, value = option.split("=")
    found = failures(examine(f"{key}={value}", expect=1))
    assert list(found) == ["configuration"]
    assert "nothing selects it" in found["configuration"]


def test_the_run_refuses_what_the_doctor_finds(data_dir):
    """By the same checks, before Ray starts."""
    command = arguments(data_dir, "data.train_batch_size=64", "trainer.resume_mode=no")[2:]
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", "+rpo=enabled", "hydra.output_subdir=null", *command],
        env=os.environ | {"VERL_PLATFORM": "cpu"},
        cwd=data_dir,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert "rpo_verl: this run would fail:" in done.stderr
    assert "data: data.train_batch_size=64, but data.train_files has 8 rows" in done.stderr
    assert "trainer.resume_mode=no: must be auto, disable or resume_path" in done.stderr
    assert "Started a local Ray instance" not in done.stderr + done.stdout


def inputs_of(data_dir, *overrides):
    """veRL's configuration for a run of which only the inputs are checked."""
    command = arguments(data_dir, *overrides)[2:]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*command, "+rpo=enabled"])


def test_files_on_another_machine_are_a_warning(data_dir, monkeypatch, caplog):
    config = inputs_of(data_dir, "data.train_files=/elsewhere/train.parquet")
    with pytest.raises(SystemExit, match=r"data: /elsewhere/train\.parquet: no such file"):
        CheckInputs().on_job_start(config)
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    CheckInputs().on_job_start(config)
    assert "data: /elsewhere/train.parquet: no such file" in caplog.text
    # Settings are the same everywhere.
    with pytest.raises(SystemExit, match="adv_estimator=gropo"):
        CheckInputs().on_job_start(inputs_of(data_dir, "algorithm.adv_estimator=gropo"))


def test_a_sound_run_is_let_through(data_dir, caplog):
    CheckInputs().on_job_start(inputs_of(data_dir))
    assert caplog.text == ""


def test_what_hydra_would_refuse(examine):
    overrides = ["+rpo=enabled", "rpo.reward.lo=7"]
    assert "rpo.reward.lo=7" in failures(examine(*overrides, expect=1))["configuration"]
    found = failures(examine(expect=1, platform="nvidia"))
    assert "VERL_PLATFORM=cpu" in found["configuration"]


def test_questions_that_verl_filters(examine, tmp_path):
    write_rows(tmp_path / "train.jsonl", [GOOD] * 4 + [question("1" * 30, **TRUTH)])
    overrides = ["data.max_prompt_length=20", "data.filter_overlong_prompts=true"]
    findings = examine(*overrides, f"data.train_files={tmp_path / 'train.jsonl'}", expect=0)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert "1 are longer than data.max_prompt_length=20 and filtered" in details["data"]
    # All 8, so that none is left.
    found = failures(examine(*overrides, expect=1))
    assert found == {"data": "0 questions are left for data.train_batch_size=4, so there would be no step"}


def test_what_the_plugin_refuses(data_dir):
    """A process of its own, because veRL loads the plug-in once."""
    command = [str(COMMAND), *arguments(data_dir, "+rpo.reward.lo=0")]
    environment = os.environ | {"VERL_PLATFORM": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    found = failures(json.loads(done.stdout))
    assert list(found) == ["plug-in"]
    assert "nothing selects it" in found["plug-in"]


def test_the_whole_store_is_examined(examine, tmp_path, data_dir):
    answers = [{"prompt": "30a+1", "answer": "a30+1=31;#31"}, {"prompt": "40a+2", "answer": "a40+2=42;#42"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    arguments = ["cache", "import", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "store")]
    imported = CliRunner().invoke(app, [*arguments, "--model", str(TINY / "checkpoint")])
    assert imported.exit_code == 0, imported.output
    path = f"rpo.cache.path={tmp_path / 'store'}"
    for bound, start in (("null", "2 answers of step 0 loaded from"), ("1", "1 of 2 answers")):
        findings = examine("+rpo=enabled", path, f"rpo.cache.max_entries={bound}", expect=0)
        found = {finding["check"]: finding["details"] for finding in findings}
        assert found["rpo.cache.path"].startswith(start)
    other = "+data.apply_chat_template_kwargs.enable_thinking=false"
    assert "this run uses" in failures(examine("+rpo=enabled", path, other, expect=1))["rpo.cache.path"]
    nowhere = f"rpo.cache.path={tmp_path}"
    assert list(failures(examine("+rpo=enabled", nowhere, expect=1))) == ["configuration"]
    (tmp_path / "store" / "cache.parquet").write_bytes(b"PAR1")
    assert "truncated or altered" in failures(examine("+rpo=enabled", path, expect=1))["rpo.cache.path"]
