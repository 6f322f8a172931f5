"""Every setting of the server, once: its name, type, default and meaning.

A setting `max_upload` is the flag `--max-upload`, the environment variable `SEGSERVE_MAX_UPLOAD` and the key
`max_upload` of the settings file; the flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import AliasChoices, ByteSize, Field
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from segserve.errors import BadInputError
from segserve.logs import LogFormat

DEFAULT_HOSTS = ("127.0.0.1", "::1")
DEFAULT_PORTS = (8000, 8765)
SETTINGS_FILE_VARIABLE = "SEGSERVE_SETTINGS"


def _split(value: object) -> object:
    """Lists in an environment variable are separated by commas; one value is a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else [value]


def settings_file() -> Path:
    """Where the settings file is: `$SEGSERVE_SETTINGS`, else `segserve.toml` in the user's configuration folder."""
    chosen = os.environ.get(SETTINGS_FILE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_config_path("segserve") / "segserve.toml"


def default_state_dir() -> Path:
    """The user's data folder for Segserve, as each operating system has it."""
    return platformdirs.user_data_path("segserve")


class Settings(BaseSettings):
    """The server's settings. Sizes accept units, as in `4GiB`."""

    model_config = SettingsConfigDict(env_prefix="SEGSERVE_", extra="forbid", populate_by_name=True)

    host: Annotated[list[str], NoDecode, BeforeValidator(_split)] = Field(
        list(DEFAULT_HOSTS), description="Address to listen on; may be repeated. Anything but loopback asks for a key."
    )
    port: Annotated[list[Annotated[int, Field(ge=0, le=65535)]], NoDecode, BeforeValidator(_split)] = Field(
        list(DEFAULT_PORTS), description="Port to listen on; may be repeated. 0 takes a free one."
    )
    state_dir: Path = Field(
        default_factory=default_state_dir,
        validation_alias=AliasChoices("SEGSERVE_STATE_DIR", "SEGSERVE_HOME"),
        description="Folder for everything the server keeps: models, key, spool. Also SEGSERVE_HOME.",
    )
    model_dir: Annotated[list[Path], NoDecode, BeforeValidator(_split)] = Field(
        [], description="Folder whose models are offered, each under its name; may be repeated. Its code is trusted."
    )
    preload: str = Field(
        "all", description="Models of model_dir to load at the start: `all`, `none`, or names separated by commas."
    )
    trust: Annotated[list[Path], NoDecode, BeforeValidator(_split)] = Field(
        [], description="Folder whose configurations and PyTorch networks may be run, as code; may be repeated."
    )
    debug: bool = Field(False, description="Log at level DEBUG. Nothing else changes.")
    log_format: LogFormat = Field("text", description="Log lines as `text`, or as `json`: an object a line.")
    insecure: bool = Field(
        False, description="Ask nobody for a key and check no Host or Origin. For sealed networks only."
    )
    allow_from: Annotated[list[IPv4Network | IPv6Network], NoDecode, BeforeValidator(_split)] = Field(
        [], description="Network (CIDR) whose addresses need no key; may be repeated. QuPath cannot send a key."
    )
    api_key_file: Path | None = Field(
        None, description="File holding the key. Without it one is made in the state directory."
    )
    max_upload: ByteSize = Field(ByteSize(4 * 2**30), gt=0, description="Largest request body, in bytes.")
    max_decompressed: ByteSize = Field(
        ByteSize(16 * 2**30), gt=0, description="Largest image once decompressed, in bytes."
    )
    upload_stall: float = Field(
        60.0, gt=0, description="Seconds without a byte after which an upload is given up (408)."
    )
    upload_rate: ByteSize = Field(
        ByteSize(2**10),
        ge=0,
        description="Bytes a second that an upload must bring on average, once it has taken `upload_stall` seconds.",
    )
    max_voxels: int = Field(2**31, gt=0, description="Most voxels in one volume.")
    max_waiting: int = Field(16, ge=0, description="Requests that may wait for one model; one more is answered 503.")
    answer_patience: float = Field(
        240.0, gt=0, description="Seconds after which the answer to a volume is begun before its labels are there."
    )
    answer_pulse: float = Field(20.0, gt=0, description="Seconds between the signs of life of such an answer.")
    model_idle: float = Field(
        3600.0, gt=0, description="Seconds after which the process of a model that nobody asks ends; it stays listed."
    )
    memory_limit: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="Memory one request may take, in bytes; 0 is what the machine has free at the time.",
    )
    default_patch: int = Field(
        96, ge=1, description="Patch edge, in voxels, for networks that name none and accept any."
    )
    max_tile_models: int = Field(
        4, ge=1, description="Pixel classifiers held ready at a time, each in a process; the least recently used goes."
    )
    max_tile_pixels: int = Field(4096 * 4096, gt=0, description="Most pixels in one tile that is to be classified.")
    max_tile_bytes: ByteSize = Field(
        ByteSize(256 * 2**20), gt=0, description="Largest tile once decoded, in bytes, all its channels counted."
    )
    tile_idle: float = Field(900.0, gt=0, description="Seconds after which a pixel classifier that nobody asks ends.")
    max_tile_waiting: ByteSize = Field(
        ByteSize(2**30), gt=0, description="Tiles that may wait to be classified, in bytes; more are answered 503."
    )
    tile_precision: Literal["float32", "auto"] = Field(
        "float32",
        description="What a pixel classifier computes in on a processor where the request does not say: "
        "`auto` takes the fastest precision that is right.",
    )
    weights_dir: Path | None = Field(
        None, description="Folder of pretrained encoder weights, `<encoder>.safetensors` or `.pth`, looked at first."
    )
    data_memory: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="Memory that a training may fill with decoded patches, in bytes; 0 is a third of what is free. "
        "The rest goes to a file.",
    )
    load_timeout: float = Field(100.0, gt=0, description="Seconds a model may take to load.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the settings file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, settings_file())

    def check_folders(self) -> None:
        """Refuse folders that are not there.

        Raises:
            BadInputError: naming the first one.
        """
        for name, folders in (("model_dir", self.model_dir), ("trust", self.trust)):
            for folder in folders:
                if not folder.is_dir():
                    raise BadInputError(f"The folder {folder} of the setting {name} is not there.")

    @property
    def trusted(self) -> list[Path]:
        """The folders whose code may be run, links resolved."""
        return [folder.resolve() for folder in (*self.model_dir, *self.trust)]

    @property
    def preloaded(self) -> list[str] | None:
        """The names of the models to load at the start; None for every one."""
        chosen = self.preload.strip()
        if chosen in {"all", "none"}:
            return None if chosen == "all" else []
        return [name.strip() for name in chosen.split(",") if name.strip()]

    @property
    def off_loopback(self) -> bool:
        """True if the server listens on an address that other machines can reach."""
        return not all(is_loopback(host) for host in self.host)


def is_loopback(host: str) -> bool:
    """True for `localhost`, 127.0.0.0/8 and ::1, in any spelling an address may have."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
