"""MultiModal-GPT in PyTorch, small, with the original's tensor names.

The modules carry the names of the original's checkpoint (vision_encoder.visual...,
perceiver..., lang_encoder.model.layers.N...), so that state_dict() is what
model.safetensors holds.  MODEL.md in the root has the arithmetic; attention is
written out because PyTorch's fused one has a slow backward at these sizes.

Shapes: B pictures or dialogues, N patches, L latents, T tokens, H heads.
"""

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "vision": {"image_size": 128, "patch_size": 16, "width": 160, "layers": 6, "heads": 5, "mlp_ratio": 4.0,
               "output_dim": 32, "activation": "quick_gelu", "layer_norm_eps": 1e-5},
    "perceiver": {"depth": 2, "heads": 5, "dim_head": 32, "num_latents": 48, "ff_mult": 4,
                  "activation": "gelu (erf)", "layer_norm_eps": 1e-5},
    "cross_attention": {"every_n_layers": 2, "heads": 4, "dim_head": 32, "ff_mult": 4,
                        "activation": "gelu (erf)", "layer_norm_eps": 1e-5},
    "llama": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 4,
              "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "activation": "silu",
              "base_vocab_size": 1277, "vocab_size": 1280},
}


def split_heads(x, heads):
    """[B, n, H * D] -> [B, H, n, D]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attend(q, k, v, mask=None):
    """Softmax attention; q, k, v [B, H, n, D], mask added to the scores; returns [B, n, H * D]."""
    scores = (q * q.shape[-1] ** -.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    out = scores.softmax(-1).to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)


class InProjection(nn.Module):
    """CLIP's attention: q, k, v from one stacked matrix."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x):
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self.out_proj(attend(*(split_heads(t, self.heads) for t in (q, k, v))))


class ResidualBlock(nn.Module):
    """CLIP's pre-norm block, its MLP with QuickGELU."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = InProjection(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class VisionTransformer(nn.Module):
    """Patch tokens of the last block, without class token and without a last norm."""

    def __init__(self, config):
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.patch, self.grid = patch, config["image_size"] // patch
        self.class_embedding = nn.Parameter(torch.randn(width) * .02)
        self.positional_embedding = nn.Parameter(self.fourier(width))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(
            [ResidualBlock(width, config["heads"]) for _ in range(config["layers"])])})

    def fourier(self, width):
        """Positions that start as waves over row and column: noise alone would be drowned by the patches."""
        place = (torch.arange(self.grid) + .5) / self.grid
        waves = torch.arange(1, width // 8 + 1) * torch.pi * .5
        one = torch.cat([(place[:, None] * waves).sin(), (place[:, None] * waves).cos()], 1)   # [grid, width / 4]
        rows = one[:, None, :].expand(-1, self.grid, -1)
        columns = one[None, :, :].expand(self.grid, -1, -1)
        table = torch.zeros(1 + self.grid ** 2, width)
        table[1:, :2 * one.shape[1]] = .8 * torch.cat([rows, columns], -1).flatten(0, 1)
        return table + .02 * torch.randn_like(table)

    def forward(self, pixels):
        """pixels f32 [B, 3, S, S], normalised -> [B, N, width]."""
        batch, g, p = pixels.shape[0], self.grid, self.patch
        patches = pixels.view(batch, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(batch, g * g, 3 * p * p)
        x = F.linear(patches, self.conv1.weight.flatten(1))
        x = torch.cat([self.class_embedding.to(x.dtype).expand(batch, 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return x[:, 1:]


def feed_forward(width):
    """The feed-forward of resampler and gated blocks: norm, 4 times as wide, exact GELU."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(),
                         nn.Linear(4 * width, width, bias=False))


class PerceiverAttention(nn.Module):
    """Latents attend to the picture's tokens and to themselves."""

    def __init__(self, width, heads, dim_head):
        super().__init__()
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width, bias=False)

    def forward(self, x, latents):
        x, latents = self.norm_media(x), self.norm_latents(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        return self.to_out(attend(*(split_heads(t, self.heads) for t in (self.to_q(latents), k, v))))


class PerceiverResampler(nn.Module):
    """[B, N, width] -> [B, L, width]."""

    def __init__(self, width, config):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config["num_latents"], width))
        self.layers = nn.ModuleList([
            nn.ModuleList([PerceiverAttention(width, config["heads"], config["dim_head"]), feed_forward(width)])
            for _ in range(config["depth"])])
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        latents = self.latents.expand(x.shape[0], -1, -1)
        for attention, ff in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + ff(latents)
        return self.norm(latents)


class CrossAttention(nn.Module):
    """Tokens attend to the latents; keep_scores leaves those of the first two heads for the training."""

    def __init__(self, hidden, width, config):
        super().__init__()
        inner = config["heads"] * config["dim_head"]
        self.heads = config["heads"]
        self.norm = nn.LayerNorm(hidden)
        self.to_q = nn.Linear(hidden, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden, bias=False)
        self.keep_scores, self.scores = False, None

    def forward(self, x, latents, sees):
        q = split_heads(self.to_q(self.norm(x)), self.heads)
        k, v = (split_heads(t, self.heads) for t in self.to_kv(latents).chunk(2, -1))
        if self.keep_scores:
            self.scores = (q[:, :2] * q.shape[-1] ** -.5) @ k[:, :2].transpose(-1, -2)
        return self.to_out(attend(q, k, v) * sees)


