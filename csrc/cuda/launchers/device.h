// The device and stream of torch for a launch, and its errors. For launchers.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "../../torch_call.h"
#include "../primitives/types.h"

#ifndef TDNET_EMULATOR
#include <dlfcn.h>
#endif

namespace tdnet::cuda {

// Throws if a call of the CUDA runtime failed. What a kernel does wrong on the device surfaces at
// a later call, as ever.
inline void check_launch(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA kernel ") + what + ": " + cudaGetErrorString(error));
}

#ifdef TDNET_EMULATOR

struct DeviceGuard {
  explicit DeviceGuard(const torch::stable::Tensor&) {}
};

inline cudaStream_t current_stream(const torch::stable::Tensor&) { return nullptr; }

#else

// Makes the device of `x` current, and at the end the one before it.
class DeviceGuard {
 public:
  explicit DeviceGuard(const torch::stable::Tensor& x) : torch_(x.get_device_index()) {
    // The CUDA runtime is linked into this library: it has a current device of its own.
    const cudaError_t error = cudaSetDevice(x.get_device_index());
    // Else the next launch would report it too.
    if (error != cudaSuccess) (void)cudaGetLastError();
    check_launch(error, "set device");
  }

 private:
  torch::stable::accelerator::DeviceGuard torch_;
};

// torch's current stream on the device of `x`.
inline cudaStream_t current_stream(const torch::stable::Tensor& x) {
  // Asked for by name: this library also loads beside a torch without CUDA, so it does not link
  // with libtorch_cuda, which torch has loaded where there are CUDA tensors.
  using Function = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Function get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library
               ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
               : nullptr;
  }();
  if (!get_stream) throw std::runtime_error("this torch has no CUDA streams");
  void* stream = nullptr;
  TDNET_CHECK_TORCH_CALL(get_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

#endif

}  // namespace tdnet::cuda
