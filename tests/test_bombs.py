"""Small requests that are huge once unpacked: refused before any process of the server holds much more than at rest."""

from __future__ import annotations

import gzip
import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile

from tests import networks, oracle, volumes
from tests.fuzz.networks_of_harm import NETWORKS
from tests.fuzz.verdict import Memory, fault_in
from tests.itk_files import meta, nrrd
from tests.oracle import Subject
from tests.serving import Served, wait_until
from tests.test_tile_hostile import tiff_in_a_circle
from tests.test_tile_io import chunk
from tests.tile_client import json_request, metadata_of, okhttp_form, picture, png_url, tile_form
from tests.tile_networks import pixel_classifier

MiB = 2**20
ROOM = 200 * MiB
SECONDS = 40
NAME = "bombs"
PIXELS = "bombed-pixels"
STORED = volumes.distinct((8, 7, 6))
SIDE = 60_000


@dataclass
class House:
    """A server with a model of either kind, and where the classifier lies."""

    server: Served
    classifier: Path

    def classify(self, image: Path) -> requests.Response:
        return self.server.post("/api/v1/inference", json=json_request(self.classifier, {"t": str(image)}))


@pytest.fixture(scope="module")
def house(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("bombs")
    model = networks.threshold_network(folder / "threshold.onnx", 3)
    subject = Subject(server, NAME, oracle.threshold_forward(3), (4, 4, 4)).load(model)
    good = volumes.write(folder / "good.nii", STORED)
    made = House(server, pixel_classifier(folder / PIXELS))
    tile = json_request(made.classifier, {"t": png_url(picture())})
    # Whatever is allocated only once is there before the first bomb: every kind of process, every library.
    subject.check(good)
    upload = {"file": ("a.onnx", (made.classifier / "model.onnx").read_bytes())}
    assert server.post("/api/v1/models/upload", files=upload).status_code == 200
    assert server.post("/api/v1/inference", json=tile).status_code == 200
    yield made
    subject.check(good)
    assert server.post("/api/v1/inference", json=tile).status_code == 200
    server.delete(f"/api/models/{NAME}")


@pytest.fixture
def defused(house: House) -> Iterator[Callable[..., str]]:
    """Send a bomb; see it refused with a sentence, soon, and for little memory, by processes that live on."""
    alive = [house.server.pids_of(name) for name in (NAME, PIXELS)]
    assert all(alive)

    def send(call: Callable[[], requests.Response], *statuses: int) -> str:
        began = time.monotonic()
        with Memory(house.server, 0.005) as memory:
            answer = call()
        assert answer.status_code in (statuses or (400, 413)), answer.text
        assert not fault_in(answer, house.server)
        assert memory.growth < ROOM
        assert time.monotonic() - began < SECONDS
        return answer.text

    yield send
    assert [house.server.pids_of(name) for name in (NAME, PIXELS)] == alive
    wait_until(lambda: not house.server.spool_files(), message="files stay in the spool")


def claiming(shape: tuple[int, ...]) -> bytes:
    """A NIfTI header of a volume of this shape."""
    header = volumes.build(volumes.Header(sform=volumes.affine_of("RAS")), np.zeros((1, 1, 1), np.int16))
    header["dim"][1 : 1 + len(shape)] = shape
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4)


def endless(head: bytes) -> bytes:
    """A gzip file of `head` and far more zeros than a process may take."""
    return gzip.compress(head + bytes(2 * ROOM), 1)


@cache
def zeros() -> bytes:
    """Far more zeros than a process may take, as zlib packs them."""
    return zlib.compress(bytes(2 * ROOM), 1)


VOLUMES: dict[str, Callable[[], bytes]] = {
    "NIfTI of one voxel, data without an end": lambda: endless(claiming((1, 1, 1))),
    "NIfTI without a header's end": lambda: endless(b""),
    "NIfTI of everything, data of nothing": lambda: gzip.compress(claiming((30000, 30000, 30000))),
    "NIfTI just within the voxels that are taken": lambda: gzip.compress(claiming((1290, 1290, 1290))),
    "NIfTI offset": lambda: gzip.compress(claiming((8, 7, 6))[:108] + struct.pack("<f", 2e9) + bytes(300)),
    "NRRD header without an end": lambda: gzip.compress(b"NRRD0004\n" + b"# x\n" * 10**7),
    "NRRD of everything": lambda: nrrd(STORED, "gzip", fields={"sizes": "30000 30000 30000"}),
    "NRRD just within": lambda: nrrd(STORED, "gzip", fields={"sizes": "1290 1290 1290"}),
    "NRRD byte skip": lambda: nrrd(STORED, "gzip", fields={"byte skip": str(2**62)}),
    "MetaImage of everything": lambda: meta(STORED, "zlib", fields={"DimSize": "30000 30000 30000"}),
    "MetaImage just within": lambda: meta(STORED, "zlib", fields={"DimSize": "1290 1290 1290"}),
}


