"""How users put things: general phrasings, the pools, and the making of one message.

A message is [opener] [who I am] core [who I am] [closer], then a style (as written,
lower case, no final mark, one slip of the finger …). The core is a whole sentence of
the desk's, or one of its parts inside a general frame.

**Pools.** Every list is dealt out by position: of each four, the first goes to `demo`, the
second and third to `rl`, the fourth to `heldout`. Demonstrations are dear and show few ways
to put a thing; tasks to try are cheap and bring more. A message takes all its words from one
pool, so a held-out message is new in every phrase, while all pools are written alike.

Slots are filled between two marks that styles leave alone, so that names, numbers and
values always stand as the records have them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal

__all__ = [
    "ASK_FRAMES", "CLOSERS", "DO_FRAMES", "HANDOVERS", "ID_REPLIES", "NODS", "OPENERS", "REFS", "TOLD", "TWO", "VALUE_REPLIES", "WHO",
    "Pool", "compose", "dealt", "fill", "open_text", "pick", "pool_of",
]  # fmt: skip

Pool = Literal["demo", "rl", "heldout"]
_DEAL: tuple[Pool, Pool, Pool, Pool] = ("demo", "rl", "rl", "heldout")


def pool_of(position: int) -> Pool:
    """The pool of the phrasing at that position of its list."""
    return _DEAL[position % 4]


def dealt(lines: Sequence[str], pool: Pool) -> list[tuple[int, str]]:
    """The lines of one pool, with their positions."""
    return [(place, line) for place, line in enumerate(lines) if pool_of(place) == pool]


def pick(rng: random.Random, lines: Sequence[str], pool: Pool) -> tuple[int, str]:
    """One line of the pool, with its position."""
    return rng.choice(dealt(lines, pool))


def fill(template: str, slots: Mapping[str, str], *, withhold: bool = False) -> str:
    """The template with its slots filled between marks; [brackets] dropped where `withhold`."""
    template = re.sub(r"\[[^]]*\]", "", template) if withhold else template.replace("[", "").replace("]", "")
    return re.sub(r"\{(\w+)\}", lambda m: _marked(slots[m.group(1)]), template)


def _marked(value: str) -> str:
    """Between marks, unless it was filled itself and carries its own."""
    return value if "\x01" in value or "\x03" in value else f"\x01{value}\x02"


def open_text(text: str) -> str:
    """Words of the user's own, which styles may change where they fill a slot."""
    return text if "\x01" in text else "\x03" + text


def compose(rng: random.Random, pool: Pool, core: str, who: str = "") -> str:
    """A whole message around a filled core, in some style."""
    bits = [core]
    if who:
        bits.insert(rng.randint(0, 1), who)
    if rng.random() < 0.32:
        bits.insert(0, pick(rng, OPENERS, pool)[1])
    if rng.random() < 0.28:
        bits.append(pick(rng, CLOSERS, pool)[1])
    return _styled(rng, re.sub(r",(?=\x02?[.?!:,])", "", _joined(bits)))


def _joined(bits: Sequence[str]) -> str:
    out = ""
    for bit in bits:
        if not out:
            out = _capital(bit)
        elif out.endswith(","):
            out += " " + (bit if re.match(r"I\b", bit) else bit[0].lower() + bit[1:])
        else:
            out += " " + _capital(bit)
    return out


def _capital(text: str) -> str:
    found = re.search(r"[^\W\d_]|\d", text)
    if found is None:
        return text
    at = found.start()
    return text[:at] + text[at].upper() + text[at + 1 :]


