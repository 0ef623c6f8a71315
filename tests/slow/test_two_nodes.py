"""Two nodes, simulated by Ray on one machine: `make test-slow`. The same results as one node with two devices; a node
lost within a rollout is to a run with RPO what it is to veRL alone, and the last checkpoint and its cache resume.
"""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from conftest import WITHOUT_CREDIT, run_recipe
from ray.cluster_utils import Cluster

from rpo_verl.rpo import store

STEPS = 4
#: The second response of the last step: three steps of 4 x 4 come before it.
HELD = 3 * 16 + 2
#: Seconds after the loss of a node in which a run may end by itself.
PATIENCE_S = 60
#: Always the most probable token, so that two runs sample the same; the entropy bonus moves the weights.
SETTINGS = (
    "actor_rollout_ref.rollout.top_k=1",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "actor_rollout_ref.rollout.agent.num_workers=2",
    "data.shuffle=false",
    "trainer.val_before_train=false",
    "trainer.save_freq=1",
    "trainer.resume_mode=auto",
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TQ_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "VERL_PLATFORM": "cpu",
}  # fmt: skip


@pytest.fixture
def cluster(monkeypatch):
    """A head and a second node, each with one logical device."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    resources = {"num_cpus": 16, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    cluster.add_node(num_cpus=16, num_gpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def train(folder, data_dir, *overrides, steps=STEPS, rpo=True):
    with_rpo = (*WITHOUT_CREDIT, "rpo.truncation.max_fraction=1") if rpo else ()
    return run_recipe(
        folder,
        *with_rpo,
        *SETTINGS,
        *overrides,
        STEPS=str(steps),
        DATA_DIR=str(data_dir),
        LEARNING_RATE_SCHEDULE="constant",
        OMP_NUM_THREADS="1",
    )


def drivers():
    """The processes of veRL's command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "verl.trainer.main_ppo" in process.cmdline():
                found.append(process)
    return found


def on_two_nodes(cluster, folder):
    return (
        # Workers inherit the environment of the nodes, which were there first, and not that of the command.
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={folder / 'metrics.jsonl'}",
        f"+ray_kwargs.ray_init.address={cluster.address}",
        "ray_kwargs.ray_init.num_cpus=null",
        "ray_kwargs.ray_init.num_gpus=null",
        "trainer.nnodes=2",
        "trainer.n_gpus_per_node=1",
    )


def entries(folder, step):
    cache, _ = store.load(folder / "checkpoints" / f"global_step_{step}" / "rpo")
    return [(key, tuple(answer.tokens.tolist()), answer.step) for key, answer in cache.items()]


def test_two_nodes_do_what_one_does(cluster, data_dir, tmp_path):
    two = train(tmp_path / "two", data_dir, *on_two_nodes(cluster, tmp_path / "two"))
    assert two.returncode == 0, two.output[-4000:]
    ray.shutdown()
    cluster.shutdown()
    one = train(tmp_path / "one", data_dir, "trainer.n_gpus_per_node=2")
    assert one.returncode == 0, one.output[-4000:]
    for first, second in zip(one.steps, two.steps, strict=True):
        for name in ("prefix/length_mean", "tokens/generated_total", "groups/prefixed_total", "reward/base_mean"):
            assert first[f"rpo/{name}"] == second[f"rpo/{name}"], (first["step"], name)
    assert entries(tmp_path / "one", STEPS) == entries(tmp_path / "two", STEPS)


@pytest.mark.parametrize("rpo", [False, True], ids=["veRL alone", "with RPO"])
def test_a_node_lost_within_a_rollout(rpo, cluster, data_dir, tmp_path):
    checkpoints, marker = tmp_path / "checkpoints", tmp_path / "holding"
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    seen = {}

    def lose_a_node():
        while not marker.exists():
            time.sleep(0.02)
        seen["saved"] = int(tracker.read_text())
        (node,) = cluster.worker_nodes
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        # With the raylet go all its workers.
        workers = raylet.children(recursive=True)
        seen["task runner lost"] = any("TaskRunner" in " ".join(worker.cmdline()) for worker in workers)
        for process in [*workers, raylet]:
            process.send_signal(signal.SIGKILL)
        _, waiting = psutil.wait_procs(drivers(), timeout=PATIENCE_S)
        seen["outcome"] = "waits" if waiting else "ends"
        for process in waiting:
            process.kill()

    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    lost = train(
        tmp_path,
        data_dir,
        *on_two_nodes(cluster, tmp_path),
        f"reward.custom_reward_function.path={Path(__file__).parent / 'holding_reward.py'}",
        f"+reward.custom_reward_function.reward_kwargs={{hold: {HELD}, marker: '{marker}'}}",
        steps=1000,
        rpo=rpo,
    )
    thread.join(10)
    assert not thread.is_alive()
    assert lost.returncode != 0
    # The step whose response is held back neither ended nor saved anything.
    assert seen["saved"] == int(tracker.read_text()) == STEPS - 1
    assert [step["step"] for step in lost.steps] == list(range(1, STEPS))
    # veRL 0.9.1 ends where its TaskRunner was on that node, which is up to Ray, and else waits for the sessions of a
    # rollout worker that is gone. RPO changes nothing about that.
    assert seen["outcome"] == ("ends" if seen["task runner lost"] else "waits")
    if not rpo:
        return
    held = entries(tmp_path, STEPS - 1)
    assert len(held) == 8
    ray.shutdown()
    cluster.shutdown()
    (tmp_path / "metrics.jsonl").unlink()
    resumed = train(tmp_path, data_dir, "trainer.n_gpus_per_node=2", steps=STEPS)
    assert resumed.returncode == 0, resumed.output[-4000:]
    assert [step["step"] for step in resumed.steps] == [STEPS]
    assert resumed.steps[0]["rpo/groups/full_total"] == 0
    # Only the groups of the resumed step have changed the cache.
    asked = sum(resumed.steps[0][f"rpo/groups/{kind}_total"] for kind in ("prefixed", "refreshed"))
    # The order in which they were last used is another matter.
    assert len(set(held) - set(entries(tmp_path, STEPS))) <= asked == 4
