"""RAM++: the image tagger behind Infinity-MM's tags, through its authors' package `ram`.

pictures --transform--> model --its last layer--> logits of 4,585 tags, none of those its authors switched off

The package is not on the index and imports names that transformers 5 no longer has, so it needs a patched copy or an
older transformers. It could not be installed where this was written: the adapter is tested with a module that is
called alike, not with the real one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.taxonomy.clip_tagger import state_hash
from infinity_mm.taxonomy.tagger import LogitTagger, TaggerConfig

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PREFIX = "ram:"
IMAGE_PX = 384


@final
class RamTagger(LogitTagger):
    """RAM++ with Swin-L. It has its own vocabulary; what else of it is in ours goes by the same name."""

    def __init__(self, config: TaggerConfig) -> None:
        weights = config.model.removeprefix(PREFIX)
        if not os.path.isfile(weights):
            raise explain(
                what=f"there are no weights {weights or '(no path)'}",
                where="tagger.model (configuration)",
                fix="download ram_plus_swin_large_14m.pth and write tagger.model=ram:/path/of/the/file",
            )
        try:
            from ram import get_transform  # type: ignore[import-not-found]
            from ram.models import ram_plus  # type: ignore[import-not-found]
        except ImportError as error:
            raise explain(
                what=f"the package `ram` cannot be imported: {error}",
                where="tagger.model (configuration)",
                fix="pip install git+https://github.com/xinyu1205/recognize-anything.git; with transformers 5, which "
                "it does not know, tag elsewhere and bring the tags along with the images (docs/tags.md)",
            ) from error
        self._model: Any = ram_plus(pretrained=weights, image_size=IMAGE_PX, vit="swin_l").eval()
        self._transform = get_transform(image_size=IMAGE_PX)
        off = {int(index) for index in self._model.delete_tag_index}
        self._on = [index for index in range(len(self._model.tag_list)) if index not in off]
        vocabulary = [str(self._model.tag_list[index]) for index in self._on]
        self._logits: list[torch.Tensor] = []
        # `generate_tag` compares logits with thresholds of its own and gives names alone; its last layer has them all.
        self._model.fc.register_forward_hook(lambda _layer, _inputs, output: self._logits.append(output))
        super().__init__(config, vocabulary, digest("ram-tagger", state_hash(self._model), *vocabulary))

    def logits(self, pictures: Sequence[Image]) -> torch.Tensor:
        """One forward pass for all pictures."""
        import torch

        self._logits.clear()
        with torch.inference_mode():
            self._model.generate_tag(torch.stack([self._transform(picture) for picture in pictures]))
        (found,) = self._logits
        return found.squeeze(-1)[:, self._on]
