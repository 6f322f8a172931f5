"""`segserve infer`: the same core as the server's, without a server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from segserve.cli.folder import pairs_in, segment_all, sentence
from segserve.cli.options import read_settings
from segserve.cli.output import fail
from segserve.errors import SegserveError
from segserve.models.backends import CHECKPOINTS, MMENGINE, ONNX, backend_of, check_request
from segserve.models.request import LoadRequest, parse_load_request
from segserve.settings import Settings
from segserve.state import StateDir

Triple = tuple[int, int, int] | None


def infer(
    model: Annotated[
        Path, typer.Argument(help="The network: .onnx, TorchScript (.ts, .pt), .pt2, or a checkpoint with --config.")
    ],
    image: Annotated[Path, typer.Argument(help="The volume (NIfTI, NRRD or MetaImage), or a folder of volumes.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The labels: .nii.gz, .nii, .nrrd or .mha; for a folder, the folder."),
    ],
    config: Annotated[Path | None, typer.Option(help="The MMEngine configuration of a checkpoint.")] = None,
    strict: Annotated[
        bool | None, typer.Option(help="Whether a checkpoint must fit its network; it must unless told otherwise.")
    ] = None,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Folder whose configurations and PyTorch networks may be run as code.")
    ] = None,
    window_level: Annotated[float | None, typer.Option(help="Centre of the intensity window.")] = None,
    window_width: Annotated[float | None, typer.Option(help="Width of the intensity window.")] = None,
    patch_size: Annotated[Triple, typer.Option(help="Patch, Z Y X voxels.")] = None,
    patch_stride: Annotated[Triple, typer.Option(help="Step from patch to patch, Z Y X voxels.")] = None,
    engine: Annotated[str, typer.Option(help="auto, or an engine's name.")] = "auto",
    fp16: Annotated[bool, typer.Option("--fp16", help="Permit half precision where it is right and fast.")] = False,
    force_cpu: Annotated[bool, typer.Option("--force-cpu", help="Stay on the processor.")] = False,
) -> None:
    """Segment a volume, or a folder of volumes, without a server. In a folder, what has labels already is skipped."""
    sent = {
        "patch_size": patch_size,
        "patch_stride": patch_stride,
        "engine": engine,
        "fp16": fp16 or None,
        "forward_device": "cpu" if force_cpu else None,
    }
    body = {
        "name": model.stem or "model",
        "model_path": str(model),
        "config_path": str(config) if config else None,
        "strict": strict,
        "inference_config": {key: value for key, value in sent.items() if value is not None},
    }
    window = (window_level, window_width)
    several = image.is_dir()
    _check_paths(model, image, output, several=several)
    pairs = pairs_in(image, output) if several else [(image, output)]
    try:
        settings = read_settings({"trust": trust} if trust else {})
        request = parse_load_request({**body, "backend_type": _backend(model, config)})
        check_request(request)
        if several:
            output.mkdir(parents=True, exist_ok=True)
            segment_all(pairs, lambda: _load(request, window, settings))
        else:
            _load(request, window, settings)(image, output)
    except (SegserveError, OSError) as error:
        fail(f"{model} on {image}: {sentence(error, output)}")


def _backend(model: Path, config: Path | None) -> str:
    """The kind of a network; a file of an unknown ending is taken for ONNX, and what it is instead is then told."""
    backend = backend_of(model)
    if backend is None and (config or model.suffix.lower() in CHECKPOINTS):
        if config is None:
            fail(f"{model} is a checkpoint: name its configuration with --config.")
        return MMENGINE
    return backend or ONNX


def _check_paths(model: Path, image: Path, output: Path, *, several: bool) -> None:
    from segserve.volumes.writers import WRITERS

    if model.is_dir():
        fail(f"the model {model} is a folder: name the file in it.")
    if not model.is_file():
        fail(f"the model {model} is not there.")
    if several:
        return
    if not image.is_file():
        fail(f"the image {image} is not there.")
    if not output.name.lower().endswith(tuple(WRITERS)):
        fail(f"the output {output} must end in {', '.join(WRITERS)}.")
    if any(output.exists() and output.samefile(path) for path in (model, image)):
        fail(f"the output {output} is one of the inputs: give it another name.")
    if not output.parent.is_dir():
        fail(f"the folder {output.parent} is not there.")


def _load(
    request: LoadRequest, window: tuple[float | None, float | None], settings: Settings
) -> Callable[[Path, Path], None]:
    """Load the network; what is given back segments a volume into a file."""
    # Imported here: the server's process, which shares this command line, must never load an engine.
    from segserve.volumes.model import Job, VolumeModel
    from segserve.volumes.source import Limits

    choices = StateDir(settings.state_dir).cache
    network = VolumeModel.load(request, default_patch=settings.default_patch, choices=choices, trusted=settings.trusted)
    for warning in network.plan.warnings:
        typer.echo(f"note: {warning}", err=True)
    limits = Limits(settings.max_decompressed, settings.max_voxels, settings.memory_limit)

    def segment(image: Path, output: Path) -> None:
        # Beside the output, so that the finished file appears whole, by rename.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".segserve-") as folder, _bar(image) as progress:
            job = Job(
                image=image,
                target=Path(folder) / f"finished-{output.name}",
                scratch=Path(folder),
                limits=limits,
                window_level=window[0],
                window_width=window[1],
                progress=progress,
            )
            outcome = network.segment(job)
            job.target.replace(output)
        for warning in outcome.warnings:
            typer.echo(f"note: {image.name}: {warning}", err=True)
        typer.echo(
            f"{output}: {outcome.patches} patches, {outcome.engine} {outcome.precision}, {outcome.seconds:.1f} s"
        )

    return segment


@contextmanager
def _bar(image: Path) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where there is a terminal for it; told (patches done, patches in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{image.name}, patches", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
