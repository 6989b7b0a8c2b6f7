// Streams and kernel launches, the only code that nvcc and a host compiler need in two versions.
// With a host compiler the include path must hold cuda_emulation.h, which runs kernels on the CPU;
// only the tests have one (tests/support/cuda_emulation).
#pragma once

#include "../torch.h"

#if !defined(__CUDACC__)
#include <cuda_emulation.h>
#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <limits>

namespace customloss::cuda {

// The current stream of a tensor's device, which is the current device while this lives.
class Stream {
 public:
  explicit Stream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &handle));
    handle_ = static_cast<cudaStream_t>(handle);
  }
  cudaStream_t get() const { return handle_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t handle_ = nullptr;
};

// Grids have one dimension only, as y and z end at 65535.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t grid, int block, size_t smem,
            const Stream& stream, const Arguments&... arguments) {
  STD_TORCH_CHECK(grid <= std::numeric_limits<int32_t>::max(),
                  "customloss: the tensor needs more blocks than a grid has");
  std::tuple<Parameters...> values(arguments...);
  // Not <<< >>>, which clang-format breaks in a header.  This call also returns its own error.
  STD_CUDA_CHECK(std::apply(
      [&](auto&... value) {
        void* addresses[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                                dim3(static_cast<unsigned>(grid)),
                                dim3(static_cast<unsigned>(block)), addresses, smem, stream.get());
      },
      values));
}

}  // namespace customloss::cuda

#endif
