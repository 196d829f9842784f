"""Questions about scenes and their true answers, as rounds of a dialogue.

Every kind of question is a function ask_...(rng, view, wording) that returns a
Round, or None where the scene doesn't allow it.  `wording` picks among ways to ask:
those after the bar in wordings.py are never trained on and serve to measure how well the
model takes words it has not met.

Verdicts come first ("Yes, ..."), so that mmgpt_filter can ask all of it.
"""

from dataclasses import dataclass

import words
from wordings import OBJECT_WORDS, Wording, as_typed
from words import BACKGROUNDS, COLORS, GROUPS, KINDS, PLACES, counted, joined, plural, with_article

PLACE_MARGIN = .02    # a thing this near to a border between ninths is not asked about
LEAST_APART = .12     # nor how two things lie to each other that are nearer along the axis


@dataclass
class Round:
    """One question with its answer; task and name say what it was about, for follow-ups and for measuring."""
    task: str
    question: str
    answer: str
    name: str | None = None


class View:
    """What can be said about a scene, from its truth {"background", "things": [[kind, color, x, y, size], ...]}."""

    def __init__(self, truth):
        self.background = truth["background"]
        self.things = truth["things"]
        self.count, self.at, colors = {}, {}, {}
        for kind, color, x, y, _ in self.things:
            self.count[kind] = self.count.get(kind, 0) + 1
            self.at[kind] = (x, y)
            if color:
                colors.setdefault(kind, set()).add(color)
        self.kinds = sorted(self.count, key=KINDS.index)
        self.color = {kind: next(iter(of)) for kind, of in colors.items() if len(of) == 1}
        self.single = [kind for kind in self.kinds if self.count[kind] == 1]

    def number(self, name):
        return self.count.get(name, 0)

    def item(self, kind):
        """2 red circles."""
        number = self.count[kind]
        color = self.color.get(kind)
        return f"{number} {color + ' ' if color else ''}{kind if number == 1 else plural(kind)}"

    def place(self, kind):
        """The ninth in which the only thing of this kind lies; None near a border."""
        x, y = self.at[kind]
        if any(abs(v - border) <= PLACE_MARGIN for v in (x, y) for border in (1 / 3, 2 / 3)):
            return None
        return PLACES[min(2, int(y * 3)) * 3 + min(2, int(x * 3))]

    def placed(self):
        return [kind for kind in self.single if self.place(kind)]

    def background_words(self):
        return f"on a {self.background} background" if self.background else "on a colorful background"


def names_of(name):
    """The parts of a phrase that a noun fills."""
    return {"s": name, "p": plural(name), "a": with_article(name)}


def there_are(number, name):
    return f"There {'is' if number == 1 else 'are'} {counted(number, name)} in the image."


def presence_answer(view, name):
    number = view.number(name)
    if number == 0:
        return f"No, there is no {name} in the image."
    return f"Yes, there {'is' if number == 1 else 'are'} {counted(number, name)} in the image."


def absent_name(rng, view, wording):
    """Something that is not in the picture: a known kind, an unknown thing or, in training, a word without meaning."""
    while True:
        chance = rng.random()
        name = (rng.choice(KINDS) if chance < .62 else rng.choice(words.UNKNOWN) if chance < .84 or wording.heldout
                else words.pseudo_word(rng))
        if name not in view.count:
            return name


def some_name(rng, view, wording, present):
    """A kind that is there, with this probability, or something that isn't."""
    return rng.choice(view.kinds) if view.kinds and rng.random() < present else absent_name(rng, view, wording)


def said(rng, wording, name):
    return names_of(wording.called(rng, name))


def ask_count(rng, view, wording, name=None, kind="count"):
    name = name or some_name(rng, view, wording, .78)
    return Round("count", wording.phrase(rng, kind, **said(rng, wording, name)), there_are(view.number(name), name), name)


def ask_presence(rng, view, wording, name=None, kind="presence"):
    name = name or some_name(rng, view, wording, .5)
    return Round("presence", wording.phrase(rng, kind, **said(rng, wording, name)), presence_answer(view, name), name)


