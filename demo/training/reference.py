#!/usr/bin/env python3
"""Write reference dialogues: demo/training/reference.py MODEL PICTURES -o reference.json

Asks the model in MODEL, run by PyTorch in f32, about every picture of a folder drawn
by demo/scene.py, three rounds each with the model's own answers as history, and a few
questions without a picture.  The engine must give the same texts (test/t, test/unit).
"""

import argparse
import json
import os
import random

import torch
from PIL import Image

import exam
import language
import network
import questions
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


def dialogue(model, tokenizer, latents, asked, common):
    """The rounds of one dialogue as cases."""
    history = []
    for question in asked:
        case = answer(model, tokenizer, latents, history, question)
        history = history + [(question, case["text"])]
        yield common | case


def questions_for(view, rng):
    """Three rounds about a scene: a caption, something of it, and a follow-up."""
    first = questions.ask_caption(rng, view, exam.PLAIN)
    askers, weights = zip(*questions.ASKERS)
    second = exam.until(lambda: rng.choices(askers, weights)[0](rng, view, exam.PLAIN), 50)
    third = questions.ask_follow_up(rng, view, exam.PLAIN, second) or questions.ask_count(rng, view, exam.PLAIN)
    return [one.question for one in (first, second, third)]


def main():
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write reference dialogues.")
    parser.add_argument("model")
    parser.add_argument("pictures", help="a folder with labels.csv")
    parser.add_argument("-o", dest="out", required=True)
    args = parser.parse_args()
    model, tokenizer = open_model(args.model)
    rng, cases = random.Random("reference"), []
    side = model.config["vision"]["image_size"]
    views = exam.read_labels(os.path.join(args.pictures, "labels.csv"))
    with torch.no_grad():
        for file, view in views.items():
            pixels = preprocess(Image.open(os.path.join(args.pictures, file)).convert("RGB"), side)
            latents = model.encode(vision.pixels_of(pixels[None]))[1]
            cases += dialogue(model, tokenizer, latents, questions_for(view, rng), {"picture": file, "truth": view.count})
        for asked in (["Hello!", "What can you do?"], ["What is SQL?"], ["My name is Emma.", "What is my name?"],
                      ["How many dogs are in the image?"], ["What is the capital of Norway?", "What is 4 plus 3?"]):
            cases += dialogue(model, tokenizer, None, asked, {"picture": None})
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump({"note": "greedy answers of demo/training/reference.py (PyTorch, f32) with demo/model; history holds "
                           "the model's own earlier answers", "cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
