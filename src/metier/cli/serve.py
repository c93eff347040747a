"""`metier serve` and `metier chat`: a checkpoint that answers, over HTTP or in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import LedgerOption

if TYPE_CHECKING:
    from metier.models.renderer import Renderer
    from metier.rollout.torch_engine import TorchEngine

__all__ = ["RendererOption", "chat", "load_checkpoint", "serve"]

Checkpoint = Annotated[
    str, typer.Argument(help="A checkpoint's folder, its id or the start of one, a run, a hub id, or smollm2.")
]
RendererOption = Annotated[str, typer.Option("--renderer", help="auto, chatml or template.")]


def serve(
    checkpoint: Checkpoint,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients; the checkpoint's unless told.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="METIER_API_KEY", help="What clients must send as their key; none asks for none."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Conversations that are computed at once.")] = 32,
    waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait beside those; more are told to come later.")
    ] = 64,
    grace: Annotated[int, typer.Option(min=0, help="Seconds for what is under way when the server is stopped.")] = 30,
    renderer: RendererOption = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    ledger: LedgerOption = None,
) -> None:
    """Serve a checkpoint as an OpenAI-compatible endpoint: chat completions, tools, streaming, log-probabilities."""
    from metier.base.errors import ConfigError
    from metier.cli.listening import listen, need_server, serve_until_stopped

    need_server("serve")
    from metier.rollout.server import Served, make_app
    from metier.rollout.speaker import Speaker

    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"to listen at {host} an API key is needed, so that not everybody may ask; give --api-key")
    engine, render, tokenizer, own_name = load_checkpoint(checkpoint, renderer, dtype, ledger, rows)
    listener, address = listen(host, port)  # clients are answered once the model speaks
    with Speaker(engine, max_waiting=waiting) as speaker:
        served = Served(
            name=name or own_name,
            renderer=render,
            decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
            speaker=speaker,
            context=engine.context,
            api_key=api_key,
        )
        print(f"serving {served.name} at {address}/v1; Ctrl-C stops", flush=True)
        serve_until_stopped(make_app(served), listener, grace=grace)


def chat(
    checkpoint: Checkpoint,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always says the likeliest.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    renderer: RendererOption = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    ledger: LedgerOption = None,
) -> None:
    """Talk to a checkpoint in the terminal. /new starts over, an empty line or Ctrl-D ends."""
    from metier.records.types import Message, Sampling
    from metier.rollout.engine import Request, Word

    engine, render, tokenizer, own_name = load_checkpoint(checkpoint, renderer, dtype, ledger, 1)
    sampling = Sampling(temperature=temperature, max_turn_tokens=max_tokens)
    first = [] if system is None else [Message(role="system", content=system)]
    words: list[int] = []
    shown = 0

    def on_word(_: int, word: Word) -> None:
        nonlocal shown
        if word.token in render.stop_ids:
            return
        words.append(word.token)
        text = str(tokenizer.decode(words, skip_special_tokens=False)).rstrip("\ufffd")
        print(text[shown:], end="", flush=True)
        shown = len(text)

    print(f"{own_name}; an empty line ends")
    session, number = engine.session(on_word), 0
    talk: list[Message] = list(first)
    used = 0  # tokens that the session holds; 0 where it holds nothing to go on from
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print()
            return
        if not said:
            return
        if said == "/new":
            session.end(number)
            talk, used = list(first), 0
            continue
        talk.append(Message(role="user", content=said))
        tokens = render.extend(talk[-1:]) if used else render.render(talk, prompt=True).token_ids
        if used + len(tokens) >= engine.context:
            print(f"the conversation is longer than the {engine.context} tokens that the model reads; /new starts over")
            talk.pop()
            continue
        words.clear()
        shown = 0
        if used:
            session.reply(number, tokens)
        else:
            number += 1
            session.add(number, Request(tokens, 0, seed, sampling, render.stop_ids))
        while not (turns := session.step()):
            pass
        turn = turns[0][1]
        talk.append(render.parse(turn.token_ids))
        used += len(tokens) + len(turn.token_ids)
        if turn.stop == "length":  # without the token that ends a turn the next one is rendered anew
            session.end(number)
            used = 0
        print()


def load_checkpoint(
    checkpoint: str, renderer: str, dtype: str, ledger: str | None, rows: int
) -> tuple[TorchEngine, Renderer, Any, str]:
    """Engine, renderer, tokenizer and name of what a person typed."""
    from pathlib import Path
    from typing import cast

    import torch

    from metier.base.errors import ConfigError, MetierError
    from metier.cli.find import find_weights, has_ledger, open_ledger
    from metier.models.hub import device_of, load_model, load_tokenizer
    from metier.models.renderer import get_renderer
    from metier.rollout.torch_engine import TorchEngine

    kinds = ("auto", "chatml", "template")
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"--dtype must be bfloat16 or float32, not {dtype!r}")
    if renderer not in kinds:
        raise ConfigError(f"--renderer must be one of {', '.join(kinds)}, not {renderer!r}")
    where, name = checkpoint, Path(checkpoint).name
    unknown: MetierError | None = None
    if not Path(checkpoint).exists() and has_ledger(ledger):
        try:
            with open_ledger(ledger) as records:
                name, folder = find_weights(records, checkpoint)
                where = str(folder)
        except MetierError as error:
            if checkpoint.startswith(("ckpt-", "run-")) or checkpoint == "last":
                raise
            unknown = error
    try:
        model = load_model(where, dtype=getattr(torch, dtype), device=device_of("auto"))
    except MetierError:
        if unknown is not None and ledger is not None:  # it was meant to be there
            raise unknown from None
        raise
    tokenizer = load_tokenizer(where)
    render = get_renderer(tokenizer, cast(Any, renderer))
    return TorchEngine(model, rows=rows), render, tokenizer, name
