"""Train nano-clip, the small model that tags drawn images.

python train/clip.py --config configs/train/nano_clip.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from infinity_mm.config import load_config
from infinity_mm.windtunnel.clip_card import model_card
from infinity_mm.windtunnel.clip_training import ClipTraining, train_clip


def main(arguments: list[str] | None = None) -> None:
    """Parse, train, save, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args(arguments)
    config = load_config(ClipTraining, options.config, options.overrides)

    model, metrics = train_clip(config)

    folder = Path(config.output_dir)
    model.save(folder)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    card = model_card(metrics)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
