"""What is asked and answered about scanned digits: the wordings of the demo data set.

`digits.py` measures the scans and writes the files; here a described scan becomes sentences. The
sentences are short and draw on few words, so that a sequence with one image stays below 60 tokens.
"""

import dataclasses
import random

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# (question, answer) by kind; {digit}, {parity}, {larger}, {thickness} are the labels.
QUESTIONS = {
    "digit": (
        ("Which digit is this?", "This is {a} {digit}."),
        ("What digit is shown?", "It is {a} {digit}."),
        ("Read the digit.", "It is {a} {digit}."),
        ("What number do you see?", "I see {a} {digit}."),
    ),
    "parity": (
        ("Is it even or odd?", "It is {parity}."),
        ("Is this digit even or odd?", "It is {parity}."),
        ("Even or odd?", "The digit is {parity}."),
    ),
    "larger": (
        ("Is it larger than five?", "{Larger}."),
        ("Is this digit larger than five?", "{Larger}."),
        ("Larger than five?", "{Larger}."),
    ),
    "thickness": (
        ("Is it thick or thin?", "It is {thickness}."),
        ("Is this digit thick or thin?", "It is {thickness}."),
        ("Thick or thin?", "The digit is {thickness}."),
    ),
}
REQUESTS = (
    "Generate an image of {x}.",
    "Draw {x}.",
    "Show me {x}.",
    "Please draw {x}.",
    "Make a picture of {x}.",
    "Create an image of {x}.",
    "Paint {x}.",
    "I want to see {x}.",
    "Give me a picture of {x}.",
    "Write {x} by hand.",
)
REQUEST_ANSWERS = (
    "Here is an image based on your request: <image>",
    "Here it is: <image>",
    "Sure: <image>",
)
EDITS = (
    ("Show the next digit.", "The next digit: <image>"),
    ("Draw the next digit.", "Here it is: <image>"),
    ("Draw what comes next.", "This one: <image>"),
)
STYLED_FRACTION = 0.7


@dataclasses.dataclass(frozen=True)
class Description:
    """What words say about one scan; an empty word says nothing.

    Attributes:
        digit: 0 to 9.
        thickness: "thin", "bold" or "" (the middle third of its class).
        lean: "leaning left", "leaning right" or "".
    """

    digit: int
    thickness: str = ""
    lean: str = ""

    @property
    def styled(self) -> str:
        """Such as "a bold seven leaning left"."""
        words = " ".join(filter(None, (self.thickness, WORDS[self.digit], self.lean)))
        return f"{_article(words)} {words}"

    @property
    def plain(self) -> str:
        """Such as "an eight"."""
        return Description(self.digit).styled

    @property
    def labels(self) -> dict[str, str]:
        """The right word for each kind of question that can be asked about the scan."""
        found = {
            "digit": WORDS[self.digit],
            "parity": "odd" if self.digit % 2 else "even",
            "larger": "yes" if self.digit > 5 else "no",
        }
        if self.thickness:  # scans in the middle third are neither
            found["thickness"] = {"thin": "thin", "bold": "thick"}[self.thickness]
        return found


def question(description: Description, kind: str, wording: int) -> tuple[str, str]:
    """Returns the question with its image tag, and the right answer."""
    asked, answer = QUESTIONS[kind][wording % len(QUESTIONS[kind])]
    labels = description.labels
    words = {**labels, "a": _article(labels["digit"]), "Larger": labels["larger"].capitalize()}
    return f"<image>\n{asked}", answer.format(**words)


def request(description: Description, random_: random.Random) -> tuple[str, str]:
    """Returns an image request, styled or plain, and its answer."""
    styled = random_.random() < STYLED_FRACTION
    wanted = description.styled if styled else description.plain
    return random_.choice(REQUESTS).format(x=wanted), random_.choice(REQUEST_ANSWERS)


def edit(random_: random.Random) -> tuple[str, str]:
    """Returns a request for the next digit, with its image tag, and its answer."""
    asked, answer = random_.choice(EDITS)
    return f"<image>\n{asked}", answer


def evaluation_prompts() -> list[dict]:
    """Returns the prompts that pictures are judged by.

    Ten wordings for each digit ("class"), and each combination of style words with each digit
    ("styled"), its wording changing from prompt to prompt.
    """
    prompts = [
        {"prompt": text.format(x=Description(digit).plain), "kind": "class", "digit": digit}
        for digit in range(10)
        for text in REQUESTS
    ]
    for digit in range(10):
        combinations = [
            Description(digit, thickness, lean)
            for thickness in ("", "thin", "bold")
            for lean in ("", "leaning left", "leaning right")
            if thickness or lean
        ]
        for index, wanted in enumerate(combinations):
            text = REQUESTS[(digit + index) % len(REQUESTS)]
            prompts.append(
                {
                    "prompt": text.format(x=wanted.styled),
                    "kind": "styled",
                    "digit": digit,
                    "thickness": wanted.thickness,
                    "lean": wanted.lean,
                }
            )
    return prompts


def _article(words: str) -> str:
    return "an" if words.startswith("eight") else "a"
