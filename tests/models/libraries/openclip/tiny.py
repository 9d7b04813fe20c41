"""Small models of open_clip, built from a configuration with random weights and saved as the hub keeps them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch

from tests.models.libraries.huggingface.tiny import TOKENS, tokenizer

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 56, "layers": 2, "width": 64, "patch_size": 14}

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"},
        "text_cfg": TEXT
        | {"context_length": 64, "vocab_size": len(TOKENS), "hf_tokenizer_name": "its/own", "pool_type": "last"}
        | {"no_causal_mask": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VISION
        | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True},
        "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}

PREPROCESS = {
    "vit": {},
    "quick": {"resize_mode": "longest", "fill_color": 7},
    "resnet": {"interpolation": "bilinear"},
    "siglip": {"resize_mode": "squash", "mean": 0.5, "std": 0.5},
    "coca": {},
}


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    document = {"model_cfg": CONFIGS[kind], "preprocess_cfg": PREPROCESS[kind]}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    if kind == "siglip":
        tokenizer("siglip").save_pretrained(folder)
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    return folder
