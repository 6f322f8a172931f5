"""One setting, three spellings, in the documented order; and what the settings make of addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from segserve.settings import Settings, is_loopback


@pytest.fixture
def settings_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "segserve.toml"
    monkeypatch.setenv("SEGSERVE_SETTINGS", str(path))
    return path


def test_flag_wins_over_environment_and_environment_over_file(
    settings_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().max_waiting == 16
    settings_toml.write_text('max_waiting = 3\nport = [9000]\nmax_upload = "2MiB"\n')
    assert (Settings().max_waiting, Settings().port, Settings().max_upload) == (3, [9000], 2 * 2**20)
    monkeypatch.setenv("SEGSERVE_MAX_WAITING", "4")
    monkeypatch.setenv("SEGSERVE_PORT", "9001, 9002")
    assert (Settings().max_waiting, Settings().port) == (4, [9001, 9002])
    assert Settings(max_waiting=5).max_waiting == 5


def test_a_misspelt_key_in_the_file_is_refused(settings_toml: Path) -> None:
    settings_toml.write_text('max_uplaod = "1kB"\n')
    with pytest.raises(ValidationError, match="max_uplaod"):
        Settings()


def test_the_state_directory_has_two_variables_and_a_flag_that_wins(
    settings_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not settings_toml.exists()
    monkeypatch.setenv("SEGSERVE_HOME", "/a")
    assert Settings().state_dir == Path("/a")
    monkeypatch.setenv("SEGSERVE_STATE_DIR", "/b")
    assert Settings().state_dir == Path("/b")
    assert Settings(state_dir=Path("/c")).state_dir == Path("/c")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "localhost.", "::ffff:127.0.0.1"]
)
def test_local_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example", "", "example.org"]
)
def test_other_names(host: str) -> None:
    assert not is_loopback(host)
    assert Settings(host=[host]).off_loopback
