"""The tests that want a GPU, and how each of them ended.

python benchmarks/gpu_tests.py --out FILE
"""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from turns import END_OF_AN_ERROR, ROOT, recorded

MARK = "pytest.mark.gpu"


class _Outcomes:
    """A plugin of pytest: what came of each test, with the end of its error."""

    def __init__(self, out: Path | None) -> None:
        self.out = out

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            results = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            content = {"benchmark": "test", "results": {report.nodeid: results}}
            if report.failed:
                content["error"] = report.longreprtext[-END_OF_AN_ERROR:]
            recorded(content, self.out)


def main(
    dry_run: Annotated[bool, typer.Option(help="Find them alone.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the JSON objects to it.")] = None,
) -> None:
    """Run them, one after the other in this process; exit status as pytest's."""
    tests = (ROOT / "tests").rglob("test_*.py")
    # Of other files the imports may want what a machine with a GPU does not have.
    files = sorted(str(file) for file in tests if MARK in file.read_text())
    arguments = [*files, "-m", "gpu", "-n", "0", "-q", "--tb=short", "-p", "no:cacheprovider"]
    if dry_run:
        arguments.append("--collect-only")
    status = pytest.main([*arguments, f"--rootdir={ROOT}"], plugins=[_Outcomes(out)])
    if dry_run:
        recorded(
            {"benchmark": "tests that want a GPU", "results": {"found": {"status": status}}}, out
        )
    raise typer.Exit(int(status))


if __name__ == "__main__":
    typer.run(main)
