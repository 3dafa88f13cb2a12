"""What is done with one session, as a value that can be sent to another process or machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.sessions import Key
from bids_synthseg.edits import run_edited
from bids_synthseg.errors import BadData
from bids_synthseg.pipeline import Options, Segmenter, SessionResult, run_session


@dataclass(frozen=True)
class Work:
    """Segments a session of `bids_dir` into `output_dir`, or takes its edited label maps over.

    Small: the networks are loaded where it is called, once per process. Folders and files should
    be absolute, as other processes may have another working folder.
    """

    bids_dir: Path
    output_dir: Path
    options: Options
    edited: Mapping[Key, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def segmenter(self) -> Segmenter:
        """The networks, loaded at first use in this process; raises as Segmenter.load."""
        return _load(self.options.device, self.options.model, self.options.n_cpus)

    def with_device(self, device: str, n_cpus: int | None = None) -> "Work":
        """The same on another device, and with so many threads where that is given."""
        n_cpus = n_cpus or self.options.n_cpus
        return replace(self, options=replace(self.options, device=device, n_cpus=n_cpus))

    def __call__(self, group: ScanGroup) -> SessionResult:
        """Do one session; raises AppError with one line for the user."""
        if group.problem:
            raise BadData(group.problem)
        places = self.bids_dir, self.output_dir, self.segmenter, self.options
        if maps := self.edited.get(group.key):
            return run_edited(group, maps, *places)
        return run_session(group, *places)


@lru_cache(maxsize=1)
def _load(device: str, model: Path | None, n_cpus: int | None) -> Segmenter:
    return Segmenter.load(Options(device=device, model=model, n_cpus=n_cpus))
