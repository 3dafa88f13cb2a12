"""SIGKILL of the App at random moments, and the same command again: is anything lost or half done?

    python benchmarks/kills.py BIDS_DIR LABEL LABEL [--kills 20] [--seed 0] [--app "--n-procs 2"]
    python benchmarks/kills.py BIDS_DIR LABEL LABEL --redo=--no-tta [--kills 30]

Segments the participants LABEL once undisturbed. Then, for each kill, anew into an empty folder:
the App and all its processes are killed at a random moment of the time that the undisturbed run
took, and run again to the end. Everything written is compared with the undisturbed run (byte for
byte, images unpacked, pages without the log in them, and of `logs/` only the sessions' records, as
the rest holds times): after the kill whatever belongs to a session that counts as finished, after
the second run all of it. One row for each kill; exit code 1 where anything differs.

With --redo, what is killed is a run with these options and --redo-changed over finished results.
After each kill every session must be the old one or the new one, whole, as the next run finds it
(`moving`: sessions that were just being put in place, which that run completes); after the next run
all are new.
"""

import argparse
import gzip
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_synthseg.bids.provenance import SessionRecord
from bids_synthseg.bids.tidying import settle_sessions

LOG_IN_PAGE = re.compile(rb"<pre>\d{4}-\d\d-\d\d .*?</pre>", re.DOTALL)

HEADER = "kill\tat_s\tfinished_then\thalf_done\trerun\tdiffering\tleft_over"
REDO_HEADER = "kill\tat_s\told\tnew\tneither\tmoving\trerun\tdiffering\tleft_over"


def begin(bids: Path, out: Path, words: Sequence[str]) -> subprocess.Popen:
    """The App, in a process group of its own."""
    call = [sys.executable, "-m", "bids_synthseg", str(bids), str(out), "participant", *words]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(call, stdout=quiet, stderr=quiet, start_new_session=True)


def content(path: Path) -> bytes:
    """What a file says, without how it was packed, and a page without the log in it."""
    data = path.read_bytes()
    if path.suffix == ".html":
        return LOG_IN_PAGE.sub(b"", data)
    return gzip.decompress(data) if path.suffix == ".gz" else data


def results(out: Path) -> set[Path]:
    """All results below a folder, relative to it: no hidden files, and of `logs/` the records."""
    found = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    shown = {path for path in found if not any(part.startswith(".") for part in path.parts)}
    return {p for p in shown if p.parts[0] != "logs" or p.match("logs/sub-*.json")}


def differing(files: set[Path], out: Path, whole: Path) -> list[str]:
    """Those of `files` that are not the same in both folders."""
    return sorted(
        str(name)
        for name in files
        if not (out / name).is_file()
        or not (whole / name).is_file()
        or content(out / name) != content(whole / name)
    )


def finished(out: Path, whole: Path) -> list[SessionRecord]:
    """The records of the undisturbed run whose sessions count as finished in `out`."""
    there = [SessionRecord(path, whole) for path in sorted(whole.glob("logs/sub-*.json"))]
    return [
        record
        for record in there
        if (signature := record.finished_with())
        and SessionRecord(out / "logs" / record.path.name, out).is_finished(signature)
    ]


def half_done(out: Path, whole: Path) -> list[str]:
    """What is missing or different of the sessions that count as finished in `out`."""
    names: set[Path] = set()
    for record in finished(out, whole):
        names |= {Path("logs", record.path.name), *map(Path, record.read()["Outputs"])}
    return differing(names, out, whole)


def states(out: Path, old: Path, new: Path) -> list[str]:
    """Of each session, whether it is "old", "new" or "neither": its results and no others."""
    found = []
    for record in sorted(old.glob("logs/sub-*.json")):
        names = {
            whole: {*SessionRecord(whole / "logs" / record.name, whole).read()["Outputs"]}
            for whole in (old, new)
        }
        there = {name for name in names[old] | names[new] if (out / name).is_file()}
        found.append("neither")
        for state, whole in (("old", old), ("new", new)):
            files = {Path("logs", record.name), *map(Path, names[whole])}
            if there == names[whole] and not differing(files, out, whole):
                found[-1] = state
    return found


