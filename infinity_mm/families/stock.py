"""Families whose model, processor and file format are transformers' own.

    conversation --plan--> image texts --chat template--> Layout
                 --pixels--> rows of pixel_values, view_shapes --inputs--> what the stock model takes

A batch has one form for all families: `pixel_values` (P, F) and `view_shapes` (V, S) with (image, rows, columns, and
integers of the family's own). What a row of `pixel_values` is, is the family's business: a patch (Qwen) or a whole
tile, which is a view of 1 x 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from infinity_mm.data.conversation import (
    IMAGE_PLACEHOLDER,
    Conversation,
    Message,
    Outline,
    Turns,
    place_images,
)
from infinity_mm.data.encode import IGNORE, Encoded, ImageCost, Layout, RowEncoder, TextCost
from infinity_mm.data.regions import Frame, Notation, write_regions
from infinity_mm.errors import explain, need
from infinity_mm.families.base import Limits, Parts
from infinity_mm.families.template import ChatTemplate
from infinity_mm.model.attention import DENSE, packed_attention
from infinity_mm.model.cross_entropy import token_losses
from infinity_mm.model.flops import ModelSizes, VisionSizes, vision_flops
from infinity_mm.model.modeling import InfinityMMOutput
from infinity_mm.record import digest
from infinity_mm.vision.images import upright_rgb


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePlan:
    """What one image becomes; a function of the sizes of its sample's images alone."""

    text: str
    """What its image token becomes in the prompt."""
    views: tuple[tuple[int, int], ...]
    """Rows and columns of each view; their products count rows of `pixel_values`."""
    numbers: tuple[int, ...] = ()
    """What else `inputs` must know of the image: further columns of `view_shapes`."""
    frame: Frame
    """The size boxes are counted in, where the family counts pixels."""


