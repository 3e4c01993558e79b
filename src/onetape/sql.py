"""SQL: one SELECT answered by DuckDB over tables it is given, which can read nothing else and change nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onetape.errors import ConfigInvalid, OnetapeError, QueryInvalid, QueryTooLarge

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Params = Sequence[Any] | Mapping[str, Any] | None

#: What a query may take for sorting, grouping and joining before it spills to disk. An answer is not counted.
MEMORY_BYTES = 2**30
#: Rows of an answer that are handed over at a time.
_BATCH_ROWS = 65_536
_EXPLAIN = "EXPLAIN "
#: How often a query that is to end is told so: it does not hear it before it has begun.
_LOOK_S = 0.05


class Database:
    """A DuckDB of one query: in memory, without files, network, extensions or the variables of its caller."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        """Raises ConfigInvalid where DuckDB is not installed."""
        try:
            import duckdb
        except ImportError as error:
            raise ConfigInvalid("SQL needs DuckDB, which is not installed", hint="pip install onetape[sql]") from error
        self._explainable = False
        self._engine = ThreadPoolExecutor(1, "onetape-sql")
        self._spill = tempfile.TemporaryDirectory(prefix="onetape-sql-")
        try:
            self._connection: duckdb.DuckDBPyConnection = duckdb.connect(
                ":memory:",
                config={
                    "enable_external_access": "false",
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                    "python_enable_replacements": "false",
                    "errors_as_json": "true",
                    "preserve_insertion_order": "true",
                    "memory_limit": f"{memory_bytes}B",
                    "temp_directory": self._spill.name,
                },
            )
            self._connection.execute("SET TimeZone = 'UTC'")
            # It takes what Arrow scans for one row, and would join that row by row: 200,000 × 200,000.
            self._connection.execute("SET asof_loop_join_threshold = 0")
        except duckdb.Error as error:
            self._spill.cleanup()
            raise ConfigInvalid(f"DuckDB cannot be started: {_told(error).get('exception_message', error)}") from error

    def close(self) -> None:
        """Forget everything, and remove what was spilled."""
        self._connection.close()
        self._engine.shutdown()
        self._spill.cleanup()

    def tables(self, query: str) -> set[str]:
        """Return the names, in lower case, of the tables a query asks for. Raises QueryInvalid if it is not one."""
        import duckdb

        with _translated(query):
            statements = self._connection.extract_statements(query)
            if len(statements) != 1:
                raise QueryInvalid(
                    f"{len(statements)} SQL statements" if statements else "no SQL statement", hint="give one SELECT"
                )
            if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise QueryInvalid(
                    f"{statements[0].type.name} is not answered: a tape is read with SQL, not written",
                    hint="give one SELECT",
                )
            self._explainable = statements[0].type == duckdb.StatementType.SELECT
            try:
                return {name.lower() for name in self._connection.get_table_names(query)}
            except duckdb.Error:  # it wants a plain SELECT; whatever else is wrong, the query itself will tell
                return set(_words(query))

    def add(self, name: str, table: Any) -> None:
        """Make something that Arrow can scan a table."""
        self._connection.register(name, table)

    def run(self, query: str, params: Params = None) -> pa.RecordBatchReader:
        """Answer a query, batch by batch. Raises QueryInvalid, QueryTooLarge."""
        return self._call(self._run, query, params)

    def batches(self, query: str, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """Yield an answer's batches. Raises QueryInvalid, QueryTooLarge."""
        while (batch := self._call(_next, query, reader)) is not None:
            yield batch

    def stop(self, reader: pa.RecordBatchReader) -> None:
        """End a query whose answer nobody wants.

        A thread of DuckDB's may be waiting for Python to read a table. It is waited for here, where Python runs on;
        where the reader is let go, both would wait for ever.
        """
        self._connection.interrupt()
        self._call(_drain, reader)

    def _run(self, query: str, params: Params) -> pa.RecordBatchReader:
        self._connection.execute("SET lock_configuration = true")
        with _translated(query, len(_EXPLAIN)):  # the one that says where an error is
            if self._explainable:
                self._connection.execute(_EXPLAIN + query, params)
        with _translated(query):
            return self._connection.sql(query, params=params).to_arrow_reader(_BATCH_ROWS)

    def _call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do what may take long in the one thread that works with DuckDB, so that Ctrl-C is heard in this one."""
        future = self._engine.submit(work, *args)
        try:
            return future.result()
        except BaseException:
            while not future.done():
                self._connection.interrupt()
                wait([future], _LOOK_S)
            raise


def _next(query: str, reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    with _translated(query):
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None


def _drain(reader: pa.RecordBatchReader) -> None:
    try:
        while reader.read_next_batch():
            pass
    except Exception:  # noqa: BLE001  (the end, or that it was interrupted: both are what is wanted)
        return


def _words(query: str) -> Iterator[str]:
    import re

    return (word.lower() for word in re.findall(r"\w+", query))


@contextmanager
def _translated(query: str, offset: int = 0) -> Iterator[None]:
    """Turn DuckDB's errors, which Arrow may have wrapped, into ours."""
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
        raise _translate(query, error, offset) from error


def _translate(query: str, error: Exception, offset: int) -> OnetapeError:
    told = _told(error)
    message = " ".join(str(told.get("exception_message", error)).split())
    if told.get("exception_type") == "Out of Memory":
        return QueryTooLarge(
            f"the query needs more memory than it may take: {message}", hint="narrow it, or allow more"
        )
    hint = "see onetape sql --help for the tables" if told.get("type") == "Table" else ""
    if "position" not in told:
        return QueryInvalid(message, hint=hint)
    before = query.encode()[: int(told["position"]) - offset].decode(errors="ignore")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return QueryInvalid(f"line {line}, column {column}: {message}", hint=hint, line=line, column=column)


def _told(error: Exception) -> dict[str, Any]:
    """Return what DuckDB says of an error as data; empty where it says nothing."""
    text = str(error)
    start = text.find("{")
    try:
        told, _ = json.JSONDecoder().raw_decode(text[start:] if start >= 0 else "")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
