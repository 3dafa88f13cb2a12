"""Outputs of one session, kept aside until they are complete, then put in place as a whole.

They are written below `logs/.sub-01_ses-1mo.new/`, laid out as in the output. When the last one is
there, the new record is written beside them as a journal: from then on the session is the new one.
Every file is moved to its place, outputs of the earlier record that have no successor go, and the
journal takes the place of that record. A run that dies on the way left a journal, and the next run
(or level group) completes the moves; one that dies before left none, and the next run removes what
it had written. So the output holds the old session or the new one, with its record.
"""

import os
import shutil
from pathlib import Path

from bids_synthseg.bids.provenance import SessionRecord
from bids_synthseg.errors import CannotCreate
from bids_synthseg.storage import (
    explain,
    file_sha256,
    make_folder,
    move_file,
    remove_file,
    write_json,
)

SUFFIX = ".new"


class Staging:
    """The folder beside `record` in which a session is written; `page`: that of the session, which
    goes when the results that it shows do."""

    def __init__(self, record: SessionRecord, page: Path) -> None:
        self.record = record
        self.page = page
        self.folder = record.path.with_name(f".{record.path.stem}{SUFFIX}")
        self.journal = SessionRecord(self.folder / "record.json", record.output_dir)

    def settle(self) -> None:
        """Complete what an earlier run had committed, remove what it had not."""
        if content := self.journal.read():
            self._put_in_place(content)
        remove_file(self.journal.path)  # one that cannot be read
        self.discard()

    def discard(self) -> None:
        """Remove what was written, unless that is committed."""
        try:
            if self.folder.is_dir() and not self.journal.path.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise explain(error, self.folder) from error

    def commit(self, content: dict, kept: dict[str, str]) -> None:
        """Put all that was written in the place of the earlier outputs.

        content: the record but for its outputs; kept: name -> checksum of earlier outputs that
        stay. Raises CannotCreate or StorageProblem; what cannot work is found before it begins.
        """
        written = sorted(path for path in self.folder.rglob("*") if path.is_file())
        outputs = dict(kept)
        for path in written:
            name = path.relative_to(self.folder).as_posix()
            _check_place(self.record.output_dir / name)
            outputs[name] = file_sha256(path)
        write_json(self.journal.path, {**content, "Outputs": outputs})
        self._put_in_place(self.journal.read())
        self.discard()

    def _put_in_place(self, content: dict) -> None:
        """What the journal says; where some of it is done already, the rest."""
        outputs = self.journal.outputs(content)
        for name, path in outputs.items():
            if (staged := self.folder / name).exists():
                move_file(staged, path)
        for name, path in self.record.outputs(self.record.read()).items():
            if name not in outputs:
                remove_file(path)
        remove_file(self.page)
        move_file(self.journal.path, self.record.path)


def _check_place(path: Path) -> None:
    """Raises CannotCreate where a file could not be moved to `path`."""
    make_folder(path.parent)
    if path.is_dir():
        raise CannotCreate(f"{path}: a folder is in the way of a file; move it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CannotCreate(f"{path}: no permission to write here; choose another output folder")
