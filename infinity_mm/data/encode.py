"""One conversation to token ids, labels, positions and patches.

    conversation --place_images--> messages --ChatML--> ids, labels, positions, branches
                 --plan_images, image_processor.pixels--> pixel_values (P, C), view_shapes (V, S)

The ids are those of the tokenizer's own chat template. One deliberate choice: an answer is tokenised apart from the
`assistant` line before it, as at generation time, where the prompt ends there. And text is never read as a special
token, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from infinity_mm.data.conversation import (
    IMAGE_PLACEHOLDER,
    Conversation,
    Message,
    Outline,
    Turns,
    place_images,
)
from infinity_mm.data.regions import Notation, write_regions
from infinity_mm.errors import explain
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.schema import image_token_ids, num_sequence_tokens
from infinity_mm.model.tokenizer import IM_END, IM_START
from infinity_mm.record import digest
from infinity_mm.vision.images import upright_rgb
from infinity_mm.vision.plans import ImagePlan, plan_images, view_shapes

IGNORE = -100
"""Label of a position without loss."""

OverLong = Literal["drop", "error", "truncate_turns"]
"""What happens to a sample that does not fit a row; `truncate_turns` drops whole exchanges from its end."""

NOTATION = Notation(box="[{}, {}, {}, {}]", point="[{}, {}]", grid=1000)
"""How our own model writes boxes and points: in thousandths of the image."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The text side of one encoded sample: enough to pack it."""

    id: str
    input_ids: list[int]
    labels: list[int]
    """The id itself where the model is taught to produce it, else -100."""
    position_ids: list[int]
    """Restart after the shared part on every branch."""
    branch_ids: list[int]
    """0 on what all branches share, 1, 2, ... on the branches; all 0 in a causal conversation."""
    num_images: int
    domain: str = "default"
    """Label of the conversation, for counting."""
    source: str = ""
    """Name of its source."""

    def __len__(self) -> int:
        """Positions it takes in a row."""
        return len(self.input_ids)

    @property
    def num_labels(self) -> int:
        """Supervised tokens."""
        return sum(label != IGNORE for label in self.labels)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample, ready to pack."""

    layout: Layout
    pixel_values: Tensor | None
    """(P, 3 * patch^2) float32, the patches of all views; None without images."""
    view_shapes: Tensor | None
    """(V, S): image index in the sample, rows and columns in patches, and what else a plan's `view_shapes` say."""


@dataclass(frozen=True, slots=True)
class TextCost:
    """What a sample costs in positions beside its images; the first entry is what stands before all exchanges."""

    tokens: tuple[int, ...]
    """Of each exchange."""
    images: tuple[int, ...]
    """How many images stand in each exchange."""


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one image costs."""

    tokens: int
    """Positions in a row, markers included."""
    view_shapes: tuple[tuple[int, int], ...]
    """(rows, columns) in patches of each view."""


@dataclass
class _Builder:
    """Collects pieces of text and special ids, to be tokenised in one call."""

    pieces: list[str | list[int]] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    exchanges: list[int] = field(default_factory=list)
    image_exchanges: list[int] = field(default_factory=list)
    """The exchange that each image stands in."""
    exchange: int = 0
    """0 before the first question, then 1, 2, ..."""

    def add(self, piece: str | list[int], *, branch: int, labelled: bool = False) -> None:
        """Append one piece to the current exchange."""
        self.pieces.append(piece)
        self.labelled.append(labelled)
        self.branches.append(branch)
        self.exchanges.append(self.exchange)

    def add_image(self, ids: list[int]) -> None:
        """Append what one image becomes."""
        self.image_exchanges.append(self.exchange)
        self.add(ids, branch=0)


@runtime_checkable
class RowEncoder(Protocol):
    """Measures and encodes conversations for one model; can be sent to worker processes."""

    @property
    def pad_id(self) -> int:
        """Id of a padded position."""
        ...

    @property
    def packs(self) -> bool:
        """Whether several samples may share a row."""
        ...

    @property
    def text_fingerprint(self) -> str:
        """Changes whenever `measure` could give other numbers."""
        ...

    def messages(self, conversation: Conversation) -> tuple[Message, ...]:
        """The messages with images placed and boxes in the model's notation."""
        ...

    def measure(self, outline: Outline, turns: Turns) -> TextCost:
        """What the sample costs beside its images, exchange by exchange."""
        ...

    def image_costs(self, sizes: Sequence[tuple[int, int]]) -> list[ImageCost]:
        """What the upright images of one sample cost; raises UserError for one that is not accepted."""
        ...

    def encode(self, conversation: Conversation, turns: Turns) -> Encoded:
        """The whole sample, as long as `measure` and `image_costs` say."""
        ...


