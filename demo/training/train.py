#!/usr/bin/env python3
"""Train the demo model from nothing: demo/training/train.py -o DIR [--work DIR]

What `make demo-model` runs, in a virtual environment with PyTorch.  Stages, each
seeded and each taken up where it was when the run is started again:

    scenes      draw 64 000 pictures                                demo/scene.py, drawing.py
    tokenizer   SentencePiece on questions and answers about them   questions.py, tokenization.py
    vision      tower and resampler, asked directly what they see   vision.py
    language    decoder, on dialogues about pictures and without    language.py
    words       the same, with words that mean nothing in between   wordings.py

and then DIR receives config.json, tokenizer.model and model.safetensors (bf16).
"""

import argparse
import json
import os
import random
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # share the cores with others

import numpy
import torch

import drawing
import exam
import language
import network
import questions
import vision
import words
from safetensors_file import save_bf16
from tokenization import PREAMBLE, Tokenizer

TRAIN_SCENES, HELDOUT_SCENES = 64000, 2000
VISION_STEPS, LANGUAGE_STEPS, WORDS_STEPS = 9000, 5000, 1200


class Log:
    """Shows what is going on, with the time since the start, and keeps it in a file."""

    def __init__(self, path):
        self.started, self.path = time.time(), path

    def __call__(self, text):
        minutes, seconds = divmod(int(time.time() - self.started), 60)
        line = f"[{minutes:3d}:{seconds:02d}] {text}"
        print(line, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class Exam:
    """Asks the model, while it is trained, about held-out scenes."""

    def __init__(self, model, tokenizer, pictures, truths, log):
        self.model, self.tokenizer, self.log = model, tokenizer, log
        rng = random.Random("exam")
        self.asked = []
        for number, truth in enumerate(truths):
            for task, first, question, expected in exam.questions_about(questions.View(truth), rng):
                if task.startswith("count"):
                    question, expected = f"How many {question} are in the image?", questions.there_are(
                        int(expected), next(kind for kind in words.KINDS if words.plural(kind) == question))
                elif task == "presence":
                    expected = "Yes" if expected == "true" else "No"
                elif task == "classify":
                    question = PROMPTS["classify"].format(question)
                elif task == "caption":
                    question = PROMPTS["caption_brief"]
                self.asked.append((number, task, first, question, expected))
        self.latents = vision.encode(model, pictures, lambda text: None)[0]

    def answers(self, numbers, histories, asked):
        """Greedy answers as texts."""
        texts = []
        for first in range(0, len(asked), 256):
            part = slice(first, first + 256)
            prompts = [self.tokenizer.prompt(history, question, True)
                       for history, question in zip(histories[part], asked[part])]
            with torch.autocast("cpu", torch.bfloat16):
                ids, _ = language.generate(self.model, self.tokenizer, prompts, self.latents[numbers[part]])
            texts += [self.tokenizer.text(one) for one in ids]
        return texts

    def __call__(self, last=False):
        self.model.eval()
        asked = self.asked if last else [one for one in self.asked if one[0] < 100]
        with_first = [one for one in asked if one[2]]
        firsts = iter(self.answers([one[0] for one in with_first], [[]] * len(with_first), [one[2] for one in with_first]))
        histories = [[(one[2], next(firsts))] if one[2] else [] for one in asked]
        texts = self.answers([one[0] for one in asked], histories, [one[3] for one in asked])
        right, wrong = {}, []
        for (_, task, first, question, expected), text in zip(asked, texts):
            whole = lambda answer: answer.split(" on a ")[0] if task == "caption" else answer
            hit = whole(text) == whole(expected) or (task == "presence" and text.startswith(expected))
            right.setdefault(task, []).append(hit)
            if not hit:
                wrong.append(f"{task}: {first} {question} -> {text} ({expected})")
        self.log("held out: " + ", ".join(f"{task} {100 * numpy.mean(hits):.1f} of {len(hits)}"
                                          for task, hits in sorted(right.items())))
        for line in random.Random(0).sample(wrong, min(12, len(wrong))):
            self.log("    " + line)
        self.model.train()


PROMPTS = {
    "caption_brief": "Write a caption for this image.",
    "caption_detailed": "Describe the image in detail.",
    "count": "How many {} are in the image?",
    "filter": "{}",
    "classify": "Which of these fits the image: {}?",
    "classify_multi": "Does the image show {}?",
    "yes_words": ["Yes"],
    "no_words": ["No"],
}


def write_config(config, tokenizer, path):
    """Write config.json as the engine reads it."""
    base = tokenizer.size - 3
    config = config | {
        "special_ids": {"unk": 0, "bos": 1, "eos": 2, "endofchunk": base, "image": base + 1, "pad": base + 2,
                        "generation_pad": 0},
        "add_bos": True, "add_eos": False,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "template": PREAMBLE, "separator": "\n\n### ",
        "user_prefix": "Instruction", "ai_prefix": "Response", "image_block": "Image:\n<image>",
        "response_split": "### Response:", "attend_previous_default": True, "history_eos": True, "prompts": PROMPTS}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)
        file.write("\n")


