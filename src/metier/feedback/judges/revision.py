"""Constitutional revision: for each principle, a critic reads a response and a rewriter mends what is wrong.

    correction      the new messages, about the old episode
    demonstration   the same messages, about the episode that holds them
    preference      the two episodes, as the judge compares them in both orders

Whether the rewrite is better is asked and not assumed: a preference is what the comparison says, a tie included,
and where it prefers the old response, the new one is no demonstration. (After the supervised stage of arXiv
2212.08073, with a comparison where that has none.)

Only the last assistant turn is rewritten; what tools did stays as it happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from metier.base.clock import now
from metier.base.ids import content_hash, derive_id
from metier.feedback.judges.judge import Item, Judgement, PromptedJudge, feedback_of, texts_of
from metier.feedback.judges.prompts import critique_prompt, draw_nonce, inert, read_verdict, revise_prompt, shown
from metier.feedback.judges.rubric import Constitution, Principle
from metier.feedback.judges.voice import Boundary, Unanswered
from metier.records.types import Cost, Episode, Feedback, Message, Source, Weights

__all__ = ["Critique", "Revision", "critique", "revise", "revision_records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """What a critic says; `mend` is None where it gave no verdict."""

    text: str
    mend: bool | None
    reason: str = ""  # why there is no verdict
    boundary: Boundary | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A response as it was, as it became, and how the two compare."""

    item: Item  # with the response as it was
    revised: tuple[Message, ...]  # the response as it became; the same where nothing was to be mended
    critiques: Mapping[str, Critique]  # by principle
    compared: Judgement | None  # the old one against the new one; None where they are the same, or it was stopped
    stopped: Boundary | None = None  # what failed on the way, where something did; then it is no whole revision
    reason: str = ""  # and why
    cost: Cost = field(default_factory=Cost)

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return self.revised != self.item.responses[0]

    @property
    def better(self) -> bool:
        """Whether the comparison prefers what it became."""
        return self.compared is not None and self.compared.value == 1.0


def critique(judge: PromptedJudge, item: Item, looks: Sequence[str]) -> Critique:
    """What is wrong with the one response, and whether it should be rewritten."""
    texts = texts_of(item, 1, judge.manner.max_characters)
    if isinstance(texts, Judgement):
        return Critique(text="", mend=None, reason=texts.reason, boundary=texts.boundary)
    asked, response = texts
    nonce = draw_nonce(judge.manner.seed, asked, response, *looks)
    try:
        answer, known = judge.ask(critique_prompt(looks, asked, response, nonce))
    except Unanswered as error:
        return Critique(text="", mend=None, reason=str(error), boundary=error.boundary)
    cost = Cost() if known else answer.cost
    verdict, why = read_verdict(answer.text, nonce, ("mend", "keep"))
    if verdict is None:
        return Critique(text=answer.text, mend=None, reason=why, boundary="judge", cost=cost)
    said = answer.text.rstrip().rpartition("\n")[0].strip()
    return Critique(text=said, mend=verdict == "mend", cost=cost)


def revise(judge: PromptedJudge, item: Item, constitution: Constitution) -> Revision:
    """Read and mend under every principle, then compare. What cannot be read or mended is left as it is."""
    response = item.responses[0]
    critiques: dict[str, Critique] = {}
    costs: list[Cost] = []
    stopped: Boundary | None = None
    reason = ""
    for principle in constitution.principles:
        now_is = Item(prompt=item.prompt, responses=(response,))
        told = critique(judge, now_is, (principle.look,))
        critiques[principle.name] = told
        costs.append(told.cost)
        if told.boundary not in (None, "judge"):
            stopped, reason = told.boundary, told.reason
            break
        if not told.mend:
            continue
        try:
            text, cost = _rewritten(judge, now_is, principle, told.text)
        except Unanswered as error:
            stopped, reason = error.boundary, str(error)
            break
        costs.append(cost)
        if text:
            response = (*response[:-1], replace(response[-1], content=text))
    compared = None
    if response != item.responses[0] and stopped is None:
        compared = judge.compare(Item(prompt=item.prompt, responses=(item.responses[0], response)))
        costs.append(compared.cost)
    return Revision(
        item=item,
        revised=response,
        critiques=critiques,
        compared=compared,
        stopped=stopped,
        reason=reason,
        cost=_sum(costs),
    )


def _rewritten(judge: PromptedJudge, item: Item, principle: Principle, said: str) -> tuple[str, Cost]:
    last = item.responses[0][-1]
    asked = shown((*item.prompt, *item.responses[0][:-1]))
    response, critique_text = inert(last.content), inert(said)
    nonce = draw_nonce(judge.manner.seed, asked, response, critique_text)
    answer, known = judge.ask(revise_prompt(principle, asked, response, critique_text, nonce))
    whole = answer.text.strip() if answer.whole else ""  # half a response is none
    return ("" if nonce in whole else whole), (Cost() if known else answer.cost)


def revision_records(
    judge: PromptedJudge, constitution: Constitution, revision: Revision, episode: Episode, *, run_id: str
) -> tuple[Episode | None, list[Feedback]]:
    """The episode of the new response, and what is said of the two; nothing where nothing was mended, or not wholly.

    `episode` holds the response as it was, as the end of its messages.
    """
    if not revision.changed or revision.stopped is not None:
        return None, []
    said = [message.to_openai() for message in revision.revised]
    version = f"{judge.version}-{constitution.hash}"
    source = Source(kind="judge", name=f"{judge.name}/{constitution.name}", version=version)
    start = len(episode.messages) - len(revision.item.responses[0])
    made = replace(
        episode,
        id=derive_id("ep", episode.id, version, content_hash(said)),
        run_id=run_id,
        stage="revision",
        weights=Weights(checkpoint=judge.name),
        messages=(*episode.messages[:start], *revision.revised),
        token_ids=(),
        sampler_logprobs=(),
        loss_mask=(),
        cost=revision.cost,
        created_at=now(),
        meta={**episode.meta, "revises": episode.id},
    )
    told = {name: one.text for name, one in revision.critiques.items() if one.mend}
    rows = [
        Feedback(
            id=derive_id("fb", episode.id, "correction", version),
            about=(episode.id,),
            criterion=constitution.name,
            kind="correction",
            value=said,
            source=source,
            reason="; ".join(told),
            evidence={"critiques": told},
            cost=revision.cost,
            created_at=now(),
            run_id=run_id,
        )
    ]
    if revision.compared is not None:
        pair = (episode.id, made.id)
        rows.append(feedback_of(judge, revision.compared, pair, criterion=constitution.name, run_id=run_id))
    if revision.better:
        shown_as = replace(rows[0], id=derive_id("fb", made.id, "demonstration", version), about=(made.id,))
        rows.append(replace(shown_as, kind="demonstration", cost=Cost()))
    return made, rows


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        completion_tokens=sum(cost.completion_tokens for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        usd=sum(cost.usd for cost in costs),
    )
