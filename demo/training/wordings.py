"""Ways to ask, and how people type them."""

import words

# Ways to ask; {i} image, {p} plural, {s} singular, {a} with article. Those after the bar are held out.
WORDINGS = {text.split("\n")[0]: [[line.strip() for line in part.strip().split("\n")]
                                  for part in text.split("\n", 1)[1].split("|")] for text in """count
How many {p} are in the {i}?
How many {p} are in the {i}?
How many {p} are in the {i}?
How many {p} are there in the {i}?
How many {p} are there?
How many {p} do you see?
How many {p} do you see in the {i}?
How many {p} can you see in the {i}?
How many {p} does the {i} show?
How many {p} can be seen?
How many {p} can you find?
How many {p}?
How many {s} are in the {i}?
How many {s}?
Count the {p}.
Count the {p} in the {i}.
Count all {p}.
Count how many {p} there are.
What is the number of {p}?
What is the number of {p} in the {i}?
Number of {p}?
Number of {p} in the {i}
Can you count the {p}?
Please count the {p} in this {i}.
Tell me how many {p} are in the {i}.
Tell me how many {p} there are.
Tell me the number of {p}.
I want to know how many {p} there are.
Do you know how many {p} are in the {i}?
Can you tell me how many {p} are in the {i}?
{p}: how many?
How many {p} appear in the {i}?
How many {p} are shown here?
How many {p} does this {i} have?
How many {p} do you count?
How many {p} did you spot?
Determine how many {p} there are in the {i}.
Work out the number of {p}.
Let me know how many {p} you see.
I would like the number of {p} in this {i}.
Number the {p}.
In the {i}, how many {p} are there?
|
How many {p} are shown in the {i}?
Could you count the {p} for me?
Say how many {p} you can find.
What number of {p} do you see?
Find out how many {p} there are in this {i}.
Give me the count of {p}.
%
presence
Is there {a} in the {i}?
Is there {a} in the {i}?
Is there {a}?
Is there any {s} in the {i}?
Do you see {a}?
Do you see any {p}?
Can you see {a} in the {i}?
Can you see {p}?
Are there any {p} in the {i}?
Are there any {p}?
Are there {p} in the {i}?
Are there {p}?
Does the {i} contain {a}?
Does the {i} show {a}?
Does this {i} have {p}?
Does the {i} contain any {p}?
Is {a} in the {i}?
Tell me if there is {a} in the {i}.
Tell me whether you see {a}.
There is {a} in the {i}.
The {i} shows {a}.
The {i} contains {p}.
Is there at least one {s}?
Is there {s} in the {i}?
Does the {i} show {s}?
Does the {i} show {p}?
Is {a} present in the {i}?
Are {p} present?
Is {a} shown in the {i}?
Are any {p} shown?
Can {a} be found in the {i}?
Can {p} be found here?
Do you spot {a}?
Do you spot any {p} in the {i}?
Did you spot {a} in this {i}?
Do you recognize {a} in the {i}?
Do you recognize any {p}?
Can you spot {p}?
Does the {i} depict {a}?
Does the {i} depict any {p}?
Does this {i} feature {a}?
Does the {i} feature any {p}?
Does this {i} display {p}?
Is {a} pictured?
Are {p} pictured here?
Is {a} displayed in the {i}?
Have you seen {a} in the {i}?
Have you seen any {p}?
Is {a} here?
Are {p} here?
I think there is {a}.
I can spot {a} in the {i}.
I believe the {i} has {p}.
The {i} has {a}.
Would you say there are {p} in this {i}?
Could there be {a} in the {i}?
Check whether there is {a} in the {i}.
Check the {i} for {p}.
Confirm that there is {a}.
In the {i}, is there {a}?
In this {i}, are there any {p}?
|
Can any {p} be seen in the {i}?
Are {p} visible in the {i}?
Is {a} visible?
Does the {i} include any {p}?
Do you notice {a} in this {i}?
I see {a} in the {i}.
%
exact
Are there {n} {q} in the {i}?
Are there {n} {q}?
Are there exactly {n} {q} in the {i}?
Are there exactly {n} {q}?
Do you see {n} {q}?
Does the {i} show {n} {q}?
Does the {i} contain exactly {n} {q}?
Is the number of {p} {n}?
There are {n} {q} in the {i}.
Can you spot {n} {q}?
Do you count {n} {q}?
Does the {i} have {n} {q}?
Does the {i} depict {n} {q}?
I see {n} {q} in the {i}.
The {i} shows {n} {q}.
The {i} has exactly {n} {q}.
Would you say there are {n} {q}?
Check whether there are {n} {q}.
Do you recognize {n} {q} in the {i}?
|
Can you see {n} {q} in the {i}?
Is it true that there are {n} {q}?
The {i} contains {n} {q}.
%
at least
Are there at least {n} {q} in the {i}?
Are there at least {n} {q}?
Do you see at least {n} {q}?
Does the {i} show at least {n} {q}?
There are at least {n} {q}.
Are there {n} or more {p}?
Does the {i} have at least {n} {q}?
Do you count at least {n} {q}?
Can you find at least {n} {q}?
Can you spot {n} or more {p}?
The {i} shows at least {n} {q}.
I see at least {n} {q}.
|
Can you see at least {n} {q} in the {i}?
Does the {i} contain at least {n} {q}?
%
caption
Describe the {i}.
Describe the {i}.
Describe this {i}.
Please describe the {i}.
Can you describe this {i}?
What does the {i} show?
Write a caption for this {i}.
Write a caption for this {i}.
Write a caption.
Write a short caption for the {i}.
Describe the {i} in detail.
Describe the {i} in detail.
Caption the {i}.
Caption this.
What is shown in this {i}?
What does this {i} show?
Give a description of the {i}.
Tell me what the {i} shows.
What is going on in the {i}?
What is happening in this {i}?
Summarize the {i}.
Give me a summary of the {i}.
Explain the {i}.
Explain what the {i} shows.
What is depicted in the {i}?
What does the {i} depict?
What is the subject of this {i}?
Put the {i} into words.
How would you describe this {i}?
How would you caption this?
I need a caption for this {i}.
I need a description of the {i}.
Provide a caption for the {i}.
Provide a short description.
Say what the {i} shows.
Write down what this {i} shows.
What is the {i} of?
What is this a {i} of?
What is the {i} like?
Make a caption for the {i}.
|
Could you describe the {i}?
Give me a caption for this {i}.
Please write a description of this {i}.
What is this {i} about?
%
list
What is in the {i}?
What is in the {i}?
What do you see?
What can you see in the {i}?
What objects are in the {i}?
Which objects do you see?
Which objects are in the {i}?
What things are in the {i}?
What is this?
What do you see here?
List the objects in the {i}.
List all objects.
Name the objects in the {i}.
What is there?
Which objects are shown?
Which items are in the {i}?
What is inside the {i}?
What items do you recognize?
What do you recognize in the {i}?
What stuff is in the {i}?
What is in there?
Say what you see.
Show me what is there.
Enumerate the objects in the {i}.
What have you seen in the {i}?
What appears in the {i}?
|
What can be seen here?
Tell me what is in the {i}.
Which things can you see?
%
total
How many {o} are in the {i}?
How many {o} are there in total?
How many {o} are there?
How many {o} are there in the {i}?
Count all {o}.
Count the {o}.
How many {o} do you see in the {i}?
What is the total number of {o}?
What is the number of {o} in the {i}?
Tell me how many {o} there are.
How many {o} does the {i} show?
How many {o} are there altogether?
All in all, how many {o} are there?
Determine the total of all {o}.
How many {o} do you spot in all?
|
How many {o} can you count in total?
Tell me the total number of {o}.
%
kinds
How many kinds of objects are there?
How many different kinds of objects are in the {i}?
How many types of objects do you see?
How many kinds of things are in the {i}?
How many sorts of objects are there?
How many sorts of things do you spot?
Tell me how many kinds of objects there are.
What is the number of different kinds of objects?
Count the kinds of things in the {i}.
|
How many different types of objects are there?
%
position
Where is the {s}?
Where is the {s}?
Where is the {s} in the {i}?
Where do you see the {s}?
Where can I find the {s}?
In which part of the {i} is the {s}?
In which part of the {i} do you see the {s}?
What is the position of the {s}?
Tell me where the {s} is.
Locate the {s}.
Show me where the {s} is.
Show me the {s}.
Point to the {s}.
Point out the {s} in the {i}.
Look for the {s}.
Search for the {s} in the {i}.
Whereabouts is the {s}?
Where exactly is the {s}?
Where does the {s} lie?
Where is the {s} located?
Where is the {s} placed in the {i}?
Could you locate the {s}?
Determine the position of the {s}.
Say where the {s} is.
At what place is the {s}?
|
Where in the {i} is the {s}?
Can you tell me where the {s} is?
Please find the {s}.
%
relation
Is the {s} {r} the {t}?
Is the {s} {r} the {t}?
Is the {s} {r} the {t} in the {i}?
Do you see the {s} {r} the {t}?
The {s} is {r} the {t}.
Can you see that the {s} is {r} the {t}?
Does the {s} lie {r} the {t}?
Is the {s} located {r} the {t}?
Can the {s} be found {r} the {t}?
Did you spot the {s} {r} the {t}?
I think the {s} is {r} the {t}.
Check whether the {s} is {r} the {t}.
Is the {s} placed {r} the {t}?
|
Is it true that the {s} is {r} the {t}?
Would you say the {s} is {r} the {t}?
%
direction
Where is the {s} relative to the {t}?
Where is the {s} compared to the {t}?
On which side of the {t} is the {s}?
Where is the {s} with respect to the {t}?
Where does the {s} lie relative to the {t}?
How does the {s} lie to the {t}?
In which direction from the {t} is the {s}?
Looking from the {t}, where is the {s}?
Starting at the {t}, where is the {s}?
Which side of the {t} is the {s} on?
What is the position of the {s} relative to the {t}?
Where is the {s} if you stand at the {t}?
From the {t}, where is the {s}?
|
Where is the {s} seen from the {t}?
%
color
What {c} {v} the {q}?
What {c} {v} the {q}?
Which {c} {d} the {q} have?
What is the {c} of the {q}?
Tell me the {c} of the {q}.
What {c} {d} the {q} have?
Name the {c} of the {q}.
In which {c} {v} the {q} drawn?
What is the {q}'s {c}?
Please say what {c} {v} the {q}.
Which {c} do you see on the {q}?
Determine the {c} of the {q}.
|
Can you tell me the {c} of the {q}?
The {q}: which {c}?
%
is color
{V} the {q} {t}?
{V} the {q} {t} in this {i}?
{V} the {c} of the {q} {t}?
The {q} {v} {t}.
I think the {q} {v} {t}.
Would you say the {q} {v} {t}?
Check whether the {q} {v} {t}.
|
Is it true that the {q} {v} {t}?
%
background
What {c} is the background?
What is the background {c}?
What is the {c} of the background?
What {c} is the background of the {i}?
Which {c} does the background have?
Which {c} is the background?
Background {c}?
Tell me the {c} of the background.
In which {c} is the background?
Name the background {c}.
Say which {c} the background is.
Determine the {c} of the background.
What {c} is behind everything?
|
What {c} does the background have?
Can you name the {c} of the background?
%
compare
Are there {m} {p} than {q}?
Are there {m} {p} than {q}?
Are there {m} {p} than {q} in the {i}?
Do you see {m} {p} than {q}?
Does the {i} show {m} {p} than {q}?
There are {m} {p} than {q}.
Does the {i} have {m} {p} than {q}?
Do you count {m} {p} than {q}?
Did you spot {m} {p} than {q}?
Would you say there are {m} {p} than {q}?
I see {m} {p} than {q}.
The {i} shows {m} {p} than {q}.
Are {m} {p} than {q} shown?
Check whether there are {m} {p} than {q}.
In the {i}, are there {m} {p} than {q}?
|
Can you see {m} {p} than {q}?
Does the {i} contain {m} {p} than {q}?
%
classify
Which of these fits the {i}: {l}?
Which of these fits the {i}: {l}?
Which of these does the {i} show: {l}?
Which of these is it: {l}?
Choose what fits the {i}: {l}.
Pick what the {i} shows: {l}.
Which label fits the {i}: {l}?
Label this {i} with one of these: {l}.
What is in the {i}: {l}?
|
Which of these describes the {i}: {l}?
%
most
What is the most common object?
Which object is most common?
Which object appears most often?
What is there the most of?
Which kind of object is most common?
What object do you see most often?
What occurs most often?
Which object is there the most of?
Name the most common object.
Which object do you count most often?
|
What is the most frequent object?
Which object is the most common in the {i}?
%
group count
How many {p} are in the {i}?
How many {p} are there?
How many {p} do you see?
Count the {p}.
Count all {p}.
Tell me how many {p} there are.
What is the number of {p}?
How many {p} does the {i} show?
|
How many {p} can you see in the {i}?
%
group presence
Is there {a} in the {i}?
Are there any {p}?
Do you see any {p}?
Does the {i} show {a}?
Can you see any {p}?
Does the {i} contain {p}?
Did you spot {a}?
Is {a} shown?
|
Are there any {p} in the {i}?
%
group list
What {p} do you see?
Which {p} are in the {i}?
What {p} are there?
Which {p} do you see?
List the {p}.
Name the {p} in the {i}.
Which {p} does the {i} show?
|
What {p} are in the {i}?
%
and count
And {p}?
And the {p}?
And how many {p}?
What about the {p}?
What about {p}?
How about {p}?
Also {p}?
And {p}, how many?
Then how many {p}?
Now the {p}.
|
And what about {p}?
%
and presence
And {a}?
What about {a}?
How about {a}?
Is there also {a}?
Are there also {p}?
Also {a}?
And is there {a}?
Or {a}?
Maybe {a}?
|
And what about {a}?
%
and where
Where is it?
And where is it?
Where in the {i} is it?
Where is that?
Where exactly?
Whereabouts?
In which part is it?
And its position?
Show me.
|
Tell me where it is.
%
and color
What {c} {v} {it}?
Which {c} {d} {it} have?
And the {c}?
In which {c}?
What about the {c}?
Name the {c}.
|
Tell me the {c}.
%
and how many
How many are there?
How many of them are there?
How many?
How many of them do you see?
How many exactly?
And how many?
What is their number?
Count them.
|
Tell me how many.
%
sure
Are you sure?
Really?
Are you certain?
Is that true?
Is this correct?
Can you confirm that?
|
Is that right?""".split("\n%\n")}