def _styled(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.18:
        text = _outside(text, str.lower)
    elif draw < 0.26:
        text = _outside(text, lambda s: _short(s.lower()))
    elif draw < 0.34:
        text = _slip(rng, text)
    elif draw < 0.38:
        text = _outside(text, lambda s: s.replace("'", ""))
    if rng.random() < 0.2:
        text = text.rstrip(".?!")
    elif rng.random() < 0.06:
        text = re.sub(r"[.]$", "!", text)
    return text.replace("\x01", "").replace("\x02", "").replace("\x03", "")


def _outside(text: str, change: object) -> str:
    assert callable(change)
    out, inside = [], 0
    for piece in re.split("([\x01\x02])", text):
        if piece in ("\x01", "\x02"):
            inside += 1 if piece == "\x01" else -1
            out.append(piece)
        else:
            out.append(piece if inside else change(piece))
    return "".join(out)


_SHORT = (("please", "pls"), ("thanks", "thx"), ("thank you", "ty"), (" you ", " u "), ("because", "cos"))


def _short(text: str) -> str:
    for long, short in _SHORT:
        text = text.replace(long, short)
    return text


def _slip(rng: random.Random, text: str) -> str:
    """Two neighbouring letters of one longer word swapped, or one dropped."""
    spots: list[int] = []
    inside = 0
    for at, letter in enumerate(text):
        inside += (letter == "\x01") - (letter == "\x02")
        if not inside and re.fullmatch(r"[a-z]{4}", text[at - 1 : at + 3] if at else ""):
            spots.append(at)
    if not spots:
        return text
    at = rng.choice(spots)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]


# --- general phrasings ---------------------------------------------------------------

