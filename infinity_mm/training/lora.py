"""LoRA and QLoRA through peft.

    model --add--> low-rank matrices in its linear layers, all else frozen --save--> adapter_model.safetensors
    base folder, adapter folder --merged--> the whole model

peft changes the model's layers in place, so the trainer goes on with the same model; peft's own object is only asked to
save. The library is imported where it is needed: runs without adapters do not need it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from infinity_mm.errors import explain, need
from infinity_mm.families.base import Family, Parts, part_of
from infinity_mm.training.config import LoraConfig


def base_options(config: LoraConfig, parts: Parts) -> dict[str, Any]:
    """How the frozen weights are loaded."""
    if config.base != "nf4":
        return {"dtype": getattr(torch, config.base)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise need("bitsandbytes", extra="qlora", purpose="lora.base: nf4")
    if not torch.cuda.is_available():
        raise explain(
            what="lora.base is nf4, but there is no CUDA device",
            where="YAML section `lora`",
            fix="use base: bfloat16 or float32",
        )
    return {
        "dtype": torch.bfloat16,
        "quantization_config": quantized(parts),
        "device_map": {"": torch.cuda.current_device()},
    }


def quantized(parts: Parts) -> BitsAndBytesConfig:
    """Four bits for the layers of the language model; head, vision tower and connector, which are small and see more of
    a difference, stay as they are."""
    kept = [prefix for part in ("vision_tower", "connector") for prefix in parts[part]]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*kept, "lm_head"],
    )


def add(model: PreTrainedModel, family: Family, config: LoraConfig) -> Any:
    """Put fresh adapters into the model, freeze the rest, and return peft's view of it."""
    peft = _peft()
    layers = target_layers(model, family.parts, config)
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
        modules_to_save=_connector_modules(model, family.parts) if config.train_connector else None,
    )
    if config.base == "nf4":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with torch.random.fork_rng(devices=[]):  # the same on every process, and in a run that is done again
        torch.manual_seed(config.seed)
        return _in_float32(peft.get_peft_model(model, settings))


def load(model: PreTrainedModel, folder: Path) -> Any:
    """Put the adapters of a checkpoint into the model, to go on training."""
    peft = _peft()
    adapter = _in_float32(peft.PeftModel.from_pretrained(model, folder, is_trainable=True))
    # Once more, because the connector was read into a module of the base's type.
    peft.set_peft_model_state_dict(adapter, peft.load_peft_weights(folder, device="cpu"))
    return adapter


def _in_float32(adapter: Any) -> Any:
    """What is trained, whatever the type of the frozen weights: an optimiser's small steps vanish in bfloat16."""
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapter


def save(adapter: Any, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write adapters in peft's format; `tensors` are the trained ones, by the model's own names."""
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    # By default peft asks the base model's repository whether the vocabulary has grown; here it never does.
    adapter.save_pretrained(folder, state_dict=named, save_embedding_layers=False)


def merged(family: Family, base: Path, folder: Path) -> PreTrainedModel:
    """The base model in float32 with the adapters of `folder` added to its weights."""
    model, _ = family.load(base)
    return _peft().PeftModel.from_pretrained(model, folder).merge_and_unload()


def target_layers(model: nn.Module, parts: Parts, config: LoraConfig) -> list[str]:
    """Names of the linear layers that get adapters."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name != "lm_head"
        and part_of(f"{name}.", parts) in config.targets
        and (not config.layers or name.rpartition(".")[2] in config.layers)
    ]
    if not names:
        raise explain(
            what=f"no linear layer of {', '.join(config.targets)} is called {' or '.join(config.layers)}",
            where="lora.layers",
            fix="give the last names of layers, such as q_proj and v_proj, or none for all",
        )
    return names


def _connector_modules(model: nn.Module, parts: Parts) -> list[str]:
    """The connector's modules. A parameter outside any module (OneVision's newline) cannot be saved beside adapters."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for name in (prefix.removesuffix(".") for prefix in parts["connector"]):
        if isinstance(members := modules.get(name), nn.ModuleList):  # a list is not called, its members are
            found += [f"{name}.{number}" for number in range(len(members))]
        elif name in modules:
            found.append(name)
    return found


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise need("peft", extra="train", purpose="lora") from error
