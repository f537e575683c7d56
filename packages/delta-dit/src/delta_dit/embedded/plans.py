"""The plans that come with this package: for the embedded models, at a few costs.

They were made by these commands, those near to the uncached images when a calibration still tried every step (what it
finds today is 3 to 6 dB less near in the mean), and are used by their name or through :func:`shipped_plan`::

    delta-dit calibrate --model demo --guidance 1.5 --labels <the 20 classes of even digits> --output-dir runs/calibrate
    delta-dit plan --calibration runs/calibrate --speedup 1.6 --json src/delta_dit/embedded/assets/plans/demo-1.6.json

For the four-step model it was ``--model demo-lcm --steps 4 --guidance 1.0`` and the same labels. Those that are near to
the exact images come from ``calibrate --move-steps`` and ``plan --budget 12.5``: ``demo-exact-12.5.json``.
"""

from importlib.resources import files
from pathlib import Path

from delta_dit.delta_plan import DeltaPlan

_FOLDER = Path(str(files("delta_dit.embedded") / "assets" / "plans"))


def shipped_plan(model: str, speedup: float | None = None, *, budget: float | None = None) -> DeltaPlan:
    """Return a calibrated plan of an embedded model.

    Args:
        model: e.g. ``"demo"``.
        speedup: one of the speed-ups that there is a plan for, near to the uncached images of as many steps.
        budget: instead, one of the costs in full steps that there is a plan for, near to the exact images.

    Raises:
        ValueError: no such plan is shipped.
    """
    name = f"{model}-{speedup:g}" if budget is None else f"{model}-exact-{budget:g}"
    path = _FOLDER / f"{name}.json"
    if not path.exists():
        allowed = ", ".join(sorted(known.stem for known in _FOLDER.glob("*.json")))
        cost = f"speedup={speedup!r}" if budget is None else f"budget={budget!r}"
        raise ValueError(f"no plan of model={model!r} at {cost} is shipped; allowed: {allowed}")
    return DeltaPlan.load(path)
