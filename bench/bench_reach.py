"""Which networks of PyTorch convert: architectures of transformers, timm and torchvision with random weights.

Each is exported once with free sizes (lengths of texts and sounds, height and width of images where the network takes
any) and then compared with PyTorch at two other sizes and batches; a difference of 1e-3 of the largest output is a
failure. Without network access all weights are drawn; transformers are of small configurations. ``reach.csv`` has what
was found so far: ``none`` is a network that PyTorch itself did not run here, or with too many parameters.

Example: ``python bench/bench_reach.py --family transformers --output reach.csv``, ``--only swin``, ``--family timm``
"""

import argparse
import contextlib
import csv
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from torch.utils._pytree import tree_leaves

from pqnet_converters import from_torch

with contextlib.suppress(ImportError):  # for a torchvision whose wheel has no operators, which timm imports too
    import torchvision_cpu  # noqa: F401

AGREEMENT = 1e-3
SECONDS = 240  # of CPU time, for a network
MOST = 60_000_000  # parameters of a member of a family of timm

Inputs = dict[str, torch.Tensor]
Dynamic = dict[str, dict[int, str]]


class Case:
    """A module, which inputs it takes at given sizes (batch first), and the sizes to export and to try."""

    def __init__(
        self, module: Any, draw: Callable[..., Inputs], sizes: list[tuple[int, ...]], dynamic: Dynamic | None = None
    ) -> None:
        self.module, self.draw, self.sizes, self.dynamic = module.eval(), draw, sizes, dynamic


class Only(torch.nn.Module):
    """A module called with fixed options, whose output is one of its outputs, or some."""

    def __init__(self, module: Any, *fields: str, **options: Any) -> None:
        super().__init__()
        self.module, self.fields, self.options = module, fields, options

    def forward(self, **inputs: torch.Tensor) -> Any:
        output = self.module(**inputs, **self.options)
        return [output[field] for field in self.fields] if self.fields else output


def texts(vocabulary: int = 99) -> Callable[..., Inputs]:
    def draw(batch: int, length: int) -> Inputs:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, length * 2 // 3 :] = 0
        return {"input_ids": torch.randint(5, vocabulary, (batch, length)), "attention_mask": mask}

    return draw


def images(name: str = "pixel_values") -> Callable[..., Inputs]:
    return lambda batch, height, width: {name: torch.randn(batch, 3, height, width)}


TOKENS = {name: {1: "tokens"} for name in ("input_ids", "attention_mask")}
PIXELS = {"pixel_values": {2: "height", 3: "width"}}
LENGTHS = [(2, 12), (3, 7), (1, 23)]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