def ask_exact(rng, view, wording):
    if not view.kinds:
        return None
    name = some_name(rng, view, wording, .9)
    truth = view.number(name)
    least = rng.random() < .4
    near = [n for n in (range(2, 10) if least else range(1, 10)) if abs(n - truth) <= 3]
    yes = [n for n in near if (truth >= n if least else truth == n)]
    no = [n for n in near if n not in yes]
    choices = (yes if yes and (rng.random() < .5 or not no) else no) or [2]
    number = rng.choice(choices)
    holds = truth >= number if least else truth == number
    number_word = words.NUMBER_WORDS[number] if rng.random() < .3 else str(number)
    parts = said(rng, wording, name)
    question = wording.phrase(rng, "at least" if least else "exact", n=number_word,
                              q=parts["s"] if number == 1 else parts["p"], **parts)
    if number == 1:
        question = question.replace("Are there", "Is there").replace("There are", "There is")
    if truth == 0:
        return Round("exact", question, f"No, there is no {name} in the image.", name)
    verb = "is" if truth == 1 else "are"
    return Round("exact", question, f"{'Yes' if holds else 'No'}, there {verb} {counted(truth, name)} in the image.", name)


def ask_caption(rng, view, wording):
    shown = joined([view.item(kind) for kind in view.kinds]) if view.kinds else "no objects"
    return Round("caption", wording.phrase(rng, "caption"), f"The image shows {shown} {view.background_words()}.")


def ask_list(rng, view, wording):
    shown = joined([view.item(kind) for kind in view.kinds]) if view.kinds else "no objects"
    return Round("list", wording.phrase(rng, "list"), f"I see {shown}.")


def ask_total(rng, view, wording):
    return Round("total", wording.phrase(rng, "total", o=rng.choice(OBJECT_WORDS)), there_are(len(view.things), "object"))


def ask_kinds(rng, view, wording):
    number = len(view.kinds)
    return Round("kinds", wording.phrase(rng, "kinds"),
                 f"There {'is' if number == 1 else 'are'} {counted(number, 'kind')} of objects in the image.")


def ask_position(rng, view, wording):
    if rng.random() < .12:    # of a thing that is not there
        name = absent_name(rng, view, wording)
        return Round("position of nothing", wording.phrase(rng, "position", **said(rng, wording, name)),
                     f"There is no {name} in the image.", name)
    placed = view.placed()
    if not placed:
        return None
    name = rng.choice(placed)
    return Round("position", wording.phrase(rng, "position", **said(rng, wording, name)),
                 f"The {name} is {view.place(name)} of the image.", name)


AXES = [[("to the left of", "left of"), ("to the right of", "right of")], [("above", "above"), ("below", "below")]]


def two_singles(rng, view):
    """Two kinds with one thing each that lie clearly apart along an axis: (one, other, axis, side), or None."""
    if len(view.single) < 2:
        return None
    one, other = rng.sample(view.single, 2)
    axes = [axis for axis in (0, 1) if abs(view.at[one][axis] - view.at[other][axis]) >= LEAST_APART]
    if not axes:
        return None
    axis = rng.choice(axes)
    return one, other, axis, 0 if view.at[one][axis] < view.at[other][axis] else 1


def ask_relation(rng, view, wording):
    pair = two_singles(rng, view)
    if not pair:
        return None
    one, other, axis, side = pair
    if rng.random() < .2:
        distances = [abs(view.at[one][a] - view.at[other][a]) for a in (0, 1)]
        if max(distances) < 1.5 * min(distances):
            return None
        axis = 0 if distances[0] > distances[1] else 1
        side = 0 if view.at[one][axis] < view.at[other][axis] else 1
        return Round("direction", wording.phrase(rng, "direction", s=one, t=other),
                     f"The {one} is {AXES[axis][side][0]} the {other}.", one)
    asked = rng.randrange(2)
    question = wording.phrase(rng, "relation", s=one, t=other, r=rng.choice(AXES[axis][asked]))
    return Round("relation", question,
                 f"{'Yes' if asked == side else 'No'}, the {one} is {AXES[axis][side][0]} the {other}.", one)


def ask_color(rng, view, wording):
    if not view.color:
        return None
    name = rng.choice(list(view.color))
    one, color = view.count[name] == 1, view.color[name]
    parts = {"q": name if one else plural(name), "v": "is" if one else "are", "V": "Is" if one else "Are",
             "d": "does" if one else "do"}
    answer = f"the {parts['q']} {parts['v']} {color}."
    if rng.random() < .35:
        asked = color if rng.random() < .5 else rng.choice([c for c in COLORS if c != color])
        return Round("is color", wording.phrase(rng, "is color", t=asked, **parts),
                     f"{'Yes' if asked == color else 'No'}, {answer}", name)
    return Round("color", wording.phrase(rng, "color", **parts), answer[0].upper() + answer[1:], name)


def ask_background(rng, view, wording):
    if not view.background:
        return None
    return Round("background", wording.phrase(rng, "background"), f"The background is {view.background}.")


