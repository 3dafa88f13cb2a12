"""A run speaks to nobody: no connection, no port, no name looked up."""

import subprocess
import sys
from pathlib import Path

from conftest import nifti
from handmade import grid, head

AUDITED = """
import sys
from pathlib import Path

seen = []
sys.addaudithook(lambda event, of: event.startswith("socket.") and seen.append((event, str(of))))

from bids_synthseg import cli, console, pipeline
from handmade import segmenter

pipeline.Segmenter.load = staticmethod(lambda options: segmenter())
raw, out = sys.argv[1:]
codes = [
    console.run(cli.command, [raw, out, level, *words])
    for level, words in (("participant", ["--device", "cpu"]), ("group", []))
]
import socket
opened = [call for call in seen if call[0] != "socket.__new__"]
assert codes == [0, 0], codes
assert not opened, opened
assert (Path(out) / "sub-01.html").is_file() and (Path(out) / "group.html").is_file()
# The hook sees what it is there for.
with socket.socket() as port:
    port.bind(("127.0.0.1", 0))
assert [call[0] for call in seen][-1] == "socket.bind"
"""


def test_a_plain_run_opens_no_socket(bids_tree, tmp_path):
    place = grid((38, 42, 36), (1.7, 1.8, 1.9))
    image = nifti(head(place)[1].data, place.affine)
    raw = bids_tree({"sub-01": {"anat": {"sub-01_T1w.nii.gz": image}}})
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(raw), str(tmp_path / "out")],
        cwd=tests, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
