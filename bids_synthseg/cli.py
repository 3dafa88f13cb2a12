"""The BIDS App command: read the command line, make one call, return an exit code."""

import re
import sys
from pathlib import Path
from typing import Any

import click

from bids_synthseg import __version__, levels
from bids_synthseg.console import run, set_up_log, spread
from bids_synthseg.errors import UnknownLevel, UsageProblem

LEVELS = {
    "participant": "participant",
    "subject": "participant",
    "group": "group",
    "dataset": "group",
}
# Options that take all the words up to the next option, as argparse tools of the BIDS world do.
MANY = (
    "--participant-label",
    "--participant_label",
    "--session-label",
    "--session-id",
    "--contrast",
    "--derivatives",
    "--validation",
)
# Options of one mode that the other would have to ignore.
_FOR_TRAINING = {
    "config": "--config",
    "validation": "--validation",
    "split_file": "--split-file",
    "init_from": "--init-from",
    "max_minutes": "--max-minutes",
    "checkpoint_piece_mib": "--checkpoint-piece-mib",
    "random_seed": "--random-seed",
    "resume": "--resume",
}
_FOR_SEGMENTING = {
    "contrasts": "--contrast",
    "bids_filter_file": "--bids-filter-file",
    "bids_database_dir": "--bids-database-dir",
    "all_scans": "--all-scans",
    "quality_column": "--quality-column",
    "dry_run": "--dry-run",
    "model": "--model",
    "no_tta": "--no-tta",
    "save_posteriors": "--save-posteriors",
    "save_per_image": "--save-per-image",
    "write_preproc": "--write-preproc",
    "overwrite": "--overwrite",
    "redo_changed": "--redo-changed",
    "viewer": "--viewer",
    "reports_only": "--reports-only",
    "num_parts": "--num-parts",
    "part_id": "--part-id",
    "n_procs": "--n-procs",
    "mem_gb": "--mem-gb",
    "dask_scheduler": "--dask-scheduler",
    "dask_cluster": "--dask-cluster",
    "stop_on_first_crash": "--stop-on-first-crash",
}
_FOR_BOTH = {
    "participants": "--participant-label",
    "sessions": "--session-label",
    "derivatives": "--derivatives",
}
_NOT_FOR_GROUP = {**_FOR_BOTH, "train": "--train", **_FOR_TRAINING, **_FOR_SEGMENTING}
EPILOG = (
    "Exit codes: 0 all done, 1 a session failed, 17 unknown level, 18 nothing selected, 64 usage, "
    "65 bad data, 66 input missing, 73 cannot create output, 74 disk trouble, "
    "75 busy: try again later, 130 interrupted, 143 ended by SIGTERM, "
    "SIGHUP or SIGUSR1. "
    "Research use only; not a medical device."
)


# fmt: off
@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.argument("analysis_level")
# What to work on
@click.option("--participant-label", "--participant_label", "participants", multiple=True,
              metavar="LABEL...", help="Subjects, with or without 'sub-'; several after one flag, "
                   "then give the flag after the three arguments.")
@click.option("--session-label", "--session-id", "sessions", multiple=True, metavar="LABEL...",
              help="Sessions, with or without 'ses-'.")
@click.option("--contrast", "contrasts", multiple=True, metavar="T1w|T2w|both...",
              help="Contrasts to use.  [default: both]")
@click.option("--bids-filter-file", type=click.Path(path_type=Path), metavar="JSON",
              help="pybids filters under the keys t1w and t2w, as in fMRIPrep.")
@click.option("--bids-database-dir", type=click.Path(path_type=Path), metavar="DIR",
              help="Use this pybids index instead of reading the folders.")
@click.option("--all-scans", is_flag=True,
              help="Segment every scan of a contrast, not only the one that represents it.")
@click.option("--quality-column", metavar="NAME",
              help="Column of scans.tsv to choose scans by: of several runs the highest number is "
                   "taken; 'fail' or 'exclude' drops a scan.")
