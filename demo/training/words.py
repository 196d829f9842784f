"""The words of the demo's language: names, plurals, synonyms, groups, unknown things, facts and small talk."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from scene import BACKGROUNDS as BACKGROUND_COLORS, EMOJI, SHAPE_COLORS, SHAPES  # noqa: E402

KINDS = list(EMOJI) + SHAPES
COLORS = list(SHAPE_COLORS)
BACKGROUNDS = list(BACKGROUND_COLORS)

GROUPS = {
    "animal": ["dog", "cat", "rabbit", "bird", "fish", "turtle", "horse", "frog", "pig", "elephant", "butterfly"],
    "vehicle": ["car", "bus", "bicycle", "boat", "plane", "train", "rocket"],
    "plant": ["tree", "flower", "mushroom"],
    "fruit": ["apple", "banana", "strawberry"],
    "shape": ["circle", "square", "triangle"],
}

SYNONYMS = {
    "dog": ["puppy"], "cat": ["kitten"], "rabbit": ["bunny"], "bicycle": ["bike"], "plane": ["airplane"],
    "flower": ["sunflower"], "boat": ["sailboat", "ship"], "ball": ["football"], "cup": ["coffee cup", "mug"],
    "bus": ["coach"], "car": ["automobile"], "house": ["home"], "cake": ["birthday cake"], "clock": ["alarm clock"],
    "train": ["locomotive"], "pig": ["piglet"], "plant": [], "turtle": ["tortoise"],
}

IRREGULAR = {
    "fish": "fish", "bus": "buses", "butterfly": "butterflies", "strawberry": "strawberries", "puppy": "puppies",
    "bunny": "bunnies", "coach": "coaches", "person": "people", "man": "men", "woman": "women", "child": "children",
    "sheep": "sheep", "potato": "potatoes", "tomato": "tomatoes", "knife": "knives", "brush": "brushes",
    "mouse": "mice", "goose": "geese", "fox": "foxes", "box": "boxes", "bench": "benches", "watch": "watches",
    "dress": "dresses", "glass": "glasses", "cherry": "cherries", "baby": "babies", "monkey": "monkeys",
    "wolf": "wolves", "leaf": "leaves", "tooth": "teeth", "foot": "feet", "radish": "radishes", "peach": "peaches",
    "octopus": "octopuses", "city": "cities", "beach": "beaches", "sandwich": "sandwiches", "match": "matches",
}

# Things that are never in a picture; those of HELDOUT_UNKNOWN are never in the training either.
UNKNOWN = """person man woman child tiger lion cow sheep chair table phone computer bottle truck spoon fork laptop
bed shoe hat bag camera door window lamp pencil guitar piano drum snake spider monkey whale dragon robot tower bridge
mountain river cloud lemon orange grape potato sandwich egg mouse goose fox wolf bear deer duck chicken eagle penguin
dolphin shark crab bee ant snail worm lizard crocodile squirrel hedgehog mole donkey goat baby doctor teacher king queen
soldier pirate ghost angel mirror carpet curtain pillow blanket towel soap brush comb bucket basket box bench knife
plate bowl pan pot kettle oven fridge sink bathtub shower toilet radio television keyboard screen printer desk shelf
newspaper letter stamp coin ring necklace watch shirt dress skirt jacket coat glove scarf sock boot belt button
needle screw nail saw axe shovel rake hose fence gate wall roof chimney stair elevator road tunnel airport station
harbor lighthouse island beach forest field garden lake waterfall volcano cave rock leaf branch root grass rose tulip
cactus cherry peach plum pear melon coconut tomato onion cabbage lettuce pepper cucumber radish bean pea corn bread
cheese butter sausage ham soup salad cookie donut candy chocolate pie pancake juice bottle glass wagon motorcycle
scooter van taxi ambulance tank yacht canoe raft kite balloon swing slide doll puppet puzzle card dice crown sword
shield bow arrow flag map globe telescope microscope magnet battery candle cable engine wheel tire city leg arm hand
foot tooth nose ear moon planet satellite rainbow tornado snowman snowflake""".split()
HELDOUT_UNKNOWN = """giraffe zebra kangaroo helicopter violin pineapple hammer scissor castle octopus camel submarine
trumpet broccoli ladder anchor pumpkin tractor owl accordion""".split()
assert not set(UNKNOWN) & set(HELDOUT_UNKNOWN) and not set(UNKNOWN + HELDOUT_UNKNOWN) & set(KINDS)

PLACES = ["at the top left", "at the top", "at the top right", "on the left", "in the center", "on the right",
          "at the bottom left", "at the bottom", "at the bottom right"]

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def plural(name):
    """The plural of a noun (of its last word)."""
    first, _, last = name.rpartition(" ")
    many = IRREGULAR.get(last)
    if many is None:
        many = last + "s"
    return f"{first} {many}" if first else many


def with_article(name):
    """The noun with a or an."""
    return ("an " if name[0].lower() in "aeiou" else "a ") + name


def counted(number, name):
    """The noun with its number in digits."""
    return f"{number} {name if number == 1 else plural(name)}"


def joined(parts):
    """a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def pseudo_word(rng):
    """A word that means nothing, so that the model learns to say so of any."""
    onset = ["b", "bl", "br", "c", "cr", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "l", "m", "n", "p",
             "pl", "pr", "r", "s", "sk", "sl", "sn", "sp", "st", "t", "tr", "v", "w", "z", "th", "ch", "sh", "qu", ""]
    coda = ["", "", "n", "r", "l", "m", "t", "k", "p", "d", "g", "nd", "nt", "rk", "ck", "x", "lt", "mp"]
    word = "".join(rng.choice(onset) + rng.choice("aeiouy") + rng.choice(coda) for _ in range(rng.choice([1, 2, 2, 3])))
    word = word[:12]
    return pseudo_word(rng) if len(word) < 3 or word in KINDS else word


