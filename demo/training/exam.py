#!/usr/bin/env python3
"""Write the questions of the evaluation: demo/training/exam.py LABELS.csv [--seed N] > questions.csv

Reads what demo/scene.py wrote about its pictures.  Each row asks one thing:

    task        what is measured
    file        the picture
    first       the question of an earlier round, which the model answers itself; or empty
    question    what is asked; of counts the thing, for mmgpt_count; of "classify" the labels
    expected    the true answer

Needs what scene.py needs.
"""

import argparse
import csv
import json
import random
import sys

import questions as q
import words

# task: (function, whether with the held-out wordings)
PLAIN = q.Wording(plain=True)
HELDOUT = q.Wording(heldout=True, plain=True)
UNKNOWN_PICTURES = 20
# scenes drawn with a --content are there for these tasks alone
TASKS_OF = {"crowded": ["count 7 to 9"], "singles": ["position", "left, right, above, below"], "shapes": ["color of shapes"]}


def until(ask, tries=8):
    """Ask until there is a question; None when the scene has none."""
    for _ in range(tries):
        asked = ask()
        if asked:
            return asked
    return None


def of_task(ask, task):
    """Call ask until it returns a round of this task."""
    def one():
        asked = ask()
        return asked if asked and asked.task == task else None
    return until(one, 20)


def follow_up(rng, view):
    """Two rounds, the second only understood from the first."""
    first = until(lambda: rng.choice([q.ask_count, q.ask_presence])(rng, view, PLAIN, rng.choice(view.kinds)))
    while True:
        second = q.ask_follow_up(rng, view, PLAIN, first)
        if second and second.task != "sure":
            return first, second


def questions_about(view, rng):
    """The questions about one scene: (task, first, question, expected)."""
    kind = rng.choice(view.kinds) if view.kinds and rng.random() < .85 else rng.choice(
        [kind for kind in words.KINDS if kind not in view.count])
    if max(view.count.values(), default=0) > 6:
        kind = max(view.count, key=view.count.get)
    number = view.number(kind)
    yield "count 7 to 9" if number > 6 else "count 0 to 6", "", words.plural(kind), str(number)
    for present in (True, False):
        pool = view.kinds if present else [kind for kind in words.KINDS if kind not in view.count]
        if pool:
            asked = q.ask_presence(rng, view, PLAIN, rng.choice(pool))
            yield "presence", "", asked.question, str(present).lower()
    yield "caption", "", "", q.ask_caption(rng, view, PLAIN).answer
    for task, ask, name in (("position", q.ask_position, "position"), ("color of shapes", q.ask_color, "color"),
                            ("background", q.ask_background, "background"),
                            ("left, right, above, below", q.ask_relation, "relation"),
                            ("more, fewer", q.ask_compare, "compare"),
                            ("classify", q.ask_classify, "classify")):
        asked = of_task(lambda: ask(rng, view, PLAIN), name)
        if asked:
            yield task, "", asked.question.split(": ")[-1].strip(".?") if task == "classify" else asked.question, asked.answer
    if view.kinds:
        first, second = follow_up(rng, view)
        yield "follow-up", first.question, second.question, second.answer
    askers, weights = zip(*q.ASKERS)
    asked = until(lambda: rng.choices(askers, weights)[0](rng, view, HELDOUT), 50)
    yield "wordings never trained on", "", asked.question, asked.answer


def unknown_things(scenes, rng):
    """20 things that no training ever named, each on 20 pictures: (task, file, first, question, expected)."""
    for name in words.HELDOUT_UNKNOWN:
        for file in rng.sample(scenes, min(UNKNOWN_PICTURES, len(scenes))):
            if rng.random() < .5:
                yield "unknown thing, counted", file, "", words.plural(name), "0"
            else:
                yield "unknown thing, asked for", file, "", f"Is there {words.with_article(name)} in the image?", "false"


def read_labels(path):
    """file -> View, from labels.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file"]: q.View({
            "background": row["background"] or None,
            "things": [[t["kind"], t["color"], t["x"], t["y"], t["size"]] for t in json.loads(row["objects"])]})
            for row in csv.DictReader(file)}


def main():
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write the questions of the evaluation.")
    parser.add_argument("labels", help="labels.csv of demo/scene.py")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    scenes, rng = read_labels(args.labels), random.Random(args.seed)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["task", "file", "first", "question", "expected"])
    for file, view in scenes.items():
        for task, first, question, expected in questions_about(view, rng):
            if task in TASKS_OF.get(file.split("-")[1], [task]):
                out.writerow([task, file, first, question, expected])
    out.writerows(unknown_things([file for file in scenes if file.split("-")[1] not in TASKS_OF], rng))


if __name__ == "__main__":
    main()
