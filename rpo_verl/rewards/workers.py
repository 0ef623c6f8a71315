"""Calls that cannot hang or crash the caller: each with a time limit, in a process with a memory limit."""

import contextlib
import functools
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

#: Calls after which a process is replaced, because sympy's caches only grow.
_CALLS_PER_PROCESS = 1000

#: How often a call looks for a working pool: processes may be killed from outside while they wait for work.
_ATTEMPTS = 3


class WorkerDied(Exception):
    """The process ended during the call, or ran out of memory."""


class Workers:
    """A pool of processes, forked from a fresh server and therefore free of the caller's threads, locks and GPU.

    Args:
        processes: how many run at once; further calls wait.
        memory_mb: MiB that a process may allocate beyond what it had at its start.
    """

    def __init__(self, processes: int, memory_mb: int) -> None:
        self._processes, self._memory_mb = processes, memory_mb
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    def call(self, function: Callable[..., Any], *args: Any, timeout: float) -> Any:
        """`function(*args)`, in a process that is killed after `timeout` seconds; time spent waiting is not counted.

        Raises:
            TimeoutError: if it took longer.
            WorkerDied: if it crashed or ran out of memory.
            RuntimeError: if no process can be started.
        """
        for _ in range(_ATTEMPTS):
            pool = self._running_pool()
            try:
                future = pool.schedule(_run_limited, (timeout, function, *args), timeout=timeout)
            except RuntimeError:
                self._drop(pool)
                continue
            try:
                return future.result()
            except BrokenProcessPool:
                self._drop(pool)
            except ProcessExpired as error:
                if error.exitcode == -signal.SIGXCPU:
                    raise TimeoutError(f"more than {timeout} s") from error
                raise WorkerDied(f"exit code {error.exitcode}") from error
            except MemoryError as error:
                raise WorkerDied("out of memory") from error
        raise RuntimeError(
            f"the processes of the reward function end before they take work ({_ATTEMPTS} attempts); memory_mb="
            f"{self._memory_mb} may be too little, or something kills them. Their own messages stand above."
        )

    def _running_pool(self) -> ProcessPool:
        with self._lock:
            if self._pool is None:
                context = multiprocessing.get_context("forkserver")
                # A new process imports the caller's main module, which in Ray's workers imports Ray.
                used = [name for name in ("ray",) if name in sys.modules]
                context.set_forkserver_preload([__name__, "rpo_verl.rewards.warm", *used])
                limits = (os.getpid(), self._memory_mb)
                self._pool = ProcessPool(self._processes, _CALLS_PER_PROCESS, _limit_process, limits, context)
            return self._pool

    def _drop(self, pool: ProcessPool) -> None:
        """Replace `pool`, unless another thread did."""
        with self._lock:
            if self._pool is pool:
                self._pool = None
                pool.stop()
                pool.join()


@functools.cache
def shared(processes: int, memory_mb: int) -> Workers:
    """The one pool of this process with these limits."""
    return Workers(processes, memory_mb)


def _limit_process(caller: int, memory_mb: int) -> None:
    """Limit the memory of this process; signals, and the caller's end, are its own end whatever it is computing."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(caller: int) -> None:
    """End this process when the caller has ended; a caller that is killed cannot do so."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(caller).wait()
    os._exit(1)


def _run_limited(timeout: float, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`; if the caller is gone by then, the kernel ends it soon after `timeout` seconds of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(usage.ru_utime + usage.ru_stime + timeout) + 1, hard))
    return function(*args)