@pytest.mark.parametrize("kind", VOLUMES)
def test_volumes(kind: str, house: House, defused: Callable[..., str]) -> None:
    content = VOLUMES[kind]()
    defused(lambda: house.server.post("/api/infer", data={"model_name": NAME}, files={"image": content}), 200, 400, 413)


def huge_png(side: int = SIDE) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(MiB))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_text_bomb() -> bytes:
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    bombs = chunk(b"zTXt", b"a\0\0" + zeros()) * 3
    profile = chunk(b"iCCP", b"a\0\0" + zeros())
    data = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + profile + bombs + data + chunk(b"IEND", b"")


def png_data_bomb() -> bytes:
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zeros())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def page(compression: str, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, picture(16, 16), photometric="rgb", compression=compression, metadata=None, **options)
    return file.getvalue()


def with_tags(content: bytes, **tags: int) -> bytes:
    """The TIFF with these tags of its first page set to one number."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as parsed:
        entries = parsed.pages[0].tags  # type: ignore[union-attr]
        for name, value in tags.items():
            changed[entries[name].offset + 2 : entries[name].offset + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(changed)


def tiff_of_zeros(compression: str) -> bytes:
    """A strip whose data unpack to far more than it holds by its header."""
    packed = zeros() if compression == "deflate" else bytes([0x81, 0]) * (3 * MiB)
    content = page("packbits" if compression == "packbits" else compression)
    return with_tags(content, StripOffsets=len(content), StripByteCounts=len(packed)) + packed


def tiff_of_many_pages(count: int) -> bytes:
    """Pages one after the other, all of the same strip."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    size = len(body) + 4
    places = [72 + size * index for index in range(count)]
    following = [*places[1:], 0]
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + b"".join(body + struct.pack("<I", at) for at in following)


def tiff_of_many_channels() -> bytes:
    """Of few pixels, and few bytes before it is unpacked; the classifier selects three of its channels."""
    file = io.BytesIO()
    values = np.zeros((768, 768, 64))
    tifffile.imwrite(file, values, planarconfig="contig", photometric="minisblack", compression="zlib", metadata=None)
    return file.getvalue()


def tiff_of_a_large_tile() -> bytes:
    """A few pixels, in a tile that is otherwise padding and really there."""
    side = 9216
    packed = zlib.compress(bytes(3 * side * side), 1)
    content = with_tags(page("deflate", tile=(16, 16)), TileWidth=side, TileLength=side)
    return with_tags(content, TileOffsets=len(content), TileByteCounts=len(packed)) + packed


