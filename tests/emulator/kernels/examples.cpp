// The example kernels as a Python module.

#include "../runtime/bindings.h"
#include "intrinsics.cu"
#include "misuse.cu"
#include "product.cu"

PYBIND11_MODULE(examples, m) {
  tdnet_emulator::define_control(m);
  intrinsics::define(m);
  misuse::define(m);
  product::define(m);
}
