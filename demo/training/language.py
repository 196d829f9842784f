"""Second stage: teach the decoder to talk about what the resampler tells it.

Tower and resampler stay as the first stage left them; the latents of all scenes, mirrored
ones too, are computed once.  Each step takes dialogues about pictures and dialogues without
one, as the paper does jointly.  Two heads of each gated block are shown, in the training
only, which latent to look at (tokenization.py, example): without it the decoder takes very
long to find out that a latent answers for a kind.
"""

import os
import random
import time
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F

from optimizer import Optimizers
from questions import View, language_dialogue, picture_dialogue
from tokenization import EOS, train_tokenizer
from vision import IGNORED, save
from wordings import Wording

PICTURES, TEXTS = 44, 12    # dialogues of each sort in a step
LOOKING = .3                # weight of the hint where to look
LONGEST = 256               # tokens; longer dialogues lose their last rounds


def mirrored(truth):
    """The truth about a scene's mirror image."""
    return {"background": truth["background"],
            "things": [[kind, color, 1 - x, y, size] for kind, color, x, y, size in truth["things"]]}


class Scenes:
    """Scenes to talk about; those in which positions and colours can be asked for come more often."""

    def __init__(self, truths):
        self.truths = truths
        weights = []
        for truth in truths:
            view = View(truth)
            weights.append(1 + 2.5 * (len(view.single) > 1) + 1.5 * bool(view.color))
        self.cumulative = numpy.cumsum(weights)

    def pick(self, rng):
        """Number of a scene, and whether it is mirrored."""
        return int(numpy.searchsorted(self.cumulative, rng.random() * self.cumulative[-1])), rng.randrange(2)


def padded(lists, fill):
    """Lists of unequal length as one tensor."""
    out = torch.full((len(lists), max(map(len, lists))), fill)
    for row, values in zip(out, lists):
        row[:len(values)] = torch.tensor(values)
    return out


def fitting(tokenizer, rounds, with_picture):
    """The example of as many rounds as LONGEST allows."""
    while True:
        example = tokenizer.example(rounds, with_picture)
        if len(example[0]) <= LONGEST or len(rounds) == 1:
            return example
        rounds = rounds[:-1]


def batch_of(step, scenes, tokenizer, course):
    """The examples of a step: (scene numbers, mirrored, picture examples, text examples)."""
    rng = random.Random(f"{course.name} {step // 2}")
    picked = []
    for _ in range(2 * PICTURES):
        number, flip = scenes.pick(rng)
        truth = scenes.truths[number]
        rounds = picture_dialogue(rng, mirrored(truth) if flip else truth, course.wording)
        picked.append((number, flip, fitting(tokenizer, rounds, True)))
    texts = [fitting(tokenizer, language_dialogue(rng), False) for _ in range(2 * TEXTS)]
    # Two steps share a draw, the shorter dialogues first: less padding.
    picked.sort(key=lambda one: len(one[2][0]))
    texts.sort(key=lambda one: len(one[0]))
    half = step % 2
    picked, texts = picked[half * PICTURES:(half + 1) * PICTURES], texts[half * TEXTS:(half + 1) * TEXTS]
    numbers, flips, examples = zip(*picked)
    return list(numbers), list(flips), examples, texts


def looking_loss(decoder, looks, targets):
    """How far two heads of the gated blocks are from the latent of the thing that is named.

    Words of a question look in the first two blocks, answers in the last two.
    """
    blocks = decoder.gated_blocks()
    answering = targets != IGNORED
    losses = []
    for places, chosen in (((looks != IGNORED) & ~answering, blocks[:2]), ((looks != IGNORED) & answering, blocks[1:])):
        for block in chosen:
            scores = block.attn.scores.permute(0, 2, 1, 3)[places].float()
            losses += [F.cross_entropy(scores[:, head], looks[places]) for head in (0, 1)]
    return sum(losses) / len(losses)


