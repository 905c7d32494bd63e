"""Compact definitions of well-known networks with torchvision's parameter names (tests need no torchvision)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "SmallUNet",
    "TiedLanguageModel",
    "VisionTransformer",
    "efficientnet_b3",
    "mobilenet_v2",
    "mobilenet_v3",
    "randomise",
    "resnet18",
    "resnet50",
    "roberta_base",
    "roberta_base_shared",
]

Activation = Callable[[torch.Tensor], torch.Tensor]


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm layer weights, biases and statistics that matter, and return the net in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm):
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                    module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
    return net.eval()


# ---- ResNet


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: list[int], classes: int) -> None:
        super().__init__()
        self.inplanes = 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._layer(block, 64, layers[0], 1)
        self.layer2 = self._layer(block, 128, layers[1], 2)
        self.layer3 = self._layer(block, 256, layers[2], 2)
        self.layer4 = self._layer(block, 512, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, classes)

    def _layer(self, block: type[BasicBlock] | type[Bottleneck], planes: int, n: int, stride: int) -> nn.Sequential:
        downsample, out = None, planes * block.expansion
        if stride != 1 or self.inplanes != out:
            downsample = nn.Sequential(nn.Conv2d(self.inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        blocks = [block(self.inplanes, planes, stride, downsample)]
        self.inplanes = out
        blocks += [block(out, planes, 1, None) for _ in range(1, n)]
        return nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(classes: int = 1000) -> nn.Module:
    return ResNet(BasicBlock, [2, 2, 2, 2], classes)


def resnet50(classes: int = 1000) -> nn.Module:
    return ResNet(Bottleneck, [3, 4, 6, 3], classes)


# ---- MobileNet


def _conv_bn(cin: int, cout: int, kernel: int, stride: int, groups: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), act())


class SqueezeExcitation(nn.Module):
    def __init__(
        self, channels: int, squeezed: int, act: Activation = F.relu, gate: Activation = F.hardsigmoid
    ) -> None:
        super().__init__()
        self.act, self.gate = act, gate
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.fc2(self.act(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    def __init__(
        self, cin: int, wide: int, cout: int, kernel: int, stride: int, act: Callable[[], nn.Module], excite: bool
    ) -> None:
        super().__init__()
        layers = [_conv_bn(cin, wide, 1, 1, 1, act)] if wide != cin else []
        layers.append(_conv_bn(wide, wide, kernel, stride, wide, act))
        if excite:
            layers.append(SqueezeExcitation(wide, max(wide // 4, 8)))
        layers.append(_conv_bn(wide, cout, 1, 1, 1, nn.Identity))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def mobilenet_v2(classes: int = 10) -> nn.Module:
    act = nn.ReLU6
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 1, 2)]
    blocks, cin = [_conv_bn(3, 32, 3, 2, 1, act)], 32
    for widen, cout, n, stride in rows:
        for i in range(n):
            blocks.append(InvertedResidual(cin, cin * widen, cout, 3, stride if i == 0 else 1, act, False))
            cin = cout
    return nn.Sequential(
        nn.Sequential(*blocks, _conv_bn(cin, 256, 1, 1, 1, act)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(256, classes)),
    )


def mobilenet_v3(classes: int = 10) -> nn.Module:
    act = nn.Hardswish
    features = nn.Sequential(
        _conv_bn(3, 16, 3, 2, 1, act),
        InvertedResidual(16, 16, 16, 3, 2, nn.ReLU, True),
        InvertedResidual(16, 72, 24, 3, 2, nn.ReLU, False),
        InvertedResidual(24, 96, 40, 5, 1, act, True),
        InvertedResidual(40, 240, 40, 5, 1, act, True),
        _conv_bn(40, 128, 1, 1, 1, act),
    )
    head = nn.Sequential(nn.Linear(128, 64), act(), nn.Dropout(0.2), nn.Linear(64, classes))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


# EfficientNet-B3: expansion, output channels, blocks, stride, kernel of each stage.
B3 = (
    *((1, 24, 2, 1, 3), (6, 32, 3, 2, 3), (6, 48, 3, 2, 5), (6, 96, 5, 2, 3)),
    *((6, 136, 5, 1, 5), (6, 232, 6, 2, 5), (6, 384, 2, 1, 3)),
)


def efficientnet_b3(classes: int = 1000) -> nn.Module:
    blocks, cin = [_conv_bn(3, 40, 3, 2, 1, nn.SiLU)], 40
    for widen, cout, n, stride, kernel in B3:
        for i in range(n):
            block = InvertedResidual(cin, cin * widen, cout, kernel, stride if i == 0 else 1, nn.SiLU, False)
            excitation = SqueezeExcitation(cin * widen, cin // 4, F.silu, torch.sigmoid)
            block.conv.insert(len(block.conv) - 1, excitation)
            blocks.append(block)
            cin = cout
    features = nn.Sequential(*blocks, _conv_bn(cin, 1536, 1, 1, 1, nn.SiLU))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1536, classes))


# ---- transformers


def roberta_base(share: int = 1) -> nn.Module:
    """RoBERTa-base with a head for three classes; of ``share`` consecutive layers all have the same parameters."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from pqnet.train import share_layers

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=3)
    config.use_cache = False
    net = RobertaForSequenceClassification(config)
    if share > 1:
        share_layers(net.roberta.encoder.layer, share)
    return net


def roberta_base_shared() -> nn.Module:
    return roberta_base(2)


class VisionTransformer(nn.Module):
    """A small ViT with torchvision's parameter names; attention is nn.MultiheadAttention."""

    class Block(nn.Module):
        def __init__(self, dim: int, heads: int) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
            self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
            self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
            self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(3 * dim, dim))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.ln_1(x)
            x = x + self.self_attention(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    def __init__(self, size: int = 32, patch: int = 8, dim: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, dim, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.1)
        self.layers = nn.Sequential(*(self.Block(dim, heads) for _ in range(depth)))
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


class TiedLanguageModel(nn.Module):
    """A causal encoder whose output projection is its embedding table."""

    def __init__(self, vocabulary: int = 50, dim: int = 32, length: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embed(ids) + self.position(torch.arange(length))
        return self.head(self.norm(self.encoder(x, mask=mask, is_causal=True)))


# ---- U-Net


class SmallUNet(nn.Module):
    """Two levels down by pooling; up once by a transposed convolution and once by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, 8), self._block(8, 16)
        self.bottom = self._block(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.join2, self.join1 = self._block(32, 16), self._block(24, 8)
        self.out = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(cin: int, cout: int) -> nn.Sequential:
        conv = nn.Conv2d(cin, cout, 3, padding=1)
        return nn.Sequential(conv, nn.GroupNorm(4, cout), nn.SiLU(), nn.Conv2d(cout, cout, 3, padding="same"))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.avg_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        up = F.interpolate(b, scale_factor=2, mode="bilinear")
        logits = self.out(self.join1(torch.cat([up, a], 1)))
        return {"logits": logits, "mask": logits.argmax(1)}
