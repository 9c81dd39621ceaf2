from __future__ import annotations

import typer

from trt_vit.cli.options import Json


def doctor(json: Json = False) -> None:
    """Tell what this machine has and lacks.

    Shows the hardware, the packages, the runtimes that load, and how to mend what does not.
    """
    from trt_vit.cli.console import print_document
    from trt_vit.doctor import examine
    from trt_vit.errors import EXIT_ENVIRONMENT

    report = examine()
    found = report["findings"]
    if json:
        print_document(report, as_json=True)
    else:
        print_document({key: value for key, value in report.items() if key != "findings"}, as_json=False)
        for finding in found:
            print(f"{'error' if finding['fatal'] else 'note'}: {finding['problem']} ({finding['fix']})")
    if any(finding["fatal"] for finding in found):
        raise typer.Exit(EXIT_ENVIRONMENT)