def main():
    """Run the stages."""
    parser = argparse.ArgumentParser(description="Train the demo model from nothing.")
    parser.add_argument("-o", dest="folder", required=True, metavar="DIR", help="where the model is written")
    parser.add_argument("--work", default="build/demo-model", metavar="DIR", help="checkpoints and pictures (4 GB)")
    parser.add_argument("--share", type=float, default=1.0, help="of all scenes and steps, to try the recipe out")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    os.makedirs(args.folder, exist_ok=True)
    log = Log(os.path.join(args.work, "log.txt"))
    inside = lambda name: os.path.join(args.work, name)
    part = lambda number: max(2, int(number * args.share))
    torch.manual_seed(0)
    model = network.MultiModalGpt(network.CONFIG)
    side = network.CONFIG["vision"]["image_size"]

    log(f"{network.parameters_of(model) / 1e6:.2f} million parameters, {torch.get_num_threads()} threads")
    for split, scenes in (("heldout", part(HELDOUT_SCENES)), ("train", part(TRAIN_SCENES))):
        drawing.draw(inside("scenes"), split, scenes, side, lambda done, of: log(f"drawn {done} of {of} pictures"))
    pictures, truths = drawing.load(inside("scenes"), "train", part(TRAIN_SCENES))
    heldout = drawing.load(inside("scenes"), "heldout", part(HELDOUT_SCENES))

    tokenizer_path = os.path.join(args.folder, "tokenizer.model")
    language.make_tokenizer(truths, tokenizer_path, network.CONFIG["llama"]["base_vocab_size"])
    tokenizer = Tokenizer(tokenizer_path)
    write_config(network.CONFIG, tokenizer, os.path.join(args.folder, "config.json"))

    log("vision tower and resampler")
    measured = heldout[0], vision.Labels(heldout[1], model.vision_encoder["visual"].grid)
    vision.train(model, pictures, truths, measured, part(VISION_STEPS), inside("vision.pt"), log)
    latents = vision.encode(model, pictures, log)
    ask = Exam(model, tokenizer, *heldout, log)
    for course, steps in ((language.LANGUAGE, LANGUAGE_STEPS), (language.STRANGE_WORDS, WORDS_STEPS)):
        log(f"decoder: {course.name}")
        language.train(model, tokenizer, latents, truths, course, part(steps),
                       inside(course.name.replace(" ", "-") + ".pt"), log,
                       lambda last, course=course: ask(last and course is language.STRANGE_WORDS))

    save_bf16(model.state_dict(), os.path.join(args.folder, "model.safetensors"))
    log(f"written to {args.folder}")


if __name__ == "__main__":
    sys.exit(main())
