from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_vit.cli.options import Json


def compare(
    bundle_a: Annotated[Path, typer.Argument(metavar="BUNDLE_A", help="The bundle that is taken for right.")],
    bundle_b: Annotated[Path, typer.Argument(metavar="BUNDLE_B", help="The bundle that is held against it.")],
    images: Annotated[
        list[str],
        typer.Option("--images", metavar="DIR", help="Images: a directory, a list (.txt), a file or a quoted glob."),
    ],
    json: Json = False,
) -> None:
    """Compare two engines on the same images, which need no labels.

    Agreement is the share of the images with the same top-1; cosine is that of the logits.
    """
    from dataclasses import asdict

    from trt_vit.cli.console import note, print_document
    from trt_vit.engine.progress import Steps, report_build
    from trt_vit.evaluate.compare import compare_bundles

    with report_build() as progress:
        steps = Steps(progress)
        difference = compare_bundles(bundle_a, bundle_b, images, lambda done, of: steps("comparing", done, of))
    if difference.first_error is not None:
        note(f"warning: {difference.failed} images could not be used: {difference.first_error}")
    comparison = difference.comparison
    print_document(
        {
            "images": comparison.images,
            "failed": difference.failed,
            "agreement": comparison.agreement,
            "mean_cosine": comparison.cosine,
            "min_cosine": comparison.min_cosine,
            "max_abs_difference": comparison.max_abs_difference,
            "per_class": [asdict(row) for row in difference.classes],
        },
        as_json=json,
    )
