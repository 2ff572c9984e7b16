"""Write ImageNet's class names, one per output of a model, from torchvision's list to a file."""

import sys
from pathlib import Path

from torchvision.models import EfficientNet_B0_Weights

HEADER = (
    "# ImageNet-1k class names, one per output; made by `make labels` from torchvision's "
    "(BSD 3-Clause).\n"
)


def main() -> None:
    """Write them to the file that the command line names."""
    names = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    Path(sys.argv[1]).write_text(HEADER + "".join(f"{name}\n" for name in names), "utf-8")


if __name__ == "__main__":
    main()
