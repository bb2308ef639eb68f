"""The reliability campaign: kills, bad input, full disks and shared work, until its time is up.

    PYTHONPATH=tests python -m soak [--minutes 10] [--seed 0] [--write docs/reliability.md]
    PYTHONPATH=tests python -m soak --seed 0 --only kill-train-3

The second repeats one trial. A failing trial's folder is kept and named; the exit code is then 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from soak import child


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="to begin trials in (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default 0)")
    parser.add_argument("--only", action="append", metavar="NAME", help="a trial; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the counts there")
    options = parser.parse_args()
    begin = time.monotonic()
    if "SOAK_FOLDER" not in os.environ:
        restart()
    from soak import summary  # these import torch
    from soak.campaign import Campaign, parts
    from soak.trial import Trial

    folder = Path(os.environ["SOAK_FOLDER"])
    print(f"Trials are in {folder}.", flush=True)
    only = [Trial.named(name) for name in options.only or ()]
    skipped = {} if only else {part: why for part, why in parts() if why}
    for part, why in skipped.items():
        print(f"Skipped: {part}: {why}.", flush=True)
    commit = summary.commit()
    campaign = Campaign(folder, options.seed)
    campaign.set_up(only)
    campaign.run(only, begin + 60 * options.minutes)
    ended = summary.Ended(campaign.results, options.seed, time.monotonic() - begin, skipped, commit)
    print(summary.counts(ended))
    if options.write:
        options.write.write_text(summary.document(ended), encoding="utf-8")
        print(f"Written: {options.write}")
    failed = [name for name, result in campaign.results.items() if result.problem]
    print(f"{len(campaign.results)} trials, {len(failed)} failed{': ' if failed else '.'}", *failed)
    return 1 if failed or not campaign.results else 0


def restart() -> None:
    """Start this process again with the environment of trials and the library that kills."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    environment = os.environ | {
        "SOAK_FOLDER": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TERM": "dumb",
    }
    environment.pop("SMOLCTL_RESULTS", None)
    if library := child.build_killer(folder):
        environment["LD_PRELOAD"] = str(library)
    os.execve(sys.executable, [sys.executable, "-m", "soak", *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
