"""A model folder: what transformers reads, and a `dynamics.json` of ours.

    config.json               the shape, in Hugging Face's words
    model.safetensors         or model-0000i-of-0000n.safetensors and model.safetensors.index.json
    tokenizer.json            or tokenizer.model, and the small files that published models put beside it
    generation_config.json
    dynamics.json             ours: a digest of every tensor, the shape in our words, where the weights came from

A folder without dynamics.json is read as well; only its digests cannot be verified.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics import config as settings
from dynamics.data.tokenizer import FILES
from dynamics.errors import UserError
from dynamics.model import hf_config
from dynamics.model.hf_config import read_json
from dynamics.model.hf_names import EMBEDDING, HEAD
from dynamics.model.llama import LlamaConfig
from dynamics.model.safetensor_files import Digest, OnBytes, Tensor, open_folder

CONFIG, NOTES, GENERATION = "config.json", "dynamics.json", "generation_config.json"


def ignore(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def is_model_folder(path: str | Path) -> bool:
    """Whether it is a folder with a config.json, as transformers and `import_model` write one."""
    return (Path(path) / CONFIG).is_file()


def read_config(folder: str | Path) -> LlamaConfig:
    """The model's shape; param_dtype is what config.json says, or the type of the tensors where it says nothing.

    Layers are scanned over from 16 on, and nothing is rematerialised: change either with dataclasses.replace.
    Raises UserError naming the field that is not understood, or that dynamics.json says otherwise.
    """
    folder = Path(folder)
    data = read_json(folder / CONFIG)
    if not (data.get("dtype") or data.get("torch_dtype")):
        data["dtype"] = str(next(iter(open_folder(folder).values())).dtype)
    found = hf_config.from_hf(data, name=folder.resolve().name, place=str(folder / CONFIG))
    if (folder / NOTES).exists():
        noted = _noted_architecture(folder / NOTES)
        plain = settings.to_plain(found)
        for field in hf_config.ARCHITECTURE:
            if field in noted and noted[field] != plain[field]:
                raise UserError(
                    f"{folder}: {field} is {plain[field]} in {CONFIG} and {noted[field]} in {NOTES}; the two belong to "
                    f"different models: put the right {CONFIG} back, or remove {NOTES} if the change is meant"
                )
    return found


def _noted_architecture(path: Path) -> dict[str, Any]:
    noted = read_json(path).get("model")
    if not isinstance(noted, dict):
        raise UserError(f"{path} does not describe a model; copy it again, or remove it")
    return noted


def tokenizer_path(folder: str | Path) -> Path:
    """The file of a model folder from which the tokenizer is read: the one that `Tokenizer.load(folder)` takes."""
    folder = Path(folder)
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no tokenizer; put its {' or '.join(FILES)} there")


def check_length(folder: str | Path, length: int) -> None:
    """UserError where rows of `length` tokens would not be the model's own: attention here has no sliding window."""
    window = hf_config.sliding_window(read_json(Path(folder) / CONFIG))
    if window is not None and length > window:
        raise UserError(
            f"{folder}: sliding_window is {window} in {CONFIG} and rows have {length} tokens; positions here see all "
            f"that stands before them, so use rows of at most {window} tokens, or a model without a window"
        )


def verify(folder: str | Path, *, on_bytes: OnBytes = ignore) -> int:
    """Read every tensor of a model folder and compare it with its digest; returns how many there are.

    Raises UserError naming the tensors that differ, and where there are no digests to compare with.
    """
    folder = Path(folder)
    if not (folder / NOTES).exists():
        raise UserError(f"{folder} has no {NOTES}, so no digests to verify; `dynamics model import` writes them")
    tensors, digests = open_folder(folder), digests_of(folder)
    check_same_names(folder, tensors, digests)
    wrong, done, total = [], 0, sum(tensor.num_bytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if digest_of(tensor) != digests[name]:
            wrong.append(tensor)
        on_bytes(done := done + tensor.num_bytes, total)
    if wrong:
        raise altered(*wrong)
    return len(tensors)


def digest_of(tensor: Tensor) -> str:
    """The digest of a tensor, reading all of it."""
    digest = Digest(tensor)
    for block in tensor.blocks():
        digest.update(block)
    return str(digest)


def digests_of(folder: Path) -> dict[str, str]:
    """{name: digest} of dynamics.json; empty without one."""
    if not (folder / NOTES).exists():
        return {}
    noted = read_json(folder / NOTES)
    try:
        return {name: entry["digest"] for name, entry in noted["tensors"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / NOTES} does not say the tensors' digests; copy it again, or remove it") from error


def check_same_names(folder: Path, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> None:
    other = sorted(tensors.keys() ^ digests.keys())
    if other:
        raise UserError(
            f"{folder}: {NOTES} and the files name different tensors ({len(other)}, first {other[0]}); they belong to "
            f"different models: copy the folder again"
        )


def altered(first: Tensor, *others: Tensor) -> UserError:
    """The error for tensors that do not match their digests."""
    more = f", nor do {len(others)} more" if others else ""
    return UserError(
        f"{first.place} is damaged or was changed: tensor {first.name} does not match its digest{more}; copy the "
        "folder again, or import it anew"
    )


def check_tied(harmless: list[str], tensors: Mapping[str, Tensor]) -> None:
    """A head in the file of a model that says it has none of its own must be the embedding again."""
    if HEAD in harmless and digest_of(tensors[HEAD]) != digest_of(tensors[EMBEDDING]):
        raise UserError(
            f"config.json says tie_word_embeddings is true, but {HEAD} ({tensors[HEAD].said()}) is not {EMBEDDING} "
            "again; set tie_word_embeddings to false if the head is meant"
        )
