"""The cache on disk: round trips, refusals, and a thousand ways of damaging a file."""

import json
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache

TOKENIZER = TokenizerIdentity.of("tiny", {"a": 0, "b": 1}, "template")


def make_cache(entries=40):
    rng, cache = np.random.default_rng(1), ExperienceCache()
    for i in range(entries):
        question = np.array([i, *rng.integers(0, 1000, rng.integers(0, 30))], dtype=np.int32)
        tokens = rng.integers(0, 1000, rng.integers(0, 200)).astype(np.int32)
        logprobs = -rng.exponential(size=len(tokens) if i % 4 else 0).astype(np.float16)
        answer = CachedAnswer(tokens, bool(i % 3), i / 7, i, question, i % 2, logprobs)
        cache.put(question_key(question, TOKENIZER.fingerprint), answer)
    return cache


def contents(cache):
    def fields(a):
        arrays = (a.tokens.tolist(), a.question.tolist())
        return *arrays, a.correct, a.reward, a.step, a.failures, a.logprobs.tolist()

    return [(key, *fields(answer)) for key, answer in cache.items()]


@pytest.mark.parametrize("entries", [0, 1, 40])
def test_round_trip(tmp_path, entries):
    cache = make_cache(entries)
    manifest = store.save(cache, tmp_path / "rpo", TOKENIZER, step=7)
    loaded, read = store.load(tmp_path / "rpo", TOKENIZER)
    assert contents(loaded) == contents(cache)  # in the same order, which is that of their last use
    assert read == manifest
    assert (read.entries, read.step) == (entries, 7)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache.parquet", "manifest.json", "rpo"]


def test_many_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_AT_A_TIME", 7)
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    assert contents(store.load(tmp_path / "rpo", TOKENIZER)[0]) == contents(make_cache())


def test_unknown_rewards_survive(tmp_path):
    cache = ExperienceCache()
    question = np.array([1], dtype=np.int32)
    cache.put(question_key(question, TOKENIZER.fingerprint), CachedAnswer(question, False, float("nan"), 0, question))
    store.save(cache, tmp_path / "rpo", TOKENIZER, step=0)
    loaded, _ = store.load(tmp_path / "rpo", TOKENIZER)
    assert np.isnan(next(answer.reward for _, answer in loaded.items()))


def test_pandas_reads_it(tmp_path):
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    frame = pd.read_parquet(tmp_path / "rpo" / "cache.parquet")
    assert list(frame.columns) == [
        "key", "question_ids", "answer_ids", "reward", "correct", "step", "failures", "logprobs",
    ]  # fmt: skip
    assert len(frame) == 40
    assert frame.answer_ids[3].tolist() == list(make_cache().items())[3][1].tokens.tolist()