# Ways to ask with a word in them that means nothing, {z} or {Z}: it takes the place of a verb, so that the model
# learns to tell by its place, and not by its being known, what is asked about.
STRANGE = {text.split("\n")[0]: text.split("\n")[1:] for text in """count
How many {p} are {z}?
How many {p} can you {z}?
How many {p} does the {i} {z}?
{Z} how many {p} there are.
{Z} the number of {p} in the {i}.
%
presence
Is {a} {z}?
Are {p} {z}?
Is {a} {z} in the {i}?
Are any {p} {z} in the {i}?
Do you {z} {a}?
Do you {z} any {p} in the {i}?
Can you {z} {p}?
Does the {i} {z} {a}?
Does this {i} {z} any {p}?
I {z} {a} in the {i}.
Could {a} be {z}?
{Z} whether there is {a}.
%
exact
Does the {i} {z} {n} {q}?
Can you {z} {n} {q}?
Are {n} {q} {z}?
%
at least
Does the {i} {z} at least {n} {q}?
Can you {z} at least {n} {q}?
%
caption
What is the {i} {z}?
What does this {i} {z}?
{Z} the {i}.
Can you {z} this {i}?
Give a {z} of the {i}.
%
list
What can you {z}?
{Z} the objects in the {i}.
Which objects are {z}?
%
position
Where is the {s} {z}?
{Z} where the {s} is.
{Z} the position of the {s}.
Can you {z} the {s}?
%
relation
Is the {s} {z} {r} the {t}?
Do you {z} the {s} {r} the {t}?
{Z} whether the {s} is {r} the {t}.
%
direction
Where is the {s} {z} to the {t}?
Where is the {s} when {z} from the {t}?
{Z} where the {s} is relative to the {t}.
%
compare
Does the {i} {z} {m} {p} than {q}?
Can you {z} {m} {p} than {q}?
Are {m} {p} than {q} {z}?
%
color
{Z} the {c} of the {q}.
What {c} {v} the {q} {z}?
%
background
{Z} the {c} of the background.
What {c} is the background {z}?""".split("\n%\n")}

