"""Columns of tables and their names: which of them are the model's inputs, and in which order.

A table is anything with ``columns`` and ``to_numpy``, as the DataFrames of pandas and polars.
Neither is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stepwell.errors import SampleError

MOST_SHOWN = 30  # names in a message


def is_table(x: object) -> bool:
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def is_range(names: Sequence[str]) -> bool:
    """Whether the names are 0, 1, 2, ...: what pandas gives to columns without names."""
    return all(name == str(k) for k, name in enumerate(names))


def shown(names: Sequence[str]) -> str:
    """Names for a message: what cannot be printed is escaped, long lists are cut."""
    texts = [name[:40] if name.isprintable() else ascii(name[:40]) for name in names[:MOST_SHOWN]]
    more = f", ... ({len(names)} in all)" if len(names) > MOST_SHOWN else ""
    return ", ".join(texts) + more


class Wanted:
    """The columns that feed a model of ``n_in`` inputs.

    ``asked``: the user's choice, in the order of the inputs. ``names``: those of the model, which
    hold otherwise. A choice of the same names in another order is matched by name. Without both
    all columns are taken as they come.
    """

    def __init__(
        self,
        n_in: int,
        asked: Sequence[object] | None = None,
        names: Sequence[str] | None = None,
    ):
        asked = [str(name).strip() for name in asked] if asked else None
        if asked and names and sorted(asked) == sorted(names):
            asked = None
        self.n_in, self.asked, self.known = n_in, asked, tuple(names) if names else None
        self.names: tuple[str, ...] | None = tuple(asked) if asked else self.known

    def places(self, labels: Sequence[str], where: str) -> list[int]:
        """For each input the place of its column in ``labels``.

        Names 0, 1, 2, ... are numbers of columns: such a table goes by position when it has as many
        columns as the model has inputs. SampleError, naming a column that is missing or there
        twice.
        """
        if self.names is None:
            if len(labels) > self.n_in:
                raise SampleError(
                    f"{where}: {len(labels)} columns ({shown(labels)}), the model takes "
                    f"{self.n_in}: pick some with --columns a,b,c (columns=)"
                )
            if len(labels) < self.n_in:
                raise SampleError(
                    f"{where}: {len(labels)} values, the model takes {self.n_in}: there is only "
                    f"{shown(labels)}"
                )
            return list(range(self.n_in))
        missing = [name for name in self.names if name not in labels]
        if missing and self._by_position(labels):
            return list(range(self.n_in))
        if missing:
            raise SampleError(
                f"{where}: no column {missing[0]!r}{self._whose()}; there is "
                f"{shown(labels)}{self._advice(labels)}"
            )
        twice = [name for name in self.names if list(labels).count(name) > 1]
        if twice:
            raise SampleError(
                f"{where}: column {twice[0]!r} stands there twice: rename one, or pick others "
                "with --columns"
            )
        self.check_count(where)
        return [labels.index(name) for name in self.names]

    def check_count(self, where: str) -> None:
        """SampleError when the user asked for more or fewer columns than there are inputs."""
        if self.asked and len(self.asked) != self.n_in:
            raise SampleError(
                f"{where}: --columns picks {len(self.asked)} values, the model takes {self.n_in}"
            )

    def _by_position(self, labels: Sequence[str]) -> bool:
        if self.asked or len(labels) != self.n_in:
            return False
        return is_range(labels) or is_range(self.names)

    def _whose(self) -> str:
        return "" if self.asked else f" (the model was made from {shown(self.names)})"

    def _advice(self, labels: Sequence[str]) -> str:
        if self.asked or len(labels) < self.n_in:
            return ""
        return ": rename it, or give --columns (columns=) in the order of the inputs"

    def of_table(self, table: object, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The columns of a DataFrame: float64 [n, n_in], and their names.

        SampleError for missing columns, text, dates and objects.
        """
        labels = [str(label).strip() for label in table.columns]
        places = self.places(labels, where)
        arrays = [_column(table, place, f"{where}, column {labels[place]!r}") for place in places]
        return np.stack(arrays, axis=1), tuple(labels[place] for place in places)

    def of_row(self, row: object) -> object:
        """The values of a dict or of a Series in the order of the inputs. Anything else as it is.

        SampleError for missing columns.
        """
        named = isinstance(row, Mapping)
        if not named and not (hasattr(row, "index") and hasattr(row, "to_numpy")):
            return row
        if named and self.names is None:
            raise SampleError(
                "input is a dict, but the model knows no names of columns: give an array in the "
                "order of its inputs"
            )
        keys = [str(key).strip() for key in (row if named else row.index)]
        values = list(row.values()) if named else row.to_numpy()
        return [values[place] for place in self.places(keys, "input")]

    def of_rows(self, x: object) -> object:
        """The values of a DataFrame; anything else as it is. SampleError."""
        return self.of_table(x, "input")[0] if is_table(x) else x


def _column(table: object, place: int, where: str) -> np.ndarray:
    column = table.iloc[:, place] if hasattr(table, "iloc") else table[table.columns[place]]
    values = np.asarray(column)
    if values.dtype.kind not in "fiub":
        raise SampleError(f"{where}: values of type {values.dtype}, expected real numbers")
    return values.astype(np.float64)
