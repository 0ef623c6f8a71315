"""Packed rows through veRL's engine: log-probabilities, entropies, gradients are those of every row computed alone."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine.fsdp import FSDPEngineWithLMHead, transformer_impl

from rpo_verl.lean import attention
from rpo_verl.lean import engine as shared_prefix
from rpo_verl.lean.attention import install_attention
from rpo_verl.lean.engine import COMPUTED_SHARE, SHARE_PREFIX, SharedPrefixEngine
from rpo_verl.upstream.engines import extend_engines, extended

PROMPT, PREFIX, GROUP = 12, 30, 4
TEMPERATURE = 0.7
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attn_implementation": "sdpa",
}  # fmt: skip


def tiny(dtype):
    return AutoModelForCausalLM.from_pretrained(TINY / "checkpoint", dtype=dtype, attn_implementation="sdpa")


def grouped_queries(dtype):
    """Two queries to a key, which the tiny reasoner does not have."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen2Config(**SMALL)).to(dtype)


def rows(vocabulary, seed=0):
    """Two groups behind prefixes, one full rollout group, a lone row, and one row that ends where others go on."""
    rng = np.random.default_rng(seed)

    def ids(count):
        return rng.integers(1, vocabulary, count)

    found = []
    for prefix in (PREFIX, 0, PREFIX):
        head = ids(PROMPT + prefix)
        found += [np.concatenate([head, ids(rng.integers(1, 9))]) for _ in range(GROUP)]
    found[-1] = found[-2][:-1]
    return [*found, ids(PROMPT + 5)]


def batch(sequences, share):
    """As veRL hands it to the engine; the response is what follows the prompt."""
    tensors = [torch.tensor(row) for row in sequences]
    jagged = {
        "input_ids": tensors,
        "position_ids": [torch.arange(len(row)) for row in tensors],
        "prompts": [row[:PROMPT] for row in tensors],
        "responses": [row[PROMPT:] for row in tensors],
    }
    data = TensorDict(
        {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in jagged.items()},
        batch_size=len(tensors),
    )
    tu.assign_non_tensor(
        data, use_remove_padding=False, pad_mode=DatasetPadMode.NO_PADDING, use_fused_kernels=False,
        temperature=TEMPERATURE, calculate_entropy=True, **({SHARE_PREFIX: True} if share else {}),
    )  # fmt: skip
    return data


def engine_of(model, engine_class=None):
    """veRL's engine as a run with lean has it, without its start-up."""
    engine = object.__new__(engine_class or extended(SharedPrefixEngine, FSDPEngineWithLMHead))
    engine.module, engine.pad_to_length = model, 0
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    engine.compute_entropy_from_logits = entropy_from_logits
    return engine


def through_the_engine(model, sequences, share=True):
    """(T,) log-probabilities and entropies, row after row."""
    engine, data = engine_of(model), batch(sequences, share)
    inputs, arguments = engine.prepare_model_inputs(data)
    outputs = engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, data, None)
    return outputs["log_probs"].values(), outputs["entropy"].values()


def alone(model, sequences):
    """The same by plain transformers, one row at a time."""
    log_probs, entropies = [], []
    for row in sequences:
        logits = model(input_ids=torch.tensor(row)[None]).logits[0] / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits)
        log_probs.append(distribution.log_prob(torch.roll(torch.tensor(row), -1)))
        entropies.append(distribution.entropy())
    return torch.cat(log_probs), torch.cat(entropies)


def predicted(sequences):
    """(T,) where a next token exists; veRL never looks at the last place of a row."""
    return torch.cat([torch.arange(len(row)) < len(row) - 1 for row in sequences])


def gradients(model, sequences, compute):
    """Of a loss with a weight of its own on every token, which do not sum to zero within a group."""
    mask = predicted(sequences)
    weight = torch.linspace(-1, 2, int(mask.sum()), dtype=torch.float64)
    log_probs, entropies = compute(model, sequences)
    model.zero_grad()
    (weight * log_probs[mask] + 0.1 * weight.flip(0) * entropies[mask]).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def difference(one, other):
    """Largest relative error of a parameter's gradient."""
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


