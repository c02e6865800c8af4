"""The model for transformers: vision tower, connector, language model, and a loss at labelled positions only.

    pixel_values, view_shapes --vision_tower, connector--> image features --fuse--> embeddings --language_model-->

Legend: B batch rows, T positions, P patches, V views, S numbers about a view (see `image_processor.py`), K image
features, E text width, M labelled positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from infinity_mm.errors import explain
from infinity_mm.model.attention import VARLEN, check_gradients, kernel_mask, packed_attention
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.connectors.registry import CONNECTORS
from infinity_mm.model.cross_entropy import token_losses
from infinity_mm.model.fusion import check_counts, fuse
from infinity_mm.model.stitching import stitch
from infinity_mm.model.vision_tower import VisionTower

IGNORED_LABEL = -100
"""Positions with this label have no loss and no logits."""


@dataclass
class InfinityMMOutput(ModelOutput):
    """What `InfinityMMForConditionalGeneration` returns."""

    loss: Float[Tensor, ""] | None = None
    """Summed cross entropy over labelled positions, divided by `num_items_in_batch` or their number."""
    logits: Float[Tensor, "B T vocab"] | None = None
    """Scores of the next token; None when labels were given."""
    token_losses: Float[Tensor, " M"] | None = None
    """Cross entropy of each labelled position in reading order, detached; None without labels."""
    past_key_values: Cache | None = None
    """Key-value cache; only when `use_cache=True` was asked for."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Hidden states of every layer, on request."""
    attentions: tuple[Tensor, ...] | None = None
    """Attention weights of every layer, on request (eager attention only)."""


class InfinityMMPreTrainedModel(PreTrainedModel):
    """What both models share: configuration class, attention backends, initialisation."""

    config: InfinityMMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType] (transformers uses tuples too)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen2DecoderLayer"]  # noqa: RUF012 (transformers' form)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Transformers' own; a newline starts at the scale of a token embedding."""
        super()._init_weights(module)
        if isinstance(module, InfinityMMModel) and module.config.views == "anyres":
            init.normal_(module.image_newline, std=module.image_newline.numel() ** -0.5)


