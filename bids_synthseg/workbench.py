"""The second command, bids_synthseg_tools: what is needed around the App rather than in it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bids_synthseg import __version__
from bids_synthseg.console import run, set_up_log
from bids_synthseg.errors import UsageProblem

PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bids_synthseg_tools", message="%(prog)s %(version)s")
def command() -> None:
    """Tools around bids_synthseg: demo data, evaluation, figures, what training is made of."""
    set_up_log()


@command.command()
@click.argument("folder", type=PATH)
@click.option("--seed", default=0, show_default=True, help="Seed of the phantom.")
def demo(folder: Path, seed: int) -> None:
    """Write a small BIDS data set to FOLDER: a real adult T1w, a phantom newborn T1w and T2w."""
    from bids_synthseg.demo import write_demo

    write_demo(folder, seed=seed)
    click.echo(f"Demo data set written to {folder}: sub-adult (T1w), sub-infant (T1w, T2w).")
    click.echo(f"Segment it: bids_synthseg {folder} OUTPUT_DIR participant")


@command.command()
@click.argument("output_dir", type=PATH)
@click.argument("reference_dir", type=PATH)
@click.option("--per-subject", is_flag=True, help="Also print the mean of every session.")
@click.option("--full", is_flag=True, help="Also surface distance (HD95) and volume error.")
@click.option("--tsv", type=PATH, metavar="FILE", help="Write every single score to this table.")
def evaluate(
    output_dir: Path, reference_dir: Path, per_subject: bool, full: bool, tsv: Path | None
) -> None:
    """Compare the derivatives in OUTPUT_DIR with reference label maps.

    REFERENCE_DIR is a BIDS derivative data set with sub-*/anat/*_dseg.nii.gz on the grids of the
    raw scans and a dseg.tsv. Columns T1w and T2w need derivatives made with --save-per-image.
    """
    from bids_synthseg import evaluation
    from bids_synthseg.storage import write_text

    scores = evaluation.evaluate(output_dir, reference_dir, full)
    sessions = len({score.session for score in scores})
    click.echo(f"Dice, left and right averaged, mean over {sessions} session(s)")
    click.echo(evaluation.summary(scores))
    if full:
        click.echo("\n95th percentile surface distance in mm")
        click.echo(evaluation.summary(scores, "hd95_mm", 2))
        click.echo("\nVolume error in percent of the reference, unsigned")
        click.echo(evaluation.summary(scores, "volume_error_percent", 1))
    if per_subject:
        click.echo("\nDice per session, mean over structures")
        click.echo(evaluation.session_summary(scores))
    if tsv:
        write_text(tsv, evaluation.scores_table(scores))


@command.command()
@click.argument("validation_dir", type=PATH)
@click.option("--model", type=PATH, metavar="FILE", help="Weights to use, not those shipped.")
@click.option(
    "--out",
    type=PATH,
    default=Path("accuracy"),
    show_default=True,
    metavar="DIR",
    help="Folder for accuracy.tsv (every number), accuracy.md, pictures and the derivatives.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps")
@click.option(
    "--only",
    multiple=True,
    metavar="SECTION",
    help="Only fetal, newborns, infants, adults, contrasts, volumes or locator; may be given "
    "several times.",
)
def accuracy(
    validation_dir: Path, model: Path | None, out: Path, device: str, only: tuple[str, ...]
) -> None:
    """Measure a model on VALIDATION_DIR and print the report, as markdown.

    VALIDATION_DIR holds validation/fetal, validation/newborns and validation/adults (scans, with
    their labels in derivatives/reference), inputs/infants (scans to look at, and T1w against T2w),
    validation/infant-4mo (a label map), inputs/fetal-stacks, inputs/adult-head and
    brain_volume_by_age.tsv; what is not there is left out. Look at the pictures in OUT/pictures.
    """
    from bids_synthseg.accuracy import SECTIONS, run_accuracy
    from bids_synthseg.pipeline import Options, Segmenter
    from bids_synthseg.resources import available_cpus

    if unknown := sorted(set(only) - set(SECTIONS)):
        raise UsageProblem(f"--only {unknown[0]}: not known; use {', '.join(SECTIONS)}")
    options = Options(device=device, model=model, n_cpus=available_cpus())
    segmenter = Segmenter.load(options)
    click.echo(run_accuracy(validation_dir, out, segmenter, options, only or SECTIONS), nl=False)


@command.command("check-nibabies")
@click.argument("derivatives", type=PATH)
@click.option(
    "--participant-label",
    "participants",
    multiple=True,
    metavar="LABEL",
    help="Only this subject; may be given several times.",
)
def check_nibabies(derivatives: Path, participants: tuple[str, ...]) -> int:
    """Print per session what NiBabies takes from DERIVATIVES, and what it ignores and why.

    Exit code 1 where it would not use a session: neither segmentation nor mask, several files where
    it needs one, labels beyond its table, images off the grid of the preprocessed scan.
    """
    from bids_synthseg.bids.nibabies import describe, view_folder

    views = view_folder(derivatives, participants)
    for view in views:
        click.echo(describe(view))
    unused = sum(bool(view.problems) for view in views)
    click.echo(f"{len(views) - unused} of {len(views)} sessions would be used.")
    return int(unused > 0)


@command.command()
@click.argument("image", type=PATH)
@click.argument("labels", type=PATH)
@click.argument("png", type=PATH)
def figure(image: Path, labels: Path, png: Path) -> None:
    """Write a mosaic to PNG: four slices of three planes, IMAGE alone and with LABELS over it."""
    from bids_synthseg.figure import write_mosaic

    click.echo(f"Figure written to {write_mosaic(image, labels, png)}.")


@command.command()
@click.argument("folders", nargs=-1, required=True, type=PATH)
@click.argument("file", type=PATH)
@click.option("--without-scans", is_flag=True, help="Leave out the scans beside the maps.")
def pack(folders: tuple[Path, ...], file: Path, without_scans: bool) -> None:
    """Pack the label maps of BIDS FOLDERS, read and checked, into one FILE.

    It takes the place of the folders for --train, loads in seconds, and needs torch and numpy alone
    (python -m bids_synthseg.learning.train).
    """
    from bids_synthseg.learning.datasets import load_maps
    from bids_synthseg.learning.pack import write_pack

    maps, table = load_maps(folders, with_clusters=not without_scans)
    write_pack(file, maps, table, with_images=not without_scans)
    click.echo(f"{len(maps)} label maps packed into {file}, {file.stat().st_size / 2**20:.1f} MiB.")


@command.command()
@click.argument("folders", nargs=-1, required=True, type=PATH)
@click.argument("tsv", type=PATH)
def priors(folders: tuple[Path, ...], tsv: Path) -> None:
    """Estimate how bright each label is, from the label maps in FOLDERS and the scans beside them.

    The table TSV serves as `prior_table` under [synthesis.contrast] of a training configuration.
    """
    from bids_synthseg.learning.datasets import load_maps
    from bids_synthseg.learning.estimate import estimate_priors
    from bids_synthseg.storage import write_text
    from bids_synthseg.synthesis.priors import priors_text

    maps, _ = load_maps(folders)
    found = estimate_priors(maps)
    write_text(tsv, priors_text(found))
    click.echo(f"Priors of {', '.join(found)} written to {tsv}.")


@command.command()
@click.argument("folders", nargs=-1, required=True, type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--config",
    default="default",
    show_default=True,
    metavar="PRESET|TOML",
    help="Settings of the generator.",
)
@click.option("-n", "--number", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--random-seed", default=1, show_default=True)
@click.option("--sheet", is_flag=True, help="Only OUT/preview.png: three slices of each image.")
def synthesize(
    folders: tuple[Path, ...], out: Path, config: str, number: int, random_seed: int, sheet: bool
) -> None:
    """Paint synthetic images from the label maps in FOLDERS: image and labels as NIfTI, in OUT."""
    from bids_synthseg.learning.config import read_config
    from bids_synthseg.learning.datasets import load_maps
    from bids_synthseg.learning.export import write_samples
    from bids_synthseg.learning.preview import preview_sheet
    from bids_synthseg.learning.step import donors_of

    settings = replace(read_config(config), seed=random_seed)
    maps, table = load_maps(folders, with_clusters=settings.synthesis.parts.probability > 0)
    donors = donors_of(maps)
    preview_sheet(maps, settings, out / "preview.png", n=number, donors=donors)
    if not sheet:
        write_samples(maps, settings, table, out, number, seed=random_seed, donors=donors)
    click.echo(f"{number} synthetic samples in {out}.")


# fmt: off
@command.command()
@click.argument("bids_dir", type=PATH)
@click.argument("output_dir", type=PATH)
@click.option("--num-parts", type=click.IntRange(min=1), metavar="N",
              help="Tasks of the job array; the same N as before with --failed.")
@click.option("--train", is_flag=True,
              help="A training run instead (--train of the App), which goes on after a preemption "
                   "and after its time limit.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Nodes that train.")
@click.option("--container", type=PATH, metavar="SIF",
              help="Run this image with Apptainer.  [default: the command as it is installed]")
@click.option("--partition", default="", metavar="NAME")
@click.option("--gres", default="", metavar="SPEC", help="For instance gpu:1.")
@click.option("--time", default="04:00:00", show_default=True, help="Of one task.")
@click.option("--mem-gb", default=4, show_default=True, type=click.IntRange(min=1),
              help="Of one task; training: of one node.")
@click.option("--cpus", default=2, show_default=True, type=click.IntRange(min=1),
              help="As --mem-gb.")
@click.option("--n-procs", type=click.IntRange(min=1), metavar="N",
              help="Sessions at once in a task; training: processes per node.  [default: what the "
                   "App chooses; training: one per GPU of --gres, else 1]")
@click.option("--throttle", type=click.IntRange(min=1), metavar="N",
              help="Tasks at once.  [default: no limit]")
@click.option("--failed", is_flag=True, help="Only parts with a session that is not finished.")
@click.option("--group/--no-group", "with_group", default=None,
              help="Level group when all tasks have ended.  [default: group]")
@click.option("--submit", "hand_over", is_flag=True,
              help="Hand the scripts to sbatch instead of printing them.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF THE APP]")
def submit(
    train: bool, failed: bool, with_group: bool | None, hand_over: bool, **given: Any
) -> None:
    """Print, or submit, the SLURM jobs that segment BIDS_DIR into OUTPUT_DIR, or train."""
    from bids_synthseg import submission

    one_sided = {
        "--num-parts": given["num_parts"],
        "--throttle": given["throttle"],
        "--failed": failed or None,
        "--group": with_group,
    }
    misplaced = [name for name, value in one_sided.items() if value is not None]
    if train and misplaced:
        raise UsageProblem(f"{misplaced[0]} does not go with --train; leave one of them out")
    if not train and given["nodes"]:
        raise UsageProblem("--nodes only goes with --train; a task of an array has one node")
    if not train and not given["num_parts"]:
        raise UsageProblem("--num-parts: say in how many tasks to cut the data set")
    job = submission.Job(**{name: value for name, value in given.items() if value is not None})
    if train:
        script = submission.training_script(job)
        if hand_over:
            click.echo(f"Job {submission.submit(script, job.output_dir)}: training.")
        else:
            click.echo(script, nl=False)
        return
    parts = list(range(job.num_parts))
    if failed:
        parts = submission.parts_left(job.output_dir, job.num_parts)
    if not parts:
        click.echo("Every part is finished.")
        return
    array = submission.array_script(job, parts)
    group = "" if with_group is False else submission.group_script(job)
    if not hand_over:
        click.echo("\n".join(one for one in (array, group) if one), nl=False)
        return
    number = submission.submit(array, job.output_dir)
    click.echo(f"Job {number}: parts {submission.array_text(parts)} of {job.num_parts}.")
    if group:
        last = submission.submit(group, job.output_dir, after=number)
        click.echo(f"Job {last}: level group, after all of them.")


# fmt: on
@command.group()
def weights() -> None:
    """What ships: the models, what each says about itself, and whether they are in order."""


@weights.command("list")
def list_weights() -> None:
    """One line for each model that ships."""
    from bids_synthseg.models.description import overview
    from bids_synthseg.models.registry import model_files, shipped_folder

    click.echo(overview(model_files(shipped_folder())))


@weights.command("show")
@click.argument("name")
def show_weights(name: str) -> None:
    """All that a model says about itself, as TOML; NAME is one that ships, or a file."""
    from bids_synthseg.models.description import facts
    from bids_synthseg.models.registry import find_model
    from bids_synthseg.toml import toml_text

    click.echo(toml_text(facts(find_model(name))), nl=False)


@weights.command("verify")
@click.argument("models", nargs=-1, metavar="[FILE]...")
def verify_weights(models: tuple[str, ...]) -> None:
    """Checksums, finite weights and a forward pass: of the FILEs, or of all that ships.

    Exit codes: 0 all is well, 65 something is not, 66 a file is missing.
    """
    from bids_synthseg.models import registry

    if models:
        lines = registry.verify_files({registry.find_model(name): None for name in models})
    else:
        lines = registry.verify_folder(registry.shipped_folder())
    for line in lines:
        click.echo(line)


def main() -> None:
    """Entry point `bids_synthseg_tools`."""
    sys.exit(run(command, sys.argv[1:]))
