"""The peer of bench/finetune: the same job in PyTorch, from rows in a file to an adapter; prints JSON.

The loop is the original's: for each row of each step the picture is read, resized, encoded and resampled.
--cache-latents keeps the latents of a picture from the first time on, which is what the engine does. The
network is that of demo/training with LoRA around its frozen matrices.
"""
import argparse
import json
import math
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "demo", "training"))

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import network
from drawing import preprocess
from model_files import read_safetensors, write_safetensors
from tokenization import EOS, Tokenizer
from vision import pixels_of

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_kv", "to_out", "ff.1", "ff.3")
IGNORED = -100


def attend_fused(q, k, v, mask=None):
    """network.attend by PyTorch's own attention, which is faster for larger models."""
    out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


class LoraLinear(nn.Module):
    """A frozen matrix and its two small ones."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=base.weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=base.weight.dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B)    # alpha = rank


def add_lora(decoder, rank):
    """Put LoRA around the targets; returns name -> LoraLinear."""
    found = {}
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(TARGETS):
            parent, last = name.rsplit(".", 1)
            found[name] = LoraLinear(module, rank)
            setattr(decoder.get_submodule(parent), last, found[name])
    return found


def save_adapter(lora, rank, directory):
    """Write PEFT's two files."""
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "adapter_config.json"), "w") as file:
        json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
                   "lora_dropout": 0.0, "fan_in_fan_out": False, "target_modules": list(TARGETS)}, file)
    write_safetensors(torch, os.path.join(directory, "adapter_model.safetensors"), {
        f"base_model.model.{name}.lora_{part}.weight": getattr(module, "lora_" + part).detach()
        for name, module in lora.items() for part in "AB"})


class Job:
    """Model, rows and, where they are kept, latents."""

    def __init__(self, arguments):
        self.folder = os.path.dirname(arguments.rows)
        self.type = {"bf16": torch.bfloat16, "f32": torch.float32}[arguments.type]
        with open(os.path.join(arguments.model, "config.json")) as file:
            config = json.load(file)
        self.model = network.MultiModalGpt(config)
        self.model.load_state_dict(dict(read_safetensors(torch, os.path.join(arguments.model, "model.safetensors"))),
                                   strict=False)
        self.model.to(self.type).requires_grad_(False)
        self.tokenizer = Tokenizer(os.path.join(arguments.model, "tokenizer.model"))
        self.kept = {} if arguments.cache_latents else None
        with open(arguments.rows) as file:
            self.rows = [json.loads(line) for line in file]
        self.encoded = [self.encode_row(row) for row in self.rows]

    def encode_row(self, row):
        """Ids and labels of a row."""
        prompt = self.tokenizer.prompt([], row["instruction"], True)
        answer = [*self.tokenizer.lines_of(row["response"]), EOS]
        return prompt + answer, [IGNORED] * len(prompt) + answer

    def pixels(self, row):
        """A row's picture from its file, uint8 [S, S, 3]."""
        image = Image.open(os.path.join(self.folder, row["image"])).convert("RGB")
        return torch.from_numpy(preprocess(image, self.model.config["vision"]["image_size"]).copy())

    @torch.no_grad()
    def latents(self, rows):
        """Latents of the rows' pictures [B, L, width]."""
        missing = [row for row in rows if self.kept is None or row["image"] not in self.kept]
        if missing:
            pixels = torch.stack([self.pixels(row) for row in missing])
            new = self.model.encode(pixels_of(pixels.numpy()).to(self.type))[1]
            if self.kept is None:
                return new
            self.kept.update((row["image"], latents) for row, latents in zip(missing, new))
        return torch.stack([self.kept[row["image"]] for row in rows])

    def loss(self, places):
        """Mean cross-entropy over the labels of the rows at these places."""
        encoded = [self.encoded[place] for place in places]
        longest = max(len(ids) for ids, _ in encoded)
        ids = torch.tensor([ids + [self.tokenizer.pad] * (longest - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded])
        sees = (ids == self.tokenizer.image_mark).cumsum(1).clamp(max=1).to(self.type)[..., None]
        select = F.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED
        logits = self.model.lang_encoder(ids, self.latents([self.rows[place] for place in places]), sees, select)
        return F.cross_entropy(logits.float(), labels[:, 1:][select[:, :-1]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rows", required=True)
    parser.add_argument("--adapter-out", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--type", default="f32", choices=("bf16", "f32"))
    parser.add_argument("--fused", action="store_true", help="use PyTorch's fused attention")
    parser.add_argument("--cache-latents", action="store_true")
    parser.add_argument("--initial-adapter", help="write the adapter before the first step there")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    if arguments.fused:
        network.attend = attend_fused
    job = Job(arguments)
    lora = add_lora(job.model.lang_encoder, arguments.rank)
    if arguments.initial_adapter:
        save_adapter(lora, arguments.rank, arguments.initial_adapter)
    trained = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.0)
    losses, begin = [], time.perf_counter()
    for step in range(arguments.steps):
        optimizer.param_groups[0]["lr"] = arguments.rate * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        loss = job.loss([(step * arguments.batch + i) % len(job.rows) for i in range(arguments.batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    seconds = time.perf_counter() - begin
    save_adapter(lora, arguments.rank, arguments.adapter_out)
    print(json.dumps({"losses": losses, "training_seconds": seconds}))


if __name__ == "__main__":
    main()
