"""A training run, top to bottom: label maps, first state, steps, validation, checkpoints, card.

    python -m bids_synthseg.learning.train PACK OUT [--config TOML] [--max-minutes M] ...

is the same run for a machine that has torch and numpy alone.
"""

import argparse
import importlib.util
import json
import logging
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bids_synthseg import __version__
from bids_synthseg.errors import AppError, BadData, InputMissing, TryAgainLater
from bids_synthseg.learning.card import RunRecord, data_sets, model_card
from bids_synthseg.learning.config import TrainConfig, read_config
from bids_synthseg.learning.distributed import Team, team
from bids_synthseg.learning.gather import Sources, gather_maps, material_of
from bids_synthseg.learning.monitor import Monitor
from bids_synthseg.learning.notice import Notice
from bids_synthseg.learning.preview import preview_sheet
from bids_synthseg.learning.selection import headline, judge, markdown_table
from bids_synthseg.learning.split import Split
from bids_synthseg.learning.start import empty_state, first_state, grown_state, settled, stage_of
from bids_synthseg.learning.states import State, has_state, restore_state, save_state, saved_step
from bids_synthseg.learning.step import Material, train_step
from bids_synthseg.learning.validation import validate
from bids_synthseg.models.checkpoint import Model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import Pyramid
from bids_synthseg.reading import is_there, read_text
from bids_synthseg.storage import file_sha256, make_folder, write_text

log = logging.getLogger(__name__)

MODEL = "model.safetensors"


def run_training(
    sources: Sources,
    out: Path,
    config: TrainConfig,
    *,
    device: str = "cpu",
    max_minutes: float = math.inf,
    piece_mib: int = 0,
    must_resume: bool = False,
    preset: str = "",
    progress: Callable[[str], None] = log.info,
) -> Path:
    """Train, or go on where `out` holds a checkpoint of the same configuration and label maps.

    Writes into `out`: `model.safetensors`, the averaged weights of the best checkpoint (of the
    last, where nothing is held out); `state.*`, what an exact resume needs, in pieces of at most
    `piece_mib` where that is given; `metrics.tsv`, `preview.png`, `README.md` (the model's card)
    and `run.json`. Returns the model's path; at least one step is made, whatever `max_minutes`
    says. SIGTERM or SIGUSR1 ends it after the step it is at, with a checkpoint and TryAgainLater.
    Under torchrun every process calls this alike. Raises AppError for what a user can mend.
    """
    deadline = time.monotonic() + 60 * max_minutes
    begun = has_state(out)
    if must_resume and not begun:
        raise InputMissing(f"{out}: holds no training run to resume; leave out --resume")
    with team(torch.device(device)) as crew:
        say = progress if crew.leads else _silent
        split, head = gather_maps(sources, config, say)
        config = settled(config, head)
        settings = _settings(config, split)
        if begun:
            _check_same_run(out, settings)
            state = empty_state(stage_of(config, saved_step(out)), crew.device)
            restore_state(out, state)
            say(f"resumed at step {state.step}")
        else:
            state = first_state(stage_of(config, 0), head, crew.device, say)
        material = material_of(split.training, config, head, crew.device, say)
        if crew.leads:
            make_folder(out)
            write_text(out / "run.json", settings)
            if not begun:
                preview_sheet(split.training, config, out / "preview.png", donors=material.donors)
        with Notice() as notice:
            run = Run(out, config, preset, split, material, crew, piece_mib, deadline, notice, say)
            run.go(state)
    return out / MODEL


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    `preset`: what `config` was read from; `deadline` on the monotonic clock.
    """

    out: Path
    config: TrainConfig
    preset: str
    split: Split
    material: Material
    team: Team
    piece_mib: int
    deadline: float
    notice: Notice
    say: Callable[[str], None]

    def go(self, state: State) -> None:
        """Step until the last one or the deadline; judge and save every few minutes, and then."""
        config, clock = self.config, time.monotonic
        monitor = None
        if self.team.leads:
            monitor = Monitor(self.out, config.steps, self.deadline, state.step, self.say)
            monitor.picture(self.out / "preview.png")
        forward = self._forward(state)
        earlier, begun = state.minutes, clock()
        judged = saved = begun
        last = state.step >= config.steps
        if last and not (self.out / MODEL).is_file():
            self._judge(state, None)  # the last step was made where no model can be written
        stopped = False
        while not last and not stopped:
            stage = stage_of(config, state.step)
            loss, making_s = train_step(state, forward, self.material, stage, self.team)
            if state.step == config.coarse_steps:
                state = grown_state(state, config, self.team.device)
                forward = self._forward(state)
                self.say(f"step {state.step}: the finest level is grown")
            if monitor:
                monitor.step(state.step, loss, making_s)
            now, done = clock(), state.step >= config.steps
            state.minutes = earlier + (now - begun) / 60
            stopped, last, judge_now, save_now = self.team.agree(
                bool(self.notice.signal) and not done,  # nothing would judge the last step later
                now > self.deadline or done,
                now - judged > 60 * config.validate_minutes,
                now - saved > 60 * config.checkpoint_minutes,
            )
            if stopped or last or judge_now or save_now:
                if monitor:
                    monitor.report(state.step)
                # Who is told to end has seconds, and judging takes longer.
                if (last or judge_now) and not stopped:
                    self._judge(state, monitor)
                    judged = clock()
                # Also after judging: a resumed run must know of the best model that is on the disk.
                if monitor:
                    save_state(self.out, state, self.piece_mib)
                saved = clock()
        if monitor:
            monitor.close()
        if stopped:
            # Together: as soon as one leaves torchrun ends the others, the one that writes as well.
            self.team.agree(True)
            raise TryAgainLater(
                f"{self.out}: stopped by {self.notice.signal or 'another process'} at step "
                f"{state.step} of {config.steps}, with a checkpoint; the same command goes on"
            )

    def _forward(self, state: State) -> nn.Module:
        """The state's network as the team runs it."""
        network = self.team.wrap(Pyramid(state.network))
        if self.config.compile:
            network.compile()
        return network

    def _judge(self, state: State, monitor: Monitor | None) -> None:
        """Validate the averaged weights, and keep them if they are the best so far.

        Every process looks at its share of the maps. Where nothing is held out the last are best.
        """
        stage = stage_of(self.config, state.step)
        mine = self.split.validation[self.team.rank :: self.team.size]
        scores = self.team.gather(validate(state.average, mine, stage, self.material.head))
        verdict = judge(scores, self.config.floor)
        self.say(f"step {state.step}: {headline(verdict)}")
        if monitor:
            means = {f"{group.dataset} {group.kind}": group.mean for group in verdict.groups}
            monitor.score(state.step, means)
        if not verdict.improves(state.best):
            return
        if importlib.util.find_spec("safetensors") is None:
            # What cannot be kept is not the best so far.
            self.say("safetensors is not installed: run again where it is, for a model")
            return
        state.best = verdict.value if scores else state.best
        state.judged = markdown_table(verdict)
        if self.team.leads:
            self._keep(state, stage)

    def _keep(self, state: State, stage: TrainConfig) -> None:
        """Write the model and its card."""
        path = self.out / MODEL
        save_model(path, model_of(state, self.material.head, stage, self.split))
        record = RunRecord(
            name=self.out.resolve().parent.name,
            training=data_sets(self.split.training),
            validation=data_sets(self.split.validation),
            held_out=self.split.lines,
            preset=self.preset,
            config=without_paths(self.config),
            steps=state.step,
            device=str(self.team.device),
            minutes=state.minutes,
            judged=state.judged,
            checksum=file_sha256(path),
        )
        write_text(self.out / "README.md", model_card(record))


