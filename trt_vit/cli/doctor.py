from __future__ import annotations

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Tell what this machine has, which runtimes work on it, and how to mend what is missing."""
    from trt_vit.cli.console import print_fields, print_json
    from trt_vit.doctor import examine
    from trt_vit.errors import EXIT_ENVIRONMENT

    report = examine()
    if json:
        print_json(report)
    else:
        found = report.pop("findings")
        print_fields(report)
        for finding in found:
            print(f"{'error' if finding['fatal'] else 'note'}: {finding['problem']} ({finding['fix']})")
        report["findings"] = found
    if any(finding["fatal"] for finding in report["findings"]):
        raise typer.Exit(EXIT_ENVIRONMENT)