class GatedCrossAttentionBlock(nn.Module):
    """x += tanh(attn_gate) attn(x, latents); x += tanh(ff_gate) ff(x)."""

    def __init__(self, hidden, width, config):
        super().__init__()
        self.attn = CrossAttention(hidden, width, config)
        self.attn_gate = nn.Parameter(torch.full((1,), .5))
        self.ff = feed_forward(hidden)
        self.ff_gate = nn.Parameter(torch.full((1,), .5))

    def forward(self, x, latents, sees):
        x = x + self.attn(x, latents, sees) * self.attn_gate.tanh()
        return x + self.ff(x) * self.ff_gate.tanh()


class RMSNorm(nn.Module):
    """LLaMA's norm."""

    def __init__(self, hidden, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(hidden)), epsilon

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


def rotate(x, cosines, sines):
    """Rotary positions in the half-split form."""
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


class SelfAttention(nn.Module):
    """Causal attention with rotary positions; cache is a dict that generation carries on."""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(hidden, hidden, bias=False))

    def forward(self, x, rotary, mask, cache):
        q, k, v = (split_heads(p(x), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotary).to(v.dtype), rotate(k, *rotary).to(v.dtype)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
            cache["k"], cache["v"] = k, v
        return self.o_proj(attend(q, k, v, mask))


class DecoderLayer(nn.Module):
    """LLaMA's layer."""

    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.input_layernorm = RMSNorm(hidden, config["rms_norm_eps"])
        self.self_attn = SelfAttention(hidden, config["num_attention_heads"])
        self.post_attention_layernorm = RMSNorm(hidden, config["rms_norm_eps"])
        self.mlp = nn.ModuleDict({"gate_proj": nn.Linear(hidden, inner, bias=False),
                                  "up_proj": nn.Linear(hidden, inner, bias=False),
                                  "down_proj": nn.Linear(inner, hidden, bias=False)})

    def forward(self, x, rotary, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        y = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))


class Decoder(nn.Module):
    """LLaMA with gated blocks before every n-th layer."""

    def __init__(self, config):
        super().__init__()
        llama, cross = config["llama"], config["cross_attention"]
        hidden = llama["hidden_size"]
        self.head_size, self.theta = hidden // llama["num_attention_heads"], llama["rope_theta"]
        layers = []
        for i in range(llama["num_hidden_layers"]):
            layer = nn.ModuleDict({"decoder_layer": DecoderLayer(llama)})
            if (i + 1) % cross["every_n_layers"] == 0:
                layer["gated_cross_attn_layer"] = GatedCrossAttentionBlock(hidden, config["vision"]["width"], cross)
            layers.append(layer)
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(llama["vocab_size"], hidden),
                                    "layers": nn.ModuleList(layers),
                                    "norm": RMSNorm(hidden, llama["rms_norm_eps"])})
        self.lm_head = nn.Linear(hidden, llama["vocab_size"], bias=False)
        nn.init.normal_(self.model["embed_tokens"].weight, std=.02)
        nn.init.normal_(self.lm_head.weight, std=.02)

    def gated_blocks(self):
        """The gated blocks, lowest first."""
        return [layer["gated_cross_attn_layer"] for layer in self.model["layers"]
                if "gated_cross_attn_layer" in layer]

    def rotary(self, first, count):
        """Cosines and sines [count, D] of positions from first on."""
        frequency = 1 / self.theta ** (torch.arange(0, self.head_size, 2).float() / self.head_size)
        angles = torch.arange(first, first + count).float()[:, None] * frequency
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    def forward(self, ids, latents=None, sees=None, select=None, caches=None, first=0):
        """ids [B, T]; latents [B, L, width] or None (language only); sees [B, T, 1]: 1 from the picture's mark on.

        Returns logits [B, T, V], or [selected, V] where select is a mask [B, T].
        caches: a list with one dict a layer, for generation; first: position of ids[:, 0].
        """
        x = self.model["embed_tokens"](ids)
        count = ids.shape[1]
        rotary = self.rotary(first, count)
        mask = torch.full((count, count), -1e4).triu(1) if count > 1 else None
        for i, layer in enumerate(self.model["layers"]):
            if latents is not None and "gated_cross_attn_layer" in layer:
                x = layer["gated_cross_attn_layer"](x, latents, sees)
            x = layer["decoder_layer"](x, rotary, mask, None if caches is None else caches[i])
        if select is not None:
            x = x[select]
        return self.lm_head(self.model["norm"](x))


class MultiModalGpt(nn.Module):
    """All of it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config["vision"]["width"]
        self.vision_encoder = nn.ModuleDict({"visual": VisionTransformer(config["vision"])})
        self.perceiver = PerceiverResampler(width, config["perceiver"])
        self.lang_encoder = Decoder(config)

    def encode(self, pixels):
        """pixels f32 [B, 3, S, S] -> patches [B, N, width] and latents [B, L, width]."""
        patches = self.vision_encoder["visual"](pixels)
        return patches, self.perceiver(patches)


def parameters_of(module):
    """How many numbers a module holds."""
    return sum(p.numel() for p in module.parameters())
