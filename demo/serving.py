"""A real Segserve server in a process of its own, and a client that speaks to it over HTTP."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

from demo.errors import DemoError

START_SECONDS = 60.0
STOP_SECONDS = 15.0
LOAD_SECONDS = 180.0
REQUEST_SECONDS = 300.0


class Client:
    """What 3D Slicer and QuPath send to the server, one call each."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._session = requests.Session()
        # A proxy from the environment knows nothing of a server on this machine.
        self._session.trust_env = False

    def is_healthy(self) -> bool:
        """Whether the server answers at all."""
        try:
            return self._session.get(f"{self.address}/api/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    def loaded_models(self, names: set[str]) -> dict[str, dict[str, Any]]:
        """Wait until the server has loaded all of `names` from its model folders; returns what it says of them.

        Raises:
            DemoError: one cannot be loaded, and why, or it takes too long.
        """
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline:
            models: dict[str, dict[str, Any]] = self._send("GET", "/api/info").json()["models"]
            for name in names & models.keys():
                if error := models[name].get("error"):
                    raise DemoError(f"the server cannot load {name}: {error}")
            if all(models.get(name, {}).get("loaded") for name in names):
                return models
            time.sleep(0.2)
        raise DemoError(f"the server did not load {', '.join(sorted(names))} within {LOAD_SECONDS:.0f} seconds.")

    def segment(self, name: str, image: Path) -> requests.Response:
        """Send a .nii.gz volume; the answer's body is a .nii.gz label map, its headers say how it was made."""
        with image.open("rb") as stream:
            return self._send("POST", "/api/infer", data={"model_name": name}, files={"image": (image.name, stream)})

    def unload(self, name: str) -> None:
        """Free the network."""
        self._send("DELETE", f"/api/models/{name}")

    def start_training(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start a training; returns its `job_id` and the server's `warnings`."""
        answer: dict[str, Any] = self._send("POST", "/api/v1/train", json=body).json()
        return answer

    def training_status(self, job_id: str) -> dict[str, Any]:
        """How far a training is."""
        answer: dict[str, Any] = self._send("GET", f"/api/v1/train/{job_id}/status").json()
        return answer

    def classify_tiles(
        self, model: Path, tiles: dict[str, npt.NDArray[np.uint8]], folder: Path, *, reflection: int
    ) -> dict[str, Path]:
        """Have probability maps of tiles (H, W, C) of one shape written to `folder`; returns their paths by tile id."""
        height, width, channels = next(iter(tiles.values())).shape
        metadata = {
            "model_path": str(model),
            "tile_ids": list(tiles),
            "tile_height": height,
            "tile_width": width,
            "num_channels": channels,
            "dtype": "uint8",
            "input_config": {"num_channels": channels, "selected_channels": list(range(channels))},
            "options": {"use_gpu": True, "reflection_padding": reflection},
            "output_dir": str(folder),
        }
        blob = b"".join(np.ascontiguousarray(tile).tobytes() for tile in tiles.values())
        form = {"metadata": json.dumps(metadata)}
        files = {"tiles": ("tiles.bin", blob, "application/octet-stream")}
        answer = self._send("POST", "/api/v1/inference/pixel/binary", data=form, files=files).json()
        return {name: Path(answer["output_paths"][name]) for name in tiles}

    def _send(self, method: str, path: str, **content: Any) -> requests.Response:
        answer = self._session.request(method, self.address + path, timeout=REQUEST_SECONDS, **content)
        if not answer.ok:
            raise DemoError(f"{method} {path} was answered {answer.status_code}: {answer.text.strip()}")
        return answer


@contextmanager
def running_server(*flags: str) -> Iterator[Client]:
    """Start a server on a free port, yield a client of it, and stop it however the block ends.

    Its state lives in a temporary folder and your own settings are left out, so your server notices nothing.
    If the block fails, the server's log is shown.

    Args:
        flags: more of `segserve serve`.
    """
    with tempfile.TemporaryDirectory(prefix="segserve-demo-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "segserve", "serve", "--port", "0", *flags],
                env=_environment(Path(folder)),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _wait_until_healthy(process, Path(folder))
        except BaseException:
            print(f"\nThe server's log:\n{log.read_text(errors='replace')}", file=sys.stderr)
            raise
        finally:
            _stop(process)


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment without any SEGSERVE_ setting but the server's own folder.

    Nor does the server take over how this process's threads wait: a training alone on the machine is twice as fast with
    torch's own way.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SEGSERVE_", "OMP_"))}
    return kept | {"SEGSERVE_HOME": str(folder), "SEGSERVE_SETTINGS": str(folder / "no-settings.toml")}


def _wait_until_healthy(process: subprocess.Popen[bytes], folder: Path) -> Client:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the server stopped at once, with exit status {process.returncode}.")
        address = _address(folder)
        if address and (client := Client(address)).is_healthy():
            return client
        time.sleep(0.1)
    raise DemoError(f"the server did not answer within {START_SECONDS:.0f} seconds.")


def _address(folder: Path) -> str | None:
    """Where the server says it listens; None until it does."""
    try:
        card = json.loads((folder / "server.json").read_text())
    except FileNotFoundError:
        return None
    return str(card["addresses"][0])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
