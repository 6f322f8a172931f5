"""How the job records keep their journal, by the file system they lie on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from segserve.jobs.journal import journal_mode
from segserve.jobs.record import Job
from segserve.jobs.store import SqlJobStore
from tests.scripted_jobs import kept, spec


class Mount(NamedTuple):
    mountpoint: str
    fstype: str
    opts: str = "rw"


@pytest.mark.parametrize(
    ("kind", "journal"),
    [
        *((kind, "DELETE") for kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "smbfs", "NFS")),
        *((kind, "WAL") for kind in ("ext4", "xfs", "tmpfs", "NTFS", "apfs", "fuseblk", "fuse.mergerfs", "overlay")),
    ],
)
def test_the_journal_by_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, journal: str
) -> None:
    """The nearest mount decides, and of two on one place the later; the database says itself what it uses."""
    other = "ext4" if journal == "DELETE" else "nfs"
    mounts = [
        Mount(str(tmp_path), other),
        Mount(str(tmp_path), kind),
        Mount(tmp_path.anchor, other),
        Mount(str(tmp_path) + "-beside", other),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    records = tmp_path / "jobs.sqlite"
    SqlJobStore(records).close()
    connection = sqlite3.connect(records)
    assert connection.execute("PRAGMA journal_mode").fetchone() == (("wal",) if journal == "WAL" else ("delete",))
    connection.close()


def test_the_journal_of_a_share_that_windows_has_given_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [Mount(str(tmp_path), "NTFS", "rw,remote")])
    assert journal_mode(tmp_path / "jobs.sqlite") == "DELETE"
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [])
    assert journal_mode(tmp_path / "jobs.sqlite") == "WAL"


def test_records_of_another_journal_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory was moved to a network drive."""
    (tmp_path / "state").mkdir()
    for identity, kind in (("aaaaaaaa", "ext4"), ("bbbbbbbb", "nfs4")):
        monkeypatch.setattr(psutil, "disk_partitions", lambda kind=kind, **_: [Mount(str(tmp_path), kind)])
        store = SqlJobStore(tmp_path / "state" / "jobs.sqlite")
        store.save(Job(id=identity, spec=spec()))
        store.close()
    assert set(kept(tmp_path)) == {"aaaaaaaa", "bbbbbbbb"}
