"""What vLLM calls in each of its processes, so that it serves our checkpoints as they are, without remote code.

vllm.general_plugins entry point --register()--> Auto classes know the model (infinity_mm._register)
                                            --> vLLM runs our own modules with its attention and scheduler
"""

import infinity_mm  # noqa: F401 (adds our rows to transformers' Auto classes)

ARCHITECTURE = "InfinityMMForConditionalGeneration"
"""What `config.json` of every checkpoint of ours names."""
BACKEND = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"
"""vLLM's wrapper for multimodal models that are written for transformers."""


def register() -> None:
    """Add the architecture to vLLM's registry; vLLM may call this more than once in a process."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports] (an environment of its own)

    ModelRegistry.register_model(ARCHITECTURE, BACKEND)