class StockFamily(ABC):
    """What these families share; a subclass says how it sees images."""

    model_type: str
    parts: Parts
    notation: Notation
    packs: bool = True

    @abstractmethod
    def plan(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[ImagePlan]:
        """Plans for upright images of (width, height), all of one sample."""

    @abstractmethod
    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        """(P, F) float32 for the images of one sample, in the order of their plans."""

    @abstractmethod
    def inputs(self, config: Any, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Any]:
        """The image arguments of the stock model."""

    @abstractmethod
    def blank(self, config: Any) -> tuple[Tensor, Tensor]:
        """(pixel_values, view_shapes) of the smallest image there is."""

    @abstractmethod
    def limit(self, model: Any, processor: Any, limits: Limits) -> None:
        """See `Family.limit`."""

    def idle(self, config: Any) -> tuple[str, ...]:
        """None, but in families that say so."""
        return ()

    @abstractmethod
    def vision_sizes(self, config: Any) -> VisionSizes:
        """Of the tower; raises UserError where there is no formula for it."""

    @abstractmethod
    def sizes(self, config: Any) -> ModelSizes:
        """See `Family.sizes`."""

    def vision_cost(self, config: Any) -> Callable[[int, int], int]:
        """By the formula of `model/flops.py`."""
        return partial(vision_flops, self.vision_sizes(config))

    def positions(
        self, config: Any, input_ids: Tensor, position_ids: Tensor, view_shapes: Tensor | None
    ) -> Tensor:
        """The stock model's position_ids, from plain ones (R, T)."""
        return position_ids

    def load(self, folder: Path, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Model and processor; attention is SDPA, which takes the packed mask as it is."""
        try:
            processor = cast(ProcessorMixin, AutoProcessor.from_pretrained(folder))
        except ImportError as error:
            if "num2words" in str(error):
                raise need("num2words", extra="train", purpose=self.model_type) from error
            raise
        settings = {"dtype": torch.float32, "attn_implementation": "sdpa", **options}
        return AutoModelForImageTextToText.from_pretrained(folder, **settings), processor

    def encoder(self, processor: ProcessorMixin) -> RowEncoder:
        """Conversations to rows, through the family's chat template."""
        return StockEncoder(self, processor)

    def trainable(self, model: PreTrainedModel) -> nn.Module:
        """The model with our loss."""
        return WithLoss(self, model)


class StockEncoder:
    """Encodes conversations for one processor."""

    def __init__(self, family: StockFamily, processor: Any) -> None:
        self.family, self.processor, self.packs = family, processor, family.packs
        self.template = ChatTemplate(processor, processor.image_token)
        self.image_id: int = self.template.ids[processor.image_token]
        pad = processor.tokenizer.pad_token_id
        self.pad_id: int = pad if isinstance(pad, int) else processor.tokenizer.eos_token_id

    def encode(self, conversation: Conversation, turns: Turns) -> Encoded:
        """The whole sample."""
        images = [upright_rgb(image) for image in conversation.images]
        plans = self.family.plan(self.processor, [image.size for image in images])
        shapes = [(i, *view, *plan.numbers) for i, plan in enumerate(plans) for view in plan.views]
        return Encoded(
            layout=self.layout(conversation, turns, plans),
            pixel_values=self.family.pixels(self.processor, images) if images else None,
            view_shapes=torch.tensor(shapes) if shapes else None,
        )

    def layout(self, conversation: Conversation, turns: Turns, plans: Sequence[ImagePlan]) -> Layout:
        """The text side. Independent exchanges share all up to the end of the last image."""
        messages = self._messages(conversation, plans)
        images = [plan.text for plan in plans]
        if turns == "causal":
            branches, shared = [self.template.encode(messages, images)], 0
        else:
            branches = self._exchanges(conversation.id, messages, images)
            shared = self._shared(branches, images)
        input_ids, labels = branches[0][0][:shared], branches[0][1][:shared]
        position_ids, branch_ids = list(range(shared)), [0] * shared
        for number, (ids, own_labels) in enumerate(branches, 1 if turns == "independent" else 0):
            input_ids += ids[shared:]
            labels += own_labels[shared:]
            position_ids += range(shared, len(ids))
            branch_ids += [number] * (len(ids) - shared)
        wanted = sum(text.count(self.processor.image_token) for text in images)
        if input_ids.count(self.image_id) != wanted:
            raise explain(
                what=f"{input_ids.count(self.image_id)} image tokens where the images have {wanted}",
                where=f"conversation {conversation.id}",
                fix=f"put all images first, and no {self.processor.image_token} into the texts",
            )
        return Layout(
            id=conversation.id,
            input_ids=input_ids,
            labels=labels,
            position_ids=position_ids,
            branch_ids=branch_ids,
            num_images=len(plans),
        )

    def messages(self, conversation: Conversation) -> tuple[Message, ...]:
        """The messages with images placed and boxes in the family's notation."""
        sizes = [upright_rgb(image).size for image in conversation.images]
        return tuple(self._messages(conversation, self.family.plan(self.processor, sizes)))

    def measure(self, outline: Outline, turns: Turns) -> TextCost:
        """What the sample costs beside its images, exchange by exchange."""
        messages = self._messages(outline, self.family.plan(self.processor, outline.image_sizes))
        token: str = self.processor.image_token  # stands for itself here, and is not counted
        if turns == "independent":
            branches = self._exchanges(outline.id, messages, [token] * outline.num_images)
            shared = self._shared(branches, [token] * outline.num_images)
            own = [len(ids) - shared for ids, _ in branches]
            return TextCost(
                tokens=(shared - outline.num_images, *own), images=(outline.num_images, *[0] * len(own))
            )
        first = len(messages) % 2  # a system message stands with the first exchange
        images = [m.text.count(IMAGE_PLACEHOLDER) for m in messages[first::2]]
        tokens: list[int] = []
        for number in range(1, len(images) + 1):
            num_images = sum(images[:number])
            ids, _ = self.template.encode(messages[: first + 2 * number], [token] * num_images)
            tokens.append(len(ids) - num_images - sum(tokens))
        return TextCost(tokens=(0, *tokens), images=(0, *images))

    def image_costs(self, sizes: Sequence[tuple[int, int]]) -> list[ImageCost]:
        """What the images of one sample cost; raises UserError for one that is not accepted."""
        return [
            ImageCost(tokens=len(self.template.image_ids(plan.text)), view_shapes=plan.views)
            for plan in self.family.plan(self.processor, sizes)
        ]

    @property
    def text_fingerprint(self) -> str:
        """Changes whenever `measure` could give other numbers: with tokenizer, template and the way boxes are written,
        which for pixels follows the image processor."""
        pixels = self.family.notation.grid is None
        return digest(
            "stock 1",
            self.family.model_type,
            self.processor.tokenizer.backend_tokenizer.to_str(),
            self.template.source,
            self.processor.image_processor.to_json_string() if pixels else "",
        )

    def _messages(self, conversation: Conversation | Outline, plans: Sequence[ImagePlan]) -> list[Message]:
        """Images placed, boxes written."""
        frames = [plan.frame for plan in plans]
        return [
            Message(m.role, write_regions(m.text, self.family.notation, frames))
            for m in place_images(conversation)
        ]

    def _shared(self, branches: Sequence[tuple[list[int], list[int]]], images: Sequence[str]) -> int:
        """Positions up to the end of the last image, which are the same in all branches."""
        if not images:
            return 0
        before_end = self.template.image_ids(images[-1])[::-1].index(self.image_id)
        return len(branches[0][0]) - branches[0][0][::-1].index(self.image_id) + before_end

    def _exchanges(
        self, id_: str, messages: Sequence[Message], images: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Every exchange as a sample of its own, with the system prompt and all images."""
        system = list(messages[:1]) if messages[0].role == "system" else []
        body = messages[len(system) :]
        front = IMAGE_PLACEHOLDER * len(images)
        if not body[0].text.startswith(front) or any(IMAGE_PLACEHOLDER in m.text for m in body[2::2]):
            raise explain(
                what="an image stands inside the text of one exchange, but independent exchanges share all images",
                where=f"conversation {id_}",
                fix="put all images before the first user text, or read the source with turns: causal",
            )
        questions = [body[0], *(Message("user", front + m.text) for m in body[2::2])]
        return [
            self.template.encode([*system, question, answer], images)
            for question, answer in zip(questions, body[1::2], strict=True)
        ]


class WithLoss(nn.Module):
    """A stock model called like ours: packed rows in, the loss out."""

    def __init__(self, family: StockFamily, model: PreTrainedModel) -> None:
        super().__init__()
        self.family, self.model = family, model
        # Where a model may be cut is read from the outermost module.
        self._no_split_modules = model._no_split_modules

    def forward(
        self,
        *,
        input_ids: Tensor,
        sample_ids: Tensor,
        branch_ids: Tensor,
        position_ids: Tensor,
        pixel_values: Tensor | None,
        view_shapes: Tensor | None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        use_cache: bool = False,
    ) -> InfinityMMOutput:
        """Logits, or with `labels` the loss; see `InfinityMMForConditionalGeneration.forward`."""
        model = cast(Any, self.model)
        if pixel_values is not None:
            assert view_shapes is not None
            what = {
                "input_ids": input_ids,
                **self.family.inputs(model.config, pixel_values, view_shapes),
            }
        elif labels is not None:
            # Before the language model, as on the processes that have images: they wait for each other's layers, also
            # where a loss is only measured.
            what = {
                "inputs_embeds": model.get_input_embeddings()(input_ids) + 0.0 * self._blank(input_ids.device)
            }
        else:
            what = {"input_ids": input_ids}
        backend = model.config.get_text_config()._attn_implementation
        # The other backends read arguments that a stock model hands to its vision tower, too.
        if backend not in DENSE:
            raise explain(
                what=f"attn_implementation={backend!r} reads no mask of packed rows in this family",
                where=f"family {self.family.model_type}",
                fix=f"use one of {', '.join(DENSE)}",
            )
        # Not by its call: DeepSpeed wants modules in one order on all processes, and `_blank` enters this one late.
        hidden_RTE = model.model.forward(
            **what,
            **packed_attention(backend, sample_ids, branch_ids, model.dtype),
            position_ids=self.family.positions(model.config, input_ids, position_ids, view_shapes),
            use_cache=False,
        ).last_hidden_state
        if labels is None:
            return InfinityMMOutput(logits=model.lm_head(hidden_RTE))
        next_labels = labels[:, 1:]
        labelled = next_labels != IGNORE
        losses_M = token_losses(
            model.lm_head,
            hidden_RTE[:, :-1][labelled],
            next_labels[labelled],
            vocab_size=model.lm_head.out_features,
        )
        weights_M = torch.ones_like(losses_M) if loss_weights is None else loss_weights[:, 1:][labelled]
        divisor = weights_M.sum().clamp(min=1e-6) if num_items_in_batch is None else num_items_in_batch
        return InfinityMMOutput(loss=(losses_M * weights_M).sum() / divisor, token_losses=losses_M.detach())

    def _blank(self, device: torch.device) -> Tensor:
        """A number made of the smallest image. Added zero times where a batch has no image, so that every parameter
        takes part in every step: processes that share gradients or weights wait for each other."""
        model = cast(Any, self.model)
        pixel_values, view_shapes = (tensor.to(device) for tensor in self.family.blank(model.config))
        output = model.model.get_image_features(
            **self.family.inputs(model.config, pixel_values, view_shapes), return_dict=True
        )
        parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        tensors = [t for part in parts for t in ([part] if isinstance(part, Tensor) else part)]
        return torch.stack([tensor.sum() for tensor in tensors]).sum()


def tile_tower(vision: Any, **changes: Any) -> VisionSizes:
    """A vision transformer that sees square tiles of one size, by its configuration."""
    image, patch = _pair(vision.image_size), _pair(vision.patch_size)
    sizes = {
        "patch_values": vision.num_channels * math.prod(patch),
        "hidden": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "mlp": vision.intermediate_size,
        "unit_patches": math.prod(side // own for side, own in zip(image, patch, strict=True)),
    }
    return VisionSizes(**{**sizes, **changes})


def _pair(side: int | Sequence[int]) -> tuple[int, ...]:
    return (side, side) if isinstance(side, int) else tuple(side)


def tiles(rows_PF: Tensor) -> Tensor:
    """Rows that hold one square RGB tile each, as (P, 3, side, side)."""
    side = math.isqrt(rows_PF.shape[1] // 3)
    return rows_PF.view(len(rows_PF), 3, side, side)
