// Runs csrc/cuda on the CPU: defines what CUDA C++ adds to the language for a host compiler, and a
// launch() that executes a grid.  For tests only.
//
// A block's threads are fibers; a barrier or a shuffle is a rendezvous; blocks run one after the
// other.  Fibers run in an order shuffled by a seed and are not interrupted between rendezvous,
// so a missing barrier shows as bits that change with the seed, and a barrier that some threads
// never reach as an error.  Shared memory is static and keeps what the last block left there.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __shared__ static

#include <torch/csrc/stable/library.h>
// The kernels are registered as CPU implementations, in a namespace of their own.
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) \
  _STABLE_TORCH_LIBRARY_IMPL(customloss_emulated, CPU, m, C10_UID)

struct Dim {
  unsigned x;
};
static Dim threadIdx, blockIdx, gridDim;

namespace cuda_emulation {

struct Random {
  uint64_t state = 1;
  uint64_t below(uint64_t end) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % end;
  }
  template <class T>
  void shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) std::swap((*values)[i - 1], (*values)[below(i)]);
  }
};

inline Random random;
inline int64_t launches = 0;

// A rendezvous of `members` fibers.
struct Barrier {
  int members = 0, arrived = 0;
  int64_t generation = 0;

  void open_if_full() {
    if (members == 0 || arrived < members) return;
    arrived = 0;
    ++generation;
  }
};

// setcontext only starts a fiber; from then on _setjmp and _longjmp switch, because the functions
// of ucontext make a system call for the signal mask at every switch.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  Barrier* waits = nullptr;
  int64_t generation = 0;
  bool done = false;
  void* fake_stack = nullptr;
};

// One block's threads.
class Block {
 public:
  static constexpr int kWarp = 32;
  static constexpr size_t kStack = 128 * 1024;

  void run(int threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    current_ = this;
    std::vector<int> order;
    warps_.assign((threads + kWarp - 1) / kWarp, Barrier());
    exchange_.resize(2 * threads);
    turns_.assign(threads, 0);
    all_ = Barrier();
    for (int t = 0; t < threads; ++t) {
      if (t == static_cast<int>(fibers_.size())) fibers_.push_back(std::make_unique<Fiber>());
      start(fibers_[t].get());
      order.push_back(t);
      ++warps_[t / kWarp].members;
      ++all_.members;
    }
    while (all_.members > 0) {
      random.shuffle(&order);
      bool moved = false;
      for (int t : order) {
        Fiber* fiber = fibers_[t].get();
        if (fiber->done || (fiber->waits && fiber->waits->generation == fiber->generation))
          continue;
        moved = true;
        resume(t);
      }
      if (!moved) throw std::runtime_error("cuda_emulation: a barrier that some threads miss");
    }
  }

  void wait(Barrier* barrier) {
    Fiber* fiber = fibers_[running_].get();
    fiber->waits = barrier;
    fiber->generation = barrier->generation;
    ++barrier->arrived;
    barrier->open_if_full();
    leave(fiber);
    fiber->waits = nullptr;
  }

  void sync_block() { wait(&all_); }
  void sync_warp() { wait(&warps_[running_ / kWarp]); }

  double shuffle_xor(double value, int distance) {
    const int self = running_;
    // There are two sets of slots, because a thread may begin the next exchange before all have
    // read this one.
    const int set = turns_[self]++ % 2;
    exchange_[2 * self + set] = value;
    sync_warp();
    return exchange_[2 * (self ^ distance) + set];
  }

  static Block* current_;

 private:
  void start(Fiber* fiber) {
    if (!fiber->stack) fiber->stack.reset(new char[kStack]);
    fiber->done = fiber->begun = false;
    fiber->waits = nullptr;
    fiber->fake_stack = nullptr;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Block::main, 0);
  }

  static void main() {
    Block* block = current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block->bottom_, &block->size_);
#endif
    (*block->kernel_)();
    Fiber* fiber = block->fibers_[block->running_].get();
    fiber->done = true;
    for (Barrier* barrier : {&block->all_, &block->warps_[block->running_ / kWarp]}) {
      --barrier->members;
      barrier->open_if_full();
    }
    block->leave(fiber);
  }

  void resume(int thread) {
    running_ = thread;
    threadIdx.x = static_cast<unsigned>(thread);
    Fiber* fiber = fibers_[thread].get();
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber->stack.get(), kStack);
#endif
    if (_setjmp(scheduler_) == 0) {
      if (fiber->begun) _longjmp(fiber->place, 1);
      fiber->begun = true;
      setcontext(&fiber->context);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  void leave(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber->done ? nullptr : &fiber->fake_stack, bottom_, size_);
#endif
    if (_setjmp(fiber->place) == 0) _longjmp(scheduler_, 1);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &bottom_, &size_);
#endif
  }

  const std::function<void()>* kernel_ = nullptr;
  jmp_buf scheduler_;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Barrier> warps_;
  std::vector<double> exchange_;
  std::vector<int> turns_;
  Barrier all_;
  int running_ = 0;
};

inline Block* Block::current_ = nullptr;

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::Block::current_->sync_block(); }
inline void __syncwarp() { cuda_emulation::Block::current_->sync_warp(); }
inline void __threadfence() {}
inline double __shfl_xor_sync(unsigned, double value, int distance) {
  return cuda_emulation::Block::current_->shuffle_xor(value, distance);
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}
inline double __ldcg(const double* at) { return *at; }

extern "C" __attribute__((visibility("default"))) void cuda_emulation_seed(uint64_t seed) {
  cuda_emulation::random.state = seed;
}
extern "C" __attribute__((visibility("default"))) int64_t cuda_emulation_launches() {
  return cuda_emulation::launches;
}

namespace customloss::cuda {

using std::max;
using std::min;

struct Stream {
  explicit Stream(const torch::stable::Tensor&) {}
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t grid, int block, size_t, const Stream&,
            const Arguments&... arguments) {
  static cuda_emulation::Block threads;
  ++cuda_emulation::launches;
  const std::tuple<std::remove_const_t<Parameters>...> copied(arguments...);
  const std::function<void()> body = [&] { std::apply(kernel, copied); };
  std::vector<unsigned> order(static_cast<size_t>(grid));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned>(i);
  cuda_emulation::random.shuffle(&order);
  gridDim.x = static_cast<unsigned>(grid);
  for (unsigned index : order) {
    blockIdx.x = index;
    threads.run(block, body);
  }
}

}  // namespace customloss::cuda