@click.option("--derivatives", multiple=True, metavar="NAME=PATH...",
              help="Data sets whose T1w or T2w (super-resolved, preprocessed) take the place of "
                   "raw ones; edits=PATH: label maps corrected by hand, from which all else is "
                   "made again without the network. With --train: more label maps.")
@click.option("--num-parts", type=click.IntRange(min=1), metavar="N",
              help="Cut the sessions into N parts and do one of them.")
@click.option("--part-id", type=click.IntRange(min=0), metavar="I",
              help="Which part, counted from 0.  [default: SLURM_ARRAY_TASK_ID]")
@click.option("--dry-run", is_flag=True,
              help="Print which scans would be used, and why, with the expected time and memory; "
                   "stop.")
# How
@click.option("--model", type=click.Path(path_type=Path), metavar="FILE",
              help="Weights (.safetensors) to use instead of those that are shipped.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps",
              help="Where the network runs; without N on all GPUs that there are.")
@click.option("--no-tta", is_flag=True, help="Do not average with the mirrored image (faster).")
@click.option("--n-cpus", type=click.IntRange(min=1), metavar="N",
              help="CPU threads in all; with Dask, of every worker.  [default: what the job or "
                   "container allows]")
@click.option("--n-procs", type=click.IntRange(min=1), metavar="N",
              help="Sessions at a time, each in a process with its share of the threads.  "
                   "[default: 1; on GPUs 2 for each]")
@click.option("--mem-gb", type=click.FloatRange(min=0, min_open=True), metavar="G",
              help="Memory in all; fewer sessions at a time where it does not suffice.  "
                   "[default: what the job or container allows]")
@click.option("--dask-scheduler", metavar="ADDRESS",
              help="Have the workers of this Dask scheduler (tls://HOST:PORT) do the sessions.")
@click.option("--dask-cluster", type=click.Path(path_type=Path), metavar="TOML",
              help="Start Dask workers on SLURM, PBS, SGE or LSF and have them do the sessions.")
@click.option("--save-posteriors", type=click.Choice(["none", "tissue", "all"]),
              help="Write probability maps.  [default: none]")
@click.option("--save-per-image", is_flag=True,
              help="Also write the segmentation of every single scan.")
@click.option("--write-preproc", type=click.Choice(["several", "always"]),
              help="Write the segmented image, bias-corrected (desc-preproc): where a session has "
                   "several of its contrast, as NiBabies needs it then, or always.  "
                   "[default: several]")
@click.option("--viewer", type=click.Choice(["niivue", "nilearn", "none"]),
              help="What shows the brain in three dimensions in a session's report.  "
                   "[default: niivue]")
@click.option("--reports-only", is_flag=True,
              help="Make the reports anew from what is in OUTPUT_DIR; segment nothing.")
@click.option("--overwrite", is_flag=True, help="Do again what is already done.")
@click.option("--redo-changed", is_flag=True,
              help="Do again what was done with another input, version, model or option; else it "
                   "stays, and what differs is said.")
@click.option("--stop-on-first-crash", is_flag=True, help="Stop when a session fails.")
@click.option("-w", "--work-dir", type=click.Path(path_type=Path), metavar="DIR",
              help="Accepted for other tools' sake: nothing is written but results.")
# Training
@click.option("--train", is_flag=True,
              help="Train a network on the label maps of BIDS_DIR (a folder, or a pack); the "
                   "result is OUTPUT_DIR/training. Run again, it goes on.")
@click.option("--config", metavar="PRESET|TOML",
              help="Training: all settings. Presets: adult-to-infant, clinical-fetal, default, "
                   "fetalsynthseg, infant-synthseg, large, synthseg.  [default: default]")
@click.option("--validation", multiple=True, type=click.Path(path_type=Path), metavar="PATH...",
              help="Training: data sets to validate on.  [default: column split of "
                   "participants.tsv, else a tenth of the subjects]")