OPENERS = (
    "Hi,", "Hello,", "Hey,", "Good morning,", "Hi there,", "Good afternoon,", "Hello there,", "Good evening.",
    "Excuse me,", "Hiya,", "Hey there,", "Morning!", "Quick one:", "A small thing:", "Quick question.", "Just a quick one.",
    "Sorry to bother you,", "Sorry to trouble you,", "Hope you're well.", "I hope this finds you well.",
    "Me again.", "It's me again.", "Dear team,", "To whom it may concern,", "Hi team,", "Hello everyone,",
    "So,", "Right,", "OK,", "Okay,", "Afternoon!", "Good day,",
    "I wonder if you can help.", "Maybe you can help me.", "Can you help me?", "I could use a hand.",
    "Sorry for the late message.", "First time writing here.", "Greetings,", "Hello again,",
    "One thing,", "Just wondering,", "I have a request.", "Something came up.",
)  # fmt: skip
CLOSERS = (
    "Thanks!", "Thank you!", "With thanks.", "Many thanks.", "Thanks a lot.", "Cheers.", "Thank you very much.", "Much appreciated.",
    "Thanks in advance.", "Ta.", "Thanks so much!", "I'd appreciate it.", "No rush.", "Whenever you have a moment.",
    "That would be great.", "It would help me a lot.", "Best wishes.", "Kind regards.", "Have a nice day.", "Have a good one.",
    "Sorry for the trouble.", "Sorry to be a pain.", "That's all.", "Nothing else.", "You're a star.", "Thanks for your help.",
    "Hope that's okay.", "I hope that's possible.", "Plans have changed on our side.", "Things got complicated.",
    "It's been a busy week.", "Life got in the way.", "Thanks for being so patient.", "Appreciate the help.",
    "I'm in a bit of a hurry.", "I have to run soon.", "Sorry, I'm typing on my phone.", "Writing from the train.",
    "Let me know.", "Tell me once it's sorted.", "Love your place by the way.", "You were lovely last time.",
    "My kids keep me busy today.", "Hectic day here.",
)  # fmt: skip
DO_FRAMES = (
    "Please {do}.", "Can you {do}?", "Could you {do}?", "I'd like you to {do}.",
    "Could you please {do}?", "I want you to {do}.", "I need you to {do}.", "Would you {do}?",
    "Can you please {do}?", "Would you be able to {do}?", "Would you mind? I'd like you to {do}.", "Might you {do}?",
    "I'd be glad if you could {do}.", "Is it possible for you to {do}?", "Kindly {do}.", "I'd be grateful if you could {do}.",
    "My request is simple: {do}.", "It'd be great if you could {do}.", "Go ahead and {do}, please.", "All I need is for you to {do}.",
    "Do me a favour and {do}.", "May I ask you to {do}?", "I was hoping you could {do}.", "I was wondering if you could {do}.",
    "What I need: {do}.", "Could somebody {do}?", "Any chance you could {do}?", "Any way you could {do}?",
    "Let's {do}.", "I have to ask you to {do}.", "We need you to {do}.", "We'd like you to {do}.",
    "{do}, please.", "{do} if you can.", "{do} for me, would you?", "{do} for me, please.",
    "Time to {do}.", "I've decided: please {do}.", "I've changed my mind, please {do}.", "I've thought it over: {do}, please.",
    "I'm writing to ask you to {do}.", "I'm getting in touch so that you can {do}.",
    "My wife wants me to ask you to {do}.", "My partner asked if you could {do}.",
)  # fmt: skip
ASK_FRAMES = (
    "Can you tell me {q}?", "Could you tell me {q}?", "I'd like to know {q}.", "I want to know {q}.",
    "Please tell me {q}.", "Please let me know {q}.", "Do you know {q}?", "Any idea {q}?",
    "Could you check {q}?", "Can you look up {q}?", "Can you check {q} for me?", "Could you look up {q} for me?",
    "I forgot {q}.", "I don't remember {q}.", "I've lost track of {q}.", "I can't recall {q}.",
    "I'm trying to find out {q}.", "I'm not sure {q}.", "I need to know {q}.", "It would help to know {q}.",
    "Remind me {q}?", "Would you remind me {q}?", "Just checking {q}.", "I'm just calling to check {q}.",
    "My husband keeps asking {q}.", "My boss wants to know {q}.", "We were wondering {q}.", "I was wondering {q}.",
    "Is there a way to see {q}?", "Where can I see {q}?", "Can you see {q}?", "Are you able to see {q}?",
    "Tell me {q}, please.", "Let me know {q}, will you?",
)  # fmt: skip
WHO = (
    "I'm {name}.", "My name is {name}.", "This is {name}.", "{name} here.",
    "It's under {name}.", "It should be under {name}.", "The name is {name}.", "The name's {name}.",
    "Name: {name}.", "It's {name}.", "You have me down as {name}.", "You'll find it under {name}.",
    "It's in the name of {name}.", "It's in my name, {name}.", "It was made out to {name}.", "It was put under {name}.",
    "I go by {name}.", "{name} is my name.", "I'm a customer of yours, {name}.", "{name} speaking.",
    "I am {name}, by the way.", "Name of {name}.", "Look under {name}.", "Try the name {name}.",
)  # fmt: skip
REFS = (
    "{noun} {id}", "my {noun} {id}", "my {noun} under number {id}", "the {noun} {id}",
    "{noun} #{id}", "{noun} number {id}", "{id}", "{noun} no. {id}",
    "my {noun} (number {id})", "the {noun} number {id}", "{noun} with the id {id}", "number {id}",
    "{noun} with number {id}", "the {noun} with the number {id}", "my {noun} with number {id}", "{noun} nr {id}",
    "the {noun} numbered {id}", "no. {id}", "the {noun} under {id}", "my {noun} with the number {id}",
)  # fmt: skip
ID_REPLIES = (
    "It's {id}.", "It is {id}.", "{id}", "That's {id}.", "Sure, {id}.", "Of course, {id}.", "The number is {id}.", "The number's {id}.",
    "Oh right, {id}.", "Sorry, forgot that: {id}.", "Number {id}.", "That would be {noun} {id}.",
    "{noun} {id}.", "{id}, I think. Yes, {id}.", "My {noun} number is {id}.", "Here it is: {id}.",
    "One moment... {id}.", "Let me look... {id}.", "I have {id} on my paper.", "It says {id} here.",
)  # fmt: skip
VALUE_REPLIES = (
    "{value}, please.", "{value}, if possible.", "{value}.", "Take {value}.", "Make it {value}.", "Let's say {value}.",
    "It's {value}.", "It should be {value}.", "{value} would be best.", "{value} works for me.", "Sorry, I meant {value}.",
    "Oh, {value}.", "I'd like {value}.", "I'd go for {value}.", "Use {value}.", "Put {value}.",
    "Ah yes: {value}.", "Right, I forgot: {value}.", "Preferably {value}.", "Ideally {value}.",
)  # fmt: skip
NODS = (
    "Yes, please.", "Yes.", "Yes, go ahead.", "Sure, go ahead.", "Please do.", "Right, please do that.",
    "Yes, that's right.", "Correct.", "Sure.", "Yep.", "Yes, exactly.", "That's fine, yes.",
)  # fmt: skip
# (what the oracle writes as the reason, what the user says); one list for each reason
HANDOVERS: Mapping[str, tuple[str, ...]] = {
    "complaint": (
        "I want to make a complaint about your staff.", "I'd like to file a complaint about how I was treated.",
        "Your colleague was very rude to me yesterday.", "The man at your counter shouted at me this morning.",
        "This is the third time you got it wrong and I'm fed up. I'm complaining.", "I'm really unhappy with your service and want to complain.",
        "I am very disappointed in how your team treated my mother.", "The way your staff spoke to my son was a disgrace.",
        "Where do I complain about one of your employees?", "Who do I complain to about bad service?",
        "Nobody answered my letters for weeks, this is awful service.", "I waited an hour and was then sent away. That is not okay.",
        "Your service has been terrible, I want that on record.", "I'd like my complaint about your colleague to be written down.",
        "I was lied to by one of your people.", "One of your staff laughed at me and I won't accept it.",
        "Complaint: the lady on the phone hung up on me.", "Formal complaint: your staff ignored me for half an hour.",
        "I feel insulted by what your colleague said.", "I felt humiliated by your employee last week.",
        "I have never been treated so badly anywhere.", "Worst service I've ever had, and I want someone to hear it.",
        "I'm angry about how I was served on Tuesday.", "I am furious about the way I was served today.",
    ),
    "injury": (
        "I slipped on your wet floor and hurt my back.", "I fell on your stairs and my wrist is broken.",
        "My daughter cut her hand on your door.", "My son got hurt at your place, his head is bleeding.",
        "A shelf came down on my foot here yesterday.", "A lamp fell on my shoulder when I visited you.",
        "I tripped over a cable in your entrance and my knee is swollen.", "I stumbled over your doorstep and sprained my ankle.",
        "Somebody was injured at your entrance this morning.", "An old man just fell down in front of your counter, he's hurt.",
        "I burnt my hand on a heater in your rooms.", "I got an electric shock from a socket at your place.",
        "My father hurt his hip on your ramp.", "My wife twisted her knee in your car park.",
        "I had an accident on your premises and had to see a doctor.", "I was injured on your premises last night.",
        "Your glass door hit me in the face and I lost a tooth.", "Your gate closed on my fingers, two are broken.",
        "I ended up in hospital after a fall at your place.", "An ambulance took me away after I fell at your door.",
    ),
    "legal": (
        "You'll hear from my lawyer.", "My lawyer will be in touch with you.",
        "I'm going to sue you over this.", "I'll see you in court.",
        "My solicitor says you owe me damages.", "My attorney asks for a written statement from you.",
        "I'm taking legal action against your company.", "I am preparing a lawsuit against you.",
        "I've reported you to the consumer office.", "I will report this to the authorities.",
        "Unless you pay me damages I go to court.", "Pay up or I'll take this to a judge.",
        "I want to know where to send my legal claim.", "Where do I serve you with a court letter?",
        "This is a breach of contract and I've hired a lawyer.", "What you did was against the law and I'll press charges.",
        "I'm suing for what happened last month.", "I have started proceedings against you at the court.",
        "My legal insurance will deal with you from now on.", "Expect a letter from my legal team.",
    ),
    "wants a person": (
        "I want to speak to a human.", "I'd like to talk to a real person.",
        "Can I talk to somebody from your team?", "Can a human call me back?",
        "Please put me through to a person.", "Please connect me with one of your colleagues.",
        "No robots please, give me a human being.", "I don't talk to machines, get me a person.",
        "Is there anyone real I can speak to?", "Is there an actual employee I could speak to?",
        "I'd rather discuss this with the manager.", "Let me talk to your manager.",
        "Get me your supervisor.", "I need to talk to whoever is in charge.",
        "Could someone from the staff phone me?", "Could an employee ring me up?",
        "I prefer to speak with a member of staff.", "I would feel better talking to a person.",
        "Transfer me to an agent.", "Hand me to a colleague who is a person.",
        "Am I talking to a bot? I want a person.", "You're a computer, right? I want staff.",
        "A real human, please.", "Somebody real on the phone, please.",
    ),
    "out of scope": (
        "Can you help me fill in my tax return?", "Could you do my tax papers for me?",
        "Are you hiring? I'd like to send my CV.", "Do you have a job for me? I could start soon.",
        "I'd like to rent your rooms for a wedding party.", "Could we shoot a film at your place?",
        "I'm a journalist and want an interview with the owner.", "I write for the local paper and want a quote from you.",
        "I want to sell you advertising.", "I'd like to offer you my cleaning services.",
        "I found a wallet outside your building, what now?", "I left my umbrella with you last week, was it found?",
        "Would you sponsor our football club?", "Would you donate something to our school fair?",
        "I'd like to buy your business.", "I want to invest in your company.",
        "Can you send me a copy of last year's invoice for my accountant?", "I need a receipt from two years ago for my records.",
        "Can my daughter do an internship with you?", "My nephew looks for a student placement, do you offer one?",
        "My password for your website doesn't work.", "Your website shows an error when I log in.",
        "You charged my card twice, I think.", "There's a payment from you on my statement that I don't know.",
    ),
}  # fmt: skip
TWO = (
    "Please {first}, and {second}.", "Two things: {first}, and {second}.", "Could you {first} and also {second}?", "I'd like you to {first}. Then {second}, please.",
    "Can you {first} and then {second}?", "I need two things done: {first}, then {second}.", "First {first}, then {second}, please.", "I have two wishes: {first}, and also {second}.",
    "{first}, and please {second} too.", "Would you {first}? And {second}.", "Please {first}. Also {second}.", "Can you please {first}, and after that {second}?",
    "I have two requests: {first}, and {second}.", "It's two things today: {first} and {second}.", "{first}. And then {second}, please.", "{first}. After that {second}, please.",
    "Would you please {first} and then {second}?", "Would you kindly {first} and also {second}?", "I want you to {first}, and I also want you to {second}.", "I need you to {first}, and I also need you to {second}.",
    "Kindly {first} and {second}.", "Let's {first} and {second}.", "Both of these, please: {first}, and {second}.", "Please do both: {first}, and {second}.",
)  # fmt: skip
TOLD = (
    "Please {do}, and tell me {ask}.", "Could you {do} and let me know {ask}?", "Can you {do}? Also tell me {ask}.", "I'd like you to {do}, and I want to hear {ask}.",
    "Would you {do}, and say {ask}?", "I need you to {do}. Then tell me {ask}, please.", "{do}, please. I also need to know {ask}.", "Be so kind and {do}, and mention {ask}.",
    "First {do}, then tell me {ask}.", "Two things: {do}, and let me know {ask}.", "Please {do}. And can you say {ask}?", "Can you please {do}, and also check {ask}?",
    "{do}, and tell me {ask}.", "{do}, and let me know {ask}.", "Could you {do} and tell me {ask}?", "Would you {do} and tell me {ask}?",
    "Please {do}. I'd also like to know {ask}.", "Please {do}. I also want to know {ask}.", "Can you {do} and check {ask}?", "Can you {do} and look up {ask}?",
    "I'd like two things: {do}, and tell me {ask}.", "I need two things: {do}, and tell me {ask}.", "{do}. When that's done, tell me {ask}.", "{do}. After that, tell me {ask}.",
)  # fmt: skip
