// torch.ops.tdnet and the module tdnet_ops._C. Kernels register themselves from cpu/ and cuda/;
// Python registers the rest (fake kernels, autograd, autocast, the fallback for other devices) in
// tdnet_ops/registration.py.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/instruction_sets.h"
#include "cuda/limits.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(tdnet, m) { tdnet::define_operators(m); }

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
  int failed = 0;
  for (const auto& constant : constants) {
    failed |= PyModule_AddStringConstant(module, constant.name, constant.value);
  }
  // All but one of them are addends.
  constexpr int kMostPartials = tdnet::cuda::kMostAddends + 1;
  failed |= PyModule_AddIntConstant(module, "cuda_most_partials", kMostPartials);
  if (failed == 0) return module;
  Py_DECREF(module);
  return nullptr;
}
