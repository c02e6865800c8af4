"""Text with image placeholders plus images, to everything the model's `forward` and `generate` take."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.processing_utils import MultiModalData

from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.schema import SchemaTokens, image_text, num_sequence_tokens
from infinity_mm.vision.plans import plan_image


class InfinityMMProcessor(ProcessorMixin):
    """Tokenizer and image processor in one; each placeholder becomes its image's schema (`schema.image_text`)."""

    image_processor: InfinityMMImageProcessor
    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self,
        image_processor: InfinityMMImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
        image_token: str = SchemaTokens().image,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.schema = SchemaTokens.of(image_processor.views, image_token)
        self.schema_ids = self.schema.ids(tokenizer)
        self.image_token = self.schema.image
        self.image_token_id = self.schema_ids.image

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """As any processor's, but `view_shapes` holds one tensor per image when replacement offsets are asked for.

        A server asks for them, to keep what each image became by itself: it indexes a list by image, and would cut a
        tensor by numbers of patches.
        """
        inputs = super().__call__(*args, **kwargs)
        if kwargs.get("return_text_replacement_offsets") and "view_shapes" in inputs:
            shapes = inputs["view_shapes"]
            inputs["view_shapes"] = [shapes[shapes[:, 0] == image] for image in range(int(shapes[-1, 0]) + 1)]
        return inputs

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The text one placeholder becomes; called by transformers for each image."""
        width, height = (int(side) for side in image_inputs["image_sizes"][image_idx])
        num_views = sum(int(shape[0]) == image_idx for shape in image_inputs["view_shapes"])
        # An `anyres` image that is alone has a base view and at least one tile; one among others is a single view.
        plan = plan_image(width, height, self.image_processor.view_config(), alone=num_views > 1)
        return image_text(plan, self.schema)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Counts for a server that plans before it has pixels; `image_sizes` are (height, width) in px, each alone."""
        if image_sizes is None:
            return MultiModalData()
        config = self.image_processor.view_config()
        plans = [plan_image(width, height, config) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[num_sequence_tokens(plan) for plan in plans],
            num_image_patches=[plan.num_patches for plan in plans],
        )

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor returns but the model does not take."""
        return ["image_sizes"]
