"""The peer of bench/train: LoRA by Hugging Face's LLaMA and PEFT, in bf16 on the CPU; prints JSON.

Base weights and adapter are bf16, attention is PyTorch's fused one, no layer is computed anew: the
fastest of the usual ways (PEFT's default of an adapter in f32 is slower; --adapter f32 measures it).
A step is what the engine's micro step is: forward, backward, clipping to norm 1, AdamW.
"""
import argparse
import json
import os
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from model_files import read_safetensors

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def open_model(directory, adapter_type, rank):
    """The directory's decoder with a new adapter, ready to train."""
    with open(os.path.join(directory, "config.json")) as file:
        llama = json.load(file)["llama"]
    sizes = {key: llama[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                         "num_key_value_heads", "rms_norm_eps", "vocab_size")}
    config = LlamaConfig(**sizes, tie_word_embeddings=False, use_cache=False, attn_implementation="sdpa",
                         rope_parameters={"rope_type": "default", "rope_theta": llama["rope_theta"]})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {}
    for name, tensor in read_safetensors(torch, os.path.join(directory, "model.safetensors")):
        if name.startswith("lang_encoder.") and "gated_cross_attn_layer" not in name:
            weights[name.removeprefix("lang_encoder.").replace("decoder_layer.", "")] = tensor
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)    # its table is no weight and still on meta
    lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, lora, autocast_adapter_dtype=adapter_type == "f32").train()


def read_rows(path):
    """Rows of ids and labels as tensors [1, tokens]."""
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    return [(torch.tensor([row["ids"]]), torch.tensor([[label if label >= 0 else -100 for label in row["labels"]]]))
            for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rows", required=True, help="JSON lines with ids and labels")
    parser.add_argument("--steps", type=int, required=True, help="the first is a warm-up and not in the times")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-4, help="constant learning rate")
    parser.add_argument("--adapter", default="bf16", choices=("bf16", "f32"), help="its type (default: bf16)")
    parser.add_argument("--save-first", metavar="DIR", help="write the adapter before the first step")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = open_model(arguments.model, arguments.adapter, arguments.rank)
    if arguments.save_first:
        model.save_pretrained(arguments.save_first)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.0)
    rows = read_rows(arguments.rows)
    seconds, losses, norms = [], [], []
    for step in range(arguments.steps):
        ids, labels = rows[step % len(rows)]
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds[1:], "losses": losses, "gradient_norms": norms,
                      "tokens": rows[0][0].shape[1]}))


if __name__ == "__main__":
    main()
