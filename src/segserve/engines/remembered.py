"""Choices of engines, kept on disk: the same network on the same machine is timed once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segserve import __version__, devices
from segserve.engines.base import EngineError, Network
from segserve.engines.candidates import Candidate, Wish, start
from segserve.engines.choose import choose
from segserve.engines.registry import installed_engines
from segserve.engines.verdict import Choice, Trial, Verdict
from segserve.state import write_whole

log = logging.getLogger(__name__)

CHUNK = 2**20


def choose_once(network: Network, files: Sequence[Path], wish: Wish, trial: Trial, folder: Path | None) -> Choice:
    """As `choose`, but from memory where the same was chosen before on this machine.

    Args:
        network: to run.
        files: everything the network is read from.
        wish: what may be chosen.
        trial: what it is tried on.
        folder: where choices are kept; None keeps none.

    Raises:
        EngineError, BadInputError, MissingExtraError: as `choose`.
    """
    if folder is None:
        return choose(network, wish, trial)
    path = folder / f"engine-{_key(files, wish, trial)}.json"
    choice = _recalled(path, network, trial)
    if choice is None:
        choice = choose(network, wish, trial)
        _keep(path, choice)
    return choice


def _recalled(path: Path, network: Network, trial: Trial) -> Choice | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        candidate = Candidate(**kept["chosen"])
        verdicts = [Verdict(**verdict) for verdict in kept["engines"]]
        repeatable = bool(kept["repeatable"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        engine = start(candidate, network)
        logits = engine(trial.batches[0])
        trial.check(logits)
    except EngineError:
        log.warning("%s no longer runs this network: choosing again", candidate)
        return None
    return Choice(engine, repeatable, logits.shape, verdicts)


def _keep(path: Path, choice: Choice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(choice.describe()))
    except OSError:
        log.warning("the choice of an engine cannot be kept in %s", path.parent, exc_info=True)


def _key(files: Sequence[Path], wish: Wish, trial: Trial) -> str:
    """Whatever the choice may depend on, as one digest."""
    machine = {
        "processor": devices.processor_name(),
        "threads": devices.compute_threads(),
        "gpus": [gpu.name for gpu in devices.cuda_devices()],
        "versions": [__version__, *sorted(f"{engine.package} {engine.version()}" for engine in installed_engines())],
        "wish": asdict(wish),
        "shapes": [batch.shape for batch in trial.batches],
    }
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode())
    for file in files:
        digest.update(_digest(file))
    return digest.hexdigest()[:40]


def _digest(file: Path) -> bytes:
    digest: Callable[[], Any] = hashlib.sha256
    with file.open("rb") as stream:
        return bytes(hashlib.file_digest(stream, digest).digest())
