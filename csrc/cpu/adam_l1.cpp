// adam_l1: Adam with a coupled L1 subgradient, one pass over memory for all tensors.
#include "multi_tensor.h"

namespace clnp {

// The numbers of one step and one tensor.
struct AdamNumbers {
  double factor, decay, l1, one_minus_beta1, beta2, one_minus_beta2;
  double rate;        // lr / (1 - beta1^step)
  double correction;  // 1 / sqrt(1 - beta2^step)
  double eps;
};

namespace {

template <class T>
CLNP_INLINE void adam(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                      T* __restrict__ v, int64_t count, const AdamNumbers& n) {
  using W = wide_t<T>;
  const W factor(n.factor), decay(n.decay), l1(n.l1), eps(n.eps), rate(n.rate);
  const W one_minus_beta1(n.one_minus_beta1), beta2(n.beta2), one_minus_beta2(n.one_minus_beta2);
  const W correction(n.correction);
  for (int64_t i = 0; i < count; ++i) {
    const W w = load(p[i]);
    const W sign = w > 0 ? l1 : (w < 0 ? -l1 : W(0));
    const W grad = load(g[i]) * factor + decay * w + sign;
    const W first = load(m[i]) + one_minus_beta1 * (grad - load(m[i]));
    const W second = beta2 * load(v[i]) + one_minus_beta2 * grad * grad;
    store(m + i, first);
    store(v + i, second);
    store(p + i, w - rate * first / (std::sqrt(second) * correction + eps));
  }
}

}  // namespace

#define CLNP_FOR(T)                                                                             \
  CLNP_CLONES void adam_of(T* p, const T* g, T* m, T* v, int64_t count, const AdamNumbers& n) { \
    adam(p, g, m, v, count, n);                                                                 \
  }
CLNP_FOR(float)
CLNP_FOR(double)
CLNP_FOR(BFloat16)
CLNP_FOR(Half)
#undef CLNP_FOR

namespace {

// Raise the step and derive the numbers from it.
AdamNumbers advance(AdamNumbers numbers, const Tensor& step, double lr, double l1, double beta1) {
  float* count = pointer<float>(step);
  *count += 1;
  numbers.l1 = l1;
  numbers.rate = lr / (1 - std::pow(beta1, static_cast<double>(*count)));
  numbers.correction = 1 / std::sqrt(1 - std::pow(numbers.beta2, static_cast<double>(*count)));
  return numbers;
}

void check_steps(const std::vector<Tensor>& steps, size_t wanted) {
  STD_TORCH_CHECK(steps.size() == wanted, "steps: got ", steps.size(), " tensors, wanted ", wanted);
  for (const Tensor& step : steps)
    STD_TORCH_CHECK(step.is_cpu() && step.numel() == 1 && step.scalar_type() == ScalarType::Float,
                    "steps: wanted float32 tensors of one element on the CPU");
}

void adam_l1(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
             std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, const Tensor& lr,
             std::vector<double> l1, double beta1, double beta2, double eps, double weight_decay,
             bool maximize, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  check_list("params", params, params);
  check_list("grads", grads, params);
  check_list("exp_avgs", exp_avgs, params);
  check_list("exp_avg_sqs", exp_avg_sqs, params);
  check_steps(steps, params.size());
  STD_TORCH_CHECK(l1.size() == params.size(), "l1: got ", l1.size(), " numbers, wanted ",
                  params.size());
  if (is_set(found_inf)) return;
  const double rate = scalar_of("lr", lr);
  AdamNumbers shared{};
  shared.factor = gradient_factor(maximize, grad_scale);
  shared.decay = weight_decay;
  shared.one_minus_beta1 = 1 - beta1;
  shared.beta2 = beta2;
  shared.one_minus_beta2 = 1 - beta2;
  shared.eps = eps;
  std::vector<AdamNumbers> numbers;
  std::vector<Flat> p, g, m, v;
  for (size_t i = 0; i < params.size(); ++i) {
    numbers.push_back(advance(shared, steps[i], rate, l1[i], beta1));
    p.emplace_back(params[i], true);
    g.emplace_back(grads[i], false);
    m.emplace_back(exp_avgs[i], true);
    v.emplace_back(exp_avg_sqs[i], true);
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
