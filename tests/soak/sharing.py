"""Two and four processes at the same work end as one does."""

from pathlib import Path

from soak import child
from soak.scenes import SCENES, copied
from soak.state import difference, state
from soak.trial import Result, Setup, last_line, unclean

SUBJECTS = ("study", "eval", "quantize", "train")


def run(setup: Setup, scene_name: str, number: int, folder: Path) -> Result:
    """Run the command of a scene in two processes (even numbers) or four, at the same time."""
    scene, expected, result = SCENES[scene_name], setup.references[scene_name], Result()
    work = copied(setup.templates[scene.template], folder)
    processes = 4 if number % 2 else 2
    started = [child.start(scene.arguments, work, name=f"-{i}") for i in range(processes)]
    ended = [child.finish(each) for each in started]
    result.counts["shared works"] += 1
    result.counts[f"with {processes} processes"] += 1
    # One process trains a run; the others say so.
    allowed = {0, 2} if scene.resumed else {0}
    bad = [unclean(each) or last_line(each) for each in ended if each.code not in allowed]
    if bad or all(each.code for each in ended):
        result.problem = f"exit codes {[each.code for each in ended]}: {'; '.join(bad)}"
    else:
        result.problem = difference(expected.after, state(work))
    return result
