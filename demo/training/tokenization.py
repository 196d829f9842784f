"""The tokenizer, and dialogues as token ids with labels.

The text is the template of MODEL.md; white space around the marks <image> and </s>
is stripped and each piece between marks is encoded on its own, as the original's
tokenizer does.  A line feed is a byte token of its own, so lines are encoded one by one
and remembered.
"""

import io

import sentencepiece

import words
from vision import LATENT_BACKGROUND, LATENT_GROUPS, LATENT_TOTAL, IGNORED

PREAMBLE = ("Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.")
BOS, EOS = 1, 2
LINE_FEED = 3 + 10    # byte tokens follow <unk>, <s>, </s>


def train_tokenizer(dialogues, path, pieces):
    """Train a SentencePiece BPE model on the text of dialogues (lists of rounds) and write it."""
    lines = [PREAMBLE, "(### Instruction:", "(### Response:", "### Instruction:", "### Image:", "(### Input:"] * 2000
    openings = ["(", "[", "/", "<", ">", ";", "-", "_", "=", '"']
    for number, rounds in enumerate(dialogues):
        for one in rounds:
            # Words that begin a line have no space before them; this makes such pieces too.
            opening = openings[number % len(openings)]
            lines += [opening + one.question, opening + one.answer]
    for kind in words.KINDS + list(words.GROUPS):
        for name in [kind, *words.SYNONYMS.get(kind, [])]:
            lines += [f"(the {name}", f"(the {words.plural(name)}"] * 300 + [f"({name}"] * 100
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=pieces, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", split_digits=True, add_dummy_prefix=True, remove_extra_whitespaces=False,
        character_coverage=1.0, bos_id=BOS, eos_id=EOS, unk_id=0, pad_id=-1, num_threads=1, minloglevel=2)
    with open(path, "wb") as file:
        file.write(model.getvalue())


class Tokenizer:
    """Encodes dialogues; image_mark is the id of <image>, pad that of <PAD>."""

    def __init__(self, path):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=path)
        size = self.pieces.vocab_size()
        self.end_of_chunk, self.image_mark, self.pad, self.size = size, size + 1, size + 2, size + 3
        self.lines = {}
        self.latent_of = self.find_latents()

    def line(self, text):
        """Ids of a line that is not the first of its piece."""
        ids = self.lines.get(text)
        if ids is None:
            ids = self.pieces.encode("\n" + text)
            ids = ids[ids.index(LINE_FEED) + 1:]
            if len(self.lines) < 300000:
                self.lines[text] = ids
        return ids

    def find_latents(self):
        """Token -> the latent that knows about the thing it names, for words of one token."""
        names = {}
        for number, kind in enumerate(words.KINDS):
            for name in [kind, *words.SYNONYMS.get(kind, [])]:
                names[name] = names[words.plural(name)] = number
        for number, group in enumerate(words.GROUPS):
            names[group] = names[words.plural(group)] = LATENT_GROUPS + number
        names["background"] = LATENT_BACKGROUND
        for name in ("object", "objects", "things", "items"):
            names[name] = LATENT_TOTAL
        found = {}
        for name, latent in names.items():
            ids = self.line("the " + name)
            if len(ids) == len(self.line("the")) + 1:
                found[ids[-1]] = latent
            if len(self.line(name)) == 1:    # where an answer begins with it
                found[self.line(name)[0]] = latent
        return found

    def head(self, with_picture):
        """How every prompt begins."""
        if with_picture:
            return [BOS, *self.pieces.encode(PREAMBLE + "\n\n### Image:"), self.image_mark]
        return [BOS, *self.pieces.encode(PREAMBLE)]

    def prompt(self, history, question, with_picture):
        """Ids up to where the answer to the question begins; history: (question, answer) pairs."""
        ids = self.head(with_picture)
        for number, (asked, answer) in enumerate([*history, (question, None)]):
            ids += self.opening(with_picture or number) + self.lines_of(asked)
            ids += [LINE_FEED, LINE_FEED, *self.line("### Response:"), LINE_FEED]
            if answer is not None:
                ids += [*self.lines_of(answer), EOS]
        return ids

    def lines_of(self, text):
        """Ids of lines of which none begins a piece."""
        first, *rest = text.split("\n")
        ids = list(self.line(first))
        for line in rest:
            ids += [LINE_FEED, *self.line(line)]
        return ids

    def example(self, rounds, with_picture):
        """Ids, next-token targets, and which latent each position should look at, as three lists.

        Targets are IGNORED but where a token of an answer or its EOS follows.  The latent
        of a position in a question is that of the thing it names; of a position in an
        answer, that of the thing named next in it (or last, after the last name).
        """
        ids, targets, looks = self.head(with_picture), [], []
        targets = [IGNORED] * len(ids)
        looks = [IGNORED] * len(ids)
        for number, one in enumerate(rounds):
            opening = self.opening(with_picture or number)
            asked = [*opening, *self.line(one.question), LINE_FEED, LINE_FEED, *self.line("### Response:"), LINE_FEED]
            answer = self.line(one.answer)
            ids += asked
            targets += [IGNORED] * len(asked)
            looks += [self.latent_of.get(token, IGNORED) for token in asked]
            targets[-1] = answer[0]
            ids += [*answer, EOS]
            targets += [*answer[1:], EOS, IGNORED]
            about = self.about(answer)
            looks[-1] = about[0]
            looks += [*about[1:], about[-1], IGNORED]
        return ids, targets, looks

    def opening(self, after_mark):
        """Ids between the end of what came before and the question."""
        if after_mark:
            return [*self.pieces.encode("### Instruction:"), LINE_FEED]
        return [LINE_FEED, LINE_FEED, *self.line("### Instruction:"), LINE_FEED]

    def about(self, answer):
        """For each token of an answer, the latent of the thing it leads to."""
        latents, following = [IGNORED] * len(answer), IGNORED
        for place in range(len(answer) - 1, -1, -1):
            following = self.latent_of.get(answer[place], following)
            latents[place] = following
        for place in range(1, len(answer)):
            if latents[place] == IGNORED:
                latents[place] = latents[place - 1]
        return latents

    def text(self, ids):
        """The text of generated ids."""
        return self.pieces.decode([token for token in ids if 2 < token < self.end_of_chunk]).strip()
