"""The weights of a checkpoint: read by name, rounded to bf16, and what that leaves of an update.

A base model's weights lie on the grid of bf16. An update of less than half a step of that grid is
erased when it is rounded to nearest; rounded stochastically it survives in the mean.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from autoif.files import UserError, read_json
from autoif.models import beside, empty_model, folder_of, read_config, refuse_pointers

# How a trained model is written. The next stage trains from it, so the default loses nothing.
EXPORTS = ("fp32", "bf16-stochastic", "bf16")


def stored(model: str) -> dict:
    """The tensors of a checkpoint by name, as slices that `[:]` reads; {} without safetensors."""
    from huggingface_hub import snapshot_download
    from safetensors import SafetensorError, safe_open

    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, allow_patterns=["*.safetensors*"]))
    slices = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = safe_open(path, "pt")
        except SafetensorError as error:
            raise UserError(f"{path} is cut off or damaged ({error}); download it again") from None
        for name in file.keys():  # noqa: SIM118, it is no dictionary
            slices[name] = file.get_slice(name)
    return slices


def check_whole(model: str) -> None:
    """UserError unless a model can be trained and its folder has all that config.json describes.

    Of safetensors the headers are read, before a weight is loaded; other files are not.
    """
    folder, config = Path(model), read_config(model)
    if getattr(config, "quantization_config", None):
        text = f"{model} is quantized, and cannot be trained; name the model it was made of"
        raise UserError(text)
    if not folder.is_dir():  # the hub's client checks what it downloads
        return
    refuse_pointers(model)
    for shard in shards(folder):
        if not (folder / shard).exists():
            raise UserError(f"{folder / shard} is missing, and the index names it; download it")
    tensors = stored(model)
    if tensors:
        refuse_missing(model, differing(config, tensors))
    elif not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{model} has no weights, neither safetensors nor .bin; download them")


def shards(folder: Path) -> list[str]:
    """The files that the index of a folder names; none where the weights are one file."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return []
    try:
        return sorted(set(read_json(index, advice="download it again")["weight_map"].values()))
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{index} names no files; download it again") from None


def differing(config, tensors: dict) -> list[str]:
    """The names of a configuration's weights that `tensors` lack or have in another shape."""
    whole, names = empty_model(config), []
    for name, weight in whole.named_parameters():  # tied ones come once
        # saved without its output layer, a model's names have no prefix
        bare = name.removeprefix(f"{whole.base_model_prefix}.")
        tensor = tensors.get(name, tensors.get(bare))
        if tensor is None:
            names.append(name)
        elif tensor.get_shape() != list(weight.shape):
            names.append(f"{name} ({tensor.get_shape()}, not {list(weight.shape)})")
    return names


def refuse_missing(model: str, names: list[str]) -> None:
    """UserError that names the weights which a checkpoint lacks, if there are any."""
    if names:
        shown = ", ".join(names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"{model} lacks tensors as its config.json describes them: {shown}{more}; they would "
            "be random: name a whole checkpoint, or mend config.json"
        )


def exported(weights, form: str, generator):
    """float32 `weights` in one of EXPORTS; `generator` draws the stochastic rounding."""
    import torch

    if form != "bf16-stochastic":
        return weights if form == "fp32" else weights.bfloat16()
    # bf16 is the upper half of float32's bits: what is added to the lower half carries into the
    # upper one as often as the weight is near the next step
    bits = weights.view(torch.int32)
    carry = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    return ((bits + carry) & -(1 << 16)).view(torch.float32).bfloat16()


@dataclasses.dataclass
class Kept:
    """What is left of an update in another format, added up over tensors."""

    square: float = 0.0  # squared length of the update
    projection: float = 0.0  # of what is left on the update
    weights: int = 0
    changed: int = 0  # weights that differ from the start at all

    def add(self, start, master, left) -> None:
        """The tensors before training, after it in float32, and after it in the format."""
        start = start.float()
        update, rest = master - start, left.float() - start
        self.square += update.double().square().sum().item()
        self.projection += (update.double() * rest).sum().item()
        self.weights += update.numel()
        self.changed += rest.count_nonzero().item()

    @property
    def share(self) -> float:
        return self.projection / self.square if self.square else 1.0

    @property
    def rms(self) -> float:
        return (self.square / self.weights) ** 0.5


def half(model: str) -> str:
    """`model`, or, for engines that would round to nearest, a bf16 copy of a float32 one."""
    folder = folder_of(model)
    if "F32" not in {weight.get_dtype() for weight in stored(str(folder)).values()}:
        return model
    return str(beside(model, "bf16", lambda copy: write_half(folder, copy)))


def write_half(source: Path, copy: Path) -> None:
    """Write the checkpoint `source` to the folder `copy`, float32 rounded stochastically."""
    import torch
    from safetensors.torch import load_file, save_file

    copy.mkdir()
    generator = torch.Generator().manual_seed(0)
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            for name, tensor in tensors.items():
                if tensor.dtype == torch.float32:
                    tensors[name] = exported(tensor, "bf16-stochastic", generator)
            save_file(tensors, copy / path.name, metadata={"format": "pt"})
        elif path.is_file():
            shutil.copy(path, copy / path.name)
    set_dtype(copy, "bfloat16")


def set_dtype(folder: Path, dtype: str) -> None:
    """Name the weights' format in config.json: `from_pretrained` converts to what stands there."""
    file = folder / "config.json"
    config = {**read_json(file), "dtype": dtype}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
