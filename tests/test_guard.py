"""Who may talk to the server: Host and Origin on loopback, keys off it."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.fake_house import make_house
from tests.serving import Served, start_server
from tests.small_networks import error_of, threshold_network

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
STATE_CHANGES = [
    ("POST", "/api/models"),
    ("POST", "/api/model"),
    ("POST", "/api/infer"),
    ("DELETE", "/api/model"),
    ("DELETE", "/api/models/x"),
]
ELSEWHERE = ["/", "/docs", "/redoc", "/openapi.json", "/nothing", "/api/nothing", "/api/v1/nothing", "/metrics"]
PROBES = {"/healthz", "/readyz"}


def port_of(served: Served) -> int:
    port = urlsplit(served.url).port
    assert port is not None
    return port


def local_url(served: Served) -> str:
    """Return the loopback address of a server that listens on every address."""
    return f"http://127.0.0.1:{port_of(served)}"


def kept_key(served: Served) -> tuple[str, Path]:
    """Find the key in the state directory, the way its owner would: by the banner's word."""
    banner = served.log.read_text()
    for path in served.state_dir.rglob("*"):
        if path.is_file() and path.stat().st_size < 1000:
            text = path.read_text(errors="replace").strip()
            if re.fullmatch(r"\S{20,}", text) and text in banner:
                return text, path
    raise AssertionError(f"no key in {served.state_dir} is printed in the banner:\n{banner}")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.io", ""]
)
def test_foreign_host_is_refused(server: Served, host: str) -> None:
    error_of(server.get("/api/info", headers={"Host": host}), 403)
    error_of(server.get("/api/v1/health", headers={"Host": host}), 403, "detail")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LocalHost:{port}"]
)
def test_local_host_is_welcome(server: Served, host: str) -> None:
    answer = server.get("/api/info", headers={"Host": host.format(port=port_of(server))})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("origin", ["http://evil.example", "https://localhost.evil.example", "null", "file://"])