def forward_loss(model, tokenizer, latents, batch):
    """Losses of one step: the sum to descend, and its parts."""
    numbers, flips, examples, texts = batch
    ids, targets, looks = (padded([one[i] for one in examples], fill)
                           for i, fill in enumerate((tokenizer.pad, IGNORED, IGNORED)))
    text_ids, text_targets = (padded([one[i] for one in texts], fill)
                              for i, fill in enumerate((tokenizer.pad, IGNORED)))
    seen = latents[flips, numbers].float()
    sees = ((ids == tokenizer.image_mark).cumsum(1) > 0).float().unsqueeze(-1)
    decoder = model.lang_encoder
    with torch.autocast("cpu", torch.bfloat16):
        text_logits = decoder(text_ids, select=text_targets != IGNORED)
        logits = decoder(ids, seen, sees, select=targets != IGNORED)
    picture = F.cross_entropy(logits.float(), targets[targets != IGNORED])
    text = F.cross_entropy(text_logits.float(), text_targets[text_targets != IGNORED])
    looking = looking_loss(decoder, looks, targets)
    share = len(text_logits) / (len(logits) + len(text_logits))
    return picture * (1 - share) + text * share + LOOKING * looking, (picture, text, looking)


@dataclass
class Course:
    """What is taught in a run of the stage, and how fast."""
    name: str            # the seed of its dialogues
    wording: Wording
    muon_rate: float
    adam_rate: float
    decay: float         # the share of steps in which the rates fall to zero


# First the language; then that a word is not what is asked about because it is unknown.
LANGUAGE = Course("language", Wording(), .015, 2e-3, .65)
STRANGE_WORDS = Course("strange words", Wording(strange=.25), .004, 5e-4, 1)


def train(model, tokenizer, latents, truths, course, steps, checkpoint, report, measure):
    """Run the stage, from its checkpoint when there is one; measure() is called now and then.

    latents: what vision.encode made of the scenes, bf16 [2, scenes, L, width].
    """
    torch.manual_seed(2)
    decoder = model.lang_encoder
    optimizers = Optimizers((decoder,), steps, course.muon_rate, course.adam_rate, course.decay)
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
    if optimizers.step_number >= steps:
        return
    scenes = Scenes(truths)
    for block in decoder.gated_blocks():
        block.attn.keep_scores = True
    started, first, mean = time.time(), optimizers.step_number, None
    while optimizers.step_number < steps:
        loss, parts = forward_loss(model, tokenizer, latents, batch_of(optimizers.step_number, scenes, tokenizer, course))
        optimizers.step(loss)
        values = numpy.array([part.item() for part in parts])
        mean = values if mean is None else mean * .98 + values * .02
        step = optimizers.step_number
        if step % 50 == 0:
            rate = (step - first) / (time.time() - started)
            report(f"step {step} of {steps}, {rate * (PICTURES + TEXTS):.0f} dialogues/s, {(steps - step) / rate / 60:.1f} min left, "
                   f"loss with picture {mean[0]:.4f}, without {mean[1]:.4f}, looking {mean[2]:.4f}")
        if step % 500 == 0 or step == steps:
            save({"model": model.state_dict(), "optimizers": optimizers.state_dict()}, checkpoint)
            measure(step == steps)
    for block in decoder.gated_blocks():
        block.attn.keep_scores, block.attn.scores = False, None


@torch.no_grad()
def generate(model, tokenizer, prompts, latents, longest=64):
    """Greedy answers, as id lists without EOS, and the least margin between best and second logit of each.

    prompts: id lists of any lengths; latents [prompts, L, width] or None for language only.
    """
    decoder = model.lang_encoder
    answers, margins = [[] for _ in prompts], [float("inf")] * len(prompts)
    by_length = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        caches = [{} for _ in decoder.model["layers"]]
        ids = torch.tensor([prompts[i] for i in members])
        seen = None if latents is None else latents[members].float()
        sees = ((ids == tokenizer.image_mark).cumsum(1) > 0).float().unsqueeze(-1)
        open_ones, first = set(members), 0
        for _ in range(longest):
            logits = decoder(ids, seen, sees, caches=caches, first=first)[:, -1].float()
            best = logits.topk(2)
            for row, i in enumerate(members):
                if i in open_ones:
                    margins[i] = min(margins[i], float(best.values[row, 0] - best.values[row, 1]))
                    token = int(best.indices[row, 0])
                    if token == EOS:
                        open_ones.discard(i)
                    else:
                        answers[i].append(token)
            if not open_ones:
                break
            first += ids.shape[1]
            ids, sees = best.indices[:, :1], torch.ones(len(members), 1, 1)
    return answers, margins


def make_tokenizer(truths, path, pieces):
    """Train the tokenizer on dialogues about some scenes and without any."""
    rng = random.Random("tokenizer")
    dialogues = [picture_dialogue(rng, truth) for truth in truths[:8000]]
    dialogues += [language_dialogue(rng) for _ in range(4000)]
    train_tokenizer(dialogues, path, pieces)
