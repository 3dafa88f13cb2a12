"""The second command, bids_synthseg_tools: what is needed around the App rather than in it."""

import sys
from pathlib import Path

import click

from bids_synthseg import __version__
from bids_synthseg.console import run, set_up_log

PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bids_synthseg_tools", message="%(prog)s %(version)s")
def command() -> None:
    """Tools around bids_synthseg: demo data, evaluation, figures."""
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
@click.argument("image", type=PATH)
@click.argument("labels", type=PATH)
@click.argument("png", type=PATH)
def figure(image: Path, labels: Path, png: Path) -> None:
    """Write a mosaic of IMAGE with LABELS over it to PNG: three planes, four slices each."""
    from bids_synthseg.figure import write_mosaic

    click.echo(f"Figure written to {write_mosaic(image, labels, png)}.")


def main() -> None:
    """Entry point `bids_synthseg_tools`."""
    sys.exit(run(command, sys.argv[1:]))
