// Every operator's schema, once: for torch.ops.tdnet, and for the emulated CUDA kernels of
// tests/emulator.

#pragma once

namespace tdnet {

template <class Library>
void define_operators(Library& m) {
  m.def("spatial_pool(Tensor x, int stride, str mode=\"max\") -> Tensor");
  m.def(
      "pooled_affinity(Tensor q, Tensor k, int stride=1, str mode=\"max\", float? scale=None, *, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "softmax_propagate(Tensor affinity, Tensor v, SymInt[2] size, Tensor? residual=None, "
      "Tensor? weight=None, Tensor? bias=None, *, bool allow_tf32=False) -> Tensor");
  m.def(
      "attention_propagate(Tensor q, Tensor k, Tensor v, Tensor? residual=None, "
      "Tensor? weight=None, Tensor? bias=None, float? scale=None, int heads=1, *, "
      "bool allow_tf32=False) -> Tensor");
  // Also returns the log-sum-exp of each query's scaled logits [B, heads, H, W], natural logarithm,
  // float32 (float64 for float64 inputs): -inf for a row of -inf, NaN for a row with NaN, +inf or
  // NaN for another row with +inf: not finite, as its softmax is NaN.
  m.def(
      "attention_propagate_forward(Tensor q, Tensor k, Tensor v, Tensor? residual=None, "
      "Tensor? weight=None, Tensor? bias=None, float? scale=None, int heads=1, *, "
      "bool allow_tf32=False) -> (Tensor, Tensor)");
  // Gradients of q, k, v and weight from those of the result and of the log-sum-exp.
  m.def(
      "attention_propagate_backward(Tensor grad, Tensor? grad_log_sum_exp, Tensor q, Tensor k, "
      "Tensor v, Tensor? weight, Tensor log_sum_exp, float? scale, int heads, *, "
      "bool allow_tf32=False) -> (Tensor, Tensor, Tensor, Tensor)");
  // No defaults where a list of tensors is differentiated: torch drops trailing arguments that
  // equal their default and then expects as many fewer gradients.
  m.def(
      "block_sum_reduce(Tensor[] blocks, Tensor[] weights, Tensor? bias, int padding, "
      "int dilation, str activation, *, bool allow_tf32=False) -> Tensor");
  m.def(
      "block_sum_update(Tensor[] partials, int index, Tensor x, Tensor weight, Tensor? bias, "
      "int padding, int dilation, str activation, *, bool allow_tf32=False) "
      "-> (Tensor, Tensor)");
  // weight: transformed kernels [36, C_out, C], of tdnet_ops.winograd_transform.
  m.def(
      "winograd_conv2d(Tensor x, Tensor weight, Tensor? bias=None, Tensor? residual=None, "
      "int dilation=1, str activation=\"none\", *, bool allow_tf32=False) -> Tensor");
  // dtype: None is uint8. As a default of its own it would break packages of AOTInductor, which
  // store a default dtype as an integer.
  m.def(
      "upsample_argmax(Tensor logits, SymInt[2] size, bool align_corners=False, "
      "ScalarType? dtype=None) -> Tensor");
}

}  // namespace tdnet
