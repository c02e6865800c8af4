"""Train the nano vision tower on its own; nano-base starts from it.

python train/tower.py --config configs/train/nano_tower.yaml [key=value ...]

With several processes (`torchrun --nproc_per_node N train/tower.py ...`) each takes its share of every batch.
"""

from __future__ import annotations

import argparse
import json

from infinity_mm.config import load_config
from infinity_mm.windtunnel.tower_training import TowerTraining, train_tower


def main(arguments: list[str] | None = None) -> None:
    """Parse, train, save, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args(arguments)
    metrics = train_tower(load_config(TowerTraining, options.config, options.overrides))
    if metrics is not None:
        print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
