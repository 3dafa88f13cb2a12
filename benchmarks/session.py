"""One session with T1w and T2w at 0.86 mm, from the command line: seconds and peak memory.

    python benchmarks/session.py [BIDS_DIR PARTICIPANT]

Without arguments a phantom newborn is written first. Also the time of `--help`.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_synthseg.demo import write_demo

APP = [sys.executable, "-m", "bids_synthseg"]


def timed(arguments: list[str]) -> float:
    """Wall-clock seconds of one run of the App."""
    start = time.perf_counter()
    subprocess.run([*APP, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    """Run, print the table."""
    with TemporaryDirectory() as folder:
        bids, participant = arguments or (str(Path(folder) / "bids"), "infant")
        if not arguments:
            write_demo(Path(bids))
        help_s = min(timed(["--help"]) for _ in range(3))
        rows = []
        for name, more in (("as shipped", []), ("without mirrored pass", ["--no-tta"])):
            out = str(Path(folder) / name.split()[0])
            call = [bids, out, "participant", "--participant-label", participant, *more]
            rows.append((name, timed(call)))
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"One session, T1w and T2w ({participant})")
    print("run\tseconds\tagainst as shipped")
    for name, seconds in rows:
        print(f"{name}\t{seconds:.1f}\t{seconds / rows[0][1]:.2f}")
    print(f"peak memory of any run: {peak_mb:.0f} MB; --help: {help_s:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
