"""The plans that come with this package: for the embedded models, at a few speed-ups.

They were made by these two commands and are used by their name or through :func:`shipped_plan`::

    delta-dit calibrate --model demo --guidance 1.5 --labels <the 20 classes of even digits> --output-dir runs/calibrate
    delta-dit plan --calibration runs/calibrate --speedup 1.6 --json src/delta_dit/embedded/assets/plans/demo-1.6.json

For the four-step model it was ``--model demo-lcm --steps 4 --guidance 1.0`` and the same labels.
"""

from importlib.resources import files
from pathlib import Path

from delta_dit.delta_plan import DeltaPlan

_FOLDER = Path(str(files("delta_dit.embedded") / "assets" / "plans"))


def shipped_plan(model: str, speedup: float) -> DeltaPlan:
    """Return the calibrated plan of an embedded model.

    Args:
        model: e.g. ``"demo"``.
        speedup: one of the speed-ups that there is a plan for.

    Raises:
        ValueError: no such plan is shipped.
    """
    path = _FOLDER / f"{model}-{speedup:g}.json"
    if not path.exists():
        allowed = ", ".join(sorted(known.stem for known in _FOLDER.glob("*.json")))
        raise ValueError(f"no plan of model={model!r} at speedup={speedup!r} is shipped; allowed: {allowed}")
    return DeltaPlan.load(path)