COLOR_OF = {"banana": "yellow", "apple": "red", "tree": "green", "star": "yellow", "turtle": "green", "carrot": "orange",
            "lemon": "yellow", "grass": "green", "snow": "white", "blood": "red", "coal": "black", "elephant": "gray",
            "cherry": "red", "cucumber": "green", "strawberry": "red", "frog": "green", "pig": "pink", "heart": "red"}
SOUND_OF = {"dog": "woof", "cat": "meow", "bird": "tweet", "horse": "neigh", "cow": "moo", "duck": "quack",
            "sheep": "baa", "pig": "oink", "lion": "roar", "frog": "ribbit", "snake": "hiss", "bee": "buzz"}
LEGS_OF = {"dog": 4, "cat": 4, "rabbit": 4, "horse": 4, "turtle": 4, "bird": 2, "fish": 0, "spider": 8, "ant": 6,
           "person": 2, "snake": 0, "cow": 4, "bee": 6, "frog": 4, "pig": 4, "elephant": 4, "butterfly": 6}
WHEELS_OF = {"car": 4, "bicycle": 2, "bus": 6, "boat": 0}
OPPOSITE_OF = {"hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "black": "white",
               "fast": "slow", "happy": "sad", "old": "new", "open": "closed", "high": "low", "full": "empty",
               "wet": "dry", "light": "dark", "good": "bad", "long": "short", "rich": "poor", "strong": "weak"}
CAPITAL_OF = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
              "China": "Beijing", "Russia": "Moscow", "Greece": "Athens", "Egypt": "Cairo", "Austria": "Vienna",
              "Poland": "Warsaw", "England": "London", "Norway": "Oslo", "Sweden": "Stockholm", "Portugal": "Lisbon",
              "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "India": "New Delhi", "Turkey": "Ankara"}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PEOPLE = """Anna Ben Carla David Emma Frank Grace Hugo Ivan Julia Karl Lena Maria Noah Olga Paul Rosa Sam Tom Vera
