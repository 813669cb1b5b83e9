// Prints what a C++ program gets of the operators: numbers, and words where Python is missing.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <exception>
#include <functional>
#include <iostream>
#include <utility>
#include <vector>

// As docs/export.md advises: an error in place of torch's warning.
TORCH_LIBRARY_IMPL(tdnet, Autograd, m) {
  m.impl("pooled_affinity", torch::autograd::autogradNotImplementedFallback());
}

at::Tensor call(const char* name, std::vector<c10::IValue> stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack[0].toTensor();
}

void attempt(const char* what, const std::function<void()>& action) {
  try {
    action();
    std::cout << what << ": done" << std::endl;
  } catch (const c10::Error& error) {
    std::cout << what << ": " << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cout << what << ": " << error.what() << std::endl;
  }
}

int main() {
  const at::Tensor x = at::arange(16, at::kFloat).view({1, 1, 4, 4});
  std::cout << call("tdnet::spatial_pool", {x, 2, "max"}).sum().item<float>() << std::endl;
  attempt("float64", [&] { call("tdnet::spatial_pool", {x.to(at::kDouble), 2, "max"}); });
  x.requires_grad_();
  attempt("gradient", [&] { call("tdnet::spatial_pool", {x, 2, "max"}).sum().backward(); });
  attempt("refused gradient", [&] {
    call("tdnet::pooled_affinity", {x, x, 2, "max", c10::IValue(), false}).sum().backward();
  });
}
