"""The local folder: whole files, the manifest last, a repeat changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.exports.delivery_data import ROWS, delivery_of
from tokentra_dagster.errors import PermanentError, UsageError
from tokentra_dagster.exports.destinations import local
from tokentra_dagster.exports.destinations.local import LocalFolder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files_arrive_whole_under_their_names(tmp_path):
    delivery = delivery_of(tmp_path / "made", folder="acme/daily")
    delivered = LocalFolder.parse({"folder": str(tmp_path / "out")}).deliver(delivery)
    place = tmp_path / "out/acme/daily"
    assert names(place) == ["usage_2026-01-01.csv", "usage_2026-01-01.csv.manifest.json"]
    assert Path(delivered.where).read_bytes() == ROWS
    assert (delivered.where, delivered.message_id) == (str(place / "usage_2026-01-01.csv"), delivery.message_id)


def test_a_repeat_leaves_the_same_files(tmp_path):
    out, delivery = LocalFolder(tmp_path / "out"), delivery_of(tmp_path / "made")
    assert out.deliver(delivery) == out.deliver(delivery)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in delivery.all_files
    }


CRASH = """
import os, sys
from pathlib import Path
from tests.exports.delivery_data import delivery_of
from tokentra_dagster.exports.destinations.local import LocalFolder
real, left = Path.replace, [int(sys.argv[2])]
def replace(self, target):
    if left[0] == 0:
        os._exit(9)
    left[0] -= 1
    return real(self, target)
Path.replace = replace
root = Path(sys.argv[1])
LocalFolder(root / "out").deliver(delivery_of(root / "made"))
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_killed_before_the_manifest_leaves_none_and_a_retry_completes(tmp_path, renames):
    killed = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), str(renames)], cwd=Path(__file__).parents[2], timeout=60)
    assert killed.returncode == 9
    whole = ["usage_2026-01-01.csv"][:renames]
    assert [name for name in names(tmp_path / "out") if not name.startswith(".")] == whole

    LocalFolder(tmp_path / "out").deliver(delivery_of(tmp_path / "made"))
    visible = [name for name in names(tmp_path / "out") if not name.startswith(".")]
    assert visible == ["usage_2026-01-01.csv", "usage_2026-01-01.csv.manifest.json"]


def test_what_a_killed_process_left_behind_goes_after_a_day(tmp_path):
    out, delivery = LocalFolder(tmp_path / "out"), delivery_of(tmp_path / "made")
    out.deliver(delivery)
    old, young = (tmp_path / "out" / f".usage_2026-01-01.csv.{name}.part" for name in ("old", "young"))
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    out.deliver(delivery)
    assert (old.exists(), young.exists()) == (False, True)


def test_no_manifest_vouches_for_a_half_replaced_restatement(tmp_path, monkeypatch):
    out = LocalFolder(tmp_path / "out")
    out.deliver(delivery_of(tmp_path / "made"))

    def fail(source, file) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_copy", fail)
    with pytest.raises(Exception, match="No space left"):
        out.deliver(delivery_of(tmp_path / "again", content=ROWS + b"2026-01-01,o3,5\n"))
    assert names(tmp_path / "out") == ["usage_2026-01-01.csv"]


def test_a_file_that_is_not_the_one_of_the_manifest_is_not_delivered(tmp_path):
    delivery = delivery_of(tmp_path / "made")
    delivery.files[0].write_bytes(ROWS[:-10])
    with pytest.raises(PermanentError, match="nothing was delivered"):
        LocalFolder(tmp_path / "out").deliver(delivery)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["../up", "/abs", "a/../b", "a//b", "a\nb", "a/./b", "a/"])
def test_a_folder_that_leads_out_of_the_destination_is_refused(tmp_path, folder):
    with pytest.raises(PermanentError, match="relative path"):
        delivery_of(tmp_path, folder=folder)


@pytest.mark.parametrize("message_id", ["", "a b", "a\nX-Evil: 1", "é", "x" * 129, "a.b"])
def test_a_message_id_fits_every_destination(tmp_path, message_id):
    with pytest.raises(PermanentError, match="message id"):
        replace(delivery_of(tmp_path), message_id=message_id)


def test_a_file_name_with_a_line_break_is_refused(tmp_path):
    with pytest.raises(PermanentError, match="file name"):
        delivery_of(tmp_path, name="usage\r\nBcc: everyone.csv")


def test_a_relative_folder_is_refused_when_it_is_set():
    with pytest.raises(UsageError, match=r"'exports'; it must be an absolute path"):
        LocalFolder.parse({"folder": "exports"})


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(PermanentError, match="cannot be written"):
        LocalFolder(tmp_path / "out").deliver(delivery_of(tmp_path / "made"))
