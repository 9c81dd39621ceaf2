"""``python -m trt_vit``: the same as the ``trt-vit`` command."""

from trt_vit.cli import main

if __name__ == "__main__":
    main()
