"""Models and tokenizers from a folder or the hub, with errors a user can act on."""

import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llm_finetuner.errors import ModelError
from llm_finetuner.models import labels
from llm_finetuner.models.task_layers import kept_whole
from llm_finetuner.output import Head, at_least_float32

HEAD_TRANSFORM_TOLERANCE = 1e-3  # relative; half-precision heads round differently by up to this


def load_pretrained(
    name: str,
    *,
    auto: str = "AutoModelForCausalLM",
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
    frozen: bool = False,
) -> nn.Module:
    """Load a model for `device` by a class of transformers. Raises ModelError.

    from_scratch draws its weights from `seed`, from which also comes what the checkpoint lacks.
    device "auto" spreads a frozen model over the accelerators and offloads what does not fit to the CPU.
    dtype "auto" is the checkpoint's own on an accelerator; on a CPU it is float32, for half precision is slower there,
    but a frozen model stays in bfloat16 where the CPU has matrix units for it.
    """
    import transformers

    spread = device == "auto"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if spread else torch.device(device)
    if (Path(name) / "adapter_config.json").exists():
        if not frozen or load_in_4bit or load_in_8bit:
            raise ModelError(f"{name} holds an adapter, not a model", "merge it first: LLMFineTuner.merge()")
        return load_trained(name, device, merge=True, auto=auto)
    chosen = _dtype(dtype, device, name, frozen)
    if from_scratch:
        if load_in_4bit or load_in_8bit:
            raise ModelError(
                f"{name}: a model built from scratch cannot be quantised", "drop load_in_4bit / load_in_8bit"
            )
        config = load_config(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, auto).from_config(
                config, dtype=chosen if chosen != "auto" else torch.float32
            )
        model.name_or_path = name
        return model.to(device)
    options: dict = {"dtype": chosen, "trust_remote_code": False}
    if load_in_4bit or load_in_8bit:
        _require_bitsandbytes(name)
        compute = torch.bfloat16 if device.type == "cuda" else torch.float32
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            llm_int8_skip_modules=kept_whole(without_weights(name, auto)),  # for both
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        options["device_map"] = {"": device}
    if spread:
        options["device_map"] = "auto"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what the checkpoint lacks, such as a new head, is drawn
        model = _load(lambda auto: auto.from_pretrained(name, **options), auto, name)
    if "device_map" not in options:
        return model.to(device)
    if load_in_4bit and device.type == "cpu":
        _keep_unpacked(model)
    return model


def without_weights(name: str, auto: str) -> nn.Module:
    """The model of a configuration, without storage. Raises ModelError."""
    import transformers

    config = _load(lambda kind: kind.from_pretrained(name, trust_remote_code=False), "AutoConfig", name)
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(config)


def _keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for bfloat16 kernels at the first evaluation on some CPUs.

    That rounds their scales for good, fails for widths that 32 does not divide, and training then goes on with them.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_config(name: str):
    """Load the configuration of a model. Raises ModelError."""
    return _load(lambda auto: auto.from_pretrained(name, trust_remote_code=False), "AutoConfig", name)


def load_tokenizer(name: str):
    """Load the tokenizer of a model. Raises ModelError."""
    return _load(lambda auto: auto.from_pretrained(name, trust_remote_code=False), "AutoTokenizer", name)


def load_trained(
    folder: str | Path,
    device: torch.device | str = "cpu",
    *,
    merge: bool = False,
    auto: str = "AutoModelForCausalLM",
    **options,
) -> nn.Module:
    """Load what `train` wrote: a whole model, or an adapter injected (or merged) into the model it names.

    options are those of load_pretrained for that base model. Raises ModelError.
    """
    if not (Path(folder) / "adapter_config.json").exists():
        return load_pretrained(str(folder), auto=auto, device=device)
    from peft import PeftModel

    base = base_of(folder)
    model = load_pretrained(base, auto=auto, device=device, **options)
    labels.read(model, folder)
    try:
        model = PeftModel.from_pretrained(model, str(folder)).to(device)
    except RuntimeError as error:  # weights of other shapes
        raise ModelError(
            f"the adapter in {folder} does not fit its base {base}: {str(error).strip().splitlines()[-1].strip()}",
            f'of other labels? write them into {labels.BESIDE} beside it: {{"labels": [...], "problem_type": null}}',
        ) from error
    return model.merge_and_unload() if merge else model.get_base_model()


def base_of(folder: str | Path) -> str:
    """The model that an adapter in this folder belongs to; a folder without adapter, or a hub name, as it is."""
    if not (Path(folder) / "adapter_config.json").exists():
        return str(folder)
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or ""


