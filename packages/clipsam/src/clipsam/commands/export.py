"""``clipsam export``: the pipeline's first half for one category as an ONNX file, checked before it is kept."""

from clipsam.commands.models import open_model
from clipsam.commands.options import ExportConfig
from clipsam.exported import INPUT, MAP, SCORE, difference, to_onnx
from clipsam.pipeline import ClipSAM
from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.errors import RunError, UsageError

ALLOWED = 1e-4  # of the maps and scores, against the pipeline's own


def main(config: ExportConfig) -> None:
    """Write the file, and beside it a JSON that says what goes in and what comes out.

    Raises:
        UsageError: no file is named.
        ImportError: the ``[onnx]`` extra is missing.
        RunError: onnxruntime finds something else in the file than the pipeline does.
    """
    if config.onnx is None:
        raise UsageError("onnx=None is missing; allowed: --onnx FILE")
    model = open_model(config)
    content = to_onnx(model, config.category)
    found = difference(content, model, config.category)
    if not found <= ALLOWED:
        raise RunError(f"what onnxruntime makes of {str(config.onnx)!r} differs by {found:.2g}; allowed: {ALLOWED:g}")
    config.onnx.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(config.onnx, content)
    write_json(config.onnx.with_suffix(".json"), description(model, config.category, found))


def description(model: ClipSAM, category: str, found: float) -> dict[str, object]:
    """Return what whoever runs the file has to know."""
    size = model.backbone.image_size
    return {
        "category": category,
        "image_size": size,
        "input": {INPUT: f"(batch, 3, {size}, {size}) float32, RGB in [0, 1], squashed to the square"},
        "outputs": {MAP: f"(batch, {size}, {size}) in [0, 1]", SCORE: "(batch,) in [0, 1]"},
        "threshold": model.mmr.threshold,
        "clip": model.backbone.name,
        "difference": found,
    }
