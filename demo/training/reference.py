#!/usr/bin/env python3
"""Write reference dialogues anew: demo/training/reference.py MODEL REFERENCE.json PICTURES

Asks the model in MODEL, run by PyTorch in f32, the questions of the dialogues in
REFERENCE.json about the pictures of a folder, with the model's own answers as history,
and puts its answers into the file. The engine must give the same texts (test/t, test/unit).
"""

import argparse
import json
import os

import torch
from PIL import Image

import language
import network
import vision
from drawing import preprocess
from safetensors_file import load
from tokenization import Tokenizer


def open_model(folder):
    """The model of a folder, in f32, and its tokenizer."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        model = network.MultiModalGpt(json.load(file))
    model.load_state_dict(load(os.path.join(folder, "model.safetensors")))
    return model.eval(), Tokenizer(os.path.join(folder, "tokenizer.model"))


def answer(model, tokenizer, latents, history, question):
    """One case of reference.json."""
    prompt = tokenizer.prompt(history, question, latents is not None)
    ids, margins = language.generate(model, tokenizer, [prompt], latents)
    return {"history": [list(pair) for pair in history], "prompt": question, "prompt_ids": prompt,
            "ids": ids[0] + [2], "text": tokenizer.text(ids[0]), "min_top1_top2_margin": round(margins[0], 4)}


def main():
    """Read the command line, ask and write."""
    parser = argparse.ArgumentParser(description="Write reference dialogues anew.")
    parser.add_argument("model")
    parser.add_argument("reference")
    parser.add_argument("pictures")
    args = parser.parse_args()
    model, tokenizer = open_model(args.model)
    with open(args.reference, encoding="utf-8") as file:
        reference = json.load(file)
    cases, history = [], []
    with torch.no_grad():
        for old in reference["cases"]:
            latents = None
            if old["picture"]:
                image = Image.open(os.path.join(args.pictures, old["picture"])).convert("RGB")
                pixels = preprocess(image, model.config["vision"]["image_size"])
                latents = model.encode(vision.pixels_of(pixels[None]))[1]
            history = history[:len(old["history"])]
            case = answer(model, tokenizer, latents, history, old["prompt"])
            history = history + [(old["prompt"], case["text"])]
            cases.append({"picture": old["picture"]} | case | {"truth": old.get("truth")})
    reference = {"note": "greedy answers of demo/training/reference.py (PyTorch, f32) with demo/model; history holds the "
                         "model's own earlier answers", "cases": cases}
    with open(args.reference, "w", encoding="utf-8") as file:
        json.dump(reference, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