def leftovers(out: Path) -> list[str]:
    """Temporary files, locks and staged results."""
    return [str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".bidsignore"]


def kill_redo(
    bids: Path, out: Path, old: Path, new: Path, words: Sequence[str], at_s: float
) -> list[str]:
    """One kill of a run over finished results and the run after it: the fields of its row."""
    shutil.copytree(old, out)
    with begin(bids, out, words) as process:
        time.sleep(at_s)
        os.killpg(process.pid, signal.SIGKILL)
    at_once = states(out, old, new)
    settle_sessions(out)
    then = states(out, old, new)
    code = begin(bids, out, words).wait()
    unlike = differing(results(out) | results(new), out, new)
    left = leftovers(out)
    for line in (*unlike, *left):
        print(f"  {line}", file=sys.stderr)
    counts = [then.count(state) for state in ("old", "new", "neither")]
    return [str(n) for n in (*counts, at_once.count("neither"), code, len(unlike), len(left))]


def kill_once(bids: Path, out: Path, whole: Path, words: Sequence[str], at_s: float) -> list[str]:
    """One kill and the run after it: the fields of its row, and on stderr the files that differ."""
    with begin(bids, out, words) as process:
        time.sleep(at_s)
        os.killpg(process.pid, signal.SIGKILL)
    wrong = half_done(out, whole) if out.exists() else []
    done = len(finished(out, whole))
    code = begin(bids, out, words).wait()
    unlike = differing(results(out) | results(whole), out, whole)
    left = leftovers(out)
    for line in (*wrong, *unlike, *left):
        print(f"  {line}", file=sys.stderr)
    return [str(count) for count in (done, len(wrong), code, len(unlike), len(left))]


def main() -> int:
    """Run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=Path, metavar="BIDS_DIR")
    parser.add_argument("labels", nargs=2, metavar="LABEL")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--app", default="", metavar="WORDS", help="more options of the App")
    parser.add_argument("--redo", metavar="WORDS", help="options of a redo, which is killed")
    given = parser.parse_args()
    words = ["--participant-label", *given.labels, *shlex.split(given.app)]
    moments = random.Random(given.seed)
    bad = 0
    with TemporaryDirectory() as folder:
        # Always the same folder, so that a path that got into a file is no difference.
        out, whole = Path(folder) / "out", Path(folder) / "whole"
        took_s = undisturbed(given.bids, out, words)
        if given.redo is not None:
            old, redo = Path(folder) / "old", [*words, "--redo-changed", *shlex.split(given.redo)]
            shutil.copytree(out, old)
            took_s = undisturbed(given.bids, out, redo)
        out.rename(whole)
        print(f"{len(results(whole))} files of an undisturbed run of {took_s:.1f} s")
        print(HEADER if given.redo is None else REDO_HEADER)
        for number in range(1, given.kills + 1):
            at_s = moments.uniform(0, took_s)
            if given.redo is None:
                row = kill_once(given.bids, out, whole, words, at_s)
                wrong = row[1:]
            else:
                row = kill_redo(given.bids, out, old, whole, redo, at_s)
                wrong = [row[2], *row[4:]]
            print("\t".join([str(number), f"{at_s:.1f}", *row]), flush=True)
            bad += set(wrong) != {"0"}
            shutil.rmtree(out)
    print(f"{given.kills - bad} of {given.kills} kills left no trace in the results")
    return int(bad > 0)


def undisturbed(bids: Path, out: Path, words: Sequence[str]) -> float:
    """A run to its end; returns its seconds."""
    start = time.perf_counter()
    if code := begin(bids, out, words).wait():
        sys.exit(f"the undisturbed run failed with exit code {code}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
