"""What the server shows when it starts."""

from __future__ import annotations

from collections.abc import Sequence

from segserve import __version__, devices
from segserve.engines.registry import cuda_is_usable, installed_engines
from segserve.settings import Settings
from segserve.state import StateDir

RULE = "=" * 60


def banner(settings: Settings, state: StateDir, urls: Sequence[str], docs: str, key: str | None) -> str:
    """The start-up text.

    Args:
        settings: in force.
        state: the server's.
        urls: where it listens.
        docs: the address of it that a browser on this machine can open.
        key: shown if one is asked for.
    """
    gpus = devices.cuda_devices() if cuda_is_usable() else []
    ports = dict.fromkeys(url.rpartition(":")[2] for url in urls)
    hosts = dict.fromkeys(url.removeprefix("http://").rpartition(":")[0] for url in urls)
    lines = [
        RULE,
        f"Segserve {__version__} (ITKIT Inference Server, DL Classifier Server)",
        RULE,
        f"Host: {', '.join(hosts)}",
        f"Port: {', '.join(ports)}",
        f"CUDA Available: {bool(gpus)}",
        f"CUDA Devices: {len(gpus)}",
        f"Engines: {', '.join(f'{engine.name} {engine.version()}' for engine in installed_engines()) or 'none'}",
        f"State directory: {state.root}",
        f"Docs: {docs}/docs",
    ]
    if settings.insecure:
        lines.append("WARNING: --insecure: whoever reaches these addresses may use and stop models, without a key.")
    elif key:
        lines += [
            f"Key: {key}",
            "      3D Slicer: put it in the server URL, http://KEY:x@HOST:PORT. QuPath cannot send one: --allow-from.",
        ]
    return "\n".join([*lines, RULE])