def test_a_later_save_replaces_an_earlier_one_whole(tmp_path):
    store.save(make_cache(40), tmp_path / "rpo", TOKENIZER, step=1)
    store.save(make_cache(3), tmp_path / "rpo", TOKENIZER, step=2)
    loaded, manifest = store.load(tmp_path / "rpo", TOKENIZER)
    assert (len(loaded), manifest.step) == (3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["rpo"]


def test_bounds_hold_for_what_is_loaded(tmp_path):
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    loaded, _ = store.load(tmp_path / "rpo", TOKENIZER, max_entries=5)
    assert contents(loaded) == contents(make_cache())[-5:]


def test_another_tokenizer_or_template_is_refused_and_both_are_named(tmp_path):
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    for other in (
        TokenizerIdentity.of("other", {"a": 1, "b": 0}, "template"),
        TokenizerIdentity.of("other", {"a": 0, "b": 1}, "another template"),
    ):
        with pytest.raises(store.StoreError) as error:
            store.load(tmp_path / "rpo", other)
        assert str(TOKENIZER) in str(error.value)
        assert str(other) in str(error.value)


def test_the_same_tokenizer_from_another_place_is_accepted(tmp_path):
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    store.load(tmp_path / "rpo", TokenizerIdentity.of("moved", {"b": 1, "a": 0}, "template"))


def test_a_newer_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA_VERSION", store.SCHEMA_VERSION + 1)
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    monkeypatch.undo()
    with pytest.raises(store.StoreError, match=r"manifest\.json: schema version 5.*reads up to 4"):
        store.load(tmp_path / "rpo", TOKENIZER)


def test_nothing_there(tmp_path):
    with pytest.raises(store.StoreError, match="does not exist"):
        store.load(tmp_path / "rpo", TOKENIZER)


@pytest.mark.parametrize(("version", "evidence", "logprobs"), [(1, False, False), (2, True, False), (3, True, True)])
def test_an_older_schema_is_read(version, evidence, logprobs, tmp_path):
    """Versions 2 and 3 had evidence of questions before the log-probabilities; it is not read."""
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    table = pq.read_table(tmp_path / "rpo" / "cache.parquet")
    if evidence:
        for name in ("wrong_seen", "tokens_seen"):
            column = pa.field(name, pa.float64(), nullable=False)
            table = table.add_column(table.schema.get_field_index("logprobs"), column, pa.array([1.5] * len(table)))
    if not logprobs:
        table = table.drop_columns(["logprobs"])
    seal(tmp_path / "rpo", table, version=version)
    found = contents(store.load(tmp_path / "rpo", TOKENIZER)[0])
    assert found == [(*fields, known if logprobs else []) for *fields, known in contents(make_cache())]
    seal(tmp_path / "rpo", table)
    with pytest.raises(store.StoreError, match="its columns are"):
        store.load(tmp_path / "rpo", TOKENIZER)


def seal(folder, table, version=store.SCHEMA_VERSION):
    """Write a table and a manifest that vouches for it, as somebody who knows the format might."""
    pq.write_table(table, folder / "cache.parquet")
    manifest = store.read_manifest(folder)
    digest = store._digest(folder / "cache.parquet")
    forged = replace(manifest, schema_version=version, entries=table.num_rows, file_digest=digest)
    (folder / "manifest.json").write_text(json.dumps({**asdict(forged), "seal": forged.seal()}))


def columns(table, **replaced):
    names = table.column_names
    return pa.table({name: replaced.get(name, table[name]) for name in names}).cast(table.schema, safe=False)


FORGERIES = {
    "swapped columns": lambda t: columns(t, question_ids=t["answer_ids"], answer_ids=t["question_ids"]),
    "missing column": lambda t: t.drop_columns(["reward"]),
    "wrong type": lambda t: t.set_column(3, "reward", t["reward"].cast(pa.string())),
    "repeated rows": lambda t: pa.concat_tables([t, t]),
    "negative token": lambda t: columns(t, answer_ids=pa.array([[-1]] * len(t), t.schema.field("answer_ids").type)),
    "shuffled keys": lambda t: columns(t, key=t["key"].take([*range(1, len(t)), 0])),
    "negative failures": lambda t: columns(t, failures=pa.array([-1] * len(t), pa.int32())),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_files_with_a_right_checksum_and_wrong_content(tmp_path, forgery):
    store.save(make_cache(), tmp_path / "rpo", TOKENIZER, step=1)
    seal(tmp_path / "rpo", FORGERIES[forgery](pq.read_table(tmp_path / "rpo" / "cache.parquet")))
    with pytest.raises(store.StoreError, match=r"cache\.parquet"):
        store.load(tmp_path / "rpo", TOKENIZER)


def mutate(rng, data):
    """One random damage to the bytes of a file."""
    kind = rng.randrange(5)
    data = bytearray(data)
    place = rng.randrange(len(data))
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = rng.randbytes(rng.randrange(1, 64))
    elif kind == 3:
        data[place : place + 8] = b"\xff" * 8
    else:
        other = rng.randrange(len(data))
        data[place : place + 16], data[other : other + 16] = data[other : other + 16], data[place : place + 16]
    return bytes(data)


@pytest.mark.parametrize("resealed", [False, True], ids=["as found", "with a right checksum"])
def test_a_thousand_damaged_files_each_end_in_a_clear_error_or_the_right_cache(tmp_path, resealed):
    """Where the damaged Parquet file is vouched for by its checksum, the reader itself has to notice."""
    whole = tmp_path / "whole"
    store.save(make_cache(12), whole, TOKENIZER, step=1)
    expected, rng, refused = contents(make_cache(12)), random.Random(3), 0
    for i in range(1000):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        name = "cache.parquet" if resealed or i % 2 else "manifest.json"
        damaged = mutate(rng, (whole / name).read_bytes())
        (folder / name).write_bytes(damaged)
        if resealed:
            fields = json.loads((folder / "manifest.json").read_text())
            manifest = store.read_manifest(whole)
            digest = store._digest(folder / name)
            forged = replace(manifest, file_digest=digest)
            (folder / "manifest.json").write_text(json.dumps({**fields, "file_digest": digest, "seal": forged.seal()}))
        try:
            loaded, _ = store.load(folder, TOKENIZER)
        except store.StoreError as error:
            refused += 1
            assert str(folder) in str(error)
        else:
            keys = [entry[:3:2] for entry in contents(loaded)]
            assert keys == [entry[:3:2] for entry in expected]  # keys and questions; the rest had a right checksum
            assert resealed or contents(loaded) == expected
        shutil.rmtree(folder)
    assert refused > 500


def test_a_manifest_names_the_run(tmp_path):
    manifest = store.save(make_cache(2), tmp_path / "rpo", TOKENIZER, step=7, run="maths/first")
    assert store.read_manifest(tmp_path / "rpo") == manifest
    assert manifest.origin == "step 7 of maths/first"
    text = (tmp_path / "rpo" / "manifest.json").read_text()
    (tmp_path / "rpo" / "manifest.json").write_text(text.replace("maths/first", "maths/other"))
    with pytest.raises(store.StoreError, match="checksum"):
        store.read_manifest(tmp_path / "rpo")


def test_a_manifest_without_a_run_is_that_of_an_older_store(tmp_path):
    manifest = store.save(make_cache(2), tmp_path / "rpo", TOKENIZER, step=7)
    assert "run" not in json.loads((tmp_path / "rpo" / "manifest.json").read_text())
    assert (manifest.run, manifest.origin) == ("", "step 7")


def test_what_was_loaded_is_counted(tmp_path):
    manifest = store.save(make_cache(2), tmp_path / "rpo", TOKENIZER, step=7)
    loaded, _ = store.load(tmp_path / "rpo", TOKENIZER, max_entries=1)
    text = store.describe(tmp_path / "rpo", manifest, len(loaded), "rpo.cache.max_entries=1")
    assert text.startswith("1 of 2 answers of step 7 loaded from")
    assert "rpo.cache.max_entries=1" in text
    assert store.describe(tmp_path / "rpo", manifest, 2, "").startswith("2 answers of step 7 loaded from")


@pytest.mark.parametrize(
    ("saved", "run", "messages"),
    [
        (7, "maths/first", []),
        (7, "", []),
        (9, "maths/first", ["IS OF STEP 9, THE CHECKPOINT OF STEP 7"]),
        (7, "maths/second", ["saved by maths/second, and this run is maths/first"]),
        (9, "maths/second", ["STEP 9", "maths/second"]),
    ],
)
def test_the_store_of_another_run_or_step_does_not_pass_in_silence(tmp_path, saved, run, messages):
    manifest = store.save(make_cache(2), tmp_path / "rpo", TOKENIZER, step=saved, run=run)
    found = store.doubts(manifest, 7, "maths/first")
    assert len(found) == len(messages)
    assert all(part in doubt for part, doubt in zip(messages, found, strict=True))


def test_no_answer_is_of_a_later_step_than_the_run(tmp_path):
    store.save(make_cache(10), tmp_path / "rpo", TOKENIZER, step=9)
    loaded, _ = store.load(tmp_path / "rpo", TOKENIZER, step=4)
    assert [answer.step for _, answer in loaded.items()] == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert loaded.metrics(step=4)["rpo/cache/age_mean"] >= 0


def test_places_without_a_store(tmp_path):
    store.save(make_cache(2), tmp_path / "global_step_7" / "rpo", TOKENIZER, step=7)
    folder = tmp_path / "global_step_7" / "rpo"
    for place, message in (
        (folder / "cache.parquet", rf"is a file; .* Did you mean {folder}\?"),
        (folder.parent, rf"holds no experience cache. Did you mean {folder}\?"),
        (tmp_path, "holds no experience cache"),
    ):
        with pytest.raises(store.StoreError, match=message) as error:
            store.load(place)
        assert "delete" not in str(error.value)
    (folder / "manifest.json").unlink()
    with pytest.raises(store.StoreError, match="no whole store"):
        store.load(folder)
