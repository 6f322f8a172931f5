"""Our server with a network loaded, and the engine it chose called without any server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.images import LEVEL, WIDTH
from benchmarks.timing import seconds
from segserve.engines.base import Engine
from segserve.engines.candidates import Candidate, start
from segserve.models.formats.onnx import open_onnx
from tests.serving import Served


@dataclass(frozen=True)
class Ours:
    """A network on a server, and in this process as the server runs it.

    Attributes:
        name: the server's for the network.
        engine: the network here.
        patch: (Z, Y, X) in voxels.
    """

    server: Served
    name: str
    engine: Engine
    patch: tuple[int, ...]

    @classmethod
    def load(cls, server: Served, network: Path, *, fp16: bool, stride: int) -> Ours:
        """Let the server choose an engine, and load the same here."""
        name = "reduced" if fp16 else "exact"
        config = {"patch_stride": stride, "fp16": fp16}
        card = server.load(name, network, inference_config=config, window_level=LEVEL, window_width=WIDTH)
        chosen = Candidate(card["engine"], card["device"], card["precision"])
        return cls(server, name, start(chosen, open_onnx(network).network()), tuple(card["patch_size"]))

    def segment(self, image: Path, target: Path) -> int:
        """Send a volume and write the labels that come back; the number of its patches, all of them computed."""
        answer = self.server.infer(image, model_name=self.name)
        answer.raise_for_status()
        assert answer.headers["X-Segserve-Precision"] == self.engine.precision
        assert answer.headers["X-Segserve-Skipped"] == "0"
        target.write_bytes(answer.content)
        return int(answer.headers["X-Segserve-Patches"])

    def engine_seconds(self, patches: int) -> float:
        """The seconds that the engine alone takes for that many patches."""
        batch = np.random.default_rng(0).random((1, 1, *self.patch), dtype=np.float32)
        return seconds(lambda: [self.engine(batch) for _ in range(patches)])
