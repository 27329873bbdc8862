// adam_l1: Adam with a coupled L1 subgradient, one pass over memory for all tensors.
#include "multi_tensor.h"

namespace clnp {

namespace {

template <class T>
CLNP_INLINE void adam(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                      T* __restrict__ v, int64_t count, const AdamNumbers<double>& n) {
  using W = wide_t<T>;
  const AdamNumbers<W> numbers = n.as<W>();
  for (int64_t i = 0; i < count; ++i) {
    W w = load(p[i]), first = load(m[i]), second = load(v[i]);
    adam_element(w, W(load(g[i])), first, second, numbers);
    store(m + i, first);
    store(v + i, second);
    store(p + i, w);
  }
}

}  // namespace

#define CLNP_FOR(T)                                                     \
  CLNP_CLONES void adam_of(T* p, const T* g, T* m, T* v, int64_t count, \
                           const AdamNumbers<double>& n) {              \
    adam(p, g, m, v, count, n);                                         \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

void adam_l1(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
             std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, std::vector<Tensor> lr,
             std::vector<double> l1, double beta1, double beta2, double eps, double weight_decay,
             bool maximize, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  check_list("params", params, params);
  check_list("grads", grads, params);
  check_list("exp_avgs", exp_avgs, params);
  check_list("exp_avg_sqs", exp_avg_sqs, params);
  check_steps(steps, params);
  check_numbers("lr", lr, params);
  check_numbers("l1", l1, params);
  if (is_set(found_inf)) return;
  const double factor = gradient_factor(maximize, grad_scale);
  const std::vector<double> rates = scalars_of("lr", lr);
  std::vector<AdamNumbers<double>> numbers;
  std::vector<Flat> p, g, m, v;
  for (size_t i = 0; i < params.size(); ++i) {
    float* step = pointer<float>(steps[i]);
    *step += 1;
    numbers.push_back(
        adam_numbers(factor, weight_decay, l1[i], rates[i], beta1, beta2, eps, *step));
    const bool alike = same_layout({params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]});
    p.emplace_back(params[i], alike, true);
    g.emplace_back(grads[i], alike, false);
    m.emplace_back(exp_avgs[i], alike, true);
    v.emplace_back(exp_avg_sqs[i], alike, true);
  }
  for_chunks(params, [&](size_t i, int64_t at, int64_t count) {
    visit(params[i].scalar_type(), [&](auto* null) {
      using T = std::remove_pointer_t<decltype(null)>;
      adam_of(p[i].data<T>() + at, g[i].data<T>() + at, m[i].data<T>() + at, v[i].data<T>() + at,
              count, numbers[i]);
    });
  });
  for (size_t i = 0; i < params.size(); ++i) {
    p[i].finish();
    m[i].finish();
    v[i].finish();
  }
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) { m.impl("adam_l1", TORCH_BOX(&clnp::adam_l1)); }
