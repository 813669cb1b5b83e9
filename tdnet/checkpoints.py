"""Reading and writing weights.

Two formats: the native one, a safetensors file that also says which model it holds, and those of
published code (TDNet's and ESPNetv2's), a ``.pkl`` file with the published names of the weights.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdnet.architectures import MODELS, ModelConfig, check_among
from tdnet.files import printable, shown, temporary_beside
from tdnet.models.espnetv2_names import espnetv2_name
from tdnet.models.registry import build
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.tdnet import TDNet

_FORMAT = "tdnet-1"
_PUBLISHED_SUFFIXES = (".pkl", ".pth", ".pt")

PUBLISHED_MODELS = ("td4-psp18", "td2-psp50", "pspnet-18", "pspnet-50", "pspnet-101")

# Weights of published files that no prediction depends on: auxiliary heads of the training and
# the classifiers of the ResNets.
_UNUSED_PUBLISHED = re.compile(r"auxlayer\d*\.|pretrained\d*\.fc\.")

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COUNTER_DTYPES = (torch.int64, torch.int32)
_COUNTER = ".num_batches_tracked"


def save_checkpoint(model: TDNet | SingleFrameModel, path: str | os.PathLike[str]) -> None:
    """Write a model as a native checkpoint (safetensors).

    The file appears under its name only when it is complete; a file of that name is replaced.

    Args:
        model: a model from ``build_model`` or ``load_checkpoint``.
        path: where to, ending in ``.safetensors``.

    Raises:
        ValueError: if the path has another suffix, or the model was optimised: its weights are
            others.
        OSError: if it cannot be written.
    """
    path = Path(path)
    with torch.device("meta"):
        own = build(model.config).state_dict()
    if own.keys() != model.state_dict().keys():
        raise ValueError(
            f"model: expected the weights of {model.config.name}, got others: save the model that "
            "was optimised"
        )
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name ending in .safetensors, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    tensors = {
        _plain_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {"format": _FORMAT, "config": model.config.to_json()}
    temporary = temporary_beside(path)
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    device: str | torch.device = "cpu",
) -> TDNet | SingleFrameModel:
    """Build the model that a checkpoint holds, in eval mode.

    Args:
        path: a native ``.safetensors`` file, or a published file (``.pkl``, ``.pth``, ``.pt``) of
            TDNet, PSPNet or ESPNetv2: a state dict, bare or, but for the last, wrapped as
            ``{"model_state": ...}``. The latter are read with ``torch.load(weights_only=True)``:
            they cannot run code. Names of weights may have the prefixes ``module.`` (of data
            parallel training) and ``_orig_mod.`` (of torch.compile).
        name: the model that is expected. None: the one that the file says, or that its weights'
            names tell.
        device: where the model goes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint or is damaged, holds another model than ``name``,
            or its weights do not fit: missing, unknown, of another shape, no floating point
            numbers, not finite (they are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        model = _load_native(path, name)
    elif path.suffix in _PUBLISHED_SUFFIXES:
        content = read_pickle(path)
        try:
            is_espnetv2 = name == "espnetv2" or (name is None and _is_espnetv2(content))
            model = from_espnetv2(content) if is_espnetv2 else from_published(content, name)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        expected = ", ".join((".safetensors", *_PUBLISHED_SUFFIXES))
        raise ValueError(f"{path}: expected a suffix among {expected}, got {path.suffix!r}")
    return model.to(device)


def from_published(state: Mapping[str, Any], name: str | None = None) -> TDNet | SingleFrameModel:
    """Build a model from weights with the names of the published code, in eval mode.

    The number of classes and the size of the LayerNorm affine are those of the weights; keys are
    subsampled, as the published code does. Weights of auxiliary heads and of ResNet classifiers
    are left out. The tensors are copied.

    Args:
        state: a published state dict, bare or as ``{"model_state": ...}``; names may start with
            ``module.`` or ``_orig_mod.``.
        name: "td4-psp18", "td2-psp50", "pspnet-18", "pspnet-50" or "pspnet-101". None: told from
            the names of the weights.

    Raises:
        TypeError: if this is no dict of tensors.
        ValueError: if the name is unknown, or weights are missing, unknown, of another shape or
            type than expected, or not finite; they are listed.
    """
    weights = _unwrapped(state)
    name = _published_model(weights) if name is None else name
    norm = weights.get("layer_norm1.ln.weight")
    check_among("name", name, PUBLISHED_MODELS)
    config = MODELS[name]
    is_tdnet = config.num_paths > 1
    classes = weights.get("head1.conv5.4.bias" if is_tdnet else "head.conv5.5.bias")
    if classes is not None and classes.dim() == 1:
        config = replace(config, num_classes=classes.shape[0])
    if is_tdnet:
        config = replace(config, pooling_mode="subsample")
        if norm is not None and norm.dim() == 2:
            config = replace(config, norm_size=(norm.shape[0], norm.shape[1]))
    return _filled_model(config, weights, published_name)


def published_name(own: str, num_paths: int) -> str:
    """The published code's name of a weight, given its name in the ``state_dict`` of a model."""
    if num_paths == 1:
        return _renamed(own, _PSPNET_NAMES)
    match = re.fullmatch(r"paths\.(\d+)\.(.+)", own)
    if match is None:
        raise ValueError(f"{own!r} is no weight of a TDNet path")
    path, rest = int(match[1]), match[2]
    if rest.startswith("hops."):
        _, hop, _, kind = rest.split(".")
        # Published paths count from 1. Hop h of path p has the number of the path after it by h.
        other = (path + 1 + int(hop)) % num_paths + 1
        module = f"atn{path + 1}" if num_paths == 2 else f"atn{path + 1}_{other}"
        return f"{module}.fc.0.conv.{kind}"
    return _renamed(rest, _PATH_NAMES).replace("@", str(path + 1))


def from_espnetv2(state: Mapping[str, Any]) -> SingleFrameModel:
    """Build an ESPNetv2 from weights that its authors published, in eval mode.

    Those for Cityscapes have 20 classes, the last of which is the background that they were also
    trained on; it is left out, so that 19 are left. Of another number of classes all are kept:
    those for PASCAL VOC have 21, and the background is the first. The tensors are copied.

    Args:
        state: of scale 2, trained for segmentation (sacmehta/EdgeNets); names may start with
            ``module.``.

    Raises:
        TypeError, ValueError: as `from_published`.
    """
    weights = {
        key: value for key, value in _unwrapped(state).items() if not _UNUSED_ESPNETV2.search(key)
    }
    classifier = _without_background(
        {
            name: weights[name]
            for name in _ESPNETV2_CLASSIFIER
            if name in weights and weights[name].dim() > 0
        }
    )
    config = MODELS["espnetv2"]
    for rows in classifier.values():
        config = replace(config, num_classes=len(rows))
    weights |= classifier
    model = _filled_model(config, weights, lambda own, _: espnetv2_name(own))
    assert isinstance(model, SingleFrameModel)
    return model


def _without_background(classifier: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with a row a class, without the background if they are those for Cityscapes."""
    if any(len(rows) != _CITYSCAPES_AND_BACKGROUND for rows in classifier.values()):
        return classifier
    return {name: rows[:-1] for name, rows in classifier.items()}


def _is_espnetv2(content: object) -> bool:
    return isinstance(content, Mapping) and any("base_net.level1." in str(key) for key in content)


# Units that stride have an activation less than their file says.
_UNUSED_ESPNETV2 = re.compile(r"\.eesp\.module_act\.")
_CITYSCAPES_AND_BACKGROUND = 20
_ESPNETV2_CLASSIFIER = ("bu_dec_l4.merge_layer.3.weight", "bu_dec_l4.merge_layer.3.bias")

# Our names (regular expressions) and the published ones; @ stands for the number of the path.
_PATH_NAMES = (
    (r"features\.backbone\.", "pretrained@."),
    (r"encoding\.query\.", "enc@.w_qs."),
    (r"encoding\.key\.", "enc@.w_ks."),
    (r"encoding\.value\.", "enc@.w_vs.0.conv."),
    (r"norm\.", "layer_norm@.ln."),
    (r"features\.pyramid\.branches\.", "psp@.branch"),
    (r"head\.hidden\.conv\.", "head@.conv5.0."),
    (r"head\.hidden\.norm\.", "head@.conv5.1."),
    (r"head\.classifier\.", "head@.conv5.4."),
)
_PSPNET_NAMES = (
    (r"features\.backbone\.", "pretrained."),
    (r"features\.pyramid\.branches\.", "head.conv5.0.branch"),
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


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(state, Mapping) and isinstance(state.get("model_state"), Mapping):
        state = state["model_state"]
    if not isinstance(state, Mapping) or not state:
        came = "an empty one" if isinstance(state, Mapping) else _kind(state)
        raise TypeError(f"this is no published checkpoint: expected a dict of weights, got {came}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(
                "this is no published checkpoint: expected names and tensors, "
                f"got {shown(key)}: {_kind(value)}"
            )
    weights = _with_plain_names(state)
    return {key: value for key, value in weights.items() if not _UNUSED_PUBLISHED.match(key)}


def _with_plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their names without what wrappers of a model put before or into them."""
    plain: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = _plain_name(key)
        if name in plain:
            raise ValueError(f"{shown(name)} is there twice, with and without a wrapper's prefix")
        plain[name] = tensor
    return plain


def _plain_name(key: str) -> str:
    """The name of a weight without those of data parallel training and torch.compile."""
    name = ".".join(part for part in key.split(".") if part != "_orig_mod")
    return re.sub(r"^(module\.)+", "", name)


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
        f"cannot tell the model: expected the names of weights of one of "
        f"{', '.join(PUBLISHED_MODELS)} in the published code, got {_listed(list(weights))}"
    )


def _filled_model(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    file_name: Callable[[str, int], str],
) -> TDNet | SingleFrameModel:
    """A model with the weights of a file, in eval mode; nothing is allocated before they fit.

    Args:
        config: of the model.
        weights: by their names in the file.
        file_name: the name in the file of a weight, given its name in a model of so many paths.
    """
    try:
        with torch.device("meta"):
            model = build(config)
    except RuntimeError as error:
        raise ValueError("its sizes are larger than tensors can be") from error
    own_weights = model.state_dict()
    own_names = {file_name(own, config.num_paths): own for own in own_weights}
    expected = {key: own_weights[own] for key, own in own_names.items()}
    _check_weights(weights, expected, config.name)
    model.to_empty(device="cpu")
    # Old files lack the counters of BatchNorm.
    for name, buffer in model.named_buffers():
        if name.endswith(_COUNTER):
            buffer.zero_()
    model.load_state_dict(
        {own_names[key]: tensor.reshape(expected[key].shape) for key, tensor in weights.items()},
        strict=False,
    )
    filled = model.state_dict()
    _check_values({key: filled[own] for key, own in own_names.items()})
    return model.eval()


def _check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str
) -> None:
    """Raise a ValueError that lists all that is wrong with the weights of model ``name``."""
    missing = [key for key in expected if key not in weights and not key.endswith(_COUNTER)]
    unknown = [key for key in weights if key not in expected]
    unusable, misshapen = [], []
    for key, own in expected.items():
        if key not in weights:
            continue
        if kind := _unusable_kind(key, weights[key]):
            unusable.append(f"{key}: {kind}")
        elif not _fits(weights[key].shape, own.shape):
            misshapen.append(f"{key}: expected {list(own.shape)}, got {list(weights[key].shape)}")
    _raise_for(
        f"the weights do not fit {name}",
        {
            "missing": missing,
            "unknown": unknown,
            "of a type that no weight has": unusable,
            "misshapen": misshapen,
        },
    )


