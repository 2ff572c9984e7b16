"""Images in parquet and arrow tables: their bytes in a column, or their paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError
from .sources import Columns, Image, Keys, key_of

ROWS = 64  # read at a time
PATH_COLUMNS = ("path", "filename", "file_name", "file", "image_path")


def need_pyarrow(what: str) -> Any:
    """The package, or how to get it.

    Raises
    ------
    ArgumentError
        It is missing.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ArgumentError(f"{what} needs pyarrow: pip install 'effnet-fast[classify]'") from error
    return pyarrow


def in_table(path: Path, columns: Columns) -> Iterator[Image]:
    """The images of a table, row by row.

    Raises
    ------
    ArgumentError
        A column that was named is not there, or none can be one of images; pyarrow is missing.
    """
    pyarrow = need_pyarrow(f"table {path}")
    key, row, seen = key_of(path), 0, Keys()
    try:
        with open(path, "rb") as file:  # pyarrow itself takes no name that is not UTF-8
            for name, value in _rows(pyarrow, path, file, columns):
                if name is None:
                    name = _key(path, value) if isinstance(value, str) else f"{key}/{row}"
                row += 1
                if seen.add(name):
                    yield _image(path, name, value)
                    continue
                number = 2
                while not seen.add(f"{name}#{number}"):
                    number += 1
                error = f"a duplicate key: {name} is in the table {number} times or more"
                yield Image(f"{name}#{number}", path, error)
    except (pyarrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        yield Image(key, path, f"a damaged or truncated table, after {row} rows: {text}")


def _key(table: Path, value: str) -> str:
    """Of a row with a path, which is seen from the table's folder."""
    return key_of(table.parent / value)


def _rows(
    pyarrow: Any, path: Path, file: IO[bytes], columns: Columns
) -> Iterator[tuple[str | None, Any]]:
    """Of each row its key, if a column has it, and its image."""
    schema, batches = _opened(pyarrow, path, file)
    image = _image_column(pyarrow, path, schema, columns.image)
    if columns.key is not None and columns.key not in schema.names:
        raise _no_column(path, schema, columns.key)
    wanted = [image] if columns.key is None else [image, columns.key]
    for batch in batches(wanted):
        values = batch.column(image)
        names = None if columns.key is None else batch.column(columns.key)
        for index in range(batch.num_rows):
            name = None if names is None else str(names[index].as_py())
            yield name, values[index].as_py()


def _opened(pyarrow: Any, path: Path, file: IO[bytes]) -> tuple[Any, Any]:
    """A table's schema, and what iterates over its rows."""
    if path.suffix.lower() == ".parquet":
        table = pyarrow.parquet.ParquetFile(file)
        return table.schema_arrow, lambda names: table.iter_batches(ROWS, columns=names)
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        reader = batches = pyarrow.ipc.open_stream(file)
    return reader.schema, lambda names: (batch.select(names) for batch in batches)


def _image_column(pyarrow: Any, path: Path, schema: Any, name: str | None) -> str:
    types = pyarrow.types

    def has_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(f.name == "bytes" and has_bytes(f.type) for f in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    def has_path(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    if name is not None:
        if name not in schema.names:
            raise _no_column(path, schema, name)
        kind = schema.field(name).type
        if not has_bytes(kind) and not has_path(kind):
            raise ArgumentError(
                f"{path}: column {name!r} is of {kind}; accepted: bytes, a struct with bytes, or "
                "text with the paths"
            )
        return name
    for field in schema:
        if has_bytes(field.type):
            return field.name
    for known in PATH_COLUMNS:
        if known in schema.names and has_path(schema.field(known).type):
            return known
    raise ArgumentError(
        f"{path}: no column holds bytes or is called {', '.join(PATH_COLUMNS)}; name one of "
        f"{', '.join(schema.names)}"
    )


def _no_column(path: Path, schema: Any, name: str) -> ArgumentError:
    return ArgumentError(f"{path} has no column {name!r}; accepted: {', '.join(schema.names)}")


def _image(table: Path, key: str, value: Any) -> Image:
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        return Image(key, table, "the row has no image")
    if isinstance(value, str):
        return Image(key, table.parent / value)
    return Image(key, table, data=value)
