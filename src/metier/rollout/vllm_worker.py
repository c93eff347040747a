"""vLLM's side of the vLLM engine: a program for an environment of its own, where Metier is not installed.

    python vllm_worker.py SETTINGS          on its standard input and output
    python vllm_worker.py SETTINGS --listen HOST:PORT

SETTINGS is JSON of vLLM's engine arguments. One line of JSON comes in for each line that
goes out. A line in has `new` conversations' turns, `gone` ones, and perhaps `weights`: a
folder of safetensors to read the weights from, which is done when nothing is under way.
A line out has the `words` of one step, [turn, token, log-probability], and the turns that
have `ended`, [turn, "stop" or "length"].

It imports nothing of Metier. Whoever reaches the port can make it read files; keep it on
an interface that only the trainer reaches.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, TextIO

__all__ = ["Host"]


class Host:
    """vLLM's engine, one step at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: no copy of what goes in and out
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        # Log-probabilities at the sampling temperature. Without truncation they are those of the whole distribution.
        arguments = {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True, **settings}
        if not torch.cuda.is_available():  # a seeded prompt that is read in parts fails there (vLLM 0.32)
            arguments.setdefault("enable_chunked_prefill", False)
            arguments.setdefault("max_num_batched_tokens", max(4096, int(arguments.get("max_model_len") or 8192)))
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._live: set[str] = set()  # turns under way
        self.context = int(self._engine.vllm_config.model_config.max_model_len)

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says and then one step."""
        if "weights" in asked:
            self._load(asked["weights"])
        for turn in asked.get("gone", ()):
            if str(turn) in self._live:
                self._live.remove(str(turn))
                self._engine.abort_request([str(turn)])
        for turn in asked.get("new", ()):
            self._add(turn)
        words, ended = [], []
        for output in self._engine.step() if self._live else ():
            (said,) = output.outputs
            name = output.request_id
            for token, near in zip(said.token_ids, said.logprobs or (), strict=True):
                words.append((int(name), int(token), float(near[token].logprob)))
            if output.finished:
                self._live.discard(name)
                ended.append((int(name), "stop" if said.finish_reason == "stop" else "length"))
        return {"words": words, "ended": ended}

    def _add(self, turn: dict[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=turn["temperature"],
            top_p=turn["top_p"],
            top_k=turn["top_k"],
            seed=turn["seed"],
            max_tokens=turn["max_tokens"],
            stop_token_ids=turn["stop_ids"],
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = str(turn["turn"])
        self._live.add(name)
        self._engine.add_request(name, {"prompt_token_ids": turn["prompt"]}, parameters)

    def _load(self, folder: str) -> None:
        self._engine.abort_request(sorted(self._live))
        self._live.clear()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._engine.reset_prefix_cache()


def serve(host: Host, lines: TextIO, out: TextIO) -> None:
    """Answer line by line until there are no more."""
    print(json.dumps({"context": host.context}), file=out, flush=True)
    for line in lines:
        try:
            answer = host.handle(json.loads(line))
        except Exception as error:  # whoever asked must hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


def main(arguments: list[str]) -> None:
    """Serve the standard streams, or those who connect, one after the other."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    host = Host(json.loads(arguments[0]))
    if "--listen" not in arguments:
        serve(host, sys.stdin, out)
        return
    name, _, port = arguments[arguments.index("--listen") + 1].rpartition(":")
    with socket.create_server((name, int(port))) as server:
        print(json.dumps({"listening": server.getsockname()[:2]}), file=out, flush=True)
        while True:
            connection, _ = server.accept()
            try:
                with connection, connection.makefile("r") as lines, connection.makefile("w") as answers:
                    serve(host, lines, answers)
            except OSError:  # who asked has gone; the next one may come
                continue


if __name__ == "__main__":
    main(sys.argv[1:])