Will Zoe Alice Bob""".split()

# (ways to ask, answer)
SMALL_TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hello there!", "Good morning!", "Good evening!"],
     "Hello! How can I help you?"),
    (["How are you?", "How are you doing?", "How are you today?", "Are you well?"],
     "I am fine, thank you. How can I help you?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."],
     "I am a tiny MultiModal-GPT demo model. I answer questions about simple pictures."),
    (["What can you do?", "How can you help me?", "What can I ask you?", "Help", "Help me", "What are you able to do?"],
     "I can describe simple pictures, count objects, tell colors and positions, and chat a little."),
    (["Thank you", "Thank you!", "Thanks", "Thanks!", "Thanks a lot", "Thank you very much."], "You are welcome!"),
    (["Goodbye", "Bye", "Bye!", "Goodbye!", "See you later!", "Good night!"], "Goodbye!"),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."],
     "Why did two tables stay together? They had a good join."),
    (["What is a database?", "Explain what a database is.", "Define database.", "Tell me what a database is."],
     "A database is an organized collection of data."),
    (["What is SQL?", "Explain SQL.", "What does SQL mean?"],
     "SQL is a language to query and change data in a database."),
    (["What is PostgreSQL?", "Explain PostgreSQL.", "Tell me about PostgreSQL.", "What is Postgres?"],
     "PostgreSQL is an open source relational database."),
    (["What is machine learning?", "Explain machine learning.", "What does machine learning mean?"],
     "Machine learning means that a program learns from examples."),
    (["Are you a human?", "Are you a robot?", "Are you a person?", "Are you alive?"],
     "No, I am a small computer model."),
    (["Where do you live?", "Where are you?", "Where do you run?"], "I live inside your database."),
    (["How big are you?", "How many parameters do you have?", "Are you a big model?"],
     "I am very small. I have a few million parameters."),
    (["Which objects do you know?", "What objects can you recognize?", "Which things can you recognize?"],
     f"I know {len(KINDS)} kinds of things: animals, vehicles, plants, fruits, shapes and some more."),
    (["Who made you?", "Who trained you?", "How were you trained?"], "I was trained from scratch on generated pictures."),
    (["Count to five.", "Count from 1 to 5.", "Can you count to 5?"], "1, 2, 3, 4, 5."),
    (["Count to ten.", "Count from 1 to 10.", "Can you count to 10?"], "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    (["How many days are in a week?", "How many days does a week have?"], "A week has 7 days."),
    (["How many months are in a year?", "How many months does a year have?"], "A year has 12 months."),
    (["How many hours are in a day?", "How many hours does a day have?"], "A day has 24 hours."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?"], "An hour has 60 minutes."),
    (["What color is the sky?", "Which color does the sky have?"], "The sky is blue."),
    (["What is water?", "Define water."], "Water is a clear liquid that we drink."),
    (["What is the sun?", "Explain the sun."], "The sun is a star. It gives us light and heat."),
    (["What is the moon?", "Explain the moon."], "The moon circles the earth."),
    (["Yes", "No", "OK", "Okay", "I see."], "All right. What would you like to know?"),
    (["I love you.", "I like you.", "You are great!", "Good job!", "Well done!"], "Thank you, that is kind."),
    (["You are wrong.", "That is wrong.", "That is not right."], "I am sorry. I am small and can make mistakes."),
    (["Write a poem.", "Tell me a poem."], "Roses are red, violets are blue, I count the pictures, just for you."),
    (["Tell me a story.", "Do you know a story?"],
     "Once a little dog found a red ball. It played all day and was happy."),
    (["What is the largest planet?", "Which planet is the biggest?"], "Jupiter is the largest planet."),
    (["What is the largest animal?", "Which animal is the biggest?"], "The blue whale is the largest animal."),
    (["What do rabbits eat?", "What does a rabbit eat?"], "A rabbit eats grass and carrots."),
    (["What do cats eat?", "What does a cat eat?"], "A cat eats fish and meat."),
    (["What do dogs eat?", "What does a dog eat?"], "A dog eats meat."),
    (["Can birds fly?", "Can a bird fly?"], "Yes, most birds can fly."),
    (["Can fish swim?", "Can a fish swim?"], "Yes, a fish can swim."),
    (["Can dogs fly?", "Can a dog fly?", "Can a cat fly?", "Can a horse fly?"], "No, it cannot fly."),
    (["Say hello in French.", "How do you say hello in French?"], "Bonjour!"),
    (["Say hello in German.", "How do you say hello in German?"], "Hallo!"),
    (["Say hello in Spanish.", "How do you say hello in Spanish?"], "Hola!"),
]
NO_PICTURE = "I do not see an image. Please give me a picture."