class Encoder:
    """Encodes conversations for our own model."""

    packs = True

    def __init__(self, processor: InfinityMMProcessor) -> None:
        image_processor: InfinityMMImageProcessor = processor.image_processor
        tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.view_config = image_processor.view_config()
        self.schema_ids = processor.schema_ids
        self.after_image = _after_image(processor)
        vocab = tokenizer.get_vocab()
        self.im_start, self.im_end = [vocab[IM_START]], [vocab[IM_END]]
        self.pad_id: int = (
            tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else vocab[IM_END]
        )

    def encode(self, conversation: Conversation, turns: Turns) -> Encoded:
        """The whole sample."""
        images = [upright_rgb(image) for image in conversation.images]
        plans = plan_images([image.size for image in images], self.view_config)
        shapes = view_shapes(plans)
        return Encoded(
            layout=self.layout(conversation, turns, plans),
            pixel_values=self.pixels(images, plans) if images else None,
            view_shapes=torch.tensor(shapes) if shapes else None,
        )

    def layout(self, conversation: Conversation, turns: Turns, plans: Sequence[ImagePlan]) -> Layout:
        """The text side; `plans` are those of the upright images."""
        images = [image_token_ids(plan, self.schema_ids) for plan in plans]
        return self._tokenise(conversation.id, self._write(conversation, turns, images), len(images))

    def measure(self, outline: Outline, turns: Turns) -> TextCost:
        """What the sample costs beside its images, exchange by exchange."""
        builder = self._write(outline, turns, [[]] * outline.num_images)
        tokens = [0] * (builder.exchange + 1)
        for exchange, ids in zip(builder.exchanges, self._ids(builder)):
            tokens[exchange] += len(ids)
        images = [0] * len(tokens)
        for exchange in builder.image_exchanges:
            images[exchange] += 1
        return TextCost(tokens=tuple(tokens), images=tuple(images))

    def image_costs(self, sizes: Sequence[tuple[int, int]]) -> list[ImageCost]:
        """What the upright images of one sample cost; raises UserError for one that is not accepted."""
        return [
            ImageCost(
                tokens=num_sequence_tokens(plan),
                view_shapes=tuple((rows, columns) for rows, columns, *_ in plan.view_shapes),
            )
            for plan in plan_images(sizes, self.view_config)
        ]

    @property
    def text_fingerprint(self) -> str:
        """Changes whenever `measure` could give other numbers."""
        return digest("chatml 2", self.after_image, self.tokenizer.backend_tokenizer.to_str())

    def messages(self, conversation: Conversation | Outline) -> tuple[Message, ...]:
        """The messages with images placed and boxes in thousandths."""
        frames = [(1, 1)] * conversation.num_images  # not read: the notation does not count pixels
        return tuple(
            Message(m.role, write_regions(m.text, NOTATION, frames)) for m in place_images(conversation)
        )

    def _write(self, conversation: Conversation | Outline, turns: Turns, images: list[list[int]]) -> _Builder:
        messages = self.messages(conversation)
        builder = _Builder()
        if turns == "causal":
            self._write_causal(builder, messages, images)
        else:
            self._write_independent(builder, conversation.id, messages, images)
        return builder

    def pixels(self, images: Sequence[Image.Image], plans: Sequence[ImagePlan]) -> Tensor:
        """(P, 3 * patch^2) float32: the patches of upright RGB images."""
        return self.image_processor.pixels(images, plans)

    def _write_causal(
        self, builder: _Builder, messages: tuple[Message, ...], images: list[list[int]]
    ) -> None:
        """Every message after the other."""
        waiting = iter(images)
        for message in messages:
            if message.role == "assistant":
                self._write_answer(builder, message.text, branch=0)
                continue
            if message.role == "user":
                builder.exchange += 1
            builder.add(self.im_start, branch=0)
            before, *after = (
                message.text.split(IMAGE_PLACEHOLDER) if message.role == "user" else [message.text]
            )
            builder.add(f"{message.role}\n{before}", branch=0)
            for text in after:
                builder.add_image(next(waiting))
                builder.add(self.after_image + text if text else "", branch=0)
            self._write_end(builder, branch=0)

    def _write_independent(
        self, builder: _Builder, id_: str, messages: tuple[Message, ...], images: list[list[int]]
    ) -> None:
        """System prompt and images once, then one branch per exchange; branches start beside a special token, so
        that the ids are those of separate samples."""
        if messages[0].role == "system":
            self._write_causal(builder, messages[:1], [])
            messages = messages[1:]
        front = IMAGE_PLACEHOLDER * len(images)
        first = messages[0].text
        if not first.startswith(front) or any(IMAGE_PLACEHOLDER in m.text for m in messages[2::2]):
            raise explain(
                what="an image stands inside the text of one exchange, but independent exchanges share all images",
                where=f"conversation {id_}",
                fix="put all images before the first user text, or read the source with turns: causal",
            )
        builder.add(self.im_start, branch=0)
        head = self.after_image if images else "user\n"
        if images:
            builder.add("user\n", branch=0)
        for image in images:
            builder.add_image(image)
        messages = (Message("user", first.removeprefix(front)), *messages[1:])
        for branch, (question, answer) in enumerate(zip(messages[::2], messages[1::2]), 1):
            builder.exchange = branch
            builder.add(head + question.text if question.text or not images else "", branch=branch)
            self._write_end(builder, branch=branch)
            self._write_answer(builder, answer.text, branch=branch)

    def _write_answer(self, builder: _Builder, text: str, *, branch: int) -> None:
        builder.add(self.im_start, branch=branch)
        builder.add("assistant\n", branch=branch)
        builder.add(text, branch=branch, labelled=True)
        builder.add(self.im_end, branch=branch, labelled=True)
        builder.add("\n", branch=branch)

    def _write_end(self, builder: _Builder, *, branch: int) -> None:
        builder.add(self.im_end, branch=branch)
        builder.add("\n", branch=branch)

    def _ids(self, builder: _Builder) -> list[list[int]]:
        """The pieces as token ids."""
        texts = [piece for piece in builder.pieces if isinstance(piece, str)]
        tokenised = iter(
            self.tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            ).input_ids
        )
        return [next(tokenised) if isinstance(piece, str) else piece for piece in builder.pieces]

    def _tokenise(self, id_: str, builder: _Builder, num_images: int) -> Layout:
        input_ids: list[int] = []
        labels: list[int] = []
        position_ids: list[int] = []
        branch_ids: list[int] = []
        shared = position = branch = 0
        for ids, labelled, piece_branch in zip(self._ids(builder), builder.labelled, builder.branches):
            if piece_branch != branch:
                shared = position if branch == 0 else shared
                branch, position = piece_branch, shared
            input_ids += ids
            labels += ids if labelled else [IGNORE] * len(ids)
            position_ids += range(position, position + len(ids))
            branch_ids += [piece_branch] * len(ids)
            position += len(ids)
        return Layout(
            id=id_,
            input_ids=input_ids,
            labels=labels,
            position_ids=position_ids,
            branch_ids=branch_ids,
            num_images=num_images,
        )


def _after_image(processor: Any) -> str:
    """What the chat template writes between an image and the text after it."""
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    written = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return written.partition(processor.image_token)[2].partition("What?")[0]
