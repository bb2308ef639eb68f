"""How many runs of a study a machine trains at once, each with its share of the cores.

A small model does not fill many cores: there several runs on one core each get more done than one
after the other on all of them. Which is better is measured before the first run. Runs of one study
have equal numbers of threads, so a study that has begun goes on with its own.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from smolctl.studies.machine import warn_if_busy
from smolctl.talk import say
from smollm2.data.token_data import open_prepared
from smollm2.device import device_name, machine_bytes, matmul_flops_per_second
from smollm2.errors import UserError
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.packed import is_packed
from smollm2.training.memory import least_bytes
from smollm2.training.trainer import timed_steps

if TYPE_CHECKING:
    from smolctl.studies.runner import Session

# Of the products of the runs that are left, at the machine's best rate; small models take some
# fifteen times as long, and the measurement 20 s. Below that it does not pay.
WORTH_SECONDS = 20.0
TIMED_SECONDS = 3.0
BARRIER_SECONDS = 300.0  # for every process to start and to compile
LEAST_GAIN = 1.05  # of more runs at once over fewer


class AtOnce(NamedTuple):
    """How many runs are trained at once, and the threads of each."""

    runs: int
    threads: int


def runs_at_once(session: "Session", asked: int | None) -> AtOnce:
    """How many runs of a study to train at once here, at most as many as are left.

    Without `asked`: as many as have room beside each other with the threads of the runs that there
    are, else what a measurement shows to be fastest. One where the study is short, or on a GPU.

    Raises:
        UserError: several are asked for, and the study gives its arms equal seconds.
    """
    cores = torch.get_num_threads()
    missing = [run.resolved for run in session.planned() if not session.is_over(run)]
    if session.study.equal == "seconds" and (asked or 1) > 1:
        raise UserError(
            "the arms of this study get equal seconds of the machine, which several runs would "
            "share; omit `at_once`.",
            field="at_once",
        )
    if not missing or is_packed(session.folder):
        return AtOnce(1, cores)
    first = missing[0]
    if session.study.equal == "seconds" or first.device != "cpu":
        return AtOnce(min(asked or 1, len(missing)), cores)
    threads = threads_here(session)
    if asked is not None or threads is not None:
        threads = min(cores, threads or max(1, cores // (asked or 1)))
        return AtOnce(min(asked or max(1, cores // threads), len(missing)), threads)
    flops = sum(one.steps * one.flops_per_step for one in missing)
    room = int(machine_bytes("cpu") // sum(least_bytes(first)))
    most = min(cores, len(missing), room)
    if most < 2 or flops < WORTH_SECONDS * matmul_flops_per_second(first.device, first.dtype):
        return AtOnce(1, cores)
    best = fastest(first, session.data.path, cores, most)
    return AtOnce(best, cores // best)


def threads_here(session: "Session") -> int | None:
    """The threads of the runs that this machine has trained of a study; None if there are none."""
    environments = [run.manifest["environment"] for run in session.existing_runs()]
    here = device_name("cpu")
    found = [one["threads"] for one in environments if one and one["device_name"] == here]
    return int(found[-1]) if found else None


def fastest(protocol: ResolvedConfig, data: Path, cores: int, most: int) -> int:
    """How many processes train most steps per second together: 1, 2, 4 ... up to `most`.

    Args:
        protocol: of the runs.
        data: the folder of the prepared tokens.
        cores: that the processes share.
    """
    say("Measuring how many runs at once this machine trains fastest ...")
    warn_if_busy()
    rates: dict[int, float] = {}
    number = 1
    while number <= most:
        try:
            rates[number] = together(protocol, data, number, cores // number)
        except Exception as error:  # whatever it is, fewer at once may work
            reason = str(error).strip().splitlines() or [type(error).__name__]
            say(f"{number} runs at once do not work here: {reason[0]}")
            break
        number *= 2
    best = 1
    for number, rate in rates.items():
        if rate > LEAST_GAIN * rates[best]:
            best = number
    texts = [f"{number}: {rate:.3g} steps/s" for number, rate in rates.items()]
    say(f"Runs at once and steps per second of all: {', '.join(texts)}. Chosen: {best}.")
    return best


def together(protocol: ResolvedConfig, data: Path, processes: int, threads: int) -> float:
    """The steps per second that several processes train at the same time.

    Raises:
        BrokenProcessPool, BrokenBarrierError: one of them was killed, or did not start in time.
        Exception: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes, timeout=BARRIER_SECONDS)
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=begin, initargs=(threads, barrier)
    )
    with pool:
        started = [pool.submit(one_of_several, protocol, data) for _ in range(processes)]
        try:
            return sum(one.result() for one in started)
        except BaseException:  # a signal does not wait for what they are at
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_barrier: Barrier | None = None  # of the processes that are timed together


def begin(threads: int, barrier: Barrier) -> None:
    """Prepare one of the processes of `together`."""
    global _barrier
    _barrier = barrier
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def end_with_parent() -> None:
    """End this process when the one that started it has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def one_of_several(protocol: ResolvedConfig, data: Path) -> float:
    """The steps per second of this process while the others train too."""
    assert _barrier is not None
    try:
        timed = timed_steps(
            protocol, open_prepared(data), at_least=TIMED_SECONDS, ready=_barrier.wait
        )
    except BaseException:
        _barrier.abort()  # the others do not wait for this one
        raise
    return timed.steps / timed.seconds
