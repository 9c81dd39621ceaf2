from __future__ import annotations

from trt_vit.cli.options import Bundle, Json


def inspect(bundle: Bundle, json: Json = False) -> None:
    """Verify a bundle and tell what is in it.

    Every file is compared with the manifest, which also says where it came from.
    """
    from trt_vit.cli.console import print_document
    from trt_vit.engine import bundle as bundles
    from trt_vit.engine.describe import describe

    opened = bundles.Bundle.open(bundle)
    opened.verify()
    print_document(describe(opened), as_json=json)
