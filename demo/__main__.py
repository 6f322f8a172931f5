"""Run every demo: ``python -m demo``. Exit status 0 if all of them showed what they should, else 1."""

import sys
from collections.abc import Callable
from pathlib import Path

from demo.brain.story import show_brain
from demo.errors import DemoError
from demo.tissue.story import show_tissue

OUTPUT = Path("demo-output")
DEMOS: tuple[Callable[[Path], None], ...] = (show_brain, show_tissue)


def main() -> int:
    """Run the demos one after the other; their files go to `OUTPUT` in the current folder."""
    OUTPUT.mkdir(exist_ok=True)
    for show in DEMOS:
        try:
            show(OUTPUT)
        except DemoError as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
