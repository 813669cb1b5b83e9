// Every operator's schema, once. Kernels register themselves from cpu/ and cuda/; Python registers
// the rest (fake kernels, autograd, autocast, the fallback for other devices) in
// tdnet_ops/registration.py.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/instruction_sets.h"

STABLE_TORCH_LIBRARY(tdnet, m) {
  m.def("spatial_pool(Tensor x, int stride, str mode=\"max\") -> Tensor");
  m.def(
      "pooled_affinity(Tensor q, Tensor k, int stride=1, str mode=\"max\", float? scale=None, *, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "softmax_propagate(Tensor affinity, Tensor v, SymInt[2] size, Tensor? residual=None, "
      "Tensor? weight=None, Tensor? bias=None, *, bool allow_tf32=False) -> Tensor");
  m.def(
      "attention_propagate(Tensor q, Tensor k, Tensor v, Tensor? residual=None, "
      "Tensor? weight=None, Tensor? bias=None, float? scale=None, *, bool allow_tf32=False) "
      "-> Tensor");
  m.def(
      "attention_propagate_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? weight, "
      "float? scale) -> (Tensor, Tensor, Tensor, Tensor)");
  // No defaults where a list of tensors is differentiated: torch drops trailing arguments that
  // equal their default and then expects as many fewer gradients.
  m.def(
      "block_sum_reduce(Tensor[] blocks, Tensor[] weights, Tensor? bias, int padding, "
      "int dilation, str activation, *, bool allow_tf32=False) -> Tensor");
  m.def(
      "block_sum_update(Tensor[] partials, int index, Tensor x, Tensor weight, Tensor? bias, "
      "int padding, int dilation, str activation, *, bool allow_tf32=False) "
      "-> (Tensor, Tensor)");
  m.def(
      "upsample_argmax(Tensor logits, SymInt[2] size, bool align_corners=False, "
      "ScalarType dtype=uint8) -> Tensor");
}

// tdnet_ops._C: importing it loads the library; its constants say what was compiled in
// (build_info()).
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  const struct {
    const char* name;
    const char* value;
  } constants[] = {
      {"version", TDNET_VERSION},
      {"torch_target", TDNET_TORCH_TARGET},
      {"cuda_architectures", TDNET_CUDA_ARCHITECTURES},
      {"cuda_status", TDNET_CUDA_STATUS},
      {"compiler", __VERSION__},
      {"cpu_compiled", tdnet::cpu::compiled_instruction_sets()},
      {"cpu_in_use", tdnet::cpu::instruction_set_name()},
  };
  for (const auto& constant : constants) {
    if (PyModule_AddStringConstant(module, constant.name, constant.value) < 0) {
      Py_DECREF(module);
      return nullptr;
    }
  }
  return module;
}
