"""Says whether a trainer can train on this machine: `python -m runner.trainer.check DEVICE`.

Exit code 0 where it can; else 1, and the last line on standard error says why not. It computes once where the trainer
would. Of torchvision only the compiled half is loaded: that is what breaks beside another torch, and the rest costs
seconds.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main(wanted: str) -> int:
    """Look at torch, torchvision and the device; the exit code."""
    try:
        look(wanted)
    except Exception as error:  # noqa: BLE001 — whatever it is, no job could be trained
        words = " ".join(str(error).split())
        sys.stderr.write(f"{type(error).__name__}: {words}\n")
        return 1
    return 0


def look(wanted: str) -> None:
    """Raises where a trainer could not train on `auto`, `cpu` or `cuda`."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RuntimeError("torch finds no GPU: look after NVIDIA's driver, or take --device cpu")
    device = "cuda" if available and wanted != "cpu" else "cpu"
    (torch.ones(2, device=device) * 2).sum().item()
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ImportError("torchvision is not installed")
    for library in Path(found.origin).parent.glob("_C*.so"):
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]  # torch has no types for it
    torch.ops.torchvision.nms  # noqa: B018 — AttributeError where the two do not fit together


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