def transformers_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    import transformers as t

    def text(model: str, config: str, *, free: bool = True, **options: Any) -> tuple[str, Callable[[], Case]]:
        def make() -> Case:
            settings = {"vocab_size": 99, **options}
            module = getattr(t, model)(getattr(t, config)(**settings))
            if module._can_set_experts_implementation():  # others have sizes that depend on data
                module.set_experts_implementation("batched_mm")
            return Case(module, texts(), LENGTHS if free else [(n, 12) for n in (2, 3, 1)], TOKENS if free else None)

        return model, make

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    yield text("BertModel", "BertConfig", **SMALL)
    yield text("BertForSequenceClassification", "BertConfig", **SMALL)
    yield text("BertForMaskedLM", "BertConfig", **SMALL)
    yield text("RobertaModel", "RobertaConfig", **SMALL, max_position_embeddings=64)
    yield text("XLMRobertaModel", "XLMRobertaConfig", **SMALL, max_position_embeddings=64)
    yield text("CamembertModel", "CamembertConfig", **SMALL, max_position_embeddings=64)
    yield text("DistilBertModel", "DistilBertConfig", dim=32, n_layers=2, n_heads=4, hidden_dim=37)
    yield text("AlbertModel", "AlbertConfig", **SMALL, embedding_size=16)
    yield text("ElectraModel", "ElectraConfig", **SMALL, embedding_size=16)
    yield text("MPNetModel", "MPNetConfig", **SMALL, max_position_embeddings=64)
    yield text(
        "DebertaV2Model",
        "DebertaV2Config",
        **SMALL,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=64,
    )
    yield text(
        "DebertaModel",
        "DebertaConfig",
        **SMALL,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=64,
        max_relative_positions=64,
    )
    yield text("T5EncoderModel", "T5Config", d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    yield text("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    yield text(
        "OPTModel",
        "OPTConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=37,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    yield text("GPTNeoXModel", "GPTNeoXConfig", **SMALL)
    yield text("BloomModel", "BloomConfig", hidden_size=32, n_layer=2, n_head=4)
    yield text("MPTModel" if hasattr(t, "MPTModel") else "MptModel", "MptConfig", d_model=32, n_heads=4, n_layers=2)
    yield text("FalconModel", "FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    decoder = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
    for name in (
        "Llama",
        "Mistral",
        "Qwen2",
        "Qwen3",
        "Gemma",
        "Gemma2",
        "Phi",
        "Phi3",
        "StableLm",
        "Olmo",
        "Olmo2",
        "Granite",
        "Cohere",
        "Starcoder2",
        "SmolLM3",
    ):
        more = {"head_dim": 8} if name in ("Gemma", "Gemma2", "Qwen3") else {}
        yield text(f"{name}ForCausalLM", f"{name}Config", **decoder, **ids, **more)
    yield text("MixtralForCausalLM", "MixtralConfig", **decoder, **ids, num_local_experts=4)
    yield text(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **decoder,
        **ids,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    funnel = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 37, "block_sizes": [1, 1]}
    yield text("FunnelModel", "FunnelConfig", free=False, **funnel)  # its code counts the tokens of the example
    yield text("ConvBertModel", "ConvBertConfig", **SMALL, embedding_size=32)
    yield text("SqueezeBertModel", "SqueezeBertConfig", **{**SMALL, "intermediate_size": 40}, embedding_size=32)
    yield text(
        "MobileBertModel",
        "MobileBertConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        intra_bottleneck_size=16,
        embedding_size=16,
        true_hidden_size=16,
    )
    yield text("LayoutLMModel", "LayoutLMConfig", **SMALL)
    yield text("XLNetModel", "XLNetConfig", d_model=32, n_layer=2, n_head=4, d_inner=37)
    yield text("RoFormerModel", "RoFormerConfig", **SMALL)
    yield text("NystromformerModel", "NystromformerConfig", **SMALL, segment_means_seq_len=64, num_landmarks=64)
    yield text("ModernBertModel", "ModernBertConfig", **SMALL, pad_token_id=0)
    yield text("MegatronBertModel", "MegatronBertConfig", **SMALL)
    yield text("ErnieModel", "ErnieConfig", **SMALL)
    yield text("NomicBertModel", "NomicBertConfig", **SMALL)

    def fnet() -> Case:
        module = t.FNetModel(t.FNetConfig(**{k: v for k, v in SMALL.items() if "heads" not in k}, vocab_size=99))
        return Case(module, lambda b, n: {"input_ids": texts()(b, n)["input_ids"]}, [(2, 12), (3, 12)])

    yield "FNetModel", fnet

    def encoder_decoder(model: str, config: str, **options: Any) -> tuple[str, Callable[[], Case]]:
        def draw(batch: int, length: int) -> Inputs:
            return {**texts()(batch, length), "decoder_input_ids": torch.randint(5, 99, (batch, length + 3))}

        def make() -> Case:
            module = getattr(t, model)(getattr(t, config)(vocab_size=99, **options))
            return Case(module, draw, LENGTHS, {**TOKENS, "decoder_input_ids": {1: "written"}})

        return model, make

    bart = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "decoder_ffn_dim": 37,
        "max_position_embeddings": 64,
    }
    yield encoder_decoder(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    yield encoder_decoder("BartModel", "BartConfig", **bart)
    yield encoder_decoder("MarianModel", "MarianConfig", **bart, decoder_start_token_id=0, pad_token_id=0)
    yield encoder_decoder("PegasusModel", "PegasusConfig", **bart)

    def vision(
        model: str, config: str, sizes: list[tuple[int, ...]], free: bool = True, call: Any = None, **options: Any
    ) -> tuple[str, Callable[[], Case]]:
        def make() -> Case:
            module = getattr(t, model)(getattr(t, config)(**options))
            module = module if call is None else Only(module, **call)
            return Case(module, images(), sizes, PIXELS if free else None)

        return model, make

    several = [(2, 64, 64), (3, 64, 96), (1, 128, 96)]
    one = [(2, 32, 32), (3, 32, 32), (1, 32, 32)]
    vit = {**SMALL, "image_size": 32, "patch_size": 8}
    anysize = {"interpolate_pos_encoding": True}
    yield vision("ViTModel", "ViTConfig", one, False, **vit)
    yield vision("ViTForImageClassification", "ViTConfig", [(2, 32, 48), (3, 48, 32), (1, 64, 64)], call=anysize, **vit)
    yield vision("DeiTModel", "DeiTConfig", one, False, **vit)
    yield vision("BeitModel", "BeitConfig", one, False, **vit)
    yield vision("Data2VecVisionModel", "Data2VecVisionConfig", one, False, **vit)
    yield vision("Dinov2Model", "Dinov2Config", [(2, 32, 48), (3, 48, 32), (1, 64, 64)], **vit)
    yield vision(
        "SwinModel",
        "SwinConfig",
        [(2, 64, 96), (3, 96, 64), (1, 128, 64)],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        image_size=64,
    )
    yield vision(
        "Swinv2Model",
        "Swinv2Config",
        [(2, 64, 96), (3, 96, 64), (1, 128, 64)],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        image_size=64,
    )
    yield vision("ConvNextModel", "ConvNextConfig", several, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    yield vision("ConvNextV2Model", "ConvNextV2Config", several, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    yield vision(
        "ResNetForImageClassification",
        "ResNetConfig",
        several,
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
    )
    yield vision(
        "RegNetModel",
        "RegNetConfig",
        several,
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        groups_width=4,
    )
    yield vision("MobileNetV1Model", "MobileNetV1Config", several, depth_multiplier=0.25, image_size=64)
    yield vision("MobileNetV2Model", "MobileNetV2Config", several, depth_multiplier=0.25, image_size=64)
    yield vision(
        "EfficientNetModel",
        "EfficientNetConfig",
        several,
        width_coefficient=0.25,
        depth_coefficient=0.3,
        hidden_dim=320,
        image_size=64,
    )
    yield vision(
        "MobileViTModel",
        "MobileViTConfig",
        several,
        hidden_sizes=[16, 24, 32],
        image_size=64,
        neck_hidden_sizes=[8, 8, 16, 24, 32, 40, 48],
    )
    yield vision("PoolFormerModel", "PoolFormerConfig", several, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    yield vision(
        "PvtModel",
        "PvtConfig",
        [(2, 64, 64), (3, 64, 64)],
        False,
        image_size=64,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
    )
    yield vision(
        "PvtV2Model",
        "PvtV2Config",
        several,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
    )
    yield vision("LevitModel", "LevitConfig", [(2, 224, 224), (3, 224, 224)], False)
    yield vision("CvtModel", "CvtConfig", several, embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 1, 2])
    yield vision(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        several,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
    )
    yield vision(
        "GLPNForDepthEstimation",
        "GLPNConfig",
        several,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
    )
    yield vision(
        "DPTForDepthEstimation",
        "DPTConfig",
        one,
        False,
        **vit,
        backbone_out_indices=[0, 1, 1, 1],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
    )
    yield vision("FocalNetModel", "FocalNetConfig", several, embed_dim=8, depths=[1, 1, 2, 1], image_size=64)
    yield vision(
        "VanModel" if hasattr(t, "VanModel") else "BitModel",
        "VanConfig" if hasattr(t, "VanModel") else "BitConfig",
        several,
        **(
            {}
            if hasattr(t, "VanModel")
            else {"embedding_size": 8, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1]}
        ),
    )
    yield vision("ViTMAEModel", "ViTMAEConfig", one, False, **vit, mask_ratio=0.0)
    yield vision("ViTMSNModel", "ViTMSNConfig", one, False, **vit)
    yield vision(
        "YolosModel",
        "YolosConfig",
        [(2, 32, 32), (3, 32, 32)],
        False,
        **{**vit, "image_size": [32, 32]},
        num_detection_tokens=5,
    )

    def detr() -> Case:
        backbone = t.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
        config = t.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=37,
            decoder_ffn_dim=37,
            num_queries=7,
        )
        return Case(t.DetrForObjectDetection(config), images(), several, PIXELS)

    yield "DetrForObjectDetection", detr
    part = {**SMALL, "projection_dim": 16}

    def clip_text() -> Case:
        config = t.CLIPTextConfig(**part, vocab_size=99, max_position_embeddings=64, eos_token_id=98)
        return Case(t.CLIPTextModelWithProjection(config), texts(), LENGTHS, TOKENS)

    yield "CLIPTextModelWithProjection", clip_text
    yield vision("CLIPVisionModelWithProjection", "CLIPVisionConfig", one, False, **part, image_size=32, patch_size=8)

    def clip() -> Case:
        config = t.CLIPConfig(
            text_config={**part, "vocab_size": 99, "max_position_embeddings": 64, "eos_token_id": 98},
            vision_config={**part, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        return Case(
            Only(t.CLIPModel(config), "logits_per_image", "text_embeds", "image_embeds"),
            lambda b, n: {**texts()(b, n), **images()(b, 32, 32)},
            LENGTHS,
            TOKENS,
        )

    yield "CLIPModel", clip
    yield vision("SiglipVisionModel", "SiglipVisionConfig", one, False, **SMALL, image_size=32, patch_size=8)

    def siglip_text() -> Case:
        config = t.SiglipTextConfig(**SMALL, vocab_size=99, max_position_embeddings=64)
        return Case(t.SiglipTextModel(config), texts(), LENGTHS, TOKENS)

    yield "SiglipTextModel", siglip_text
    yield vision(
        "SiglipModel".replace("Model", "ForImageClassification"),
        "SiglipConfig",
        one,
        False,
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )

    def whisper() -> Case:
        config = t.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=37,
            decoder_ffn_dim=37,
            max_source_positions=20,
            num_mel_bins=16,
        )
        module = t.WhisperModel(config).get_encoder()
        return Case(module, lambda b: {"input_features": torch.randn(b, 16, 40)}, [(2,), (3,), (1,)])

    yield "WhisperEncoder", whisper

    def sound(model: str, config: str, **options: Any) -> tuple[str, Callable[[], Case]]:
        settings = {
            **SMALL,
            "conv_dim": [16, 16, 16],
            "conv_stride": [5, 2, 2],
            "conv_kernel": [10, 3, 3],
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            **options,
        }

        def make() -> Case:
            module = getattr(t, model)(getattr(t, config)(**settings))
            return Case(
                module,
                lambda b, n: {"input_values": torch.randn(b, n)},
                [(2, 800), (3, 640), (1, 1203)],
                {"input_values": {1: "samples"}},
            )

        return model, make

    yield sound("Wav2Vec2Model", "Wav2Vec2Config")
    yield sound("Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=30, do_stable_layer_norm=True, feat_extract_norm="layer")
    yield sound("HubertModel", "HubertConfig")
    yield sound("WavLMModel", "WavLMConfig")

    def masked_sound() -> Case:
        inner = sound("Wav2Vec2Model", "Wav2Vec2Config")[1]()

        def draw(batch: int, length: int) -> Inputs:
            mask = torch.ones(batch, length, dtype=torch.int64)
            mask[0, length * 2 // 3 :] = 0
            return {"input_values": torch.randn(batch, length), "attention_mask": mask}

        return Case(inner.module, draw, inner.sizes, {n: {1: "samples"} for n in ("input_values", "attention_mask")})

    yield "Wav2Vec2Model with a mask", masked_sound

    def spectrum() -> Case:
        config = t.ASTConfig(**SMALL, max_length=64, num_mel_bins=32)
        return Case(t.ASTModel(config), lambda b: {"input_values": torch.randn(b, 64, 32)}, [(2,), (3,), (1,)])

    yield "ASTModel", spectrum

    def video() -> Case:
        config = t.VideoMAEConfig(**SMALL, image_size=32, patch_size=8, num_frames=4)
        return Case(t.VideoMAEModel(config), lambda b: {"pixel_values": torch.randn(b, 4, 3, 32, 32)}, [(2,), (3,)])

    yield "VideoMAEModel", video

    def patches() -> Case:
        config = t.PatchTSTConfig(
            num_input_channels=2,
            context_length=32,
            patch_length=8,
            patch_stride=8,
            d_model=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=24,
        )
        return Case(t.PatchTSTModel(config), lambda b: {"past_values": torch.randn(b, 32, 2)}, [(2,), (3,)])

    yield "PatchTSTModel", patches


def timm_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    import timm
    from timm.models import list_modules

    for family in list_modules():

        def make(family: str = family) -> Case:
            names = timm.list_models(module=family)
            sizes = {}
            for name in names:
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
                    except Exception:  # a member that does not build without its weights
                        continue
                if sizes[name] <= MOST // 6:
                    break
            name = min(sizes, key=lambda n: sizes[n])
            if sizes[name] > MOST:
                raise LookupError(f"all members have more than {MOST} parameters")
            module = timm.create_model(name)
            channels, *size = module.default_cfg.get("input_size", (3, 224, 224))
            if not module.default_cfg.get("fixed_input_size", False) and max(size) > 288:
                size = [224, 224]
            draw = lambda batch, height, width: {"x": torch.randn(batch, channels, height, width)}  # noqa: E731
            case = Case(module, draw, [(2, *size), (1, *size)])
            case.detail = name  # type: ignore[attr-defined]
            return case

        yield family, make


def torchvision_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    from torchvision import models

    for module in (models, models.segmentation):
        names = models.list_models(module=module)
        for name in names:

            def make(name: str = name, segmentation: bool = module is models.segmentation) -> Case:
                options: dict[str, Any] = {"weights": None}
                if segmentation:
                    options["weights_backbone"] = None
                elif name in ("googlenet", "inception_v3"):
                    options |= {"aux_logits": False, "init_weights": False}
                net = models.get_model(name, **options)
                least = {"inception_v3": 96}.get(name, 64)
                sizes = [(2, 128, 160), (1, least + 32, 128), (3, 96, 96)]
                if name.startswith("swin"):  # all larger than the windows of its last stage, and padded at every one
                    sizes = [(2, 256, 288), (1, 288, 320), (3, 240, 256)]
                if fixed := name.startswith(("vit", "maxvit")):
                    sizes = [(n, 224, 224) for n in (2, 1, 3)]
                draw = lambda batch, height, width: {"input": torch.randn(batch, 3, height, width)}  # noqa: E731
                return Case(net, draw, sizes, None if fixed else {"input": {2: "height", 3: "width"}})

            yield name, make


FAMILIES = {"transformers": transformers_cases, "timm": timm_cases, "torchvision": torchvision_cases}


def randomise(module: torch.nn.Module) -> None:
    """Give normalisations statistics, and parameters that begin as zeros values: they would hide errors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(getattr(m, "running_var", None), torch.Tensor):
                m.running_mean.normal_(0, 0.1, generator=generator)
                m.running_var.uniform_(0.8, 1.2, generator=generator)
        for p in module.parameters():
            if p.is_floating_point() and not p.is_meta and not p.any():
                p.normal_(0, 0.02, generator=generator)


def difference(case: Case, model: Any, size: tuple[int, ...]) -> float:
    """Return the largest difference from PyTorch over the largest output, of all outputs."""
    inputs = case.draw(*size)
    with torch.no_grad():
        result = call(case, inputs)
    wanted = [x.numpy() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
    got = list(model.run({name: x.numpy() for name, x in inputs.items()}).values())
    if [g.shape for g in got] != [w.shape for w in wanted[: len(got)]]:
        raise ValueError(f"shapes {[g.shape for g in got]} for {[w.shape for w in wanted]}")
    worst = 0.0
    for g, w in zip(got, wanted, strict=False):
        if w.size and not np.array_equal(g, w, equal_nan=True):
            worst = max(worst, float(np.abs(g.astype(float) - w).max() / max(np.abs(w.astype(float)).max(), 1e-30)))
    return worst


def call(case: Case, inputs: Inputs) -> Any:
    if positional(inputs):
        return case.module(*inputs.values())
    return case.module(**inputs)


def positional(inputs: Inputs) -> bool:
    return len(inputs) == 1 and next(iter(inputs)) in ("x", "input")


def reach(make: Callable[[], Case]) -> dict[str, Any]:
    """Convert and compare one network; return its row of the table."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"detail": "", "result": "pass", "reason": "", "difference": "", "seconds": ""}
    try:
        case = make()
        row["detail"] = getattr(case, "detail", "")
        randomise(case.module)
        inputs = case.draw(*case.sizes[0])
        with torch.no_grad():
            call(case, inputs)
    except Exception as reason:
        row |= {"result": "none", "reason": f"PyTorch: {type(reason).__name__}: {' '.join(str(reason).split())[:200]}"}
        return row
    start = time.process_time()
    try:
        examples: Any = tuple(inputs.values()) if positional(inputs) else inputs
        model = from_torch(case.module, examples, dynamic=case.dynamic, input_names=list(inputs))
        row["seconds"] = round(time.process_time() - start, 2)
        for size in case.sizes:
            worst = difference(case, model, size)
            row["difference"] = max(row["difference"] or 0.0, worst)
            if not worst <= AGREEMENT:
                raise ValueError(f"difference of {worst:.2g} at {size}")
    except Exception as reason:
        row |= {"result": "fail", "reason": f"{type(reason).__name__}: {' '.join(str(reason).split())[:400]}"}
    return row


def alarm(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="default: all; repeatable")
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--output", help=".csv to write; networks that it has a row of are left out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, alarm)
    fields = ["family", "model", "detail", "result", "difference", "seconds", "reason", "date", "cpu"]
    cpu = machine()["cpu"]
    done = set()
    if args.output and Path(args.output).is_file():
        with open(args.output, newline="", encoding="utf-8") as file:
            done = {(row["family"], row["model"]) for row in csv.DictReader(file)}
    counts: dict[str, int] = {}
    for family in args.family or FAMILIES:
        for name, make in FAMILIES[family]():
            if (family, name) in done or (args.only and not any(part.lower() in name.lower() for part in args.only)):
                continue
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            row = {"family": family, "model": name, **reach(make), "date": date.today().isoformat(), "cpu": cpu}
            signal.setitimer(signal.ITIMER_PROF, 0)
            key = f"{family} {row['result']}"
            counts[key] = counts.get(key, 0) + 1
            print(
                f"{family:<12} {name:<40} {row['result']:<5} {row['difference'] or 0:<8.1g} {row['seconds']:>6} "
                f"{row['reason']}",
                flush=True,
            )
            if args.output:
                fresh = not Path(args.output).is_file()
                with open(args.output, "a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fields, lineterminator="\n")
                    if fresh:
                        writer.writeheader()
                    writer.writerow(row)
    print(", ".join(f"{key}: {n}" for key, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
