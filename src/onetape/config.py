"""Settings: what the command line and services use when they are not told; from `onetape.toml` and the environment.

What decides, the strongest first: an argument (a flag), the environment (`ONETAPE_TAPE=…`), the file, the default.
The file is `onetape.toml` in the working directory, or the one that ONETAPE_CONFIG names:

    tape = "market_data.db"
    redis_url = "redis://localhost:6379"
    durability = "process"
    retention_days = 30            # or "none": keep everything
    target_db = 1

    [web]
    port = 8080

    [services.charts]

    [[source]]
    kind = "scid"
    path = "/sierra/Data/ESZ6.scid"

Paths in the file are relative to the file. Every name is also a variable of the environment: ONETAPE_REDIS_URL.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from onetape.errors import ConfigInvalid

FILE_NAME = "onetape.toml"
PREFIX = "ONETAPE_"
REDIS_URL = "redis://localhost:6379"
_PATHS = ("tape", "ledger", "reports_dir")
_REDIS_PLACE = ("REDIS_HOST", "REDIS_PORT")


def _none_in_words(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "forever") else value


class WebSettings(BaseModel):
    """The page and its API. An address that is not this machine's own needs a token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    #: What a browser or a program has to show; None: nobody is asked.
    token: str | None = Field(default=None, min_length=16, repr=False)
    #: Pages of other origins that may use the API, such as "https://desk.example".
    origins: tuple[str, ...] = ()
    frames_per_s: float = Field(default=20, gt=0, le=20)
    clients_max: int = Field(default=2000, ge=1)
    symbols_per_client_max: int = Field(default=500, ge=1)
    message_bytes_max: int = Field(default=65536, ge=1024)
    requests_per_s: float = Field(default=50, gt=0)


class Settings(BaseSettings):
    """Settings that are valid; immutable. `load` gives them, with errors that say where a value was set."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_ignore_empty=True)

    tape: Path = Path("market_data.db")
    #: redis://, rediss:// (TLS) or unix://. Without it, REDIS_HOST and REDIS_PORT count, as for the predecessor.
    redis_url: str = REDIS_URL
    durability: Literal["process", "power"] = "process"
    #: None ("none") keeps ticks for ever.
    retention_days: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_none_in_words)
    ] = 30
    #: None ("none") keeps the tape's own 1-minute bars for ever.
    bar_retention_days: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_none_in_words)
    ] = None
    recent_per_symbol: int = Field(1000, ge=1)
    #: None ("none") is without limit.
    memory_bytes: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_in_words)] = 256 * 2**20
    #: None: beside the tape.
    ledger: Path | None = None
    reports_dir: Path = Path()
    #: None: the plan's own.
    target_db: int | None = Field(None, ge=0)
    #: A plan file, or the name of a plan that onetape ships.
    plan: str = "trading_system"
    #: Tables of `onetape serve`: where records come from; the kinds of sources say what each takes.
    source: tuple[dict[str, Any], ...] = ()
    #: Which services run, by name, with what each takes: `[services.market_data]`. None: all, with their defaults.
    services: dict[str, dict[str, Any]] | None = None
    web: WebSettings = WebSettings()
    #: What `onetape serve` says of itself: lines for people, or JSON lines.
    log: Literal["plain", "json"] = "plain"
    #: How long `onetape serve` may take to come to its end, s.
    drain_s: float = Field(20, gt=0)

    @field_validator("redis_url")
    @classmethod
    def _can_be_reached(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("it begins with redis://, rediss:// or unix://")
        if parts.scheme != "unix":
            _ = parts.port  # raises ValueError for what is not a port
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where values come from, the strongest first."""
        place, file = _redis_place(), _file_values(_file())
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, place),
            InitSettingsSource(settings_cls, file),
        )


def load(**flags: Any) -> Settings:
    """Return the settings of this working directory and environment; a flag that is None was not given.

    Raises ConfigInvalid: one line that names the setting and where it was set.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _invalid(error, given) from error


def _redis_place() -> dict[str, Any]:
    host, port = (os.environ.get(name) for name in _REDIS_PLACE)
    if not host and not port:
        return {}
    host = host or "localhost"
    return {"redis_url": f"redis://{f'[{host}]' if ':' in host else host}:{port or 6379}"}


def _file() -> Path | None:
    named = os.environ.get(PREFIX + "CONFIG")
    if not named:
        return Path(FILE_NAME) if Path(FILE_NAME).is_file() else None
    if not Path(named).is_file():
        raise ConfigInvalid(f"ONETAPE_CONFIG = {named!r}: no such file", hint="correct it, or unset it")
    return Path(named)


def _file_values(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigInvalid(f"{path}: {error}", hint="it is TOML in UTF-8") from error
    for name in _PATHS:
        if isinstance(found.get(name), str):
            found[name] = path.parent / Path(found[name]).expanduser()
    return found


def _invalid(error: ValidationError, given: dict[str, Any]) -> ConfigInvalid:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    inner = ".".join(str(part) for part in problem["loc"][1:])
    if name in given:
        where = name
    elif os.environ.get(PREFIX + name.upper()):
        where = PREFIX + name.upper()
    elif name == "redis_url" and _redis_place():
        where = " and ".join(_REDIS_PLACE)
    else:
        where = f"{_file()}: {name}"
    where += f".{inner}" if inner else ""
    if problem["type"] == "extra_forbidden":
        known = WebSettings.model_fields if inner else Settings.model_fields
        return ConfigInvalid(f"{where}: there is no such setting", hint=f"settings are {', '.join(sorted(known))}")
    secret = name == "redis_url" or inner == "token"  # a URL may hold a password
    shown = "…" if secret else repr(problem["input"])
    why = str(problem["msg"]).removeprefix("Value error, ")
    return ConfigInvalid(
        f"{where} = {shown}: {why[:1].lower()}{why[1:]}",
        hint="docs/commands/README.md lists the settings",
        setting=name,
    )
