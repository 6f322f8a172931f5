"""`segserve doctor`: what is here, what is missing, and what for."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, metadata
from pathlib import Path
from typing import Annotated

import psutil
import typer
from packaging.requirements import Requirement

from segserve import __version__, devices
from segserve.cli.options import read_settings
from segserve.engines.registry import ENGINES, cuda_is_usable
from segserve.errors import human_bytes
from segserve.extras import has_torch, installed_version
from segserve.settings import settings_file
from segserve.state import StateDir

PURPOSES = {
    "onnx": "a second engine for ONNX networks, often the faster one",
    "torch": "training pixel classifiers; TorchScript and torch.export networks",
    "mmengine": "ITKIT models: MMEngine configs with PyTorch checkpoints",
    "cuda": "training and ONNX networks on NVIDIA GPUs; in place of onnx",
    "all": "everything a server can use",
    "dev": "working on Segserve itself",
}

STAND_INS = {"onnxruntime": ("onnxruntime-gpu",)}  # the same library, and it cannot live beside the other


def doctor(
    state_dir: Annotated[Path | None, typer.Option(help="The server's state directory.")] = None,
) -> None:
    """Say what this installation has, what it lacks, and what for."""
    settings = read_settings({"state_dir": state_dir} if state_dir else {})
    for title, lines in (
        ("Segserve", _versions()),
        ("Devices", _devices()),
        ("Engines", _engines()),
        ("Extras", _extras()),
        ("Directories", _directories(StateDir(settings.state_dir))),
    ):
        typer.echo(title)
        for line in lines:
            typer.echo(f"  {line}")


def _versions() -> Iterator[str]:
    yield f"segserve {__version__}, Python {platform.python_version()} ({sys.executable})"
    yield f"{platform.system()} {platform.release()}, {platform.machine()}"


def _devices() -> Iterator[str]:
    memory = psutil.virtual_memory()
    yield f"processor: {devices.usable_cores()} cores for this process"
    yield f"memory: {human_bytes(memory.total)}, {human_bytes(devices.available_memory())} free"
    gpus = devices.cuda_devices()
    for gpu in gpus:
        yield f"NVIDIA GPU: {gpu.name}, {human_bytes(gpu.memory)}"
    if devices.has_apple_gpu():
        yield "Apple GPU: present"
    if gpus and not cuda_is_usable():
        yield "volumes run on the processor: no installed engine uses the GPU"
    if has_torch():
        from segserve.api.qupath.gpu import training_devices

        yield f"trainings run on: {', '.join(training_devices())}"
    if not gpus and not devices.has_apple_gpu():
        yield "GPU: none found; models run on the processor"


def _engines() -> Iterator[str]:
    for name in dict.fromkeys(engine.name for engine in ENGINES):
        packages = [engine for engine in ENGINES if engine.name == name]
        found = [engine for engine in packages if engine.version()]
        if len(found) > 1:
            both = " and ".join(engine.package for engine in found)
            yield (
                f"{name}: {both} are both installed and overwrite each other: "
                f"pip uninstall -y {' '.join(engine.package for engine in found)}, then pip install the one you want"
            )
        elif found:
            yield f"{name}: {found[0].version()}, on {', '.join(found[0].usable_devices())}"
        else:
            yield f"{name}: missing: pip install {' or '.join(engine.package for engine in packages)}"


def _extras() -> Iterator[str]:
    for extra in metadata("segserve").get_all("Provides-Extra") or []:
        missing = sorted(_missing_of(extra))
        state = "installed" if not missing else f"missing {', '.join(missing)}: pip install 'segserve[{extra}]'"
        yield f"{extra} ({PURPOSES.get(extra, 'optional')}): {state}"


def _missing_of(extra: str) -> Iterator[str]:
    """The packages of an extra that are not installed."""
    for text in distribution("segserve").requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue
        if not any(installed_version(name) for name in (requirement.name, *STAND_INS.get(requirement.name, ()))):
            yield requirement.name


def _directories(state: StateDir) -> Iterator[str]:
    place = next(folder for folder in (state.root, *state.root.parents) if folder.exists())
    yield f"state: {state.root} ({human_bytes(shutil.disk_usage(place).free)} free)"
    yield f"settings file: {settings_file()}" + ("" if settings_file().is_file() else " (not there; defaults apply)")
    key = "" if state.key_file.is_file() else " (made when first needed)"
    yield f"key for other machines: {state.key_file}{key}"
    addresses = ", ".join(state.card().get("addresses", [])) or "one that another launcher started"
    yield f"server: {addresses}" if state.is_owned() else "server: none runs on this state directory"
