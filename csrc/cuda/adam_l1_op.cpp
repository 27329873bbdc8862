// The operator adam_l1 on CUDA; the kernel is in adam_l1.cu.
#include "tensors.h"

namespace clnp::cuda {
namespace {

void adam_l1(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
             std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, std::vector<Tensor> lr,
             std::vector<double> l1, double beta1, double beta2, double eps, double weight_decay,
             bool maximize, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  if (params.empty()) return;
  check_device(params);
  check_list("params", params, params);
  check_list("grads", grads, params);
  check_list("exp_avgs", exp_avgs, params);
  check_list("exp_avg_sqs", exp_avg_sqs, params);
  check_steps(steps, params);
  check_numbers("lr", lr, params);
  check_numbers("l1", l1, params);
  const Guard guard(params[0].get_device());
  AdamOptions options{};
  options.beta1 = beta1, options.beta2 = beta2, options.eps = eps, options.decay = weight_decay;
  options.maximize = maximize;
  options.grad_scale = flag_of("grad_scale", grad_scale);
  options.found_inf = flag_of("found_inf", found_inf);
  std::vector<Runs> runs;
  for (size_t i = 0; i < params.size(); ++i)
    runs.push_back(Runs({params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]}));
  // Launches follow each other on one stream, so they can share it.
  const int64_t bytes = kTensors * sizeof(AdamNumbers<double>);
  const Tensor numbers = torch::stable::new_empty(steps[0], {bytes / 4});
  void* stream = current_stream(params[0]);
  for_tables<AdamTensor>(
      params, runs,
      [&](size_t i) {
        return AdamTensor{runs[i].data(0),
                          runs[i].data(1),
                          runs[i].data(2),
                          runs[i].data(3),
                          params[i].numel(),
                          static_cast<float*>(const_cast<void*>(steps[i].const_data_ptr())),
                          number_of("lr", lr[i]),
                          l1[i]};
      },
      [&](Type type, const Table<AdamTensor>& table) {
        check_text(
            launch_adam(type, table, options, const_cast<void*>(numbers.const_data_ptr()), stream));
      });
  for (Runs& run : runs)
    for (const size_t i : {0, 2, 3}) run.finish(i);
}

}  // namespace
}  // namespace clnp::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(clnp_kernels_cuda, m) {
  m.def(
      "adam_l1(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] "
      "exp_avg_sqs, Tensor(d!)[] steps, Tensor[] lr, float[] l1, float beta1, float beta2, float "
      "eps, float weight_decay, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clnp_kernels_cuda, CLNP_DEVICE_KEY, m) {
  m.impl("adam_l1", TORCH_BOX(&clnp::cuda::adam_l1));
}
