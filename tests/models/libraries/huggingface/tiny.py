"""Small models of transformers, built from a configuration with random weights and saved as the hub keeps them."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 56}
WORDS = ["a", "photo", "of", "cat", "dog", "red", "bicycle", "two", "dogs", "playing", "in", "the", "snow", "!", ",", "."]
TOKENS = ["<unk>", *WORDS, "<start>", "<end>"]

CONFIGS = {
    "dinov2": lambda: transformers.Dinov2Config(**VIT | {"mlp_ratio": 2}, patch_size=14, layerscale_value=0.7),
    "dinov3_vit": lambda: transformers.DINOv3ViTConfig(**VIT, patch_size=14, num_register_tokens=4, layerscale_value=0.7),
    "vit": lambda: transformers.ViTConfig(**VIT, patch_size=14),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=64, layer_scale_init_value=0.7
    ),
    "swin": lambda: transformers.SwinConfig(
        embed_dim=12, depths=[1, 2], num_heads=[2, 2], window_size=4, image_size=64, patch_size=4
    ),
    "clip": lambda: transformers.CLIPConfig(
        vision_config=VIT | {"patch_size": 14}, text_config=text(max_position_embeddings=77), projection_dim=24
    ),
    "siglip": lambda: transformers.SiglipConfig(
        vision_config=VIT | {"patch_size": 14}, text_config=text(max_position_embeddings=64, projection_size=32)
    ),
}
"""Of each kind of model, with its image side of a few layers."""


def text(**settings: int) -> dict[str, int]:
    start, end = (TOKENS.index(mark) for mark in ("<start>", "<end>"))
    ids = {"vocab_size": len(TOKENS), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    return {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48} | ids | settings


def make(kind: str, seed: int = 0) -> PreTrainedModel:
    """A model whose weights are large enough that all of them show in what it puts out."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(CONFIGS[kind]()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


PROCESSORS = {
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 56, "width": 56},
    },
    "dinov3_vit": {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 56, "width": 56}},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 56, "width": 56}},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875},
    "swin": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, "resample": 3},
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 56, "width": 56}},
}
"""As people write them: with all else at the class's defaults."""


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A folder as the hub has it; those of two towers with a tokeniser."""
    make(kind, seed).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    if kind in ("clip", "siglip"):
        tokenizer(kind).save_pretrained(folder)
    return folder


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A vocabulary of words, with the marks that the kind of model puts around them."""
    vocabulary = {word: index for index, word in enumerate(TOKENS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pattern = "<start> $A <end>" if kind == "clip" else "$A <end>"
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=pattern, special_tokens=[(mark, vocabulary[mark]) for mark in TOKENS[-2:]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token="<end>"
    )
