"""First stage: teach vision tower and resampler what a scene shows.

A language model alone would need far longer to tell the tower what to look for, so
probes, thrown away afterwards, ask every patch and every latent directly:

  patches   which kind covers me, where is its centre from here, which colour, which
            row and column am I; and `share`, a linear map whose sum over all patches
            is the number of things of each kind: a thing's centre is shared out
            between the four nearest patches.  A count is then a mean over patches,
            which attention can take exactly.
  latents   latent k answers for kind k: how many, which ninth, where, which colour;
            further latents for the background, the total, the number of kinds and
            the groups.  A code of +1 and -1 in the last dimensions keeps the latents apart, so that
            the decoder's cross attention finds them.
"""

import os
import time

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from optimizer import Optimizers
from words import BACKGROUNDS, COLORS, GROUPS, KINDS

MEAN = torch.tensor([.48145466, .4578275, .40821073]).view(1, 3, 1, 1) * 255
DEVIATION = torch.tensor([.26862954, .26130258, .27577711]).view(1, 3, 1, 1) * 255
MOST = 10            # counts 0 to 9
IGNORED = -100
FIRST_SHAPE = len(KINDS) - 3
LATENT_BACKGROUND = len(KINDS)
LATENT_TOTAL = len(KINDS) + 1
LATENT_KINDS = len(KINDS) + 2
LATENT_GROUPS = len(KINDS) + 3
CODE = 24            # dimensions of a latent that carry its number
BATCH = 64


class Probes(nn.Module):
    """What the patches and latents are asked; training only."""

    def __init__(self, width, grid):
        super().__init__()
        kinds = len(KINDS)
        self.norm = nn.LayerNorm(width)
        self.patch_kind = nn.Linear(width, kinds + 1)
        self.share = nn.Linear(width, kinds)
        self.patch_offset = nn.Linear(width, 2)
        self.patch_color = nn.Linear(width, len(COLORS))
        self.patch_place = nn.Linear(width, 2 * grid)
        self.count = nn.Linear(width, MOST)
        self.count_value = nn.Linear(width, 1)
        self.place = nn.Linear(width, 9)
        self.position = nn.Linear(width, 2)
        self.color = nn.Linear(width, len(COLORS))
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.total = nn.Linear(width, MOST)
        self.kinds = nn.Linear(width, 4)
        self.group = nn.Linear(width, MOST)
        nn.init.normal_(self.share.weight, std=.01)
        nn.init.zeros_(self.share.bias)


def latent_code(latents):
    """The +-1 code of each latent, [L, CODE]; always the same."""
    generator = torch.Generator().manual_seed(24)
    return torch.randint(0, 2, (latents, CODE), generator=generator).float() * 2 - 1


class Labels:
    """The truth about all scenes as flat arrays, from which a batch's targets are quickly made."""

    def __init__(self, truths, grid):
        self.grid = grid
        count = len(truths)
        self.things = numpy.zeros((count, 9, 5), numpy.float32)     # kind, color, x, y, size; kind -1: none
        self.things[..., 0] = -1
        self.background = numpy.full(count, IGNORED)
        for i, truth in enumerate(truths):
            if truth["background"]:
                self.background[i] = BACKGROUNDS.index(truth["background"])
            for j, (kind, color, x, y, size) in enumerate(truth["things"]):
                self.things[i, j] = (KINDS.index(kind), COLORS.index(color) if color else -1, x, y, size)

    def batch(self, index, flipped):
        """Targets of these scenes, as a dict of tensors; flipped: which are mirrored."""
        things = self.chosen(index, flipped)
        targets = self.of_patches(things)
        targets.update(self.of_latents(things))
        targets["background"] = self.background[index]
        return {name: torch.from_numpy(value) for name, value in targets.items()}

    def chosen(self, index, flipped):
        """The things of these scenes, [B, 9, 5], mirrored where flipped."""
        things = self.things[index].copy()
        things[..., 2] = numpy.where(flipped[:, None], 1 - things[..., 2], things[..., 2])
        return things

    def of_patches(self, things):
        """What the patches are asked; things [B, 9, 5]."""
        g, batch = self.grid, len(things)
        rows, columns = numpy.mgrid[0:g, 0:g]
        x = ((columns + .5) / g).ravel()
        y = ((rows + .5) / g).ravel()
        kind = numpy.full((batch, g * g), len(KINDS))
        color = numpy.full((batch, g * g), IGNORED)
        offset = numpy.zeros((batch, g * g, 2), numpy.float32)
        share = numpy.zeros((batch, g * g, len(KINDS)), numpy.float32)
        for i, j in numpy.argwhere(things[..., 0] >= 0):
            k, c, tx, ty, size = things[i, j]
            inside = (x - tx) ** 2 + (y - ty) ** 2 < (.5 * size) ** 2
            kind[i, inside] = int(k)
            offset[i, inside, 0], offset[i, inside, 1] = (tx - x[inside]) * g, (ty - y[inside]) * g
            if c >= 0:
                color[i, inside] = int(c)
            near = numpy.maximum(0, 1 - abs(x - tx) * g) * numpy.maximum(0, 1 - abs(y - ty) * g)
            share[i, :, int(k)] += near / near.sum()
        return {"patch_kind": kind, "patch_color": color, "patch_offset": offset, "share": share}

    @staticmethod
    def of_latents(things):
        """What the latents are asked; things [B, 9, 5]."""
        batch, kinds = len(things), len(KINDS)
        present = things[..., 0] >= 0
        count = numpy.zeros((batch, kinds), numpy.int64)
        place = numpy.full((batch, kinds), IGNORED)
        position = numpy.full((batch, kinds, 2), numpy.nan, numpy.float32)
        color = numpy.full((batch, kinds), IGNORED)
        numpy.add.at(count, (numpy.nonzero(present)[0], things[present][:, 0].astype(int)), 1)
        for i, j in numpy.argwhere(present):
            k, c, x, y, _ = things[i, j]
            k = int(k)
            if count[i, k] == 1:
                place[i, k] = min(2, int(y * 3)) * 3 + min(2, int(x * 3))
                position[i, k] = x, y
            if c >= 0:
                color[i, k] = int(c) if color[i, k] in (IGNORED, int(c)) else -1
        color[color == -1] = IGNORED
        groups = numpy.stack([count[:, [KINDS.index(name) for name in names]].sum(1) for names in GROUPS.values()], 1)
        return {"count": count, "place": place, "position": position, "color": color,
                "total": count.sum(1), "kinds": (count > 0).sum(1), "group": groups}


