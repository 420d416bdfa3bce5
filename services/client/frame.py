"""Tables of columns that pandas, polars, duckdb and all else that speaks Arrow take as they are.

`pandas.DataFrame.from_arrow(frame)`, `polars.DataFrame(frame)`, or in SQL of duckdb by the name of the variable.
pyarrow, which gives the protocol, is imported with the first use: it comes with `pip install 'sihlai[frames]'`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any


class Frame:
    """Columns of one length. None is no value.

    What kind of values a column has may be said: then it is of that kind too where it has no value at all, so that
    frames of several jobs can be joined. A datetime is given as microseconds since 1970, UTC.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, type] | None = None) -> None:
        lengths = {len(column) for column in columns.values()}
        assert len(lengths) <= 1, "columns have one length"
        self.columns = dict(columns)
        self._kinds = dict(kinds or {})
        self._length = lengths.pop() if lengths else 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.columns[column]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Row by row, each by column."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def arrow(self) -> Any:
        """The frame as a table of pyarrow."""
        try:
            import pyarrow
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("frames need pyarrow: pip install 'sihlai[frames]'", name=error.name) from error
        types: dict[type | None, Any] = {
            str: pyarrow.string(),
            int: pyarrow.int64(),
            float: pyarrow.float64(),
            datetime: pyarrow.timestamp("us", tz="UTC"),
        }
        kinds = self._kinds
        return pyarrow.table(
            {name: pyarrow.array(column, type=types.get(kinds.get(name))) for name, column in self.columns.items()}
        )

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream: object = self.arrow().__arrow_c_stream__(requested_schema)
        return stream

    def __repr__(self) -> str:
        return f"Frame of {len(self):,} rows: {', '.join(self.columns)}"