def check_live(model: nn.Module) -> nn.Module:
    """A model given as an object must be a plain transformers model. Raises ModelError."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a {type(model).__name__} was given, a transformers model is needed",
            "a PeftModel: .merge_and_unload() first",
        )
    return model


def same_vocabulary(a, b) -> tuple[bool, str]:
    """Compare two tokenizers token by token, and say what differs in one sentence."""
    ours, theirs = a.get_vocab(), b.get_vocab()
    if ours == theirs:
        return True, f"the same {len(ours):,} tokens"
    moved = [token for token in ours if token in theirs and ours[token] != theirs[token]]
    if moved:
        token = moved[0]
        return (
            False,
            f"token {token!r} is number {ours[token]} for the student and {theirs[token]} for the teacher",
        )
    missing = next(iter(set(ours) ^ set(theirs)))
    shared = len(set(ours) & set(theirs))
    return (
        False,
        f"token {missing!r} is known to one of the two only ({shared:,} of {max(len(ours), len(theirs)):,} shared)",
    )


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> None:
    """Hold that `head(trunk(x))` is what the model itself answers. Raises ModelError where the head does more."""
    device = entry_device(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids_BT = torch.arange(1, 9, device=device)[None] % vocabulary
    training = model.training
    model.eval()
    want = model(input_ids=ids_BT, use_cache=False).logits
    got = head_of(model)(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state)
    model.train(training)
    check_logits(got, want, model, name)


def check_logits(got: Tensor, want: Tensor, model: nn.Module, name: str) -> None:
    """Raise ModelError where the head's logits are not the model's own."""
    got, want = at_least_float32(got), at_least_float32(want)
    same = got.shape == want.shape
    if not same or (got - want).abs().max() > HEAD_TRANSFORM_TOLERANCE * (1 + want.abs().max()):
        raise ModelError(
            f"{name} ({type(model).__name__}) changes its logits in a way that this version does not know",
            "please report the model; distilling it would train on the wrong probabilities",
        )


def head_of(model: nn.Module) -> Head:
    """The output layer with its soft-cap or scale (Gemma 2, Cohere, Granite), or a bias beside it (BART)."""
    config = model.config.get_text_config().to_dict()
    layer = model.get_output_embeddings()
    cap, times, over = (
        config.get(key) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    bias = dict(model.named_buffers(recurse=False)).get("final_logits_bias")  # [1, V], mostly all zeros
    if bias is not None and bias.any():
        return Head(layer, lambda logits: logits + bias)

    def transform(logits: Tensor) -> Tensor:
        logits = logits * times if times else logits
        logits = logits / over if over else logits
        return torch.tanh(logits / cap) * cap if cap else logits

    return Head(layer, transform if cap or times or over else None)


def positions_of(model: nn.Module) -> int | None:
    """Tokens the model can take at once; None where its configuration sets no bound."""
    config = model.config.get_text_config()
    name = config.attribute_map.get(
        "max_position_embeddings", "max_position_embeddings"
    )  # GPT-2: n_positions
    count = config.to_dict().get(name)
    words = model.get_input_embeddings()
    if not isinstance(words, nn.Embedding):
        return None  # it reads numbers
    tables = (
        m
        for m in model.modules()
        if isinstance(m, nn.Embedding) and m.num_embeddings == count and m is not words
    )
    # RoBERTa counts from behind the number of its padding token
    begun = next((m.padding_idx + 1 for m in tables if m.padding_idx is not None), 0)
    return count and count - begun


def start_head_bias(model: nn.Module, counts: np.ndarray) -> None:
    """Start the head's bias, where there is one, at the log frequency of each token: counts [V] of the labels.

    A model from scratch that must first learn how often each token occurs makes a weak baseline, against which
    anything seems to help.
    """
    bias = model.get_output_embeddings().bias
    if bias is not None:
        smooth = torch.from_numpy(counts + 1.0)
        with torch.no_grad():
            bias.copy_((smooth / smooth.sum()).log())


def entry_device(model: nn.Module) -> torch.device:
    """Where its input goes; of a model whose weights are offloaded, where it computes."""
    device = model.get_input_embeddings().weight.device
    return device if device.type != "meta" else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_quantised(model) -> bool:
    """Whether bitsandbytes holds the weights."""
    config = model.config.to_dict().get("quantization_config") or {}
    return bool(config.get("load_in_4bit") or config.get("load_in_8bit"))


def _dtype(dtype: str, device: torch.device, name: str, frozen: bool):
    """The dtype to load in; "auto" is that of the checkpoint."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type != "cpu":
        return "auto"
    if frozen and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16 if load_config(name).dtype == torch.bfloat16 else torch.float32
    return torch.float32


def _load(call, auto: str, name: str):
    """Run call(transformers.<auto>) and turn what can go wrong for a user into a ModelError."""
    import transformers

    if not name:
        raise ModelError("no model was named", "give a folder or a hub name such as gpt2")
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", os.sep)) or path.exists()
    if looks_local and not path.is_dir():
        raise ModelError(
            f"{name} is not a folder", "give the folder that holds config.json, or a hub name such as gpt2"
        )
    try:
        return call(getattr(transformers, auto))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        weights = [file for pattern in ("*.safetensors*", "*.bin*") for file in path.glob(pattern)]
        hint = "check the files in that folder"
        if not looks_local:
            hint = "no folder has that name; is the hub name right, and is the hub in reach?"
        elif (path / "config.json").exists() and not weights:
            hint = "it holds no weights; a student may draw new ones: --from-scratch (from_scratch=True)"
        raise ModelError(f"cannot load {name!r}: {first}", hint) from error


def _require_bitsandbytes(name: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{name}: loading in 4 or 8 bits needs bitsandbytes", "pip install bitsandbytes"
        ) from error
