"""The experience cache on disk: one Parquet file and a JSON manifest in a folder of their own. Nothing is unpickled."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpo_verl.question import KEY_BYTES, TokenizerIdentity, question_key
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.start import NO_LOGPROBS

SCHEMA_VERSION = 4
ENTRIES, MANIFEST = "cache.parquet", "manifest.json"
#: Every column that a store of some version has.
_FIELDS = (
    pa.field("key", pa.binary(KEY_BYTES), nullable=False),
    pa.field("question_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    pa.field("answer_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    pa.field("reward", pa.float64(), nullable=False),
    pa.field("correct", pa.bool_(), nullable=False),
    pa.field("step", pa.int32(), nullable=False),
    pa.field("failures", pa.int32(), nullable=False),
    pa.field("wrong_seen", pa.float64(), nullable=False),
    pa.field("tokens_seen", pa.float64(), nullable=False),
    pa.field("logprobs", pa.list_(pa.field("item", pa.float16(), nullable=False)), nullable=False),
)
#: Columns that not every version has → the versions that do. Those that are gone are not read.
_VERSIONS = {"wrong_seen": range(2, 4), "tokens_seen": range(2, 4), "logprobs": range(3, SCHEMA_VERSION + 1)}


def _schema(version: int) -> pa.Schema:
    """The columns of a store of a version."""
    return pa.schema([field for field in _FIELDS if version in _VERSIONS.get(field.name, (version,))])


SCHEMA = _schema(SCHEMA_VERSION)
NOTHING: Mapping[str, float] = MappingProxyType({})
ROWS_AT_A_TIME = 4096
READ_BYTES = 1 << 20
#: What pyarrow raises on damaged files whose checksum is right, its own exceptions and others.
_DAMAGE = (pa.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError)


class StoreError(ValueError):
    """A store that cannot be read or does not belong here; the message names the file and the way on."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of the entries."""

    schema_version: int
    tokenizer: TokenizerIdentity
    step: int
    """Training step after which the cache was saved; 0 for one that was built or imported."""

    entries: int
    tokens: int
    """Token ids in all answers."""

    file_digest: str
    """Hex BLAKE2b of `cache.parquet`."""

    run: str = ""
    """Project and experiment that saved it; empty for one that was built or imported, and in older stores."""

    temperature: float | None = None
    """Sampling temperature that the log-probabilities belong to; None: there are none."""

    best_rewards: dict[str, float] = field(default_factory=dict)
    """Data source → best reward that the run had seen, where it exceeds 1; see `rpo_verl.correctness`."""

    @property
    def origin(self) -> str:
        """Step and run, for messages."""
        return f"step {self.step} of {self.run}" if self.run else f"step {self.step}"

    def fields(self) -> dict[str, Any]:
        """The content of the file, without the seal."""
        optional = {name for name in ("run", "temperature", "best_rewards") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in optional}

    def seal(self) -> str:
        """Hex digest over every other field, so that an altered manifest is noticed as an altered file is."""
        return blake2b(json.dumps(self.fields(), sort_keys=True).encode(), digest_size=32).hexdigest()


