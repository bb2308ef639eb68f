"""SIGKILL at a system call or at any time; the command, typed again, ends as if undisturbed."""

import random
from pathlib import Path

from soak import child
from soak.scenes import SCENES, copied
from soak.state import difference, state
from soak.trial import Reference, Result, Setup, last_line, unclean


def run(setup: Setup, scene_name: str, rng: random.Random, folder: Path) -> Result:
    """Kill the command of a scene up to three times, then let it end."""
    scene, expected, result = SCENES[scene_name], setup.references[scene_name], Result()
    work = copied(setup.templates[scene.template], folder)
    for _ in range(rng.choice([1, 1, 2, 3])):
        kill = chosen(expected, rng)
        ended = child.command(scene.again(work), work, kill=kill)
        if not ended.was_killed:
            result.steps.append(f"ended before it was killed {kill}")
            break
        result.counts["kills"] += 1
        result.counts["kills at file changes" if kill.event else "kills at random times"] += 1
        result.steps.append(f"killed {kill}")
    ended = child.command(scene.again(work), work)
    # Code 2: it had ended already, and says so of its run or its output.
    if problem := unclean(ended) or (None if ended.code in (0, 2) else last_line(ended)):
        result.problem = f"{' '.join(ended.arguments)}: {problem}"
    else:
        result.problem = difference(expected.after, state(work))
    return result


def chosen(expected: Reference, rng: random.Random) -> child.Kill:
    """When to kill: mostly at file changes, which are the moments that matter."""
    if child.kills_at_events() and rng.random() < 0.7:
        return child.Kill(event=rng.randint(1, expected.changes))
    return child.Kill(cpu=expected.cpu * rng.uniform(0.001, 1))
