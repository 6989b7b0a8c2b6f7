// The memory of gradients: pages.h says what for.
#include "pages.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

// torch has it from 2.11 on.  Weak: its address is null where it is missing.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);
#endif

namespace customloss::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{1} << 21;

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int64_t limit_from_environment() {
  const std::string word = environment("CUSTOMLOSS_GRADIENT_CACHE");
  if (word.empty()) {
#if defined(__linux__)
    return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 16;
#else
    return 0;
#endif
  }
  const bool digits = word.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || word.size() > 18) {
    throw std::runtime_error("CUSTOMLOSS_GRADIENT_CACHE: expected a number of bytes, got '" + word +
                             "'");
  }
  return std::stoll(word);
}

}  // namespace

bool huge_pages_wanted() {
  static const bool wanted = [] {
    const std::string word = environment("CUSTOMLOSS_HUGE_PAGES");
    if (word.empty() || word == "1") return true;
    if (word == "0") return false;
    throw std::runtime_error("CUSTOMLOSS_HUGE_PAGES: expected 0 or 1, got '" + word + "'");
  }();
  return wanted;
}

int64_t gradient_cache_limit() {
  static const int64_t limit = limit_from_environment();
  return limit;
}

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
  if (!huge_pages_wanted()) return;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto start = reinterpret_cast<int64_t>(data);
  const int64_t first = (start + kHugePage - 1) & -kHugePage, last = (start + bytes) & -kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

#if defined(__linux__)
namespace {

// Smaller gradients come from torch: malloc keeps their memory itself.
constexpr int64_t kLeastBytes = int64_t{1} << 20;

// Memory straight from the operating system, in whole huge pages.
struct Block {
  char* data = nullptr;
  int64_t bytes = 0;

  static Block fresh(int64_t least) {
    const int64_t bytes = (least + kHugePage - 1) & -kHugePage;
    // One page more, so that an aligned block lies within; what is around it is given back.
    void* const mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return {};
    char* const start = static_cast<char*>(mapped);
    const int64_t before = -reinterpret_cast<int64_t>(start) & (kHugePage - 1);
    if (before > 0) munmap(start, before);
    if (before < kHugePage) munmap(start + before + bytes, kHugePage - before);
    prefer_huge_pages(start + before, bytes);
    return {start + before, bytes};
  }

  void release() const { munmap(data, bytes); }

  // Whether it is worth taking for so many bytes: it is large enough, and not much too large.
  bool fits(int64_t wanted) const {
    return bytes >= wanted && bytes - wanted <= kHugePage + wanted / 8;
  }
};

// The blocks that are free, the one that was given back last in front.
//
// Passes do not wait for the lock: who does not get it maps or unmaps memory instead. A fork does,
// so that no thread holds it in the child, where nobody would give it back.
class FreeBlocks {
 public:
  Block take(int64_t wanted) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    for (int i = 0; i < count_; ++i) {
      if (blocks_[i].fits(wanted)) return remove(i);
    }
    return {};
  }

  void give(Block block) {
    std::array<Block, kMost + 1> over;
    int released = 0;
    if (block.bytes > gradient_cache_limit()) {
      over[released++] = block;
    } else if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      while (count_ == kMost || bytes_ + block.bytes > gradient_cache_limit()) {
        over[released++] = remove(count_ - 1);
      }
      std::copy_backward(blocks_.begin(), blocks_.begin() + count_, blocks_.begin() + count_ + 1);
      blocks_[0] = block;
      ++count_;
      bytes_ += block.bytes;
    } else {
      over[released++] = block;
    }
    for (int i = 0; i < released; ++i) over[i].release();
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

  int64_t release_all() {
    const std::lock_guard lock(mutex_);
    const int64_t released = bytes_;
    while (count_ > 0) remove(count_ - 1).release();
    return released;
  }

 private:
  static constexpr int kMost = 16;

  Block remove(int i) {
    const Block block = blocks_[i];
    std::copy(blocks_.begin() + i + 1, blocks_.begin() + count_, blocks_.begin() + i);
    --count_;
    bytes_ -= block.bytes;
    return block;
  }

  std::mutex mutex_;
  std::array<Block, kMost> blocks_;
  int count_ = 0;
  int64_t bytes_ = 0;
};

// Never destroyed: a gradient may be freed later than any static object.
FreeBlocks& free_blocks() {
  static FreeBlocks* const blocks = new FreeBlocks;
  return *blocks;
}

const int registered = pthread_atfork([] { free_blocks().lock(); }, [] { free_blocks().unlock(); },
                                      [] { free_blocks().unlock(); });

void give_back(void* data, void* bytes) {
  free_blocks().give({static_cast<char*>(data), reinterpret_cast<int64_t>(bytes)});
}

// Whether the elements fill one stretch of memory, each place once, in any order of the axes.
// False for more axes than anyone has.
bool is_dense(const Tensor& tensor) {
  constexpr int kAxes = 16;
  std::array<std::array<int64_t, 2>, kAxes> axes;  // stride, size
  const int dims = static_cast<int>(tensor.dim());
  if (dims > kAxes) return false;
  for (int i = 0; i < dims; ++i) axes[i] = {tensor.stride(i), tensor.size(i)};
  std::sort(axes.begin(), axes.begin() + dims);
  int64_t next = 1;
  for (int i = 0; i < dims; ++i) {
    if (axes[i][1] == 1) continue;
    if (axes[i][0] != next) return false;
    next *= axes[i][1];
  }
  return true;
}

}  // namespace

int64_t gradient_cache_bytes() { return free_blocks().bytes(); }

int64_t empty_gradient_cache() { return free_blocks().release_all(); }

Tensor gradient_like(const Tensor& like) {
  const int64_t bytes = like.numel() * static_cast<int64_t>(like.element_size());
  const bool kept = torch_from_blob != nullptr && gradient_cache_limit() > 0 &&
                    bytes >= kLeastBytes && is_dense(like);
  Block block = kept ? free_blocks().take(bytes) : Block{};
  if (kept && block.data == nullptr) block = Block::fresh(bytes);
  if (block.data == nullptr) {
    const Tensor out = torch::stable::empty_like(like);
    prefer_huge_pages(out.mutable_data_ptr(), bytes);
    return out;
  }
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  const Device device(like);
  AtenTensorHandle handle;
  const AOTITorchError failed =
      torch_from_blob(block.data, like.dim(), like.sizes().data(), like.strides().data(), 0, dtype,
                      device.type, device.index, &handle, aoti_torch_layout_strided(), nullptr, 0,
                      give_back, reinterpret_cast<void*>(block.bytes));
  if (failed) block.release();
  TORCH_ERROR_CODE_CHECK(failed);
  return Tensor(handle);
}

#else

int64_t gradient_cache_bytes() { return 0; }

int64_t empty_gradient_cache() { return 0; }

Tensor gradient_like(const Tensor& like) { return torch::stable::empty_like(like); }

#endif

}  // namespace customloss::cpu
