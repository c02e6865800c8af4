"""The model card of nano-clip, written from its figures, so that card and weights cannot drift apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = """# nano-clip

A small open_clip model that tags images of the drawn world (`infinity_mm.windtunnel`). It is a part of the
measuring instrument: it stands where a real run has a CLIP or SigLIP tagger, and it knows nothing of real images.

- **Use**: `TaggerConfig(model="nano-clip", vocabulary="windtunnel")`, or `NanoClip.load(NANO_CLIP)`.
- **Files**: `model.safetensors` (half precision, no pickles), `config.json` (sizes, the words of its tokenizer, and
  for each tag the slope and offset that turn a cosine into a probability), `metrics.json`, this card.
- **Trained on**: scenes of the training side of the drawn world, with a contrastive loss on short captions and lists
  of tags plus a sigmoid loss per tag (`infinity_mm/windtunnel/clip_training.py`). No other data.
- **Train it again**: `python train/clip.py --config configs/train/nano_clip.yaml output_dir=<folder>`
- **Licence**: that of this repository.
"""


def model_card(metrics: Mapping[str, Any]) -> str:
    """Markdown from what `train_clip` measured."""
    training = metrics["training"]
    lines = [
        _HEAD,
        "## Measured",
        "",
        f"On {metrics['held_out_scenes']} held-out scenes, whose content no training scene has. Precision and recall",
        "are those of tags with a probability of at least 0.5; a coin with the tag's frequency has an average",
        "precision equal to its share.",
        "",
        f"- mean average precision {metrics['mean_average_precision']:.3f} over {len(metrics['tags'])} tags",
        f"- over all tags: precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f}",
        f"- calibration error {metrics['calibration_error']:.4f} (mean distance of stated and observed frequency)",
        f"- {training['parameters']:,} parameters, {training['images_seen']:,} images seen, "
        f"{training['seconds']:,} seconds on one shared core",
        "",
        "| tag | share of scenes | precision | recall | average precision |",
        "|---|---|---|---|---|",
    ]
    for tag, row in metrics["tags"].items():
        figures = (row[key] for key in ("share", "precision", "recall", "average_precision"))
        lines.append(f"| {tag} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    weak = [tag for tag, row in metrics["tags"].items() if row["average_precision"] < 0.7]
    if weak:
        lines += ["", f"Not to be relied on: {', '.join(weak)} (average precision below 0.7)."]
    return "\n".join(lines) + "\n"
