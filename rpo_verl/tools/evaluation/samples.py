"""Finished samples on disk, one JSON line each. An interruption loses none."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rpo_verl.tools.errors import CommandError

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """One finished answer."""

    data_source: str
    question: str
    """Key of the question."""

    index: int
    """Number of the sample within its question, from 0."""

    tokens: int
    """Generated tokens, including the end token."""

    truncated: bool
    """The token limit ended the answer."""

    score: float
    correct: bool
    text: str | None = None


class SampleStore:
    """The samples in a folder. One process at a time may append.

    Args:
        folder: created. A half-written last line is removed.

    Raises:
        CommandError: if another process writes there, or a line is not a sample.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / SAMPLES
        # Not in append mode: the handle that holds the lock also removes the half-written line.
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise CommandError(
                f"{self._path}: another rpo-verl eval writes there. Wait for it, or choose another --out."
            ) from error
        self._samples: dict[tuple[str, int], Sample] = {}
        try:
            self._read()
        except CommandError:
            self._file.close()
            raise

    def _read(self) -> None:
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        self._file.seek(whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                sample = Sample(**json.loads(line))
                key = (str(sample.question), int(sample.index))
            except (ValueError, TypeError) as error:
                raise CommandError(
                    f"{self._path}:{number}: not a sample ({error}). Delete that line, or begin in another --out."
                ) from error
            self._samples[key] = replace(sample, text=None)

    def append(self, sample: Sample) -> None:
        """Add one finished sample. After the call it survives the end of this process."""
        # Texts of long answers would fill the memory.
        self._samples[sample.question, sample.index] = replace(sample, text=None)
        fields = {name: value for name, value in asdict(sample).items() if value is not None}
        self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._samples

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self, question: str, count: int) -> list[Sample]:
        """The finished ones among the first `count` samples of a question, without their texts."""
        keys = ((question, index) for index in range(count))
        return [self._samples[key] for key in keys if key in self._samples]

    def __enter__(self) -> "SampleStore":
        return self

    def __exit__(self, *exception: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
