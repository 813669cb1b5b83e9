// What libtdnet_ops.so offers beside the operators that it registers with torch: what the module
// tdnet_ops._C asks.

#pragma once

#define TDNET_EXPORT __attribute__((visibility("default")))

namespace tdnet {

struct BuildInfo {
  const char* name_space;  // of torch.ops
  const char* version;
  const char* torch_target;
  const char* cuda_architectures;
  const char* cuda_status;
  const char* compiler;
  const char* cpu_compiled;
  const char* cpu_in_use;
  long cuda_most_partials;
};

TDNET_EXPORT BuildInfo build_info();

// Python is about to register them; see definitions_are_registered.
TDNET_EXPORT void expect_definitions();

}  // namespace tdnet
