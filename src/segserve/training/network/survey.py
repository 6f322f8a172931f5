"""How large every encoder is, measured without memory: what fills `parameters.json`.

Building all of them takes minutes, so what was measured is kept in the package:
`python -m segserve.training.network.survey src/segserve/training/network/parameters.json`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import timm

from segserve.errors import BadInputError
from segserve.training.network.possible import outline

KEPT = Path(__file__).with_name("parameters.json")


def encoder_names() -> list[str]:
    """Every encoder of smp, then timm's that smp has not, with smp's prefix `tu-`."""
    own = list(smp.encoders.encoders)
    return own + [f"tu-{name}" for name in timm.list_models() if name not in own]


def millions(encoder: str) -> float:
    """Parameters of an encoder in millions, to three decimals.

    Raises:
        BadInputError: no U-Net can be built on it.
    """
    network = outline("unet", encoder, 3, 2)
    counts = (parameter.numel() for name, parameter in network.named_parameters() if name.startswith("encoder."))
    return round(sum(counts) / 1e6, 3)


def millions_if_any(encoder: str) -> float | None:
    """As `millions`; None for an encoder that cannot be trained."""
    try:
        return millions(encoder)
    except BadInputError:
        return None


def sizes(seconds: float) -> dict[str, float]:
    """Encoder -> millions of parameters, for those that can be trained.

    Args:
        seconds: how long encoders newer than `parameters.json` may be measured; what is left over is not listed.
    """
    kept: dict[str, float | None] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    until = time.monotonic() + seconds
    found = {}
    for name in encoder_names():
        if name not in kept and time.monotonic() < until:
            kept[name] = millions_if_any(name)
        size = kept.get(name)
        if size is not None:
            found[name] = size
    return found


def main() -> None:
    """Measure every encoder and write the table."""
    table = {name: millions_if_any(name) for name in encoder_names()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(size)}" for name, size in table.items())
    Path(sys.argv[1]).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
