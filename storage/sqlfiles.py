"""The SQL that ships in the package `sql`: one object per file, named like the file.

A file opens with comments: what it is, `-- grain:`, and one line per column, `--   name: unit and meaning`. Reports
that take values list them in the same way below `-- parameters:`, and name them `$name` in their SQL.
"""

from dataclasses import dataclass
from importlib import resources

from storage.errors import UserError

KINDS = ("views", "macros", "masks", "reports", "checks")
_SECTIONS = ("grain", "parameters", "columns")


@dataclass(frozen=True)
class SqlFile:
    """One file of sql/<kind>/."""

    kind: str
    name: str
    text: str

    @property
    def header(self) -> list[str]:
        """The opening comment lines, without their dashes."""
        lines = self.text.splitlines()
        end = next((index for index, line in enumerate(lines) if not line.startswith("--")), len(lines))
        return [line.removeprefix("--").removeprefix(" ") for line in lines[:end]]

    @property
    def description(self) -> str:
        """What it is, on one line, without its name."""
        return self._prose("description").partition(": ")[2]

    @property
    def grain(self) -> str:
        """The columns that tell its rows apart; `scalar` for a macro."""
        return self._prose("grain")

    @property
    def columns(self) -> dict[str, str]:
        """Column -> unit and meaning, as the header lists them."""
        return self._listed("columns")

    @property
    def parameters(self) -> dict[str, str]:
        """Parameter -> unit and meaning, of the values that the SQL needs."""
        return self._listed("parameters")

    def _section(self, section: str) -> list[str]:
        found, current = [], "description"
        for line in self.header:
            title, colon, rest = line.partition(":")
            if colon and title in _SECTIONS:
                current, line = title, rest
            if current == section:
                found.append(line)
        return found

    def _prose(self, section: str) -> str:
        return " ".join(" ".join(self._section(section)).split())

    def _listed(self, section: str) -> dict[str, str]:
        rows = [line.strip().partition(": ") for line in self._section(section)
                if line.startswith("  ") and ": " in line]
        return {name: meaning for name, _, meaning in rows}


def names(kind: str) -> list[str]:
    """Names of the shipped files of a kind, sorted."""
    assert kind in KINDS, kind
    folder = resources.files("sql").joinpath(kind)
    return sorted(file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql"))


def load(kind: str, name: str) -> SqlFile:
    """The shipped file of that name. Raises UserError, listing the names there are, if there is none."""
    known = names(kind)
    if name not in known:
        raise UserError(f"there is no {name!r} in sql/{kind}: it has {', '.join(known)}")
    return SqlFile(kind, name, resources.files("sql").joinpath(kind, f"{name}.sql").read_text(encoding="utf-8"))
