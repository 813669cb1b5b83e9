// phi folds into the values: softmax rows sum to one, so phi(A v) + b = A (v W^T + b) (Eq. 4).

#pragma once

#include <cstdint>

namespace tdnet {

// Folding runs phi over the keys instead of the queries, and the product with the weights over
// out_channels instead of value_channels.
inline bool folding_is_cheaper(int64_t queries, int64_t keys, int64_t value_channels,
                               int64_t out_channels) {
  const double folded = 1.0 * keys * (value_channels + queries) * out_channels;
  const double apart = 1.0 * queries * (out_channels + keys) * value_channels;
  return folded <= apart;
}

}  // namespace tdnet