@click.option("--split-file", type=click.Path(path_type=Path), metavar="TSV",
              help="Training: columns participant_id and split (training, validation or none).")
@click.option("--init-from", metavar="FILE|shipped",
              help="Training: start from this model, whatever its labels; without --config with "
                   "its own architecture.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
              help="Training: stop after so many minutes, with a checkpoint.")
@click.option("--checkpoint-piece-mib", type=click.IntRange(min=1), metavar="N",
              help="Training: write checkpoints in pieces of at most N MiB.")
@click.option("--random-seed", type=click.IntRange(0, 2**63 - 1), metavar="N",
              help="Training: seed of every random draw.")
@click.option("--resume", is_flag=True,
              help="Training: fail where there is no checkpoint to go on from.")
# The rest
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("-v", "--verbose", count=True, help="Print more.")
@click.option("--notrack", is_flag=True, help="Accepted: nothing is ever tracked.")
@click.option("--skip-bids-validation", is_flag=True, help="Accepted: the input is not validated.")
@click.version_option(__version__, prog_name="bids_synthseg", message="%(prog)s %(version)s")
def command(analysis_level: str, **given: Any) -> int:
    """Segment the T1w and T2w brain scans of a BIDS data set, from fetus to adult.

    Reads the raw data set BIDS_DIR, writes BIDS derivatives to OUTPUT_DIR. ANALYSIS_LEVEL is
    "participant"; then "group", which puts all sessions into two tables and one page.
    """
    set_up_log(given["quiet"], given["verbose"])
    level = LEVELS.get(analysis_level)
    if level is None:
        raise UnknownLevel(f"unknown analysis level '{analysis_level}'; use participant or group")
    if level == "group":
        for name, option in _NOT_FOR_GROUP.items():
            if _was_given(given[name]):
                raise UsageProblem(
                    f"{option} does not go with level group, which takes all there is"
                )
        return levels.group(given["bids_dir"], given["output_dir"])
    elsewhere = _FOR_SEGMENTING if given["train"] else _FOR_TRAINING
    misplaced = [option for name, option in elsewhere.items() if _was_given(given[name])]
    if misplaced:
        side = "does not go" if given["train"] else "only goes"
        raise UsageProblem(f"{misplaced[0]} {side} together with --train; leave one of them out")
    _check_engine(given)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", given["device"]):
        raise UsageProblem(f"--device {given['device']}: use auto, cpu, cuda, cuda:N or mps")
    bids_dir, output_dir = given["bids_dir"], given["output_dir"]
    if given["train"]:
        return levels.train(bids_dir, output_dir, given)
    if given["reports_only"]:
        return levels.report(bids_dir, output_dir, given)
    chosen = {name: value for name, value in given.items() if name not in _FOR_TRAINING}
    return levels.segment(bids_dir, output_dir, chosen)


# fmt: on
def _check_engine(given: dict[str, Any]) -> None:
    """Sessions are done by local processes or by one Dask; raises UsageProblem for a mixture."""
    options = {name: _FOR_SEGMENTING[name] for name in ("dask_scheduler", "dask_cluster")}
    used = [option for name, option in options.items() if _was_given(given[name])]
    local = [name for name in ("n_procs", "mem_gb") if _was_given(given[name])]
    if len(used) > 1:
        raise UsageProblem(f"{used[0]} and {used[1]}: leave one of them out")
    if used and local:
        option = _FOR_SEGMENTING[local[0]]
        raise UsageProblem(f"{option} is for this machine alone; leave it out with {used[0]}")


def _was_given(value: object) -> bool:
    """Whether an option that defaults to nothing was used; 0 is a value."""
    return value is not None and value is not False and value != ()


def main() -> None:
    """Entry point `bids_synthseg`."""
    sys.exit(run(command, spread(sys.argv[1:], MANY)))
