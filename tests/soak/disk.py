"""A full disk: a sentence, whole files, older ones as they were; with space the command ends."""

import ctypes
import os
import re
from pathlib import Path

from soak import child
from soak.scenes import SCENES, copied
from soak.state import difference, state, temporaries
from soak.trial import Reference, Result, Setup, last_line, pages, unclean

SIZES = 20  # of the space that is free, from none to what the command needs
LARGE = 256 * 2**20  # bytes of the disk otherwise
REMOUNT, DETACH = 32, 2  # see mount(2) and umount2(2)
FULL = re.compile(r"disk is full|no space left|free some space", re.IGNORECASE)


def reason_to_skip() -> str | None:
    """Why no disk of a given size can be made here."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "a disk of a given size needs root"
    return None


def run(setup: Setup, scene_name: str, number: int, folder: Path) -> Result:
    """Run the command of a scene on a disk that has too little space, then with enough."""
    scene, expected, result = SCENES[scene_name], setup.references[scene_name], Result()
    work = folder / "work"
    work.mkdir()
    mount(work, LARGE)
    try:
        copied(setup.templates[scene.template], folder)
        room = expected.growth * (number % SIZES) // SIZES
        mount(work, pages(work) + room, REMOUNT)
        ended = child.command(scene.arguments, work)
        result.counts["disks"] += 1
        result.steps.append(f"{room} bytes free: exit code {ended.code}")
        if ended.code:
            result.counts["full disks"] += 1
            result.problem = wrong(ended) or harm(expected, scene.outputs, work)
        mount(work, LARGE, REMOUNT)
        if result.problem is None:
            ended = child.command(scene.again(work), work)
            bad = unclean(ended) or (None if ended.code in (0, 2) else last_line(ended))
            result.problem = bad or difference(expected.after, state(work))
    finally:
        if result.problem:  # what is on the disk is to be looked at
            copied(work, folder / "kept")
        ctypes.CDLL(None).umount2(os.fsencode(work), DETACH)
    return result


def mount(folder: Path, size: int, flags: int = 0) -> None:
    """Make a folder a disk in memory of that many bytes, or change its size."""
    libc = ctypes.CDLL(None, use_errno=True)
    path, options = os.fsencode(folder), f"size={size}".encode()
    if libc.mount(b"tmpfs", path, b"tmpfs", flags, options):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))


def wrong(ended: child.Ended) -> str | None:
    """What is wrong with how a command without space ended."""
    if problem := unclean(ended):
        return problem
    if ended.code != 1:
        return f"exit code {ended.code}, not 1: {last_line(ended)}"
    return None if FULL.search(ended.err) else f"no word of a full disk: {last_line(ended)}"


def harm(expected: Reference, outputs: tuple[str, ...], work: Path) -> str | None:
    """What is half-written or no longer as it was. Of a run in progress the tables and its
    manifest change as it goes; whether it ends the same is compared afterwards."""
    found = state(work)
    for name, before in expected.before.items():
        goes_on = name.startswith("results/") and name.endswith((".csv", "run.json"))
        if not goes_on and found.get(name) not in (before, expected.after.get(name)):
            return f"{name} was changed"
    for output in outputs:
        whole = {k: v for k, v in expected.after.items() if k.split("/")[0] == output}
        made = {k: v for k, v in found.items() if k.split("/")[0] == output}
        if made and (bad := difference(whole, made)):
            return f"{output} is half-written: {bad}"
    left = temporaries(work)
    return f"left: {', '.join(left)}" if left else None