def save(
    cache: ExperienceCache,
    folder: Path,
    tokenizer: TokenizerIdentity,
    step: int,
    run: str = "",
    temperature: float | None = None,
    best_rewards: Mapping[str, float] = NOTHING,
) -> Manifest:
    """Write the cache to `folder`, least recently updated entry first, replacing what is there in one move.

    Args:
        cache: what to write.
        folder: created; its parent too. An interrupted call leaves what was there before.
        tokenizer: whose ids the tokens are.
        step: the training step the cache belongs to.
        run: project and experiment it belongs to.
        temperature: that the log-probabilities belong to; None: there are none.
        best_rewards: data source → best reward of the run.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with pq.ParquetWriter(temporary / ENTRIES, SCHEMA, compression="lz4", use_dictionary=False) as writer:
        entries = cache.items()
        while rows := list(islice(entries, ROWS_AT_A_TIME)):
            writer.write_batch(_to_batch(rows))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tokenizer=tokenizer,
        step=step,
        entries=len(cache),
        tokens=sum(len(answer.tokens) for _, answer in cache.items()),
        file_digest=_digest(temporary / ENTRIES),
        run=run,
        temperature=temperature,
        best_rewards=dict(best_rewards),
    )
    text = json.dumps({**manifest.fields(), "seal": manifest.seal()}, indent=2) + "\n"
    (temporary / MANIFEST).write_text(text, encoding="utf-8")
    for path in (temporary / ENTRIES, temporary / MANIFEST, temporary):
        _flush(path)
    # A folder cannot replace one that has files in it; between these two lines a reader finds none, never a half one.
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    _flush(folder.parent)
    return manifest


def load(
    folder: Path,
    tokenizer: TokenizerIdentity | None = None,
    step: int | None = None,
    logprobs: Literal["all"] | float | None = "all",
    **bounds: Any,
) -> tuple[ExperienceCache, Manifest]:
    """Read the store in `folder`.

    Args:
        folder: a folder `save` wrote.
        tokenizer: the one in use, which must be the store's; None accepts any.
        step: the training step of the run that loads it. Answers of later steps are another run's and count as
            answers of this step, so that no age is negative. None keeps all steps.
        logprobs: which log-probabilities to read: `all`, those of a sampling temperature, because those of another
            one would give wrong weights, or none (None).
        bounds: what `ExperienceCache` takes. Least recently updated entries beyond them are evicted.

    Raises:
        StoreError: if the store is incomplete, altered, of a newer schema, or of another tokenizer or chat template.
    """
    manifest = read_manifest(folder)
    if tokenizer is not None and manifest.tokenizer.fingerprint != tokenizer.fingerprint:
        raise StoreError(
            f"{folder / MANIFEST}: the cache was written with {manifest.tokenizer}, this run uses {tokenizer}. Its "
            "token ids mean something else here: use the tokenizer and chat template it was written with, or export "
            "it as text (rpo-verl cache export --text --data …) and import that for the new one."
        )
    cache = ExperienceCache(**bounds)
    wanted = logprobs == "all" or (logprobs is not None and logprobs == manifest.temperature)
    for key, answer in _read(folder, manifest):
        if step is not None and answer.step > step:
            answer = replace(answer, step=step)
        cache.put(key, answer if wanted else replace(answer, logprobs=NO_LOGPROBS))
    cache.evict()
    pa.default_memory_pool().release_unused()
    return cache, manifest


def describe(folder: Path, manifest: Manifest, kept: int, bounds: str) -> str:
    """Say what was loaded.

    Args:
        folder: of the store.
        manifest: its manifest.
        kept: answers that the bounds of the cache left.
        bounds: the bounds, for the message.
    """
    if kept == manifest.entries:
        return f"{kept} answers of {manifest.origin} loaded from {folder}"
    return (
        f"{kept} of {manifest.entries} answers of {manifest.origin} loaded from {folder}. The least recently updated "
        f"ones exceed {bounds} and were evicted"
    )


def doubts(manifest: Manifest, step: int, run: str) -> list[str]:
    """Say what speaks against a store that lies in a checkpoint.

    Args:
        manifest: of the store.
        step: of the checkpoint.
        run: project and experiment that resume.
    """
    found = []
    if manifest.step != step:
        found.append(
            f"THE EXPERIENCE CACHE IS OF STEP {manifest.step}, THE CHECKPOINT OF STEP {step}. If nobody put it there "
            "on purpose, take the store of this checkpoint."
        )
    if manifest.run and manifest.run != run:
        found.append(
            f"the experience cache was saved by {manifest.run}, and this run is {run}. If the checkpoint is its own, "
            "take the store that belongs to it."
        )
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        StoreError: if it is missing, not what `save` writes, altered, or of a newer schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(_no_store(folder))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"not a JSON file ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("schema_version"), int):
        raise _unreadable(path, "no schema_version in it")
    if fields["schema_version"] > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {fields['schema_version']}, this rpo-verl reads up to {SCHEMA_VERSION}. "
            "Install the rpo-verl that wrote it, or a newer one."
        )
    seal = fields.pop("seal", None)
    try:
        manifest = Manifest(**{**fields, "tokenizer": TokenizerIdentity(**fields["tokenizer"])})
    except (KeyError, TypeError) as error:
        raise _unreadable(path, f"its fields are not those of a manifest ({error})") from error
    if seal != manifest.seal():
        raise _unreadable(path, "its checksum does not match its content")
    return manifest


def _no_store(folder: Path) -> str:
    near = next((place for place in (folder.parent, folder / "rpo") if (place / MANIFEST).is_file()), None)
    hint = f" Did you mean {near}?" if near is not None else ""
    if folder.is_file():
        return f"{folder} is a file; a store is a folder with {ENTRIES} and {MANIFEST}.{hint}"
    if (folder / ENTRIES).is_file():
        return f"{folder / MANIFEST} does not exist, so {folder} is no whole store. Take both files from one backup."
    return f"{folder / MANIFEST} does not exist: {folder} holds no experience cache.{hint}"


def _read(folder: Path, manifest: Manifest) -> Iterable[tuple[bytes, CachedAnswer]]:
    path = folder / ENTRIES
    if not path.is_file():
        raise _unreadable(path, "it is missing")
    if _digest(path) != manifest.file_digest:
        raise _unreadable(path, "its checksum is not the one in the manifest: it was truncated or altered")
    fingerprint, seen = manifest.tokenizer.fingerprint, set()
    try:
        # Read in pieces: with whole column chunks read ahead, loading takes three times as long and more memory.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            if not file.schema_arrow.equals(_schema(manifest.schema_version)):
                raise _unreadable(path, f"its columns are {file.schema_arrow.to_string()!r}")
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
                batch.validate(full=True)
                for key, answer in _from_batch(batch):
                    if key in seen or not _is_sound(key, answer, fingerprint):
                        raise _unreadable(path, f"row {len(seen)} contradicts itself")
                    seen.add(key)
                    yield key, answer
    except StoreError:
        raise
    except _DAMAGE as error:
        raise _unreadable(path, f"it cannot be read as Parquet ({error})") from error
    if len(seen) != manifest.entries:
        raise _unreadable(path, f"{len(seen)} entries, the manifest says {manifest.entries}")


def _is_sound(key: bytes, answer: CachedAnswer, fingerprint: bytes) -> bool:
    return (
        key == question_key(answer.question, fingerprint)
        and answer.failures >= 0
        and (not len(answer.tokens) or int(answer.tokens.min()) >= 0)
        and len(answer.logprobs) in (0, len(answer.tokens))
        and bool((answer.logprobs <= 0).all())
    )


def _to_batch(rows: Iterable[tuple[bytes, CachedAnswer]]) -> pa.RecordBatch:
    keys, answers = zip(*rows, strict=True)
    columns = [
        pa.array(keys, SCHEMA.field("key").type),
        _lists([answer.question for answer in answers], "question_ids"),
        _lists([answer.tokens for answer in answers], "answer_ids"),
        pa.array([answer.reward for answer in answers], pa.float64()),
        pa.array([answer.correct for answer in answers], pa.bool_()),
        pa.array([answer.step for answer in answers], pa.int32()),
        pa.array([answer.failures for answer in answers], pa.int32()),
        _lists([answer.logprobs for answer in answers], "logprobs"),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _lists(arrays: list[np.ndarray], column: str) -> pa.ListArray:
    kind = SCHEMA.field(column).type
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(arrays), kind.value_type), type=kind)


def _from_batch(batch: pa.RecordBatch) -> Iterable[tuple[bytes, CachedAnswer]]:
    columns: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
    questions, answers = (_arrays(columns[name]) for name in ("question_ids", "answer_ids"))
    rows = len(questions)
    logprobs = _arrays(columns["logprobs"]) if "logprobs" in columns else [NO_LOGPROBS] * rows
    scalars = (columns[name].to_pylist() for name in ("key", "correct", "reward", "step", "failures"))
    for question, answer, of_answer, key, correct, reward, step, failures in zip(
        questions, answers, logprobs, *scalars, strict=True
    ):
        yield key, CachedAnswer(answer, correct, reward, step, question, failures, of_answer)


def _arrays(column: pa.ListArray) -> list[np.ndarray]:
    offsets = column.offsets.to_numpy()
    return np.split(column.flatten().to_numpy(), offsets[1:-1] - offsets[0])


def _unreadable(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path}: {why}. Take the folder {path.parent} from a backup or an earlier checkpoint, or delete it to begin "
        "with an empty cache."
    )


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
