"""`segserve infer`: the same core as the server's, without a server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from segserve.cli.options import read_settings
from segserve.cli.output import fail
from segserve.errors import DiskFullError, MissingExtraError, SegserveError, is_disk_full
from segserve.models.request import LoadRequest, parse_load_request
from segserve.settings import Settings

SUFFIXES = (".nii.gz",)

Triple = tuple[int, int, int] | None


def infer(
    model: Annotated[Path, typer.Argument(help="The ONNX network.")],
    image: Annotated[Path, typer.Argument(help="The volume, .nii or .nii.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The label map to write, .nii.gz.")],
    config: Annotated[Path | None, typer.Option(help="MMEngine configuration; not for ONNX networks.")] = None,
    window_level: Annotated[float | None, typer.Option(help="Centre of the intensity window.")] = None,
    window_width: Annotated[float | None, typer.Option(help="Width of the intensity window.")] = None,
    patch_size: Annotated[Triple, typer.Option(help="Patch, Z Y X voxels.")] = None,
    patch_stride: Annotated[Triple, typer.Option(help="Step from patch to patch, Z Y X voxels.")] = None,
    engine: Annotated[str, typer.Option(help="auto, or an engine's name.")] = "auto",
    fp16: Annotated[bool, typer.Option("--fp16", help="Permit half precision where it is right and fast.")] = False,
    force_cpu: Annotated[bool, typer.Option("--force-cpu", help="Stay on the processor.")] = False,
) -> None:
    """Segment one volume without a server."""
    del force_cpu  # the only device of this version
    sent = {"patch_size": patch_size, "patch_stride": patch_stride, "engine": engine, "fp16": fp16 or None}
    body = {
        "name": model.stem or "model",
        "backend_type": "onnx",
        "model_path": str(model),
        "inference_config": {key: value for key, value in sent.items() if value is not None},
    }
    _check_paths(model, image, output)
    try:
        if config:
            raise MissingExtraError(
                "MMEngine models need the extra segserve[mmengine], which is not part of this version."
            )
        _segment(parse_load_request(body), image, output, (window_level, window_width), read_settings({}))
    except SegserveError as error:
        fail(f"{model} on {image}: {error.message}")
    except OSError as error:
        fail(DiskFullError().message if is_disk_full(error) else f"{error.filename or output}: {error.strerror}.")


def _check_paths(model: Path, image: Path, output: Path) -> None:
    for name, path in (("model", model), ("image", image)):
        if not path.is_file():
            fail(f"the {name} {path} is not there.")
    if not output.name.endswith(SUFFIXES):
        fail(f"the output {output} must end in {' or '.join(SUFFIXES)}.")
    if any(output.exists() and output.samefile(path) for path in (model, image)):
        fail(f"the output {output} is one of the inputs: give it another name.")
    if not output.parent.is_dir():
        fail(f"the folder {output.parent} is not there.")


def _segment(
    request: LoadRequest, image: Path, output: Path, window: tuple[float | None, float | None], settings: Settings
) -> None:
    # Imported here: the server's process, which shares this command line, must never load an engine.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from segserve.volumes.model import Job, VolumeModel
    from segserve.volumes.source import Limits

    network = VolumeModel.load(request, default_patch=settings.default_patch)
    for warning in network.plan.warnings:
        typer.echo(f"note: {warning}", err=True)
    limits = Limits(settings.max_decompressed, settings.max_voxels, settings.memory_limit)
    columns: list[Any] = [TextColumn("patches"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    # Beside the output, so that the finished file appears whole, by rename.
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=".segserve-") as folder,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("patches", total=None)
        job = Job(
            image=image,
            target=Path(folder) / "labels.nii.gz",
            scratch=Path(folder),
            limits=limits,
            window_level=window[0],
            window_width=window[1],
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        outcome = network.segment(job)
        job.target.replace(output)
    for warning in outcome.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(f"{output}: {outcome.patches} patches, {outcome.engine} {outcome.precision}, {outcome.seconds:.1f} s")
