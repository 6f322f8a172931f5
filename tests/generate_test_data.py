"""Write a small made-up data set to `tests/test_data`: `python tests/generate_test_data.py`."""

from __future__ import annotations

from pathlib import Path

from segserve.training.data.synthetic import write_synthetic

FOLDER = Path(__file__).resolve().parent / "test_data"


def main() -> None:
    write_synthetic(FOLDER)
    print(f"Written to {FOLDER}:")
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            print(f"  {path.relative_to(FOLDER).as_posix()}")


if __name__ == "__main__":
    main()
