// Vectors of numbers per channel: frozen and free weights, biases and statistics.
#pragma once

#include <optional>
#include <vector>

#include "elements.h"

namespace clnp {

inline std::vector<double> numbers(const Tensor& vector) {
  const Tensor plain = torch::stable::contiguous(vector);
  std::vector<double> values(vector.numel());
  visit(vector.scalar_type(), [&](auto* null) {
    const auto* data =
        static_cast<const std::remove_pointer_t<decltype(null)>*>(plain.const_data_ptr());
    for (size_t c = 0; c < values.size(); ++c) values[c] = static_cast<double>(load(data[c]));
  });
  return values;
}

inline std::vector<double> numbers_or(const std::optional<Tensor>& vector, int64_t count,
                                      double value) {
  return vector ? numbers(*vector) : std::vector<double>(count, value);
}

template <class W>
std::vector<W> narrowed(const std::vector<double>& values) {
  return std::vector<W>(values.begin(), values.end());
}

inline void check_vector(const char* name, const std::optional<Tensor>& vector, int64_t count) {
  if (!vector) return;
  check_float(name, *vector);
  STD_TORCH_CHECK(vector->is_cpu(), name, ".device: expected cpu; move with .to()");
  STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == count, name, ".shape: expected [", count,
                  "], got ", shape_text(*vector));
}

}  // namespace clnp
