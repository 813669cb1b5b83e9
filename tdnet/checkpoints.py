"""Reading and writing weights.

Two layouts: the native one, a safetensors file that also says which model it holds, and that of
the published TDNet code, a ``.pkl`` file with the published names of the weights.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdnet.architectures import model_names
from tdnet.models.pspnet import PSPNet
from tdnet.models.registry import build_model
from tdnet.models.tdnet import TDNet

_FORMAT = "tdnet-1"
_PUBLISHED_SUFFIXES = (".pkl", ".pth", ".pt")

# Weights of published files that no prediction depends on: auxiliary heads of the training and
# the classifiers of the ResNets.
_UNUSED_PUBLISHED = re.compile(r"auxlayer\d*\.|pretrained\d*\.fc\.")


def save_checkpoint(model: TDNet | PSPNet, path: str | os.PathLike[str]) -> None:
    """Write a model as a native checkpoint (safetensors).

    The file appears under its name only when it is complete; a file of that name is replaced.

    Args:
        model: a model from ``build_model`` or ``load_checkpoint``.
        path: where to, ending in ``.safetensors``.

    Raises:
        ValueError: if the path has another suffix.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {str(path)!r}, expected a name ending in .safetensors")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    metadata = {"format": _FORMAT, "config": json.dumps(asdict(model.config))}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    device: str | torch.device = "cpu",
) -> TDNet | PSPNet:
    """Build the model that a checkpoint holds, in eval mode.

    Args:
        path: a native ``.safetensors`` file, or a published file (``.pkl``, ``.pth``, ``.pt``):
            a state dict, bare or wrapped as ``{"model_state": ...}``. The latter are read with
            ``torch.load(weights_only=True)``: they cannot run code.
        name: the model that is expected. None: the one that the file says, or that its weights'
            names tell.
        device: where the model goes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint or is damaged, holds another model than ``name``,
            or its weights do not fit (they are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        model = _load_native(path, name)
    elif path.suffix in _PUBLISHED_SUFFIXES:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged pickles raise almost anything
            raise _unreadable(path, error) from error
        try:
            model = from_published(content, name)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        expected = ", ".join((".safetensors", *_PUBLISHED_SUFFIXES))
        raise ValueError(f"{path} has suffix {path.suffix!r}, expected one of {expected}")
    return model.to(device)


def from_published(state: Mapping[str, Any], name: str | None = None) -> TDNet | PSPNet:
    """Build a model from weights with the names of the published code, in eval mode.

    The number of classes and the size of the LayerNorm affine are those of the weights; keys are
    subsampled, as the published code does. Weights of auxiliary heads and of ResNet classifiers
    are left out. The tensors are copied.

    Args:
        state: a published state dict, bare or as ``{"model_state": ...}``; names may start with
            ``module.``.
        name: "td4-psp18", "td2-psp50", "pspnet-18", "pspnet-50" or "pspnet-101". None: told from
            the names of the weights.

    Raises:
        TypeError: if this is no dict of tensors.
        ValueError: if the name is unknown, or weights are missing, unknown or of another shape
            than expected; they are listed.
    """
    weights = _unwrapped(state)
    name = _published_model(weights) if name is None else name
    norm = weights.get("layer_norm1.ln.weight")
    is_tdnet = name.startswith("td")
    classes = weights.get("head1.conv5.4.bias" if is_tdnet else "head.conv5.5.bias")
    num_classes = classes.shape[0] if classes is not None and classes.dim() == 1 else 19
    if is_tdnet:
        norm_size = (norm.shape[0], norm.shape[1]) if norm is not None and norm.dim() == 2 else None
        model = build_model(name, num_classes, pooling_mode="subsample", norm_size=norm_size)
    else:
        model = build_model(name, num_classes)
    own_weights = model.state_dict()
    names = {own: published_name(own, model) for own in own_weights}
    expected = {
        published: _published_shape(published, own_weights[own]) for own, published in names.items()
    }
    _check_weights(weights, expected, name)
    converted = {
        own: weights[published].reshape(own_weights[own].shape)
        for own, published in names.items()
        if published in weights
    }
    # Not strict, for the counters of BatchNorm, which old files lack.
    model.load_state_dict(converted, strict=False)
    return model.eval()


def published_name(own: str, model: TDNet | PSPNet) -> str:
    """The published code's name of a weight, given its name in ``model.state_dict()``."""
    if isinstance(model, PSPNet):
        return _renamed(own, _PSPNET_NAMES)
    match = re.fullmatch(r"paths\.(\d+)\.(.+)", own)
    if match is None:
        raise ValueError(f"{own!r} is no weight of a TDNet path")
    path, rest = int(match[1]), match[2]
    if rest.startswith("hops."):
        _, hop, _, kind = rest.split(".")
        # Published paths count from 1. Hop h of path p has the number of the path after it by h.
        other = (path + 1 + int(hop)) % model.num_paths + 1
        module = f"atn{path + 1}" if model.num_paths == 2 else f"atn{path + 1}_{other}"
        return f"{module}.fc.0.conv.{kind}"
    return _renamed(rest, _PATH_NAMES).replace("@", str(path + 1))


