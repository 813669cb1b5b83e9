"""Inference engines as peers: both get the same ONNX graph, and read and write our memory in place.

Nothing is copied on the way in or out, weights are constants, float32 is never rounded to
bfloat16, and each engine has the threads that everybody has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch

from tdnet_ops.bench.case import Graph, Result, Setting

# Opset 18 is the newest that both engines' releases of the last years read.
OPSET = 18
IR_VERSION = 8


class Refusal(Exception):
    """Why a peer cannot run a case here."""


# How to get a package that runs beside others; never a guess, an index has names of strangers too.
_ADVICE = {
    "onnx": "pip install onnx",
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "matplotlib": "pip install matplotlib",
    "flash_attn": "pip install flash-attn",
    "flash_attn_interface": "FlashAttention 3, the folder hopper of its sources",
    "ffpa_attn": "pip install ffpa-attn",
    "flashinfer": "pip install flashinfer-python",
    "xformers": "pip install xformers",
}


def load(module: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        Refusal: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        advice = f" ({_ADVICE[missing]})" if missing in _ADVICE else f" ({module} needs it)"
        raise Refusal(f"{missing} is not installed{advice}") from error
    except Exception as error:  # Some check their GPU or their torch while they load.
        raise Refusal(f"{module} does not load ({error})") from error


def _onnx_model(graph: Graph) -> bytes:
    onnx = load("onnx")
    helper = onnx.helper

    def value(name: str, x: torch.Tensor) -> object:
        kind = helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
        return helper.make_tensor_value_info(name, kind, list(x.shape))

    nodes = [
        helper.make_node(node.kind, list(node.inputs), [node.output], **node.attributes)
        for node in graph.nodes
    ]
    constants = [
        onnx.numpy_helper.from_array(x.contiguous().numpy(), name)
        for name, x in graph.constants.items()
    ]
    inputs = [value(name, x) for name, x in graph.inputs.items()]
    outputs = [value(name, x) for name, x in graph.outputs.items()]
    whole = helper.make_graph(nodes, "case", inputs, outputs, initializer=constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized


def _check_dtype(setting: Setting) -> None:
    if setting.dtype != torch.float32:
        raise Refusal(f"its graphs are float32, got {str(setting.dtype).removeprefix('torch.')}")


def openvino(graph: Graph, setting: Setting) -> Callable[[], Result]:
    """OpenVINO's CPU plugin, one stream, tuned for latency."""
    _check_dtype(setting)
    library = load("openvino")
    model = library.Core().read_model(_onnx_model(graph))
    compiled = library.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": setting.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()
    for name, x in {**graph.inputs, **graph.outputs}.items():
        request.set_tensor(name, library.Tensor(x.numpy(), shared_memory=True))

    def run() -> Result:
        request.infer()
        return graph.result

    return run


def onnxruntime(graph: Graph, setting: Setting) -> Callable[[], Result]:
    """ONNX Runtime's CPU provider; its threads stop spinning when a call returns."""
    _check_dtype(setting)
    library = load("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = library.InferenceSession(
        _onnx_model(graph), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for bind, tensors in (
        (binding.bind_input, graph.inputs),
        (binding.bind_output, graph.outputs),
    ):
        for name, x in tensors.items():
            bind(name, "cpu", 0, x.numpy().dtype, tuple(x.shape), x.data_ptr())

    def run() -> Result:
        session.run_with_iobinding(binding)
        return graph.result

    return run