@pytest.mark.parametrize("build", [tiny, grouped_queries])
def test_values_are_those_of_rows_alone(build):
    model = build(torch.float64)
    sequences = rows(model.config.vocab_size)
    mask = predicted(sequences)
    for ours, theirs in zip(through_the_engine(model, sequences), alone(model, sequences), strict=True):
        assert torch.allclose(ours[mask], theirs[mask], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("build", [tiny, grouped_queries])
def test_gradients_are_those_of_rows_alone(build, checkpointing):
    model = build(torch.float64).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    sequences = rows(model.config.vocab_size)
    # Not 1e-12, because Qwen2's norms compute in float32 whatever the weights are in.
    assert difference(gradients(model, sequences, through_the_engine), gradients(model, sequences, alone)) < 1e-6


def test_in_float32_the_error_is_that_of_verls_padded_batch():
    exact = tiny(torch.float64)
    sequences = rows(exact.config.vocab_size)
    truth, model = gradients(exact, sequences, alone), tiny(torch.float32)
    shared = difference(gradients(model, sequences, through_the_engine), truth)
    padded = difference(gradients(model, sequences, lambda m, s: through_the_engine(m, s, share=False)), truth)
    assert shared < 1e-5
    assert shared < 5 * padded


def broken(monkeypatch, **changes):
    """Let every layout be a wrong one."""
    share = shared_prefix.share

    def wrong(*arguments):
        packing = share(*arguments)
        return dataclasses.replace(packing, **{name: change(packing) for name, change in changes.items()})

    monkeypatch.setattr(shared_prefix, "share", wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": lambda packing: np.roll(packing.labels, 1)},
        {"source": lambda packing: np.roll(packing.source, 1)},
        {"row_slot": lambda packing: np.roll(packing.row_slot, 1)},
        {"groups": lambda packing: [dataclasses.replace(group, own=group.own[::-1]) for group in packing.groups]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_layout_would_be_noticed(monkeypatch, change):
    model = tiny(torch.float64)
    sequences = rows(model.config.vocab_size)
    truth = gradients(model, sequences, alone)
    broken(monkeypatch, **change)
    assert difference(gradients(model, sequences, through_the_engine), truth) > 1e-3


@pytest.mark.parametrize("diagonal", [-1, 1])
def test_a_wrong_mask_would_be_noticed(monkeypatch, diagonal):
    model = tiny(torch.float64)
    sequences = rows(model.config.vocab_size)
    truth = gradients(model, sequences, alone)
    monkeypatch.setattr(
        attention, "visible", lambda p, s, device: torch.ones(s, p + s, dtype=torch.bool).tril(p + diagonal)
    )
    assert difference(gradients(model, sequences, through_the_engine), truth) > 1e-3


@pytest.mark.parametrize("option", ["entropy_checkpointing", "entropy_from_logits_with_chunking"])
def test_entropies_are_as_sparing_as_the_engine_is_asked_to_be(option):
    model = tiny(torch.float64)
    sequences = rows(model.config.vocab_size)
    engine, data = engine_of(model), batch(sequences, share=True)
    called = []

    def entropy(logits, **options):
        called.append(options)
        return entropy_from_logits(logits)

    engine.compute_entropy_from_logits = entropy
    setattr(engine.engine_config, option, True)
    engine.engine_config.entropy_from_logits_chunk_size = 512
    inputs, arguments = engine.prepare_model_inputs(data)
    outputs = engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, data, None)
    assert called == [{"chunk_size": 512} if "chunking" in option else {}]
    mask = predicted(sequences)
    assert torch.allclose(outputs["entropy"].values()[mask], alone(model, sequences)[1][mask], atol=1e-10)
    outputs["entropy"].values().sum().backward()


def test_under_fsdp_with_mixed_precision(tmp_path):
    """FSDP goes through all a layer is given, to cast it."""
    model = tiny(torch.float32)
    sequences = rows(model.config.vocab_size)
    expected, _ = through_the_engine(model, sequences)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    try:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        mesh = init_device_mesh("cpu", (1,))
        for layer in [*model.model.layers, model]:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        packed, padded = (through_the_engine(model, sequences, share)[0] for share in (True, False))
    finally:
        torch.distributed.destroy_process_group()
    mask = predicted(sequences)
    errors = [float((found[mask] - expected[mask]).abs().mean()) for found in (packed, padded)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_shared_tokens_are_computed_once():
    model = tiny(torch.float32)
    sequences = rows(model.config.vocab_size)
    inputs, _ = engine_of(model).prepare_model_inputs(batch(sequences, share=True))
    tokens = sum(map(len, sequences))
    # Of the groups with a prefix 3 times 42 tokens are not computed again, of the full rollouts 3 times 12.
    assert inputs["input_ids"].shape == (1, tokens - 2 * 3 * (PROMPT + PREFIX) - 3 * PROMPT)


def as_verl_does(engine, data):
    """Whether the engine prepares the batch as veRL's own would."""
    assert isinstance(engine, SharedPrefixEngine)
    ours, _ = engine.prepare_model_inputs(data)
    theirs, _ = engine_of(engine.module, FSDPEngineWithLMHead).prepare_model_inputs(data)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_the_flag_it_is_verls_own_engine():
    engine = engine_of(tiny(torch.float32))
    assert as_verl_does(engine, batch(rows(engine.module.config.vocab_size), share=False))


def test_rows_with_images_stay_as_they_are():
    engine = engine_of(tiny(torch.float32))
    data = batch(rows(engine.module.config.vocab_size), share=True)
    images = [NonTensorData({"pixel_values": torch.zeros(2, 3)}) for _ in range(len(data))]
    data["multi_modal_inputs"] = NonTensorStack(*images)
    assert as_verl_does(engine, data)
    data["multi_modal_inputs"] = NonTensorStack(*[NonTensorData({}) for _ in range(len(data))])
    assert not as_verl_does(engine, data)


def test_an_update_says_how_much_it_computed(monkeypatch):
    engine = engine_of(tiny(torch.float32))
    sequences = rows(engine.module.config.vocab_size)
    engine._autocast_dtype = torch.float32
    monkeypatch.setattr(engine, "get_data_parallel_group", lambda: None, raising=False)
    for name in ("get_device_id", "get_device_name"):
        monkeypatch.setattr(transformer_impl, name, lambda: "cpu")

    def loss(model_output, data, dp_group):
        return model_output["log_probs"].values().sum(), {"actor/own": 1.0}

    tokens = sum(map(len, sequences))
    computed = tokens - 2 * 3 * (PROMPT + PREFIX) - 3 * PROMPT
    for share, expected in ((True, {COMPUTED_SHARE: computed / tokens}), (False, {})):
        _, output = engine.forward_step(batch(sequences, share), loss, forward_only=False)
        assert output["metrics"] == {"actor/own": 1.0} | expected
    _, output = engine.forward_step(batch(sequences, share=True), None, forward_only=True)
    assert output["metrics"] == {}


@pytest.fixture
def sized(monkeypatch):
    """From a batch to what veRL's loop over micro-batches is given, on one rank or with what another one reduces in."""
    given = {}

    def loop(self, data, loss_function, forward_only):
        given.update({key: tu.get(data, key) for key in ("use_dynamic_bsz", "micro_batch_size_per_gpu")})
        return "output"

    monkeypatch.setattr(FSDPEngineWithLMHead, "forward_backward_batch", loop)
    monkeypatch.setattr(shared_prefix, "get_device_id", lambda: "cpu")

    def call(sequences, most, share=True, elsewhere=(), change=lambda data: None):
        engine, data = engine_of(None), batch(sequences, share)
        monkeypatch.setattr(engine, "get_data_parallel_group", lambda: None, raising=False)

        def all_reduce(ours, op=torch.distributed.ReduceOp.SUM, group=None):
            for totals, unshared in elsewhere:
                if op == torch.distributed.ReduceOp.SUM:
                    ours.add_(torch.tensor(totals))
                else:
                    ours.clamp_(min=unshared)

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=most, micro_batch_size_per_gpu=None)
        change(data)
        assert engine.forward_backward_batch(data, None, forward_only=True) == "output"
        return given["micro_batch_size_per_gpu"] if not given["use_dynamic_bsz"] else None

    return call


def groups_of(members, prefix, own, groups=4):
    """Rows of equal lengths, group after group."""
    rng = np.random.default_rng(0)
    return [
        np.concatenate([head, rng.integers(1, 64, own)])
        for head in rng.integers(1, 64, (groups, PROMPT + prefix))
        for _ in range(members)
    ]


def test_micro_batches_of_so_many_tokens_hold_whole_groups(sized):
    # A packed group has 50 shared tokens and 4 times 10, where its rows have 240.
    sequences = groups_of(4, prefix=50 - PROMPT, own=10)
    assert sized(sequences, most=4 * 90) == 16
    assert sized(sequences, most=4 * 90 - 1) == 8
    assert sized(sequences, most=90) == 4
    # A group that does not fit is cut, and a row that does not is veRL's to complain about.
    assert sized(sequences, most=89) == 2
    assert sized(sequences, most=60) == 1
    assert sized(sequences, most=59) is None


def test_a_size_that_cuts_no_group_is_preferred(sized):
    # Nine rows would fit, in micro-batches that cut every second group.
    sequences = groups_of(6, prefix=30, own=10, groups=3)
    assert [len(sequences) // rows for rows in (9, 6)] == [2, 3]
    assert sized(sequences, most=200) == 6


def test_rows_that_differ_much_are_left_to_verl(sized):
    # No two rows fit together with the long one; veRL needs three micro-batches, not eight.
    sequences = groups_of(4, prefix=0, own=20, groups=2)
    sequences[0] = np.concatenate([sequences[0], np.arange(1, 69)])
    assert sized(sequences, most=110) is None
    assert sized(sequences, most=200) == 4


def test_ranks_agree_on_a_size(sized):
    sequences = groups_of(4, prefix=50 - PROMPT, own=10)
    # Of the sizes 16, 8, 4, 2, 1.
    never = shared_prefix.NEVER
    assert sized(sequences, most=90 * 4, elsewhere=[((never, 360, 360, 480, 960), 3)]) == 8
    # By itself a rank would take no more than three micro-batches.
    assert sized(sequences, most=90 * 4, elsewhere=[((never, never, 360, 480, 960), 3)]) is None
    assert sized(sequences, most=90 * 4, elsewhere=[((never, never, 360, 480, 960), 4)]) == 4
    # A rank that cannot pack leaves all of them to veRL.
    assert sized(sequences, most=90 * 4, elsewhere=[((never,) * 5, 3)]) is None


def test_sizes_are_verls_own_where_nothing_is_packed(sized):
    sequences = groups_of(4, prefix=50 - PROMPT, own=10)
    assert sized(sequences, most=90, share=False) is None

    def with_images(data):
        images = [NonTensorData({"pixel_values": torch.zeros(2, 3)}) for _ in range(len(data))]
        data["multi_modal_inputs"] = NonTensorStack(*images)

    assert sized(sequences, most=90, change=with_images) is None


def test_an_attention_that_cannot_be_wrapped():
    with pytest.raises(ValueError, match=r"eager.*Use sdpa"):
        install_attention("eager")


@pytest.mark.parametrize(
    ("option", "config"),
    [
        ("sliding_window=16", MistralConfig(sliding_window=16, **SMALL)),
        ("sliding_attention", Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1, **SMALL)),
        ("chunked_attention", Qwen2Config(layer_types=["full_attention", "chunked_attention"], **SMALL)),
        ("softcap=50.0", Gemma2Config(sliding_window=None, layer_types=["full_attention"] * 2, head_dim=16, **SMALL)),
        ("dropout=0.1", Qwen2Config(attention_dropout=0.1, **SMALL)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attention_that_is_not_plain_is_refused(option, config):
    model = AutoModelForCausalLM.from_config(config).train()
    with pytest.raises(ValueError, match=f"{option}.*share_prefix=false"):
        through_the_engine(model, rows(64))


def test_a_mask_of_the_models_own_is_refused():
    model = grouped_queries(torch.float32)
    forward = model.model.layers[1].self_attn.forward

    def masked(*arguments, attention_mask, **named):
        return forward(*arguments, attention_mask=torch.ones(1, 1, 5, 5), **named)

    model.model.layers[1].self_attn.forward = masked
    with pytest.raises(ValueError, match=r"mask=\(1, 1, 5, 5\).*share_prefix=false"):
        through_the_engine(model, rows(64))


def test_a_model_that_gives_all_logits_is_refused():
    model = grouped_queries(torch.float32)
    engine, data = engine_of(model), batch(rows(64), share=True)
    inputs, arguments = engine.prepare_model_inputs(data)
    output = model(**inputs | {"logits_to_keep": 0}, use_cache=False)
    with pytest.raises(ValueError, match=r"logits for \d+ asked for"):
        engine.prepare_model_outputs(output, arguments, data, None)


def test_layers_that_mix_tokens_in_another_way_are_refused():
    model = grouped_queries(torch.float32)
    attention = model.model.layers[1].self_attn

    def elsewhere(hidden_states, **_):
        return attention.o_proj(attention.q_proj(hidden_states)), None

    attention.forward = elsewhere
    with pytest.raises(ValueError, match=r"Qwen2ForCausalLM: 1 of its 2 layers attend .*share_prefix=false"):
        through_the_engine(model, rows(64))


def test_the_attention_is_wrapped_once():
    install_attention("sdpa")
    first = ALL_ATTENTION_FUNCTIONS["sdpa"]
    install_attention("sdpa")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is first


class Worker:
    """A worker of veRL's, with an engine for each of its roles."""

    def __init__(self, **engines):
        for role, engine in engines.items():
            setattr(self, role, SimpleNamespace(engine=engine))


def engine_without_start_up(engine_class):
    return object.__new__(engine_class)


def test_the_engines_of_a_worker_are_extended_whoever_shares_its_process():
    class Megatron:
        """No FSDP engine."""

    plain = engine_without_start_up(FSDPEngineWithLMHead)
    actor, ref = (engine_without_start_up(FSDPEngineWithLMHead) for _ in range(2))
    assert extend_engines(Worker(actor=actor, ref=ref), ["lean"]) == 2
    for engine in (actor, ref):
        assert type(engine).__mro__[:3] == (type(engine), SharedPrefixEngine, FSDPEngineWithLMHead)
        assert type(engine).__name__ == "FSDPEngineWithLMHead"
    assert type(plain) is FSDPEngineWithLMHead, "each engine by itself"
    shared = SimpleNamespace(worker_dict={"actor_rollout_ref": Worker(actor=plain), "critic": Worker()})
    for _ in range(2):
        assert extend_engines(shared, ["rpo", "lean"]) == 1
        assert type(plain).__mro__[:3] == (type(plain), SharedPrefixEngine, FSDPEngineWithLMHead), "once"
    other = Megatron()
    assert extend_engines(Worker(actor=other), ["lean"]) == 0
    assert type(other) is Megatron


def test_without_an_algorithm_that_has_one_an_engine_stays_as_it_is():
    engine = engine_without_start_up(FSDPEngineWithLMHead)
    assert extend_engines(Worker(actor=engine), []) == 1
    assert type(engine) is FSDPEngineWithLMHead
