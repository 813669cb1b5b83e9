// The module tdnet_ops._C: importing it loads libtdnet_ops.so beside it; its constants say what was
// compiled in (build_info()).

#include <Python.h>

#include "../library.h"

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  tdnet::expect_definitions();
  const tdnet::BuildInfo info = tdnet::build_info();
  const struct {
    const char* name;
    const char* value;
  } constants[] = {
      {"name_space", info.name_space},     {"version", info.version},
      {"torch_target", info.torch_target}, {"cuda_architectures", info.cuda_architectures},
      {"cuda_status", info.cuda_status},   {"compiler", info.compiler},
      {"cpu_compiled", info.cpu_compiled}, {"cpu_in_use", info.cpu_in_use},
  };
  int failed = 0;
  for (const auto& constant : constants) {
    failed |= PyModule_AddStringConstant(module, constant.name, constant.value);
  }
  failed |= PyModule_AddIntConstant(module, "cuda_most_partials", info.cuda_most_partials);
  if (failed == 0) return module;
  Py_DECREF(module);
  return nullptr;
}
