"""Carry a training run to a bare machine (Python 3.10 or later, torch, numpy) and back.

    python weights/recipe/carry.py prepare FOLDER --pack PACK --config TOML [--run RUN] ...
    bash FOLDER/run.sh OUT MINUTES [TOTAL]          on that machine
    python weights/recipe/carry.py collect OUT RUN

`prepare` makes a FOLDER of at most 64 MiB, which git ignores, with everything a run needs: the
package, label maps packed by `bids_synthseg_tools pack`, the configuration, and the checkpoint in
RUN to go on from. `run.sh` trains for TOTAL minutes (default MINUTES) in a process session of its
own, which outlasts the command; it looks on for MINUTES and one more, then copies what there is
into OUT: the checkpoint's pieces, each under 16 MiB, and `rest.tar` with all other files. Called
again on the same machine it goes on. `collect` puts the files of OUT into RUN, where they can be
used, trained on, or carried again.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
MOST_MIB = 64
PIECE_MIB = 15
LEFT_OUT = ("tensorboard", "pid")
"""Files of a run that stay on the machine."""

SCRIPT = """#!/usr/bin/env bash
# bash run.sh OUT MINUTES [TOTAL]: see carry.py, which wrote this.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
minutes=$2
total=${3:-$2}
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}
export PYTHONPATH=$PWD/package PYTHONUNBUFFERED=1
run=${TMPDIR:-/tmp}/bids_synthseg-@NAME@
[ -d "$run" ] || cp -r run "$run"
if ! kill -0 "$(cat "$run/pid" 2>/dev/null)" 2>/dev/null; then
    setsid "$python" -m bids_synthseg.learning.train maps.npz "$run" --config config.toml \\
        --max-minutes "$total" --checkpoint-piece-mib @PIECE@ @MORE@ \\
        >>"$run/log.txt" 2>&1 </dev/null &
    echo $! >"$run/pid"
fi
limit=$("$python" -c "print(60 * ($minutes + 1))")
timeout "$limit" tail --pid="$(cat "$run/pid")" -n 20 -F "$run/log.txt" || true
"$python" carry.py hand-out "$run" "$out"
"""


def prepare(
    folder: Path,
    pack: Path,
    config: Path,
    run: Path | None = None,
    validation: Path | None = None,
    init_from: Path | None = None,
) -> None:
    """Write everything that a run needs into a folder; SystemExit where that is too large."""
    from bids_synthseg.learning.states import state_files

    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "package" / "bids_synthseg"
    unwanted = shutil.ignore_patterns("__pycache__", "templates")
    shutil.copytree(ROOT / "bids_synthseg", package, ignore=unwanted)
    shutil.copytree(ROOT / "weights", package / "weights", ignore=shutil.ignore_patterns("recipe"))
    (folder / "run").mkdir()
    # Ignored by itself, wherever it lies.
    (folder / ".gitignore").write_text("*\n")
    shutil.copy(__file__, folder / "carry.py")
    shutil.copy(config, folder / "config.toml")
    shutil.copy(pack, folder / "maps.npz")
    more = []
    for option, file, name in (
        ("--init-from", init_from, "init.safetensors"),
        ("--validation", validation, "validation.npz"),
    ):
        if file is not None:
            shutil.copy(file, folder / name)
            more.append(f"{option} {name}")
    if run is not None:
        others = [path for path in run.iterdir() if path.is_file() and _is_rest(path)]
        for path in [*others, *state_files(run)]:
            shutil.copy(path, folder / "run")
    # Runs of other maps or another configuration do not meet on the machine.
    parts = [folder / "maps.npz", folder / "config.toml"]
    name = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:12]
    script = SCRIPT.replace("@NAME@", name).replace("@PIECE@", str(PIECE_MIB))
    (folder / "run.sh").write_text(script.replace("@MORE@", " ".join(more)))
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for path in sorted(sizes, key=sizes.__getitem__)[-5:]:
        print(f"{sizes[path] / MIB:6.1f} MiB  {path.relative_to(folder)}")
    total = sum(sizes.values()) / MIB
    print(f"{total:6.1f} MiB in all, of {MOST_MIB}")
    if total > MOST_MIB:
        raise SystemExit(f"{folder}: too large; pack fewer maps, or without their scans")


def hand_out(run: Path, out: Path) -> None:
    """Copy a run that may be going on: a checkpoint that is whole, and all else in one archive."""
    from bids_synthseg.errors import BadData
    from bids_synthseg.learning.states import has_state, state_files

    if not has_state(run):
        raise SystemExit(f"{run}: no checkpoint; see what log.txt says")
    for old in (*out.glob("state*"), *out.glob("rest.tar")):
        old.unlink()
    for _ in range(10):
        try:
            files = state_files(run)
            for path in files:
                shutil.copy(path, out)
            break
        except (OSError, BadData):  # a newer checkpoint has just taken its place
            time.sleep(1)
    else:
        raise SystemExit(f"{run}: its checkpoint cannot be copied")
    for stray in set(out.glob("state*")) - {out / path.name for path in files}:
        stray.unlink()
    with tarfile.open(out / "rest.tar", "w") as archive:
        for path in sorted(run.iterdir()):
            if path.is_file() and _is_rest(path):
                archive.add(path, path.name)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / MIB:6.1f} MiB  {path.name}")


def collect(files: Path, run: Path) -> None:
    """Put what `run.sh` handed out into a folder; SystemExit where the checkpoint is not whole."""
    from bids_synthseg.learning.states import INDEX, saved_step, state_files

    pieces = state_files(files)[:-1]
    expected = json.loads((files / INDEX).read_text())["sha256"]
    missing = [path.name for path in [*pieces, files / "rest.tar"] if not path.is_file()]
    if missing:
        raise SystemExit(f"{files}: {', '.join(missing)} did not come back; hand out again")
    if hashlib.sha256(b"".join(path.read_bytes() for path in pieces)).hexdigest() != expected:
        raise SystemExit(f"{files}: its pieces are of several checkpoints; hand out again")
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run) as folder, tarfile.open(files / "rest.tar") as rest:
        rest.extractall(folder, filter="data")
        for path in Path(folder).iterdir():
            path.replace(run / path.name)
    for path in state_files(files):
        shutil.copy(path, run)
    print(f"{run}: at step {saved_step(run)}")


def _is_rest(path: Path) -> bool:
    return path.name not in LEFT_OUT and not path.name.startswith(("state", "."))


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare")
    first.add_argument("folder", type=Path)
    first.add_argument("--pack", type=Path, required=True)
    first.add_argument("--config", type=Path, required=True)
    for option in ("--run", "--validation", "--init-from"):
        first.add_argument(option, type=Path)
    for verb in ("hand-out", "collect"):
        other = verbs.add_parser(verb)
        other.add_argument("source", type=Path)
        other.add_argument("target", type=Path)
    given = vars(parser.parse_args())
    verb = given.pop("verb")
    if verb == "prepare":
        prepare(**given)
    else:
        {"hand-out": hand_out, "collect": collect}[verb](given["source"], given["target"])


if __name__ == "__main__":
    sys.exit(main())