# Our names (regular expressions) and the published ones; @ stands for the number of the path.
_PATH_NAMES = (
    (r"backbone\.", "pretrained@."),
    (r"encoding\.query\.", "enc@.w_qs."),
    (r"encoding\.key\.", "enc@.w_ks."),
    (r"encoding\.value\.", "enc@.w_vs.0.conv."),
    (r"norm\.", "layer_norm@.ln."),
    (r"pyramid\.branches\.", "psp@.branch"),
    (r"head\.hidden\.conv\.", "head@.conv5.0."),
    (r"head\.hidden\.norm\.", "head@.conv5.1."),
    (r"head\.classifier\.", "head@.conv5.4."),
)
_PSPNET_NAMES = (
    (r"backbone\.", "pretrained."),
    (r"pyramid\.branches\.", "head.conv5.0.branch"),
    (r"head\.hidden\.conv\.", "head.conv5.1."),
    (r"head\.hidden\.norm\.", "head.conv5.2."),
    (r"head\.classifier\.", "head.conv5.5."),
)
_PROJECTION_PARTS = {"reduce": "0.conv", "norm": "0.bn", "project": "1.conv"}
_BRANCH_PARTS = {"conv": "0", "norm": "1"}


def _renamed(own: str, names: tuple[tuple[str, str], ...]) -> str:
    pattern, published = next(row for row in names if re.match(row[0], own))
    rest = re.sub(pattern, "", own, count=1)
    if published.endswith("branch"):
        index, part, kind = rest.split(".")
        return (
            f"{published.removesuffix('branch')}conv{int(index) + 1}.{_BRANCH_PARTS[part]}.{kind}"
        )
    if published.endswith(("w_qs.", "w_ks.")):
        part, kind = rest.split(".")
        return f"{published}{_PROJECTION_PARTS[part]}.{kind}"
    return published + rest


def _published_shape(published: str, own: Tensor) -> tuple[int, ...]:
    # The published phi is a 1x1 convolution, ours a matrix.
    is_phi = re.match(r"atn.*\.weight", published)
    return (*own.shape, 1, 1) if is_phi else tuple(own.shape)


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(state, Mapping) and isinstance(state.get("model_state"), Mapping):
        state = state["model_state"]
    if not isinstance(state, Mapping) or not state:
        raise TypeError("this is no published checkpoint: expected a dict of weights")
    weights = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"this is no published checkpoint: {key!r} is a {type(value).__name__}, "
                "expected names and tensors"
            )
        key = key.removeprefix("module.")
        if not _UNUSED_PUBLISHED.match(key):
            weights[key] = value
    return weights


def _published_model(weights: Mapping[str, Tensor]) -> str:
    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in weights)

    if has("pretrained4."):
        return "td4-psp18"
    if has("pretrained2."):
        return "td2-psp50"
    if has("pretrained."):
        if not has("pretrained.layer1.0.conv3."):
            return "pspnet-18"
        return "pspnet-101" if has("pretrained.layer3.22.") else "pspnet-50"
    raise ValueError(
        f"cannot tell the model from the names of the weights ({_listed(list(weights))}); "
        f"expected the published layout of one of {', '.join(model_names())}"
    )


def _check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Raise a ValueError that lists all that is wrong with the weights of model ``name``."""
    missing = [
        key for key in expected if key not in weights and not key.endswith(".num_batches_tracked")
    ]
    unknown = [key for key in weights if key not in expected]
    misshapen = [
        f"{key} is {list(weights[key].shape)}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    problems = {"missing": missing, "unknown": unknown, "misshapen": misshapen}
    found = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"the weights do not fit {name}; {'; '.join(found)}")


def _listed(items: list[str], limit: int = 20) -> str:
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _load_native(path: Path, name: str | None) -> TDNet | PSPNet:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library has its own, undocumented exceptions
        raise _unreadable(path, error) from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} says it is {metadata.get('format')!r}, expected {_FORMAT!r}")
    config = _read_config(path, metadata.get("config", ""))
    found = config.pop("name")
    if name is not None and name != found:
        raise ValueError(f"{path} holds {found}, expected {name}")
    if found not in model_names() or not found.startswith("td"):
        config = {"num_classes": config["num_classes"]}
    model = build_model(found, **config)
    try:
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        _check_weights(weights, shapes, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.load_state_dict(weights)
    return model.eval()


def _read_config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
        return {
            "name": str(config["name"]),
            "num_classes": int(config["num_classes"]),
            "pooling_mode": str(config["pooling_mode"]),
            "pooling_stride": int(config["pooling_stride"]),
            "norm_size": (int(config["norm_size"][0]), int(config["norm_size"][1])),
        }
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} does not say which model it holds (its metadata)") from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    detail = (str(error).splitlines() or [""])[0]
    return ValueError(
        f"cannot read {path}, it is damaged or no checkpoint: {type(error).__name__}: {detail}"
    )
