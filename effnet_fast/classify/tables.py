"""Images in parquet and arrow tables: their bytes in a column, or their paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        schema, batches = _opened(pyarrow, path)
        image = _image_column(pyarrow, path, schema, columns.image)
        wanted = [image] if columns.key is None else [image, columns.key]
        if columns.key is not None and columns.key not in schema.names:
            raise _no_column(path, schema, columns.key)
        for batch in batches(wanted):
            values = batch.column(image)
            names = None if columns.key is None else batch.column(columns.key)
            for index in range(batch.num_rows):
                value = values[index].as_py()
                if names is not None:
                    name = str(names[index].as_py())
                else:
                    name = value if isinstance(value, str) else f"{key}/{row}"
                row += 1
                if not seen.add(name):
                    number = 2
                    while not seen.add(f"{name}#{number}"):
                        number += 1
                    error = f"a duplicate key: {name} is in the table {number} times or more"
                    yield Image(f"{name}#{number}", path, error)
                else:
                    yield _image(path, name, value)
    except (pyarrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        yield Image(key, path, f"a damaged or truncated table, after {row} rows: {text}")


def _opened(pyarrow: Any, path: Path) -> tuple[Any, Any]:
    """A table's schema, and what iterates over its rows."""
    if path.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow, lambda names: file.iter_batches(ROWS, columns=names)
    source = pyarrow.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        source.seek(0)
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        source.seek(0)
        reader = batches = pyarrow.ipc.open_stream(source)
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
