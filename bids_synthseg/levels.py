"""What the command does, level by level and mode by mode: from options to one exit code.

`given` holds the options of the command line by name. torch and everything that needs it is
imported when a level runs, so that --help answers at once.
"""

import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bids_synthseg.arguments import contrasts, named_paths, part_of, read_filters
from bids_synthseg.errors import InputMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bids_synthseg.bids.scans import ScanGroup
    from bids_synthseg.execution import Engine
    from bids_synthseg.work import Work

LOG = logging.getLogger(__name__)


def segment(bids_dir: Path, output_dir: Path, given: dict[str, Any]) -> int:
    """Level participant: segment every selected session; returns the exit code."""
    from bids_synthseg.bids.plan import plan_text
    from bids_synthseg.bids.query import find_scan_groups

    # Sessions may be done by processes elsewhere.
    bids_dir = bids_dir.absolute()
    named = {name: path.absolute() for name, path in named_paths(given["derivatives"]).items()}
    groups = find_scan_groups(
        bids_dir,
        participants=given["participants"],
        sessions=given["sessions"],
        contrasts=contrasts(given["contrasts"]),
        filters=read_filters(given["bids_filter_file"]),
        database_dir=given["bids_database_dir"],
        all_scans=given["all_scans"],
        quality_column=given["quality_column"],
        derivatives=named,
    )
    groups = [_nameable(group, output_dir.absolute(), given) for group in groups]
    part = part_of(given["num_parts"], given["part_id"])
    mine = part.share(groups) if part else groups

    from bids_synthseg.bids.dataset import check_output, prepare_output, write_dataset_files
    from bids_synthseg.bids.derived import EDITS
    from bids_synthseg.bids.methods import write_run_files
    from bids_synthseg.bids.tidying import at_work
    from bids_synthseg.edits import find_edits

    if given["dry_run"]:
        output_dir = check_output(bids_dir, output_dir)
        if EDITS in named:
            find_edits(named[EDITS], groups, output_dir)
        return _dry_run(mine, bids_dir, given)

    from bids_synthseg.execution import run_sessions
    from bids_synthseg.pipeline import Options, methods_of
    from bids_synthseg.resources import available_cpus
    from bids_synthseg.storage import write_text
    from bids_synthseg.work import Work

    on_dask = given["dask_scheduler"] or given["dask_cluster"]
    options = Options(
        device=given["device"],
        mirror=not given["no_tta"],
        save_posteriors=given["save_posteriors"] or "none",
        save_per_image=given["save_per_image"],
        write_preproc=given["write_preproc"] or "several",
        model=given["model"] and given["model"].absolute(),
        all_scans=given["all_scans"],
        overwrite=given["overwrite"],
        redo_changed=given["redo_changed"],
        viewer=given["viewer"] or "niivue",
        derivatives=named,
        # Dask's workers have been given CPUs of their own.
        n_cpus=given["n_cpus"] or (None if on_dask else available_cpus()),
    )
    output_dir = prepare_output(bids_dir, output_dir)
    with at_work(output_dir):
        edited = find_edits(named[EDITS], groups, output_dir) if EDITS in named else {}
        work, engine = _engine(Work(bids_dir, output_dir, options, edited), mine, given)
        segmenter = work.segmenter
        write_dataset_files(bids_dir, output_dir, segmenter.table, named)
        tables = {"command_line": given, "segmentation": vars(options)}
        # Plan and methods text tell of the whole, so that all parts of a job write the same; no
        # part opens the scans of the others.
        methods = methods_of(groups, segmenter, options)
        write_run_files(output_dir, methods, tables, sys.argv, part and part.number)
        plan = plan_text(groups, bids_dir, with_memory=part is None)
        write_text(output_dir / "logs" / "plan.tsv", plan)
        stop = given["stop_on_first_crash"]
        return run_sessions(
            mine, engine, output_dir, stop_on_first_crash=stop, part=part and part.number
        )


def _nameable(group: "ScanGroup", output_dir: Path, given: dict[str, Any]) -> "ScanGroup":
    """The session, with its problem where the file system cannot take the names of its outputs."""
    from bids_synthseg.bids.derivatives import name_problem

    problem = group.problem or name_problem(group, output_dir, given["save_per_image"])
    return replace(group, problem=problem) if problem else group