def pixels_of(pictures, flipped=None, rng=None):
    """uint8 [B, S, S, 3] -> normalised f32 [B, 3, S, S]; with rng, brightness and contrast vary."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    if flipped is not None and flipped.any():
        mirrored = torch.from_numpy(flipped)
        x[mirrored] = x[mirrored].flip(-1)
    if rng is not None:
        shape = (len(pictures), 1, 1, 1)
        x = x * torch.from_numpy(rng.uniform(.9, 1.1, shape)).float() + torch.from_numpy(rng.uniform(-12, 12, shape)).float()
    return (x - MEAN) / DEVIATION


def cross_entropy(logits, target):
    """Mean over the targets that are not ignored; 0 where all are."""
    if not (target != IGNORED).any():
        return logits.sum() * 0
    return F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), ignore_index=IGNORED)


def count_loss(logits, target):
    """Present kinds and absent ones weigh alike, however many there are."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    present = (target > 0).float()
    return (loss * present).sum() / (present.sum() + 1) + 2 * (loss * (1 - present)).sum() / ((1 - present).sum() + 1)


def patch_losses(probes, patches, t):
    """Losses of what the patches are asked, by name."""
    x = probes.norm(patches)
    grid = int(x.shape[1] ** .5)
    covered = t["patch_kind"] < len(KINDS)
    weight = torch.where(covered, 1., .5).flatten()
    kind = F.cross_entropy(probes.patch_kind(x).float().flatten(0, 1), t["patch_kind"].flatten(), reduction="none")
    share = probes.share(x).float()
    number = torch.arange(x.shape[1])
    place = probes.patch_place(x).float()
    rows, columns = place[..., :grid], place[..., grid:]
    things = t["count"].sum() + 1
    return {
        "patch_kind": (kind * weight).sum() / weight.sum(),
        "share": 2 * F.smooth_l1_loss(share, t["share"], beta=.1, reduction="sum") / things,
        "summed": F.smooth_l1_loss(share.sum(1), t["count"].float(), beta=.3, reduction="sum") / things,
        "patch_offset": F.smooth_l1_loss(probes.patch_offset(x).float()[covered], t["patch_offset"][covered], beta=.3),
        "patch_color": .3 * cross_entropy(probes.patch_color(x), t["patch_color"]),
        "patch_place": .1 * (cross_entropy(rows, (number // grid).expand(len(x), -1))
                             + cross_entropy(columns, (number % grid).expand(len(x), -1))),
    }


def latent_losses(probes, latents, t):
    """Losses of what the latents are asked, by name."""
    x = latents[:, :len(KINDS)]
    known = ~t["position"][..., 0].isnan()
    groups = latents[:, LATENT_GROUPS:LATENT_GROUPS + len(GROUPS)]
    return {
        "count": count_loss(probes.count(x), t["count"]),
        "count_value": F.smooth_l1_loss(probes.count_value(x).float().squeeze(-1), t["count"].float(), beta=.3),
        "place": .5 * cross_entropy(probes.place(x), t["place"]),
        "position": 4 * F.smooth_l1_loss(probes.position(x).float()[known], t["position"][known], beta=.1),
        "color": .3 * cross_entropy(probes.color(x[:, FIRST_SHAPE:]), t["color"][:, FIRST_SHAPE:]),
        "background": .3 * cross_entropy(probes.background(latents[:, LATENT_BACKGROUND]), t["background"]),
        "total": .3 * cross_entropy(probes.total(latents[:, LATENT_TOTAL]), t["total"]),
        "kinds": .2 * cross_entropy(probes.kinds(latents[:, LATENT_KINDS]), t["kinds"]),
        "group": .3 * count_loss(probes.group(groups), t["group"]),
        "code": 2 * F.mse_loss(latents[..., -CODE:].float(), latent_code(latents.shape[1]).expand(len(latents), -1, -1)),
    }


@torch.no_grad()
def measure(model, probes, pictures, labels, count):
    """What the probes get right on the first scenes: a dict of shares."""
    right, count = {}, min(count, len(pictures))
    for first in range(0, count, 100):
        index = numpy.arange(first, min(count, first + 100))
        t = labels.batch(index, numpy.zeros(len(index), bool))
        with torch.autocast("cpu", torch.bfloat16):
            patches, latents = model.encode(pixels_of(pictures[index]))
            share = probes.share(probes.norm(patches)).float().sum(1)
            counted = probes.count(latents[:, :len(KINDS)]).argmax(-1)
            place = probes.place(latents[:, :len(KINDS)]).argmax(-1)
            total = probes.total(latents[:, LATENT_TOTAL]).argmax(-1)
            background = probes.background(latents[:, LATENT_BACKGROUND]).argmax(-1)
            color = probes.color(latents[:, :len(KINDS)]).argmax(-1)
        present, few = t["count"] > 0, t["count"] <= 6
        for name, hits in {
                "summed": (share.round() == t["count"])[present], "count 1-6": (counted == t["count"])[present & few],
                "count 7-9": (counted == t["count"])[~few],
                "all counts": (counted == t["count"]).all(1), "presence": ((counted > 0) == present).all(1),
                "place": (place == t["place"])[t["place"] >= 0], "total": total == t["total"],
                "background": (background == t["background"])[t["background"] >= 0],
                "color": (color == t["color"])[t["color"] >= 0]}.items():
            right.setdefault(name, []).append(hits.float())
    return {name: round(torch.cat(hits).mean().item(), 4) for name, hits in right.items()}


def train(model, pictures, truths, heldout, steps, checkpoint, report):
    """Run the stage, from its checkpoint when there is one.

    report(text) shows a line; it is called some times a minute.
    """
    torch.manual_seed(1)
    vision = model.vision_encoder["visual"]
    probes = Probes(model.config["vision"]["width"], vision.grid)
    labels = Labels(truths, vision.grid)
    optimizers = Optimizers((vision, model.perceiver, probes), steps, muon_rate=.014, adam_rate=1.5e-3, decay=.75)
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        probes.load_state_dict(state["probes"])
        optimizers.load_state_dict(state["optimizers"])
    started, first = time.time(), optimizers.step_number
    mean = {}
    while optimizers.step_number < steps:
        step = optimizers.step_number
        rng = numpy.random.default_rng([1, step])
        index = rng.integers(0, len(pictures), BATCH)
        flipped = rng.random(BATCH) < .5
        targets = labels.batch(index, flipped)
        with torch.autocast("cpu", torch.bfloat16):
            patches, latents = model.encode(pixels_of(pictures[index], flipped, rng))
            losses = patch_losses(probes, patches, targets) | latent_losses(probes, latents, targets)
        optimizers.step(sum(losses.values()))
        for name, loss in losses.items():
            mean[name] = mean.get(name, loss.item()) * .98 + loss.item() * .02
        step += 1
        if step % 100 == 0:
            rate = (step - first) / (time.time() - started)
            report(f"step {step} of {steps}, {rate * BATCH:.0f} pictures/s, {(steps - step) / rate / 60:.1f} min left, "
                   + " ".join(f"{name} {loss:.3f}" for name, loss in mean.items()))
        if step % 1000 == 0 or step == steps:
            report(f"held out: {measure(model, probes, *heldout, 500 if step < steps else 2000)}")
            save({"model": model.state_dict(), "probes": probes.state_dict(),
                  "optimizers": optimizers.state_dict()}, checkpoint)


@torch.no_grad()
def encode(model, pictures, report):
    """Latents of all pictures and of their mirror images: bf16 [2, scenes, L, width]."""
    latents = torch.empty(2, len(pictures), model.config["perceiver"]["num_latents"], model.config["vision"]["width"],
                          dtype=torch.bfloat16)
    for first in range(0, len(pictures), 128):
        x = pixels_of(pictures[first:first + 128])
        with torch.autocast("cpu", torch.bfloat16):
            latents[0, first:first + 128] = model.encode(x)[1].bfloat16()
            latents[1, first:first + 128] = model.encode(x.flip(-1))[1].bfloat16()
        if first % 12800 == 0:
            report(f"encoded {first} of {len(pictures)} pictures")
    return latents


def save(state, path):
    """Write a checkpoint whole or not at all."""
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)
