"""What a run works on: the label maps to train and to validate on, and what samples are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import InputMissing, UsageProblem
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import BRAIN_TABLE, TrainingMap, of_brain
from bids_synthseg.learning.sampling import map_chances, with_ages
from bids_synthseg.learning.split import Split, split_maps
from bids_synthseg.learning.step import Material, donors_of
from bids_synthseg.models.heads import Head


@dataclass(frozen=True)
class Sources:
    """Where label maps come from. `folders`: BIDS folders or packs; `validation`: more of them, to
    look at but never to train on; without any, `split_file`, a column `split` of participants.tsv
    or a held-out share decides."""

    folders: Sequence[Path]
    validation: Sequence[Path] = ()
    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    split_file: Path | None = None


def gather_maps(
    sources: Sources, config: TrainConfig, progress: Callable[[str], None]
) -> tuple[Split, Head]:
    """The label maps to train and to validate on, and the head that answers for their labels."""
    if not sources.folders:
        raise InputMissing("no label data sets given; name at least one folder with dseg.tsv")
    both = {Path(f).resolve() for f in sources.folders} & {
        Path(f).resolve() for f in sources.validation
    }
    if both:
        raise UsageProblem(f"{min(both)}: given for training and validation; take it from one")
    maps, table = _load(sources.folders, config, sources.participants, sources.sessions)
    if sources.validation:
        checks, _ = _load(sources.validation, config)
        split = Split(tuple(maps), tuple(checks), ())
    else:
        split = split_maps(maps, sources.split_file, config.held_out, config.seed)
    for line in split.lines:
        progress(line)
    if config.target == "brain":
        table = BRAIN_TABLE
        training, validation = of_brain(split.training), of_brain(split.validation)
        split = Split(tuple(training), tuple(validation), split.lines)
    progress(
        f"{len(split.training)} label maps to train on, {len(split.validation)} to validate on, "
        f"{len(table)} labels"
    )
    return split, Head(table, config.head)


def material_of(
    maps: Sequence[TrainingMap],
    config: TrainConfig,
    head: Head,
    device: torch.device,
    progress: Callable[[str], None],
) -> Material:
    """What samples are made of, on the device."""
    maps = with_ages(maps, config.sampling.ages)
    sampler = map_chances(maps, config.sampling)
    for line in sampler.lines:
        progress(line)
    placed = [replace(one, source=one.source.to(device)) for one in maps]
    donors = donors_of(placed) if config.synthesis.head.borrowed else []
    return Material(placed, sampler.chances, donors, head)


def _load(
    folders: Sequence[Path],
    config: TrainConfig,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
) -> tuple[list[TrainingMap], LabelTable]:
    # Reading NIfTI takes libraries that a machine with packed maps need not have.
    from bids_synthseg.learning.datasets import load_maps

    return load_maps(
        folders,
        participants=participants,
        sessions=sessions,
        with_clusters=config.synthesis.parts.probability > 0,
    )