PICTURE_WORDS = ["image", "image", "image", "picture", "picture", "photo"]
OBJECT_WORDS = ["objects", "things", "items"]


class Wording:
    """Chooses ways to ask: all that are trained, or the held-out ones."""

    def __init__(self, heldout=False, plain=False, strange=0):
        self.heldout = heldout    # ask in held-out ways
        self.plain = plain        # without slips of the keyboard and synonyms
        self.strange = strange    # share with a word that means nothing

    def phrase(self, rng, kind, **parts):
        text = rng.choice(WORDINGS[kind][1 if self.heldout else 0])
        if self.strange and rng.random() < self.strange and kind in STRANGE:
            text = rng.choice(STRANGE[kind])
            parts["z"] = words.pseudo_word(rng)
            parts["Z"] = parts["z"].capitalize()
        parts.setdefault("i", rng.choice(PICTURE_WORDS))
        parts.setdefault("c", rng.choice(["color", "color", "color", "colour"]))
        text = text.format(**parts)
        text = text[0].upper() + text[1:]
        return text if self.plain else as_typed(rng, text)

    def called(self, rng, name):
        """The name or, now and then, a synonym."""
        return rng.choice(words.SYNONYMS[name]) if not self.plain and rng.random() < .2 and words.SYNONYMS.get(name) else name


LEADS = ["Please", "Hey", "Hello", "OK", "So", "Now", "Well", "Quick question", "Tell me", "Say", "One more thing",
         "In your opinion", "Just to be sure", "Look", "Excuse me"]


def as_typed(rng, text):
    """Now and then: with some words before, all in lower case, without the last mark, or with please."""
    if rng.random() < .08:
        text = rng.choice(LEADS) + rng.choice([", ", ", ", ": "]) + text[0].lower() + text[1:]
    chance = rng.random()
    if chance < .06:
        return text.lower()
    if chance < .11:
        return text.rstrip("?.")
    if chance < .14:
        return text.lower().rstrip("?.")
    if chance < .16 and text[-1] == "?":
        return text[:-1] + ", please?"
    return text
