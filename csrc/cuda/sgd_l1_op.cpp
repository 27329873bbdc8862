// The operator sgd_l1 on CUDA; the kernel is in sgd_l1.cu.
#include "tensors.h"

namespace clnp::cuda {
namespace {

void sgd_l1(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> buffers,
            std::vector<bool> first, std::vector<Tensor> lr, std::vector<double> l1,
            double momentum, double dampening, bool nesterov, double weight_decay, bool maximize,
            std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  if (params.empty()) return;
  check_device(params);
  check_list("params", params, params);
  check_list("grads", grads, params);
  if (momentum != 0) check_list("momentum_buffers", buffers, params);
  check_numbers("lr", lr, params);
  check_numbers("l1", l1, params);
  check_numbers("first", first, params);
  const Guard guard(params[0].get_device());
  SgdOptions options{};
  options.momentum = momentum, options.dampening = dampening, options.decay = weight_decay;
  options.nesterov = nesterov, options.maximize = maximize;
  options.grad_scale = flag_of("grad_scale", grad_scale);
  options.found_inf = flag_of("found_inf", found_inf);
  std::vector<Runs> runs;
  for (size_t i = 0; i < params.size(); ++i) {
    std::vector<Tensor> tensors{params[i], grads[i]};
    if (momentum != 0) tensors.push_back(buffers[i]);
    runs.push_back(Runs(std::move(tensors)));
  }
  void* stream = current_stream(params[0]);
  for_tables<SgdTensor>(
      params, runs,
      [&](size_t i) {
        void* buffer = momentum != 0 ? runs[i].data(2) : nullptr;
        return SgdTensor{runs[i].data(0),        runs[i].data(1), buffer,  params[i].numel(),
                         number_of("lr", lr[i]), l1[i],           first[i]};
      },
      [&](Type type, const Table<SgdTensor>& table) {
        check_text(launch_sgd(type, table, options, stream));
      });
  for (Runs& run : runs) {
    run.finish(0);
    if (momentum != 0) run.finish(2);
  }
}

}  // namespace
}  // namespace clnp::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(clnp_kernels_cuda, m) {
  m.def(
      "sgd_l1(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, bool[] first, "
      "Tensor[] lr, float[] l1, float momentum, float dampening, bool nesterov, float "
      "weight_decay, "
      "bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clnp_kernels_cuda, CLNP_DEVICE_KEY, m) {
  m.impl("sgd_l1", TORCH_BOX(&clnp::cuda::sgd_l1));
}