@pytest.mark.parametrize(("method", "path"), STATE_CHANGES)
def test_state_change_from_a_foreign_page_is_refused(server: Served, method: str, path: str, origin: str) -> None:
    error_of(requests.request(method, server.url + path, headers={"Origin": origin}, timeout=30), 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_state_change_from_the_servers_own_page_is_welcome(server: Served, tmp_path: Path, host: str) -> None:
    own = f"{host}:{port_of(server)}"
    headers = {"Host": own, "Origin": f"http://{own}"}
    assert server.delete("/api/models/nobody-has-this", headers=headers).status_code == 404


def test_foreign_page_cannot_load_a_model(server: Served, tmp_path: Path) -> None:
    body = {"name": "foreign", "backend_type": "onnx", "model_path": str(threshold_network(tmp_path / "a.onnx"))}
    error_of(server.post("/api/models", json=body, headers={"Origin": "http://evil.example"}), 403)
    assert "foreign" not in server.get("/api/info").json()["models"]


def test_foreign_page_gets_no_permission_to_read(server: Served) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ["GET", "HEAD", "OPTIONS"]:
        answer = requests.request(method, server.url + "/api/info", headers=headers, timeout=30)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-allow")]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server off loopback, at its second start, that lets other machines than this one in without a key."""
    state_dir = tmp_path_factory.mktemp("guarded") / "state"
    first = start_server(state_dir, "--host", "0.0.0.0")
    first.stop()
    key, _ = kept_key(first)
    served = start_server(state_dir, "--host", "0.0.0.0", "--allow-from", "10.1.2.0/24")
    try:
        assert kept_key(served)[0] == key, "the key changed between two starts"
        yield served
    finally:
        served.stop()


def test_off_loopback_every_credential_form_is_accepted(guarded: Served) -> None:
    key, _ = kept_key(guarded)
    url = local_url(guarded) + "/api/info"
    error_of(requests.get(url, timeout=30), 401)
    for headers in [{"Authorization": f"Bearer {key}"}, {"X-API-Key": key}]:
        assert requests.get(url, headers=headers, timeout=30).status_code == 200
    for password in ["x", "", key]:
        assert requests.get(url, auth=(key, password), timeout=30).status_code == 200
    assert requests.get(url.replace("://", f"://{key}:x@"), timeout=30).status_code == 200


def test_off_loopback_wrong_credentials_are_refused(guarded: Served) -> None:
    key, _ = kept_key(guarded)
    url = local_url(guarded) + "/api/info"
    wrong = [key[:-1], key + "x", key.swapcase(), "", "x"]
    for word in wrong:
        error_of(requests.get(url, headers={"Authorization": f"Bearer {word}"}, timeout=30), 401)
        error_of(requests.get(url, headers={"X-API-Key": word}, timeout=30), 401)
        error_of(requests.get(url, auth=(word, "x"), timeout=30), 401)
    error_of(requests.get(url, auth=("x", key), timeout=30), 401)
    error_of(requests.get(url, params={"key": key}, timeout=30), 401)
    for odd in ["Basic", "Basic !!!", "Basic /w==", "Basic \xff\xfe", "Bearer", "Digest x", "Bearer \xff\xfe"]:
        error_of(requests.get(url, headers={"Authorization": odd.encode("latin-1")}, timeout=30), 401)


def test_off_loopback_a_refusal_speaks_the_dialect_and_asks_for_the_key(guarded: Served) -> None:
    for path, key in [("/api/info", "error"), ("/api/v1/gpu", "detail")]:
        answer = requests.get(local_url(guarded) + path, timeout=30)
        error_of(answer, 401, key)
        assert "WWW-Authenticate" in answer.headers


def test_off_loopback_a_foreign_host_name_is_fine_with_the_key(guarded: Served) -> None:
    headers = {"Host": "segserve.hospital.example", "X-API-Key": kept_key(guarded)[0]}
    assert requests.get(local_url(guarded) + "/api/info", headers=headers, timeout=30).status_code == 200


def test_off_loopback_no_route_answers_without_the_key(guarded: Served) -> None:
    url, (key, _) = local_url(guarded), kept_key(guarded)
    described = requests.get(url + "/openapi.json", headers={"X-API-Key": key}, timeout=30).json()["paths"]
    assert set(described) >= {"/api/health", "/api/info", "/api/models", "/api/model", "/api/infer", "/api/v1/health"}
    with requests.Session() as session:
        for path in [re.sub(r"\{[^}]*\}", "x", template) for template in described.keys() - PROBES] + ELSEWHERE:
            for method in METHODS:
                for headers in [{}, {"X-API-Key": "wrong"}]:
                    answer = session.request(method, url + path, headers=headers, timeout=30, allow_redirects=False)
                    assert answer.status_code == 401, f"{method} {path}: {answer.status_code}"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_key_is_for_the_owners_eyes(guarded: Served) -> None:
    _, path = kept_key(guarded)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_key_file_is_used_instead_of_a_made_key(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("correct-horse-battery-staple\n")
    env = {"SEGSERVE_API_KEY_FILE": str(tmp_path / "key.txt")}
    served = start_server(tmp_path / "state", "--host", "0.0.0.0", env=env)
    url = local_url(served) + "/api/info"
    try:
        assert requests.get(url, auth=("correct-horse-battery-staple", "x"), timeout=30).status_code == 200
        error_of(requests.get(url, timeout=30), 401)
    finally:
        served.stop()
    texts = [path.read_text(errors="replace") for path in served.state_dir.rglob("*") if path.is_file()]
    assert not [text for text in texts if re.fullmatch(r"[\w-]{20,}", text.strip())]


def test_forwarded_address_does_not_count(guarded: Served) -> None:
    # A client may write there what it likes.
    for name in ["X-Forwarded-For", "X-Real-IP", "Forwarded"]:
        answer = requests.get(local_url(guarded) + "/api/info", headers={name: "10.1.2.3"}, timeout=30)
        error_of(answer, 401)


def test_allow_from_lets_its_addresses_in_without_a_key(tmp_path: Path) -> None:
    served = start_server(tmp_path / "state", "--host", "0.0.0.0", "--allow-from", "127.0.0.0/8")
    try:
        assert requests.get(local_url(served) + "/api/info", timeout=30).status_code == 200
    finally:
        served.stop()


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("host", "origin", "key", "welcome"),
    [
        ("evil.example:8000", None, False, True),  # QuPath's, by whatever name
        ("10.1.2.3:8000", "http://10.1.2.3:8000", False, True),
        ("[fe80::1]:8000", "http://[fe80::1]:8000", False, True),
        ("localhost:8000", "http://localhost:8000", False, True),
        ("Segserve.example.:8000", "http://Segserve.example.:8000", False, True),
        ("evil.example:8000", "http://evil.example:8000", True, True),
        ("evil.example:8000", "http://evil.example:8000", False, False),
        ("10.1.2.3.evil.example", "http://10.1.2.3.evil.example", False, False),
        ("segserve.example.evil.example", "http://segserve.example.evil.example", False, False),
        ("", "http://evil.example", False, False),
        ("[", "http://[", False, False),
    ],
)
def test_a_name_pointed_at_the_server_lets_no_page_in_without_a_key(
    tmp_path: Path, method: str, host: str, origin: str | None, *, key: bool, welcome: bool
) -> None:
    (tmp_path / "key.txt").write_text("correct-horse-battery-staple")
    hosts = ["0.0.0.0", "segserve.example"]
    house = make_house(tmp_path, host=hosts, allow_from=["127.0.0.0/8"], api_key_file=tmp_path / "key.txt")
    headers = {"Host": host, **({"Origin": origin} if origin else {})}
    headers |= {"X-API-Key": "correct-horse-battery-staple"} if key else {}

    async def story() -> None:
        async with house.client() as client:
            answer = await client.request(method, "/api/nothing", headers=headers)
            assert answer.status_code == (404 if welcome else 403), answer.text
            assert welcome or "may not use this server" in answer.json()["error"]

    asyncio.run(story())


def test_insecure_lets_everybody_in_with_a_warning(tmp_path: Path) -> None:
    served = start_server(tmp_path / "state", "--host", "0.0.0.0", "--insecure")
    try:
        assert requests.get(local_url(served) + "/api/info", timeout=30).status_code == 200
    finally:
        served.stop()
    assert re.search(r"warning.*insecure|insecure.*warning", served.log.read_text(), re.IGNORECASE | re.DOTALL)
