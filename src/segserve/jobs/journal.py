"""How SQLite keeps its journal, by where its file lies."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Literal

import psutil

Journal = Literal["WAL", "DELETE"]

# WAL needs memory that is shared by whoever opens the file (https://sqlite.org/wal.html), which neither networks have
# nor folders that a virtual machine shares with its host.
NETWORKS = re.compile(
    r"(fuse\.)?(nfs|cifs|smb|afp|afs|ceph|9p|webdav|davfs|lustre|beegfs|gpfs|glusterfs|"
    r"sshfs|macfuse|osxfuse|s3fs|rclone|gcsfuse|virtiofs|drvfs|grpcfuse|osxfs|vboxsf|vmhgfs|prl_fs)",
    re.IGNORECASE,
)


def journal_mode(path: Path) -> Journal:
    """WAL, in which readers and the writer do not wait for each other; DELETE where a network lies between."""
    return "DELETE" if _is_remote(path.resolve()) else "WAL"


def _is_remote(path: Path) -> bool:
    if path.drive.startswith("\\\\"):  # a Windows share by its own name
        return True
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return False
    nearest = None
    for mount in mounts:  # of several on one place the last is the one that is seen
        if path.is_relative_to(PurePath(mount.mountpoint)) and (
            nearest is None or len(mount.mountpoint) >= len(nearest.mountpoint)
        ):
            nearest = mount
    return nearest is not None and ("remote" in nearest.opts.split(",") or bool(NETWORKS.match(nearest.fstype)))