IMAGES: dict[str, Callable[[], bytes]] = {
    "PNG": huge_png,
    "PNG texts": png_text_bomb,
    "PNG data": png_data_bomb,
    "TIFF deflate": lambda: with_tags(page("deflate"), ImageWidth=SIDE, ImageLength=SIDE, RowsPerStrip=SIDE),
    "TIFF LZW": lambda: with_tags(page("lzw"), ImageWidth=SIDE, ImageLength=SIDE, RowsPerStrip=SIDE),
    "TIFF LZW just within": lambda: with_tags(page("lzw"), ImageWidth=16000, ImageLength=16000),
    "TIFF tile": lambda: with_tags(page("lzw", tile=(16, 16)), TileWidth=2**20, TileLength=2**20),
    "TIFF large tile": tiff_of_a_large_tile,
    "TIFF channels": tiff_of_many_channels,
    "TIFF tiles that are not there": lambda: with_tags(page("lzw", tile=(16, 16)), ImageLength=2**19),
    "TIFF deflate strip": lambda: tiff_of_zeros("deflate"),
    "TIFF packbits strip": lambda: tiff_of_zeros("packbits"),
    "TIFF pages": lambda: tiff_of_many_pages(200_000),
    "TIFF circle": tiff_in_a_circle,
    "TIFF strips": lambda: with_tags(page("lzw"), ImageWidth=1, ImageLength=2**28, RowsPerStrip=1),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, house: House, defused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(IMAGES[kind]())
    defused(lambda: house.classify(path), 200, 400, 413)


@pytest.mark.parametrize("kind", NETWORKS)
def test_classifiers(kind: str, house: House, defused: Callable[..., str]) -> None:
    content = NETWORKS[kind]()
    told = defused(lambda: house.server.post("/api/v1/models/upload", files={"file": ("bomb.onnx", content)}))
    assert "root:" not in told


@pytest.mark.parametrize("kind", ["weights of 2^40", "weights at the root", "graphs in graphs"])
def test_networks_for_volumes(kind: str, house: House, defused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bomb.onnx").write_bytes(NETWORKS[kind]())
    body = {"name": "bomb", "backend_type": "onnx", "model_path": str(tmp_path / "bomb.onnx")}
    defused(lambda: house.server.post("/api/models", json=body))


ONES = b"[" + b"1," * 10**6 + b"1]"
TRAINING = b'{"model_type": "unet", "input_config": {"num_channels": 3}, "classes": %s, "data_path": "/nowhere"}' % ONES
BODIES = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep inside": b'{"tiles":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long": ONES,
    "long inside": b'{"tiles":' + ONES + b"}",
    "long names": b'{"' + b'a":1,"' * 5 * 10**5 + b'a":1}',
    "many classes": TRAINING,
    "many tiles": b'{"tiles": [' + b'{"id": "a", "data": "b"},' * 5 * 10**5,
}
ROUTES = ["/api/models", "/api/model", "/api/v1/inference", "/api/v1/inference/pixel", "/api/v1/train"]
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("route", [*ROUTES, "/api/v1/inference/batch?model_path=x"])
def test_json(route: str, kind: str, house: House, defused: Callable[..., str]) -> None:
    defused(lambda: house.server.post(route, data=BODIES[kind], headers=JSON_TYPE), 400, 413, 422, 404)


@pytest.mark.parametrize("route", ["/api/v1/inference", "/api/v1/inference/pixel"])
def test_a_large_body_is_never_whole_in_memory(route: str, house: House, defused: Callable[..., str]) -> None:
    tiles = {f"{index}": "data:image/png;base64," + "YWFh" * 2**20 for index in range(20)}
    body = json.dumps(json_request(house.classifier, tiles, output="inline")).encode()
    assert "image" in defused(lambda: house.server.post(route, data=body, headers=JSON_TYPE), 400)


def test_a_data_url_of_blanks(house: House, defused: Callable[..., str]) -> None:
    whole = json.dumps(json_request(house.classifier, {"t": "data:,"})).encode()
    body = whole.replace(b"data:,", b"data:," + b"AB " * (64 * MiB // 3))
    defused(lambda: house.server.post("/api/v1/inference", data=body, headers=JSON_TYPE), 400)


def test_json_within_a_form(house: House, defused: Callable[..., str]) -> None:
    parts = tile_form(metadata_of(house.classifier, ["a"], picture()[None]), picture()[None])
    for content in (BODIES["deep"], json.dumps({"tile_ids": ["a" * 10**7]}).encode()):
        body, kind = okhttp_form({**parts, "metadata": (None, content)})
        defused(
            lambda body=body, kind=kind: house.server.post(
                "/api/v1/inference/binary", data=body, headers={"Content-Type": kind}
            )
        )


PART = b'--B\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
FORMS: dict[str, bytes] = {
    "parts": b"".join(PART % index for index in range(100_000)) + b"--B--\r\n",
    "long header": b"--B\r\nX-Long: " + b"a" * MiB + b"\r\n\r\n1\r\n--B--\r\n",
    "many headers": b"--B\r\n" + b"X: 1\r\n" * 100_000 + b"\r\n1\r\n--B--\r\n",
    "long name": b'--B\r\nContent-Disposition: form-data; name="' + b"a" * MiB + b'"\r\n\r\n1\r\n--B--\r\n',
    "header without an end": b"--B\r\nX: " + b"a" * (64 * MiB),
    "preamble": b"a" * (64 * MiB),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("route", ["/api/infer", "/api/v1/models/upload", "/api/v1/inference/binary"])
def test_forms(route: str, kind: str, house: House, defused: Callable[..., str]) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    defused(lambda: house.server.post(route, data=FORMS[kind], headers=headers), 400, 413, 422)
