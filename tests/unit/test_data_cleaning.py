"""Copies, test items, and how many rows of what."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from metier.feedback.data.declaration import Balance, Decontaminate
from metier.feedback.data.decontaminate import HeldOut
from metier.feedback.data.dedup import Reps, without_copies
from metier.feedback.data.minhash import BANDS, ROWS, Index, jaccard, pieces, signature
from metier.feedback.data.mixture import balanced, mixed
from metier.feedback.data.rows import Row, letters
from metier.records.types import Message, Task

WORDS = """
    river stone letter garden window market copper engine winter candle bridge ladder pocket shadow ticket
    forest button mirror harbour kettle blanket pepper violin saddle basket lantern meadow curtain hammer pillow
""".split()  # noqa: SIM905


def row(question: str, answer: str = "", **more: Any) -> Row:
    data = {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}
    return Row(data=data, **more)


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


# --- copies -----------------------------------------------------------------------------------


def test_pieces_and_similarity_by_hand() -> None:
    # abcde bcdef | bcdef cdefg: one of three is shared
    assert jaccard(pieces("abcdef"), pieces("bcdefg")) == pytest.approx(1 / 3)
    assert pieces("abc").size == 1 and jaccard(pieces("abc"), pieces("abc")) == 1.0
    assert pieces("日本語の文章です").size == 4


def test_the_share_of_equal_hashes_estimates_the_similarity() -> None:
    rng = random.Random(1)
    text = sentence(rng, 120)
    other = text[:500] + sentence(rng, 30)
    true = jaccard(pieces(text), pieces(other))
    seen = float((signature(pieces(text)) == signature(pieces(other))).mean())
    assert abs(seen - true) < 4 * np.sqrt(true * (1 - true) / (BANDS * ROWS))


def test_planted_near_copies_are_found_and_nothing_else() -> None:
    rng = random.Random(0)
    originals = [sentence(rng, 40) for _ in range(300)]
    planted = []
    for text in originals[:150]:
        words = text.split()
        words[rng.randrange(len(words))] = "velvet"
        planted.append(" ".join(words))
    rows = [row(text) for text in [*originals, *planted]]
    similar = [jaccard(pieces(letters(a)), pieces(letters(b))) for a, b in zip(originals, planted, strict=False)]
    kept, gone = without_copies(rows, Reps())
    found = {(copy.row_id, copy.kept_id) for copy in gone}
    wanted = {(rows[300 + n].id, rows[n].id) for n, alike in enumerate(similar) if alike >= 0.8}
    assert len(wanted) > 120  # the others fall below the threshold, and stay
    assert len(found & wanted) >= 0.99 * len(wanted), "recall"
    assert found <= {(rows[300 + n].id, rows[n].id) for n in range(150)}, "precision"
    assert all(copy.similarity >= 0.8 and copy.how == "near" for copy in gone) and len(kept) == 450 - len(gone)


def test_banding_finds_what_a_look_at_all_pairs_finds() -> None:
    rng = random.Random(2)
    texts = [sentence(rng, 30) for _ in range(60)]
    texts += [text[: rng.randrange(150, 220)] + sentence(rng, 3) for text in texts]
    sets = [pieces(text) for text in texts]
    index, quick = Index(0.7), set()
    for n, found in enumerate(sets):
        signed = signature(found)
        quick |= {(place, n) for place, _ in index.alike(found, signed)}
        index.add(found, signed)
    slow = {(a, b) for b in range(len(sets)) for a in range(b) if jaccard(sets[a], sets[b]) >= 0.7}
    assert quick <= slow and len(quick) >= 0.9 * len(slow) > 0


def test_the_best_supported_of_copies_stays() -> None:
    text = "Please tell me when the next train to the harbour leaves from here."
    rows = [row(text, at=1.0), row(f"  {text} ", support=2.0, at=2.0), row(text + "!", support=1.0, at=0.0)]
    kept, gone = without_copies(rows, Reps())
    assert [one.support for one in kept] == [2.0]
    assert {(copy.how, copy.kept_id) for copy in gone} == {("exact", rows[1].id), ("near", rows[1].id)}


def test_other_numbers_labels_and_answers_are_no_copies() -> None:
    text = "Ann has {} apples and gives two of them to her brother Ben; how many has she left?"
    assert len(without_copies([row(text.format(3)), row(text.format(4))], Reps())[0]) == 2
    same = text.format(3)
    assert len(without_copies([row(same, label="good"), row(same, label="bad")], Reps())[0]) == 2
    assert len(without_copies([row(same, twin="a"), row(same, twin="b")], Reps())[0]) == 2
    assert len(without_copies([row(same), row(same)], Reps(exact=False, near=None))[0]) == 2


def test_one_answer_to_two_requests_is_no_copy() -> None:
    answer = "I am sorry, but this is nothing that I can help you with; please ask at the desk of the town hall. " * 3
    rows = [row("Where do I get a passport?", answer), row("How do I register a dog in town?", answer)]
    assert without_copies(rows, Reps()) == (rows, [])
    rows = [
        row(f"What does a whole night of rain do to a heap of {thing} in a garden?", "It rots.")
        for thing in ("wood", "wool")
    ]
    assert without_copies(rows, Reps()) == (rows, [])


def test_a_pair_and_its_reverse_and_other_instructions_are_no_copies() -> None:
    a, b = "The harbour is to the left of the market.", "Nobody at the market knows where the harbour is."
    pairs = [Row(data={"prompt": "Where is the harbour?", "chosen": x, "rejected": y}) for x, y in ((a, b), (b, a))]
    assert without_copies(pairs, Reps()) == (pairs, [])

    def under(law: str) -> Row:
        asked = [{"role": "system", "content": law}, {"role": "user", "content": "May I return the kettle?"}]
        return Row(data={"prompt": asked, "completion": [{"role": "assistant", "content": "Yes, of course."}]})

    assert len(without_copies([under("Take all returns."), under("Take returns within a month.")], Reps())[0]) == 2
    assert len(without_copies([under("Take all returns."), under("Take all returns.")], Reps())[0]) == 1


def test_a_chain_of_small_changes_does_not_take_its_far_end() -> None:
    words = sentence(random.Random(5), 30).split()
    chain = []
    for n in range(8):
        words = list(words)
        words[n * 3] = "velvet"
        chain.append(row(" ".join(words), at=float(n)))
    kept, gone = without_copies(chain, Reps())
    assert gone and len(kept) > 1 and kept[0] is chain[0]


def test_meaning_is_compared_by_the_vectors_given() -> None:
    vectors = {"warm": (1.0, 0.0), "hot": (0.98, 0.2), "cold": (0.0, 1.0)}

    def embed(texts: Any) -> Any:
        found = np.array([vectors[text] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    rows = [row("warm"), row("cold"), row("hot", support=3.0)]
    kept, (gone,) = without_copies(rows, Reps(near=None, semantic=(embed, 0.95)))
    assert kept == rows[1:] and (gone.how, gone.row_id, gone.kept_id) == ("semantic", rows[0].id, rows[2].id)


# --- test items -------------------------------------------------------------------------------

ITEM = (
    "A gardener plants seven rows of tulips with twelve bulbs in each row, and mice eat a quarter of them; "
    "how many grow?"
)
SHORT = "Name the three rivers that meet at the old stone bridge"
TINY = "Capital of Mali?"


def exam(**how: Any) -> HeldOut:
    made = HeldOut(Decontaminate(**how))
    for text in (ITEM, SHORT, TINY):
        made.add(Task(family="t", kind="k", messages=(Message(role="user", content=text),)), "exam@1")
    return made


@pytest.mark.parametrize(
    ("planted", "how"),
    [
        (row(ITEM), "words"),
        (row("Hello! " + ITEM.upper() + " Thank you very much in advance for the help."), "words"),
        (row("Something else entirely", "Let me repeat the question: " + ITEM), "words"),
        (row(ITEM.replace("gardener plants", "farmer sows").replace("many grow", "many are left")), "words"),
        (row("Please, " + SHORT.lower() + " in the town."), "words"),
        (row("capital  of MALI"), "words"),
    ],
)
def test_a_planted_item_is_caught_and_named(planted: Row, how: str) -> None:
    found = exam().find(planted)
    assert found is not None and found.suite == "exam@1" and found.how == how and found.task_id.startswith("task-")


def test_an_item_with_a_word_changed_in_every_dozen_is_near() -> None:
    words = ITEM.split()
    words[6], words[13] = "daisies", "moles"
    found = exam(words=13, near=0.6).find(row(" ".join(words)))
    assert found is not None and found.how == "near"


def test_what_only_looks_like_an_item_stays() -> None:
    clean = [
        "A gardener plants nine rows of roses and waters each of them twice a day; how much water is that?",
        "What is the capital of Mali, and who lives there?",
        "Name the three rivers that are longest in the world",
        "",
    ]
    assert [exam().find(row(text)) for text in clean] == [None] * 4


def test_words_that_many_items_share_are_a_form() -> None:
    made, form = (
        HeldOut(Decontaminate(common=5)),
        "You are at the desk of a small shop and a customer comes in who asks you for the ",
    )
    for word in WORDS[:12]:
        made.add(Task(family="t", kind="k", messages=(Message(role="user", content=form + word * 9),)), "desk@1")
    assert made.find(row(form + "violin violin violin saddle pepper and much else besides it all")) is None
    assert made.find(row(form + WORDS[3] * 9)) is not None


def test_a_long_hidden_answer_is_looked_for_and_a_short_one_is_not() -> None:
    made = HeldOut(Decontaminate())
    answer = "First sort all of the numbers by size and then walk from both ends towards the middle of the list"
    asked = Message(role="user", content="How would you find two numbers that add up to a given sum?")
    made.add(Task(family="t", kind="k", messages=(asked,), answer={"answer": answer, "short": "by size"}), "code@1")
    found = made.find(row("Give me a hint", f"{answer}."))
    assert found is not None and found.part == "answer"
    assert made.find(row("Order these by size", "by size")) is None


# --- how many of what -------------------------------------------------------------------------


def of_kind(kind: str, n: int) -> list[Row]:
    return [row(f"{kind} {k}", kind=kind, label="good" if k % 2 else "bad") for k in range(n)]


def test_caps_and_temperatures() -> None:
    rows = [*of_kind("a", 100), *of_kind("b", 25), *of_kind("c", 4)]

    def sizes(**how: Any) -> list[int]:
        kept = balanced(rows, Balance(**how), seed=3)
        assert kept == [one for one in rows if one in kept]
        return [sum(one.kind == kind for one in kept) for kind in "abc"]

    assert sizes(by="kind", cap=20) == [20, 20, 4]
    assert sizes(by="kind", temperature=1.0) == [100, 25, 4]
    # T = 2: c = min(10, 5, 2) = 2, so 2 * 10, 2 * 5 and 2 * 2
    assert sizes(by="kind", temperature=2.0) == [20, 10, 4]


def test_a_draw_does_not_depend_on_what_else_there_is() -> None:
    rows = of_kind("a", 50)
    first = balanced(rows, Balance(by="kind", cap=10), seed=3)
    again = balanced([*rows, *of_kind("b", 9)], Balance(by="kind", cap=10), seed=3)
    assert [one for one in again if one.kind == "a"] == first != balanced(rows, Balance(by="kind", cap=10), seed=4)


def test_shares_hold_where_a_part_is_small() -> None:
    a, b = of_kind("a", 100), of_kind("b", 10)
    made = mixed([a, b], [3.0, 1.0], None, 1, 0)
    assert [sum(one.kind == kind for one in made) for kind in "ab"] == [30, 10]
    made = mixed([a, b], [3.0, 1.0], None, 3, 0)  # each row of b up to three times
    assert [sum(one.kind == kind for one in made) for kind in "ab"] == [90, 30]
    assert len(mixed([a, b], None, None, 1, 0)) == 110 and len(mixed([a, b], None, 7, 1, 0)) == 7
    assert [sum(one.kind == kind for one in mixed([a, b], [1.0, 1.0], 8, 1, 0)) for kind in "ab"] == [4, 4]