def _dry_run(groups: "Sequence[ScanGroup]", bids_dir: Path, given: dict[str, Any]) -> int:
    """Print what would be done; raises what the run would raise before its first session."""
    from bids_synthseg.bids.plan import checked, plan_summary, plan_text
    from bids_synthseg.execution import memory_problem
    from bids_synthseg.models.checkpoint import load_model
    from bids_synthseg.pipeline import devices
    from bids_synthseg.resources import available_memory_gb

    on_dask = given["dask_scheduler"] or given["dask_cluster"]
    if not on_dask:
        devices(given["device"])
    if given["model"]:
        load_model(given["model"])
    groups = [checked(group) for group in groups]
    if not on_dask:  # its workers have memory of their own
        limit_gb = given["mem_gb"] or available_memory_gb()
        groups = [
            replace(group, problem=group.problem or memory_problem(group, limit_gb))
            for group in groups
        ]
    click.echo(plan_text(groups, bids_dir), nl=False)
    click.echo(plan_summary(groups), err=True)  # the table alone can go into a file
    return 0


def _engine(
    work: "Work", groups: "Sequence[ScanGroup]", given: dict[str, Any]
) -> "tuple[Work, Engine]":
    """What runs the sessions, and the work as this process itself can do it.

    Where other processes do it, this one keeps off the GPUs.
    """
    from bids_synthseg.execution import in_turn, within_memory
    from bids_synthseg.pipeline import devices
    from bids_synthseg.processes import fitting_processes, processes
    from bids_synthseg.resources import available_memory_gb

    logs = work.output_dir / "logs"
    if given["dask_scheduler"]:
        from bids_synthseg.dask_cluster import on_scheduler

        return work.with_device("cpu"), on_scheduler(given["dask_scheduler"], work, logs)
    if given["dask_cluster"]:
        from bids_synthseg.dask_cluster import on_cluster

        return work.with_device("cpu"), on_cluster(given["dask_cluster"], work, logs)
    there = devices(work.options.device)
    n_cpus = work.options.n_cpus or 1
    memory_gb = given["mem_gb"] or available_memory_gb()
    n_procs = fitting_processes(given["n_procs"], groups, n_cpus, memory_gb, there)
    if n_procs == 1:
        work = work.with_device(there[0])
        engine = in_turn(work, logs)
    else:
        LOG.info("%d sessions at a time on %s", n_procs, ", ".join(there))
        engine = processes(work, n_procs, there, n_cpus, logs)
        work = work.with_device("cpu")
    return work, within_memory(engine, memory_gb)


def report(bids_dir: Path, output_dir: Path, given: dict[str, Any]) -> int:
    """Level participant with --reports-only: the pages of sessions that are there already."""
    from bids_synthseg.bids.dataset import dataset_links
    from bids_synthseg.bids.reports import write_reports

    failed = write_reports(
        bids_dir,
        output_dir,
        participants=given["participants"],
        sessions=given["sessions"],
        viewer=given["viewer"] or "niivue",
        table_of_links=dataset_links(output_dir) | named_paths(given["derivatives"]),
    )
    return int(failed > 0)


def train(bids_dir: Path, output_dir: Path, given: dict[str, Any]) -> int:
    """Level participant with --train: one training run on all label maps of all data sets."""
    from bids_synthseg.bids.dataset import BIDSIGNORE, prepare_output
    from bids_synthseg.learning.config import read_config
    from bids_synthseg.learning.gather import Sources
    from bids_synthseg.learning.train import run_training
    from bids_synthseg.pipeline import choose_device
    from bids_synthseg.resources import available_cpus, limit_threads
    from bids_synthseg.storage import write_text

    if not bids_dir.exists():
        raise InputMissing(f"{bids_dir}: no such folder; give a BIDS data set of label maps")
    preset = given["config"] or "default"
    config = read_config(preset)
    if given["random_seed"] is not None:
        config = replace(config, seed=given["random_seed"])
    if given["init_from"]:
        # Who names no configuration wants the model to go on as it is.
        keep = config.keep_network or not given["config"]
        config = replace(config, init_from=given["init_from"], keep_network=keep)
    sources = Sources(
        folders=[bids_dir, *named_paths(given["derivatives"]).values()],
        validation=given["validation"],
        participants=given["participants"],
        sessions=given["sessions"],
        split_file=given["split_file"],
    )
    output = prepare_output(bids_dir, output_dir)
    write_text(output / ".bidsignore", BIDSIGNORE)
    device = choose_device(given["device"])
    limit_threads(given["n_cpus"] or available_cpus())
    model = run_training(
        sources,
        output / "training",
        config,
        device=str(device),
        max_minutes=given["max_minutes"] or math.inf,
        piece_mib=given["checkpoint_piece_mib"] or 0,
        must_resume=given["resume"],
        preset=preset,
    )
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one speaks
        click.echo(f"Model written to {model}.")
    return 0


def group(bids_dir: Path, output_dir: Path) -> int:
    """Level group: tables and a page about all that level participant has done so far."""
    from bids_synthseg.bids.group import write_group

    results = write_group(bids_dir, output_dir)
    not_done = sum(result.status != "done" for result in results)
    click.echo(f"Sessions: {len(results)}, not done: {not_done}.")
    click.echo(f"Look at {output_dir / 'group.html'}")
    return 0