def ask_compare(rng, view, wording):
    if not view.kinds:
        return None
    one = rng.choice(view.kinds)
    other = rng.choice([kind for kind in view.kinds if kind != one] or [None]) if rng.random() < .8 else None
    other = other or rng.choice([kind for kind in KINDS if kind not in view.count])
    if rng.random() < .5:
        one, other = other, one
    n, m = view.number(one), view.number(other)
    more = (n > m) if rng.random() < .5 and n != m else rng.random() < .5
    holds = n > m if more else n < m
    question = wording.phrase(rng, "compare", m="more" if more else "fewer", p=plural(one), q=plural(other))
    return Round("compare", question, f"{'Yes' if holds else 'No'}, there {'is' if n == 1 else 'are'} "
                 f"{counted(n, one)} and {counted(m, other)}.", one)


def ask_most(rng, view, wording):
    order = sorted(view.kinds, key=lambda kind: -view.count[kind])
    if not order or (len(order) > 1 and view.count[order[0]] == view.count[order[1]]):
        return None
    return Round("most", wording.phrase(rng, "most"), f"The most common object is the {order[0]}.", order[0])


def ask_classify(rng, view, wording):
    """One label of several fits: the one kind that is there, or the background's colour. The answer is the label alone."""
    if view.background and rng.random() < .3:
        right, pool = view.background, [name for name in BACKGROUNDS if name != view.background]
    elif view.kinds:
        right, pool = rng.choice(view.kinds), [kind for kind in KINDS if kind not in view.count]
    else:
        return None
    labels = [right, *rng.sample(pool, rng.randint(1, 5))]
    if right in KINDS and not wording.plain and rng.random() < .25:
        right, labels = plural(right), [plural(label) for label in labels]
    rng.shuffle(labels)
    return Round("classify", wording.phrase(rng, "classify", l=", ".join(labels)), right)


def ask_group(rng, view, wording):
    group = rng.choice(list(GROUPS))
    kinds = [kind for kind in view.kinds if kind in GROUPS[group]]
    if not kinds and rng.random() < .6:
        return None
    total = sum(view.count[kind] for kind in kinds)
    form = rng.randrange(3)
    question = wording.phrase(rng, ["group count", "group presence", "group list"][form], **names_of(group))
    if form == 0:
        return Round("group", question, there_are(total, group))
    if form == 1:
        verb = "is" if total == 1 else "are"
        listed = joined([counted(view.count[kind], kind) for kind in kinds]) if kinds else None
        return Round("group", question, f"Yes, there {verb} {listed} in the image." if kinds
                     else f"No, there is no {group} in the image.")
    return Round("group", question, f"I see {joined([view.item(kind) for kind in kinds])}." if kinds
                 else f"I see no {plural(group)}.")


ASKERS = [(ask_count, 5), (ask_presence, 3.5), (ask_exact, 2), (ask_caption, 3), (ask_list, 1.5), (ask_total, 1),
          (ask_kinds, .4), (ask_position, 2), (ask_relation, 9), (ask_color, 3), (ask_background, .9),
          (ask_compare, 3.5), (ask_most, .7), (ask_group, 1.4), (ask_classify, 1.5)]


def ask_follow_up(rng, view, wording, last):
    """A question that only the round before makes clear; None where there is none."""
    task, name = last.task, last.name
    options = []
    if task in ("count", "presence"):
        other = some_name(rng, view, wording, .7 if task == "count" else .5)
        if other != name:
            ask = ask_count if task == "count" else ask_presence
            options += [lambda: ask(rng, view, wording, other, "and " + task)] * 3
    if name in view.count:
        number = view.count[name]
        it = {"v": "is" if number == 1 else "are", "d": "does" if number == 1 else "do",
              "it": "it" if number == 1 else "they"}
        if task in ("count", "presence", "color", "most") and number == 1 and view.place(name):
            options += [lambda: Round("follow position", wording.phrase(rng, "and where"),
                                      f"It is {view.place(name)} of the image.", name)] * 3
        if task in ("count", "presence", "position", "most") and name in view.color:
            options += [lambda: Round("follow color", wording.phrase(rng, "and color", **it),
                                      f"{'It is' if number == 1 else 'They are'} {view.color[name]}.", name)] * 5
        if task in ("presence", "position", "most"):
            options += [lambda: Round("count", wording.phrase(rng, "and how many"), there_are(number, name), name)] * 2
    if task == "count":
        options.append(lambda: Round("sure", wording.phrase(rng, "sure"),
                                     f"Yes, I am sure. {there_are(view.number(name), name)}", name))
    return rng.choice(options)() if options else None


