"""What is configured, as it may be shown: of what is secret, or leads to it, only that it is set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from runstream.broker.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

    AnySettings: TypeAlias = BaseSettings

__all__ = ["AnySettings", "SettingFinding", "shown"]

Shown: TypeAlias = bool | int | float | str | list[str] | None

NOT_SHOWN: Final = "(set, and not shown)"


class SettingFinding(msgspec.Struct, kw_only=True):
    """One setting, by the name of its variable."""

    name: str
    value: Shown
    is_default: bool


def shown(settings: AnySettings) -> Iterator[SettingFinding]:
    """Give every setting by the name of its variable, in the order in which they are declared."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        variable = f"{settings.model_config.get('env_prefix', '')}{name.upper()}"
        yield SettingFinding(name=variable, value=_value(name, field, value), is_default=value == field.default)


def _value(name: str, field: FieldInfo, value: object) -> Shown:
    """Show a value; of one that may be secret, or leads to one, only that it is there."""
    match value:
        case str() if name == "nats_url":
            return without_password(value)
        case None | bool() | int() | float():
            return value
        case _ if isinstance(value, Path) or not field.repr:
            return NOT_SHOWN
        case str() if "://" in value:
            return without_password(value)
        case frozenset():
            return sorted(map(str, value))
        case _:
            return str(value)
