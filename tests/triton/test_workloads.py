"""What tuning knows of the operators: each that has Triton kernels has calls to tune them by."""

import importlib

import pytest
import torch

import tdnet_ops  # noqa: F401  (defines torch.ops.tdnet)
from tdnet_ops.triton.tuning import workloads


@pytest.mark.parametrize("operator", workloads.operators())
def test_every_operator_with_kernels_has_workloads(operator):
    assert hasattr(torch.ops.tdnet, operator), f"{operator}.py is named as no operator is"
    module = importlib.import_module(f"tdnet_ops.triton.{operator}")
    assert callable(getattr(module, operator, None)), f"{operator}.py has no function of its name"
    assert hasattr(module, "workloads"), f"{operator}.py: no function workloads"
    inputs = workloads.Inputs(torch.float32, False, torch.channels_last, torch.device("meta"))
    assert list(module.workloads(inputs)), f"{operator}.py: its workloads are none"


def test_the_kernels_are_found():
    assert {"attention_propagate", "spatial_pool"} <= set(workloads.operators())