def picture_dialogue(rng, truth, wording=Wording()):
    """One to four rounds about a scene."""
    view, rounds = View(truth), []
    askers, weights = zip(*ASKERS)
    for _ in range(rng.choice([1, 2, 3, 3, 4, 4])):
        asked = None
        if rounds and rng.random() < .4:
            asked = ask_follow_up(rng, view, wording, rounds[-1])
        elif rounds and rng.random() < .03:
            asked = small_talk(rng, wording)
        while asked is None:
            asked = rng.choices(askers, weights)[0](rng, view, wording)
        rounds.append(asked)
    return rounds


# ---- without a picture

def small_talk(rng, wording=Wording()):
    """One round of facts or small talk."""
    question, answer = rng.choice([talk, talk, talk, talk, talk, sums, colors, sounds, belongs, legs, opposites, opposites,
                                   capitals, capitals, days])(rng)
    return Round("language", as_typed(rng, question), answer)


def talk(rng):
    questions, answer = rng.choice(words.SMALL_TALK)
    return rng.choice(questions), answer


def sums(rng):
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < .6 or b > a:
        return rng.choice(["What is {} plus {}?", "What is {} + {}?", "How much is {} plus {}?", "{} + {} = ?"]).format(
            a, b), f"{a} plus {b} is {a + b}."
    return rng.choice(["What is {} minus {}?", "What is {} - {}?", "How much is {} minus {}?"]).format(
        a, b), f"{a} minus {b} is {a - b}."


def fact(rng, table, questions, answer):
    name = rng.choice(list(table))
    noun = with_article(name)
    return rng.choice(questions).format(noun), answer.format(noun[0].upper() + noun[1:], table[name])


def colors(rng):
    return fact(rng, words.COLOR_OF, ["What color is {}?", "What is the color of {}?", "Which color does {} have?"], "{} is {}.")


def sounds(rng):
    return fact(rng, words.SOUND_OF, ["What sound does {} make?", "What does {} say?"], "{} says {}.")


def legs(rng):
    if rng.random() < .2:
        return fact(rng, words.WHEELS_OF, ["How many wheels does {} have?"], "{} has {} wheels.")
    return fact(rng, words.LEGS_OF, ["How many legs does {} have?", "How many legs has {}?"], "{} has {} legs.")


def belongs(rng):
    group = rng.choice(list(GROUPS))
    name = rng.choice(GROUPS[group])
    if rng.random() < .4:
        noun = with_article(name)
        return f"What is {noun}?", f"{noun[0].upper() + noun[1:]} is {with_article(group)}."
    asked = group if rng.random() < .5 else rng.choice(list(GROUPS))
    verdict = "Yes" if asked == group else "No"
    return f"Is {with_article(name)} {with_article(asked)}?", f"{verdict}, {with_article(name)} is {with_article(group)}."


def opposites(rng):
    one = rng.choice(list(words.OPPOSITE_OF))
    other = words.OPPOSITE_OF[one]
    if rng.random() < .5:
        one, other = other, one
    return rng.choice(["What is the opposite of {}?", "Opposite of {}?"]).format(one), f"The opposite of {one} is {other}."


def capitals(rng):
    country = rng.choice(list(words.CAPITAL_OF))
    return (rng.choice(["What is the capital of {}?", "What is the capital city of {}?", "Capital of {}?"]).format(country),
            f"The capital of {country} is {words.CAPITAL_OF[country]}.")


def days(rng):
    day = rng.randrange(7)
    return (rng.choice(["What day comes after {}?", "Which day comes after {}?"]).format(words.DAYS[day]),
            f"{words.DAYS[(day + 1) % 7]} comes after {words.DAYS[day]}.")


def language_dialogue(rng, wording=Wording()):
    """One to four rounds without a picture."""
    if rng.random() < .16:
        person = rng.choice(words.PEOPLE)
        hello = rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}."]).format(person)
        ask = rng.choice(["What is my name?", "Who am I?", "Do you know my name?"])
        between = [small_talk(rng)] if rng.random() < .5 else []
        return [Round("language", hello, f"Nice to meet you, {person}!"), *between,
                Round("language", ask, f"Your name is {person}.")]
    rounds = [small_talk(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    if rng.random() < .12:
        view = View({"background": "blue", "things": [["dog", None, .5, .5, .2]]})
        ask = rng.choice([ask_count, ask_presence, ask_caption, ask_list, ask_total, ask_position, ask_background])
        rounds.insert(0, Round("no picture", ask(rng, view, wording).question, words.NO_PICTURE))
    return rounds
