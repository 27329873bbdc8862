// Arithmetic of the optimizers, shared by the CPU and the CUDA code, so that the tests on a CPU
// cover both.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define CLNP_FORMULA __host__ __device__ __forceinline__
#else
#define CLNP_FORMULA inline __attribute__((always_inline))
#endif

namespace clnp {

template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
// The type of the arithmetic on T.
template <class T>
using wide_t = typename Wide<T>::type;

// The numbers of one step of Adam and one tensor, in the type W of the arithmetic.
template <class W>
struct AdamNumbers {
  W factor, decay, l1, one_minus_beta1, beta2, one_minus_beta2;
  W rate;        // lr / (1 - beta1^step)
  W correction;  // 1 / sqrt(1 - beta2^step)
  W eps;

  template <class V>
  CLNP_FORMULA AdamNumbers<V> as() const {
    return {V(factor), V(decay),      V(l1), V(one_minus_beta1), V(beta2), V(one_minus_beta2),
            V(rate),   V(correction), V(eps)};
  }
};

// The numbers of one step of SGD and one tensor: buffer = keep * buffer + take * gradient, and the
// weight moves by of_gradient * gradient + of_buffer * buffer.
template <class W>
struct SgdNumbers {
  W factor, decay, l1, rate, keep, take, of_gradient, of_buffer;

  template <class V>
  CLNP_FORMULA SgdNumbers<V> as() const {
    return {V(factor), V(decay), V(l1), V(rate), V(keep), V(take), V(of_gradient), V(of_buffer)};
  }
};

// Factor on the gradients: the sign of the ascent and the scale of torch.amp.GradScaler.
CLNP_FORMULA double gradient_factor(bool maximize, double scale) {
  return (maximize ? -1.0 : 1.0) / scale;
}

// `step` counts this one.
CLNP_FORMULA AdamNumbers<double> adam_numbers(double factor, double decay, double l1, double lr,
                                              double beta1, double beta2, double eps, double step) {
  const double rate = lr / (1 - std::pow(beta1, step));
  const double correction = 1 / std::sqrt(1 - std::pow(beta2, step));
  return {factor, decay, l1, 1 - beta1, beta2, 1 - beta2, rate, correction, eps};
}

// `first`: the buffer is new and becomes the gradient, without dampening. Nesterov moves the weight
// by gradient + momentum * buffer, else it moves by the buffer alone.
CLNP_FORMULA SgdNumbers<double> sgd_numbers(double factor, double decay, double l1, double lr,
                                            double momentum, double dampening, bool nesterov,
                                            bool first) {
  const double keep = first ? 0 : momentum, take = first ? 1 : 1 - dampening;
  return {factor, decay, l1, lr, keep, take, nesterov ? 1.0 : 0.0, nesterov ? momentum : 1.0};
}

// The gradient with the subgradient of the penalties: g * factor + decay * w + l1 * sign(w).
template <class W>
CLNP_FORMULA W penalised(W w, W g, W factor, W decay, W l1) {
  const W sign = w > 0 ? l1 : (w < 0 ? -l1 : W(0));
  return g * factor + decay * w + sign;
}

// Weight w, first moment m and second moment v after a step with the gradient g.
template <class W>
CLNP_FORMULA void adam_element(W& w, W g, W& m, W& v, const AdamNumbers<W>& n) {
  const W grad = penalised(w, g, n.factor, n.decay, n.l1);
  m = m + n.one_minus_beta1 * (grad - m);
  v = n.beta2 * v + n.one_minus_beta2 * grad * grad;
  w = w - n.rate * m / (std::sqrt(v) * n.correction + n.eps);
}

// Weight w and momentum buffer b after a step with the gradient g.
template <class W>
CLNP_FORMULA void sgd_element(W& w, W g, W& b, const SgdNumbers<W>& n) {
  const W grad = penalised(w, g, n.factor, n.decay, n.l1);
  // A new buffer (keep = 0) may hold anything.
  b = n.keep != 0 ? n.keep * b + n.take * grad : n.take * grad;
  w = w - n.rate * (n.of_gradient * grad + n.of_buffer * b);
}

// The same without momentum.
template <class W>
CLNP_FORMULA void sgd_element(W& w, W g, const SgdNumbers<W>& n) {
  w = w - n.rate * penalised(w, g, n.factor, n.decay, n.l1);
}

}  // namespace clnp