class InfinityMMModel(InfinityMMPreTrainedModel):
    """The model without a head: hidden states of the language model."""

    def __init__(self, config: InfinityMMConfig) -> None:
        super().__init__(config)
        vision, text = _sub_configs(config)
        self.vision_tower = VisionTower(cast(Any, vision), post_layernorm=config.vision_post_layernorm)
        self.connector = CONNECTORS[config.connector](
            vision_dim=vision.hidden_size,
            text_dim=text.hidden_size,
            hidden_dim=config.connector_hidden or text.hidden_size,
            shape=config.connector_shape(),
        )
        if config.views == "anyres":
            self.image_newline = nn.Parameter(torch.empty(text.hidden_size))
        self.language_model: PreTrainedModel = AutoModel.from_config(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        """The language model."""
        return self.language_model

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "P F"] | Sequence[Tensor],
        view_shapes: Int[Tensor, "V S"] | Sequence[Tensor],
        return_dict: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | list[Float[Tensor, "_ E"]]:
        """Features of each image, as the language model sees them.

        `pooler_output` is a list with one (tokens, width) tensor per image, which `forward(image_features=...)`
        takes. One entry per image is accepted too, in a list or, as servers do with equal ones, stacked; then the
        image index in `view_shapes` is not read.
        """
        pixel_values, view_shapes = _packed(pixel_values, view_shapes)
        grids_V3 = view_shapes[:, :3]
        features_KE = self.connector(self.vision_tower(pixel_values, grids_V3), grids_V3)
        if self.config.views == "anyres":
            per_image = stitch(features_KE, view_shapes, self.config.anyres_config(), self.image_newline)
            features_KE = torch.cat(per_image)  # without what was padding, with newlines
        else:
            shape = self.config.connector_shape()
            num_tokens = [0] * (int(view_shapes[-1, 0]) + 1)
            for image, rows, columns in grids_V3.tolist():
                num_tokens[image] += shape.num_tokens(rows, columns)
            per_image = list(features_KE.split(num_tokens))
        if not return_dict:
            return per_image
        return BaseModelOutputWithPooling(
            last_hidden_state=cast(Any, features_KE), pooler_output=cast(Any, per_image)
        )

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T E"] | None = None,
        pixel_values: Float[Tensor, "P F"] | None = None,
        view_shapes: Int[Tensor, "V S"] | None = None,
        image_features: Sequence[Float[Tensor, "_ E"]] | None = None,
        sample_ids: Int[Tensor, "B T"] | None = None,
        branch_ids: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        every_part: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states for text with images.

        With `every_part` the vision tower and connector run even where there is no image, and change nothing.

        `attention_mask` is (B, T) for padding, or (B, 1, T, T) boolean with True = attend, which reaches the attention
        kernel as it is. `sample_ids` and `branch_ids` stand in its place for packed rows: each attention backend then
        makes what it needs of them (`attention.block_mask` says who attends to whom). The cache is off unless asked
        for, and always off in training: with a cache, transformers ignores restarted positions, so packed samples
        would see each other.
        """
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.get_input_embeddings()(input_ids))
        if image_features is None and pixel_values is not None:
            if view_shapes is None:
                raise explain(
                    what="pixel_values came without view_shapes",
                    where="InfinityMMModel.forward",
                    fix="pass both, as the processor and the collator return them",
                )
            image_features = cast(
                list[Tensor], self.get_image_features(pixel_values, view_shapes, return_dict=False)
            )
        if image_features is not None:
            inputs_embeds = self._with_images(input_ids, inputs_embeds, image_features)
        elif every_part:
            inputs_embeds = inputs_embeds + 0.0 * self._blank_view(inputs_embeds.device)
        packed = sample_ids is not None
        return self.language_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache) and not self.training and not packed,
            **self._who_attends(attention_mask, sample_ids, branch_ids, inputs_embeds),
            **kwargs,
        )

    def _blank_view(self, device: torch.device) -> Float[Tensor, ""]:
        """A number made of the smallest view there is. Added zero times where a batch has no image, so that every
        parameter takes part in every loss: processes that share gradients or weights wait for each other."""
        merge, (vision, _) = self.config.connector_shape().merge, _sub_configs(self.config)
        pixels_PF = torch.zeros(merge**2, vision.num_channels * vision.patch_size**2, device=device)
        shapes = torch.tensor([[0, merge, merge]])
        number = self.connector(self.vision_tower(pixels_PF, shapes), shapes).sum()
        return number + self.image_newline.sum() if self.config.views == "anyres" else number

    def _with_images(
        self, input_ids: Tensor | None, inputs_embeds: Tensor, image_features: Sequence[Tensor]
    ) -> Float[Tensor, "B T E"]:
        """Embeddings with image features at the placeholders."""
        if input_ids is None:
            raise explain(
                what="images came with inputs_embeds alone, so the placeholders cannot be found",
                where="InfinityMMModel.forward",
                fix="pass input_ids too, or embeddings that already hold the image features and no images",
            )
        features_KE = torch.cat(list(image_features)).to(inputs_embeds.device)
        return fuse(inputs_embeds, input_ids == self.config.image_token_id, features_KE)

    def _who_attends(
        self, mask: Tensor | None, sample_ids: Tensor | None, branch_ids: Tensor | None, inputs_embeds: Tensor
    ) -> dict[str, Any]:
        """The language model's arguments about attention, in the form its backend reads."""
        backend, dtype = str(self.language_model.config._attn_implementation), inputs_embeds.dtype
        check_gradients(backend, inputs_embeds)
        if sample_ids is not None:
            if mask is not None:
                raise explain(
                    what="both attention_mask and sample_ids were given",
                    where="InfinityMMModel.forward",
                    fix="give sample_ids and branch_ids for packed rows, attention_mask for padded ones",
                )
            branches = torch.zeros_like(sample_ids) if branch_ids is None else branch_ids
            return packed_attention(backend, sample_ids, branches, dtype)
        if mask is None or mask.dim() != 4:
            if mask is not None and backend == VARLEN and not mask.all():
                raise explain(
                    what="varlen attention reads no padding mask",
                    where="InfinityMMModel.forward",
                    fix="give sample_ids with 0 on padding, or use another attention backend",
                )
            return {"attention_mask": mask}
        return {"attention_mask": kernel_mask(mask, backend, dtype)}


