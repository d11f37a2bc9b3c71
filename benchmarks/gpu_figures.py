"""A line of the table of benchmarks/gpu.py."""

from dataclasses import asdict, dataclass

from benchmarks.report import Target


@dataclass(frozen=True)
class Figure:
    """Without a limit it is a figure to look at; value None: not measured, `note` says why."""

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "" if self.limit is None else Target(self.name, self.value, self.limit, self.at_most).verdict

    def line(self) -> str:
        value = "-" if self.value is None else f"{self.value:.4g}"
        target = "" if self.limit is None else f"{'<=' if self.at_most else '>='} {self.limit:g}"
        return f"{self.name:<74} {value:>10} {self.unit:<14} {target:<9} {self.verdict} {self.note}".rstrip()

    def row(self) -> dict:
        return {**asdict(self), "verdict": self.verdict}
