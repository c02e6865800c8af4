"""A SigLIP tower over views of any patch grid, batched with an exact mask.

    packed patches --linear + interpolated positions--> (V, N) batch or one sequence --SigLIP layers--> packed features

Legend: P patches of all views, V views, N most patches in one view, D width, F values in one patch (3 * side^2).
A batch equals one view at a time: padded patches are never keys, and each grid has its own position table.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipPreTrainedModel

from infinity_mm.errors import explain
from infinity_mm.model.attention import check_gradients, separate_views


class PatchEmbeddings(nn.Module):
    """Linear patch embedding plus a square position table; parameter names are those of `SiglipVisionModel`."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        size, patch = cast(int, config.image_size), cast(int, config.patch_size)
        self.table_side = size // patch
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)
        self.position_embedding = nn.Embedding(self.table_side**2, config.hidden_size)

    def forward(self, patches_PF: Float[Tensor, "P F"], grids: list[tuple[int, int]]) -> Float[Tensor, "P D"]:
        """Embed packed patches; `grids` holds (rows, columns) of each view, in order."""
        weight = self.patch_embedding.weight.flatten(1)
        embedded_PD = functional.linear(patches_PF.to(weight.dtype), weight, self.patch_embedding.bias)
        return (embedded_PD.float() + self.positions(grids)).to(weight.dtype)

    def positions(self, grids: list[tuple[int, int]]) -> Float[Tensor, "P D"]:
        """The position table resized to every grid, in float32 whatever the model's dtype; bicubic."""
        side = self.table_side
        table_1Dss = self.position_embedding.weight.float().T.reshape(1, -1, side, side)
        resized: dict[tuple[int, int], Tensor] = {}
        for grid in grids:
            if grid not in resized:
                table = table_1Dss if grid == (side, side) else _bicubic(table_1Dss, grid)
                resized[grid] = table.flatten(2).squeeze(0).T
        return torch.cat([resized[grid] for grid in grids])


class VisionTower(SiglipPreTrainedModel):
    """SigLIP's encoder and, unless left out, its final layer norm; without its pooling head."""

    config: SiglipVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SiglipVisionConfig, *, post_layernorm: bool = True) -> None:
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config)
        self.encoder = SiglipEncoder(cast(Any, config))
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_layernorm = norm if post_layernorm else nn.Identity()
        self.post_init()

    def forward(
        self, pixel_values: Float[Tensor, "P F"], view_shapes: Int[Tensor, "V 3"], **kwargs: Any
    ) -> Float[Tensor, "P D"]:
        """Encode packed views.

        `view_shapes` has (image index, rows, columns) per view, in patches. Raises UserError when the patch counts
        disagree.
        """
        grids = [(rows, columns) for _, rows, columns in view_shapes.tolist()]
        lengths = [rows * columns for rows, columns in grids]
        if sum(lengths) != pixel_values.shape[0]:
            raise explain(
                what=f"pixel_values holds {pixel_values.shape[0]} patches, view_shapes describes {sum(lengths)}",
                where="VisionTower.forward",
                fix="pass pixel_values and view_shapes from the same call of the image processor or collator",
            )
        packed_PD = self.embeddings(pixel_values, grids)
        backend = cast(str, self.config._attn_implementation)
        check_gradients(backend, packed_PD)
        apart = separate_views(backend, lengths, packed_PD.device)
        if apart is not None:
            hidden_1PD = self.encoder(
                inputs_embeds=packed_PD.unsqueeze(0), attention_mask=apart
            ).last_hidden_state
            return self.post_layernorm(hidden_1PD.squeeze(0))
        num_views, longest = len(lengths), max(lengths)
        if min(lengths) == longest:
            hidden_VND = self.encoder(inputs_embeds=packed_PD.view(num_views, longest, -1)).last_hidden_state
            return self.post_layernorm(hidden_VND.reshape_as(packed_PD))
        real_VN = _real(lengths, packed_PD.device)
        padded_VND = packed_PD.new_zeros(num_views, longest, packed_PD.shape[-1])
        padded_VND[real_VN] = packed_PD
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=padded_VND, attention_mask=real_VN)
        hidden_VND = self.encoder(inputs_embeds=padded_VND, attention_mask=mask).last_hidden_state
        return self.post_layernorm(hidden_VND[real_VN])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """SigLIP's own initialisation; the position table starts at the scale of a unit vector."""
        super()._init_weights(module)
        if isinstance(module, PatchEmbeddings):
            init.normal_(module.position_embedding.weight, std=module.position_embedding.embedding_dim**-0.5)


def _bicubic(table_1Dss: Float[Tensor, "1 D s s"], grid: tuple[int, int]) -> Float[Tensor, "1 D r c"]:
    """Resize without autocast, which would fall to a lower precision on some devices."""
    with torch.autocast(table_1Dss.device.type, enabled=False):
        return functional.interpolate(table_1Dss, size=grid, mode="bicubic", align_corners=False)


def _real(lengths: list[int], device: torch.device) -> Bool[Tensor, "V N"]:
    """True where a padded batch of views holds a patch."""
    lengths_V1 = torch.tensor(lengths, device=device).unsqueeze(1)
    return torch.arange(max(lengths), device=device).unsqueeze(0) < lengths_V1
