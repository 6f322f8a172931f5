"""One setting, three spellings, in the documented order; and what the settings make of addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from segserve.errors import BadInputError
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


@pytest.mark.parametrize(
    ("given", "names"), [("all", None), (" none ", []), ("a", ["a"]), ("Liver (CT), b,,", ["Liver (CT)", "b"])]
)
def test_what_is_to_be_preloaded(given: str, names: list[str] | None) -> None:
    assert Settings(preload=given).preloaded == names


def test_model_folders_are_trusted_and_links_to_them_followed(
    settings_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    settings_toml.write_text(f"trust = ['{tmp_path}']\n")
    monkeypatch.setenv("SEGSERVE_MODEL_DIR", f"{tmp_path / 'link'},{real}")
    settings = Settings()
    settings.check_folders()
    assert settings.trusted == [real.resolve(), real.resolve(), tmp_path.resolve()]
    with pytest.raises(BadInputError, match="gone of the setting trust"):
        Settings(trust=[tmp_path / "gone"]).check_folders()