def model_of(state: State, head: Head, stage: TrainConfig, split: Split) -> Model:
    """The averaged weights as a model that tells how it was made."""
    record = {
        "version": __version__,
        "steps": state.step,
        "config": asdict(without_paths(stage)),
        "maps": [f"{one.dataset}/{one.name}" for one in split.training],
        "scores": state.judged,
        "terms": [f"{one.name}: {one.licence}" for one in data_sets(split.training)],
    }
    return Model(state.average, head, stage.shape, stage.fill, record, stage.voxel_mm)


def without_paths(config: TrainConfig) -> TrainConfig:
    """The configuration as others may read it: files by name, not by place."""
    contrast = config.synthesis.contrast
    contrast = replace(contrast, prior_table=Path(contrast.prior_table).name)
    synthesis = replace(config.synthesis, contrast=contrast)
    return replace(config, init_from=Path(config.init_from).name, synthesis=synthesis)


def _settings(config: TrainConfig, split: Split) -> str:
    """What a run is, for `run.json`: a checkpoint belongs to it alone.

    Label maps by name and by a checksum of their voxels, since another map may have the name.
    """
    content: dict[str, object] = {"config": asdict(config)}
    for side, maps in (("training", split.training), ("validation", split.validation)):
        content[side] = {
            f"{one.dataset}/{one.name}": f"{zlib.crc32(one.source.classes.cpu().numpy()):08x}"
            for one in maps
        }
    return json.dumps(content, indent=1, sort_keys=True)


def _check_same_run(out: Path, settings: str) -> None:
    written = out / "run.json"
    if not is_there(written) or read_text(written) != settings:
        raise BadData(
            f"{out}: holds a run of another configuration or other label maps; choose another "
            "folder"
        )


def _silent(line: str) -> None:
    """What a process says that does not lead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The bare entry: see the top of this module."""
    parser = argparse.ArgumentParser(prog="python -m bids_synthseg.learning.train")
    parser.add_argument("packs", nargs="+", type=Path, metavar="PACK")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="default", metavar="PRESET|TOML")
    parser.add_argument("--validation", nargs="*", type=Path, default=[], metavar="PACK")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--init-from", default="", metavar="FILE")
    parser.add_argument("--max-minutes", type=float, default=math.inf)
    parser.add_argument("--checkpoint-piece-mib", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = read_config(given.config)
        if given.init_from:
            config = replace(config, init_from=given.init_from)
        run_training(
            Sources(given.packs, given.validation),
            given.out,
            config,
            device=given.device,
            max_minutes=given.max_minutes,
            piece_mib=given.checkpoint_piece_mib,
            preset=given.config,
        )
    except AppError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