class InfinityMMForConditionalGeneration(InfinityMMPreTrainedModel, GenerationMixin):
    """The model with a language-modelling head: training loss and generation."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: InfinityMMConfig) -> None:
        super().__init__(config)
        _, text = _sub_configs(config)
        self.model = InfinityMMModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.model.set_input_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        """The language model, without head."""
        return self.model.get_decoder()

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "P F"] | Sequence[Tensor],
        view_shapes: Int[Tensor, "V S"] | Sequence[Tensor],
        return_dict: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | list[Float[Tensor, "_ E"]]:
        """See `InfinityMMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, view_shapes, return_dict=return_dict, **kwargs)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T E"] | None = None,
        pixel_values: Float[Tensor, "P F"] | None = None,
        view_shapes: Int[Tensor, "V S"] | None = None,
        image_features: Sequence[Float[Tensor, "_ E"]] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        loss_weights: Float[Tensor, "B T"] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        sample_ids: Int[Tensor, "B T"] | None = None,
        branch_ids: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> InfinityMMOutput:
        """Logits, or with `labels` the loss.

        `labels` line up with `input_ids` (position t is predicted from t - 1), -100 = no loss; the head is computed
        at labelled positions only, and no cache is kept. In packed rows the first position of each sample must be
        -100. The loss is a sum divided by `num_items_in_batch`, the labelled positions of the whole optimizer step, or
        the sum of their `loss_weights` where these are given; they line up with `labels`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            view_shapes=view_shapes,
            image_features=image_features,
            sample_ids=sample_ids,
            branch_ids=branch_ids,
            use_cache=use_cache if labels is None else False,
            every_part=labels is not None,
            **kwargs,
        )
        hidden_BTE = outputs.last_hidden_state
        rest = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        if labels is not None:
            token_losses_M = self._token_losses(hidden_BTE, labels)
            weights_M = torch.ones_like(token_losses_M)
            if loss_weights is not None:
                weights_M = loss_weights[:, 1:][labels[:, 1:] != IGNORED_LABEL]
            divisor = weights_M.sum().clamp(min=1e-6) if num_items_in_batch is None else num_items_in_batch
            loss = (token_losses_M * weights_M).sum() / divisor
            return InfinityMMOutput(loss=loss, token_losses=token_losses_M.detach(), **rest)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_BTE[:, kept, :])
        return InfinityMMOutput(logits=logits, past_key_values=outputs.past_key_values, **rest)

    def _token_losses(
        self, hidden_BTE: Float[Tensor, "B T E"], labels: Int[Tensor, "B T"]
    ) -> Float[Tensor, " M"]:
        """Cross entropy in float32 of each position whose next token has a label."""
        next_labels = labels[:, 1:]
        labelled = next_labels != IGNORED_LABEL
        return token_losses(
            self.lm_head,
            hidden_BTE[:, :-1][labelled],
            next_labels[labelled],
            vocab_size=self.lm_head.out_features,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        is_first_iteration: bool | None = False,
        pixel_values: Tensor | None = None,
        view_shapes: Tensor | None = None,
        image_features: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images are passed at prefill only; afterwards they live in the cache."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {
                "pixel_values": pixel_values,
                "view_shapes": view_shapes,
                "image_features": image_features,
            }
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Several outputs per prompt: images are encoded once and each row's features repeated with the row."""
        if expand_size > 1 and input_ids is not None:
            pixel_values = model_kwargs.pop("pixel_values", None)
            view_shapes = model_kwargs.pop("view_shapes", None)
            features = model_kwargs.get("image_features")
            if features is None and pixel_values is not None:
                features = self.get_image_features(pixel_values, view_shapes, return_dict=False)
            if features is not None:
                is_image_BT = input_ids == self.config.image_token_id
                features_KE = torch.cat(list(features))
                check_counts(is_image_BT, features_KE)
                rows = features_KE.split(is_image_BT.sum(1).tolist())
                model_kwargs["image_features"] = [row for row in rows for _ in range(expand_size)]
        return super()._expand_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )


def _sub_configs(config: InfinityMMConfig) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """(vision, text) configurations as objects; the configuration has already built them."""
    assert isinstance(config.vision_config, PreTrainedConfig)
    assert isinstance(config.text_config, PreTrainedConfig)
    return config.vision_config, config.text_config


def _packed(
    pixel_values: Tensor | Sequence[Tensor], view_shapes: Tensor | Sequence[Tensor]
) -> tuple[Float[Tensor, "P F"], Int[Tensor, "V S"]]:
    """Entries per image, in a list or stacked, joined into one packed batch with images numbered in order."""
    if not isinstance(pixel_values, Tensor):
        pixel_values = torch.cat(list(pixel_values))
    if not isinstance(view_shapes, Tensor) or view_shapes.dim() == 3:
        numbered = []
        for image, shapes in enumerate(view_shapes):
            shapes = shapes.clone()
            shapes[:, 0] = image
            numbered.append(shapes)
        view_shapes = torch.cat(numbered)
    return pixel_values, view_shapes