def _unusable_kind(key: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight, whatever its shape; None if it can."""
    if tensor.dtype not in (_COUNTER_DTYPES if key.endswith(_COUNTER) else _WEIGHT_DTYPES):
        return f"expected {'int64' if key.endswith(_COUNTER) else 'float32'}, got {tensor.dtype}"
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return "no plain tensor in memory"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "one number under many places"
    return None


def _fits(shape: torch.Size, own: torch.Size) -> bool:
    # The published phi is a 1x1 convolution, ours a matrix.
    return shape == own or (len(own) == 2 and shape == (*own, 1, 1))


def _check_values(weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a model with these weights labels everything alike: by NaN."""
    infinite = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    negative = [
        key
        for key, tensor in weights.items()
        if key.endswith(".running_var") and (tensor < 0).any()
    ]
    _raise_for(
        "the weights cannot be used",
        {"with NaN or infinity (as float32)": infinite, "variances below 0": negative},
    )


def _raise_for(what: str, problems: Mapping[str, list[str]]) -> None:
    found = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{what}; {'; '.join(found)}")


def _listed(items: list[str], limit: int = 20) -> str:
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(printable(item, 120) for item in items[:limit]) + more


def _kind(value: object) -> str:
    name = "number of NumPy" if isinstance(value, _NumPyScalar) else type(value).__name__
    return f"a {name}"


def _load_native(path: Path, name: str | None) -> TDNet | SingleFrameModel:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library has its own, undocumented exceptions
        raise _unreadable(path, error) from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: expected the format {_FORMAT!r}, got {shown(metadata.get('format'))}"
        )
    try:
        config = ModelConfig.from_json(metadata.get("config", ""))
        if name is not None and name != config.name:
            raise ValueError(f"expected {name}, got {config.name}")
        return _filled_model(config, _with_plain_names(weights), lambda own, _: own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _NumPyScalar:
    """Stands for the NumPy scalars and their types of a published file: no weights, never made."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# The published training stores its best score beside the weights, with the names of NumPy 1 or 2.
_IGNORED_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, if it is nothing but tensors, numbers and text: it cannot run code.

    Raises:
        ValueError: it is something else, or damaged.
    """
    ignored: list[Any] = [(_NumPyScalar, name) for name in _IGNORED_NAMES]
    try:
        with torch.serialization.safe_globals(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise almost anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    if match := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        return ValueError(
            f"cannot read {path}: expected nothing but tensors, numbers and text, as in "
            f"torch.save(model.state_dict(), ...), got {printable(match[1], 60)}; what else a "
            "file holds could run code and is not loaded"
        )
    detail = printable((str(error).splitlines() or [""])[0], 200)
    if "weights_only" in str(error):  # torch advises to load what it refuses; we do not
        detail = "no file of weights written by torch.save"
    return ValueError(
        f"cannot read {path}, it is damaged or no checkpoint: {type(error).__name__}: {detail}"
    )
