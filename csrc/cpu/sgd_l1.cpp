// sgd_l1: SGD with a coupled L1 subgradient, one pass over memory for all tensors.
#include "multi_tensor.h"

namespace clnp {

namespace {

// buffer is null without momentum
template <class T>
CLNP_INLINE void sgd(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ buffer,
                     int64_t count, const SgdNumbers<double>& n) {
  using W = wide_t<T>;
  const SgdNumbers<W> numbers = n.as<W>();
  if (buffer == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      W w = load(p[i]);
      sgd_element(w, W(load(g[i])), numbers);
      store(p + i, w);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    W w = load(p[i]), kept = load(buffer[i]);
    sgd_element(w, W(load(g[i])), kept, numbers);
    store(buffer + i, kept);
    store(p + i, w);
  }
}

}  // namespace

#define CLNP_FOR(T)                                                   \
  CLNP_CLONES void sgd_of(T* p, const T* g, T* buffer, int64_t count, \
                          const SgdNumbers<double>& n) {              \
    sgd(p, g, buffer, count, n);                                      \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

void sgd_l1(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> buffers,
            std::vector<bool> first, std::vector<Tensor> lr, std::vector<double> l1,
            double momentum, double dampening, bool nesterov, double weight_decay, bool maximize,
            std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  check_list("params", params, params);
  check_list("grads", grads, params);
  if (momentum != 0) check_list("momentum_buffers", buffers, params);
  check_numbers("lr", lr, params);
  check_numbers("l1", l1, params);
  check_numbers("first", first, params);
  if (is_set(found_inf)) return;
  const double factor = gradient_factor(maximize, grad_scale);
  const std::vector<double> rates = scalars_of("lr", lr);
  std::vector<SgdNumbers<double>> numbers;
  std::vector<Flat> p, g, b;
  for (size_t i = 0; i < params.size(); ++i) {
    numbers.push_back(sgd_numbers(factor, weight_decay, l1[i], rates[i], momentum, dampening,
                                  nesterov, first[i]));
    const bool alike = same_layout({params[i], grads[i], momentum != 0 ? buffers[i] : grads[i]});
    p.emplace_back(params[i], alike, true);
    g.emplace_back(grads[i], alike, false);
    if (momentum != 0) b.emplace_back(buffers[i], alike, true);
  }
  for_chunks(params, [&](size_t i, int64_t at, int64_t count) {
    visit(params[i].scalar_type(), [&](auto* null) {
      using T = std::remove_pointer_t<decltype(null)>;
      T* buffer = momentum != 0 ? b[i].data<T>() + at : nullptr;
      sgd_of(p[i].data<T>() + at, g[i].data<T>() + at, buffer, count, numbers[i]);
    });
  });
  for (Flat& flat : p) flat.finish();
  for (Flat& flat : b) flat.finish();
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) { m.impl("sgd_l1", TORCH_BOX(&clnp::sgd_l1)); }
