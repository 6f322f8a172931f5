"""The server's settings as command-line flags, made from `Settings` so that each is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer
from pydantic import ByteSize, ValidationError
from pydantic.fields import FieldInfo

from segserve.cli.output import fail
from segserve.settings import Settings, settings_file

PLAIN = (bool, int, float)


def with_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """Turn a function of `Settings` into a command with a flag for each setting."""

    def run(**flags: Any) -> None:
        command(read_settings({name: value for name, value in flags.items() if value not in (None, [])}))

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, field))
        for name, field in Settings.model_fields.items()
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def read_settings(flags: dict[str, Any]) -> Settings:
    """The settings in force: flags, environment, file. Ends the command if one makes no sense."""
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fail(f"the setting {first['loc'][0]} is wrong: {first['msg']} (got {first['input']!r}).")
    except OSError as error:
        fail(f"the settings file {settings_file()} cannot be read: {error}.")
    except ValueError as error:  # TOML
        fail(f"the settings file {settings_file()} makes no sense: {error}.")


def _annotation(name: str, field: FieldInfo) -> Any:  # noqa: ANN401  # a type
    flag = f"--{name.replace('_', '-')}"
    kind: Any = (list[str] if _is_list(field) else _plain(field)) | None
    option = typer.Option(flag, help=field.description, show_default=_shown_default(field))
    return Annotated[kind, option]


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _plain(field: FieldInfo) -> Any:  # noqa: ANN401  # a type
    if field.annotation in PLAIN:
        return field.annotation
    return str  # sizes, paths: pydantic reads them


def _shown_default(field: FieldInfo) -> str | bool:
    if field.default_factory or field.default in (None, [], False):
        return False
    if isinstance(field.default, list):
        return ", ".join(str(item) for item in field.default)
    if isinstance(field.default, ByteSize):
        return field.default.human_readable() if field.default else "0"
    return str(field.default)
