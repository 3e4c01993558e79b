"""The files of a bridge: what lies in its folder, read over HTTP, so that another machine's `.scid` can be taken in.

with BridgeFiles("10.0.0.5") as files:
    files.list()                                    # [RemoteFile(name="ESZ6.scid", size=…, modified_ns=…)]
    files.fetch("ESZ6.scid", Path("ESZ6.scid"))     # goes on where an earlier fetch ended
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any

import msgspec

from onetape.errors import ConfigInvalid, SourceRefused
from onetape.sources.bridge.http import BridgeAway, BridgeHttp
from onetape.sources.bridge.look import LookInvalid, time_ns

PORT = 8765

#: What is read at once, bytes.
PIECE_BYTES = 1 << 20
#: So much of the begin and of the end of a copy is compared before it is gone on with, bytes.
_CHECK_BYTES = 4096


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of the bridge's folder: its name, size in bytes, and when it was changed (ns, None where not told)."""

    name: str
    size: int
    modified_ns: int | None = None


class BridgeFiles:
    """Reads files of a bridge. Raises SourceRefused for what the bridge refuses or answers wrongly, and for a bridge
    that is away; ConfigInvalid for a name that leads out of its folder.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = PORT, *, answer_s: float = 30.0) -> None:
        self._http = BridgeHttp(host, port, bytes_max=4 * PIECE_BYTES, answer_s=answer_s)
        self._where = f"{host}:{port}"

    def __enter__(self) -> BridgeFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it. May be called twice."""
        self._http.close()

    def list(self) -> list[RemoteFile]:
        """Return the files, by name. Entries whose names lead elsewhere are left out."""
        value = self._ask("list", {})
        entries = value.get("files") if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise self._wrong("list", value)
        found = []
        for entry in entries:
            described = {"name": entry} if isinstance(entry, str) else entry
            try:
                found.append(_file(described))
            except (ConfigInvalid, LookInvalid):
                continue
        return sorted(found, key=lambda file: file.name)

    def info(self, name: str) -> RemoteFile:
        """Return what the bridge says of a file."""
        value = self._ask("info", {"path": safe_name(name)})
        try:
            return _file({"name": name, **value} if isinstance(value, dict) else value)
        except (ConfigInvalid, LookInvalid) as error:
            raise self._wrong("info", value) from error

    def read(self, name: str) -> str:
        """Return a text file, at most 4 MiB of it. For what is longer or binary there is pieces()."""
        value = self._ask("read", {"path": safe_name(name)})
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise self._wrong("read", value)
        return text

    def piece(self, name: str, offset: int, length: int = PIECE_BYTES) -> bytes:
        """Return up to `length` bytes from `offset`; fewer, or none, at the end of the file."""
        query = {"path": safe_name(name), "offset": offset, "length": length}
        try:
            body = self._http.bytes("/api/file/read_binary", query)
        except BridgeAway as error:
            raise self._refused("read_binary", error) from error
        if body[:1] == b"{":
            body = self._of_json(body)
        if len(body) > length:
            raise SourceRefused(
                f"bridge {self._where}: {len(body)} bytes of {name} where {length} were asked for",
                hint="this bridge does not read pieces; fetch the file in another way",
            )
        return body

    def pieces(self, name: str, offset: int = 0, bytes_max: int = 1 << 40) -> Iterator[bytes]:
        """Yield the file from `offset` on in pieces, to its end as of now, at most `bytes_max` bytes."""
        end = min(self.info(name).size, offset + bytes_max)
        while offset < end:
            piece = self.piece(name, offset, min(PIECE_BYTES, end - offset))
            if not piece:
                raise SourceRefused(
                    f"bridge {self._where}: {name} ended at byte {offset} of {end}",
                    hint="it was cut or replaced meanwhile; ask again",
                )
            offset += len(piece)
            yield piece

    def fetch(self, name: str, target: Path, bytes_max: int = 1 << 40) -> int:
        """Copy the file to `target`, behind what is there of it already, and return its size.

        A target that is longer than the file, or begins or ends in another way, is refused: it is another file, or the
        bridge's was replaced.
        """
        have = target.stat().st_size if target.exists() else 0
        size = self.info(name).size
        if have > size:
            raise SourceRefused(
                f"{target} has {have} bytes, {name} at {self._where} has {size}",
                hint="the file was replaced, or is another one; remove the copy and fetch anew",
            )
        if have:
            with target.open("rb") as file:
                for offset in (0, max(0, have - _CHECK_BYTES)):
                    file.seek(offset)
                    here = file.read(min(_CHECK_BYTES, have - offset))
                    if self.piece(name, offset, len(here)) != here:
                        raise SourceRefused(
                            f"{target} and {name} at {self._where} differ from byte {offset} on",
                            hint="the file was replaced, or is another one; remove the copy and fetch anew",
                        )
        with target.open("ab") as file:
            for piece in self.pieces(name, have, bytes_max):
                file.write(piece)
        return target.stat().st_size

    def _of_json(self, body: bytes) -> bytes:
        try:
            content = msgspec.json.decode(body)["content"]
            return base64.b64decode(content, validate=True)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, binascii.Error):
            return body  # a file that begins with a brace

    def _ask(self, verb: str, query: dict[str, Any]) -> Any:
        try:
            return self._http.json(f"/api/file/{verb}", query)
        except BridgeAway as error:
            raise self._refused(verb, error) from error

    def _refused(self, verb: str, error: BridgeAway) -> SourceRefused:
        return SourceRefused(
            f"bridge {self._where}: file/{verb}: {error}", hint="check the name and that the bridge runs"
        )

    def _wrong(self, verb: str, value: Any) -> SourceRefused:
        return SourceRefused(f"bridge {self._where}: file/{verb} answered {value!r:.80}", hint="is this a bridge?")


def safe_name(name: str) -> str:
    """Return a name that stays in the bridge's folder. Raises ConfigInvalid."""
    parts = PureWindowsPath(name).parts + PurePosixPath(name).parts
    bad = (
        not name
        or ".." in parts
        or PureWindowsPath(name).anchor
        or PureWindowsPath(name).drive
        or PurePosixPath(name).is_absolute()
        or any(ord(letter) < 32 for letter in name)
    )
    if bad:
        raise ConfigInvalid(f"file {name!r:.80} leads out of the bridge's folder", hint="give a name from its list")
    return name


def _file(described: Any) -> RemoteFile:
    if not isinstance(described, dict):
        raise LookInvalid(f"no file: {described!r:.60}")
    name = described.get("name") or described.get("path")
    size = described.get("size", 0)
    if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise LookInvalid(f"no file: {described!r:.60}")
    modified = described.get("modified", described.get("mtime"))
    return RemoteFile(safe_name(name), size, None if modified is None else time_ns(modified))
