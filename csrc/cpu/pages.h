// Fresh memory is the cost of a backward pass on the CPU: the kernel zeroes and maps a gradient
// page by page as it is first written.  Asking for 2 MiB pages makes that 512 times rarer.
// CUSTOMLOSS_HUGE_PAGES=0 does not ask: on a virtual machine whose host takes free huge pages
// back, a first write may now and then wait for the host to return one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace customloss::cpu {

// Advice for memory that is about to be written from end to end; never an error.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool wanted = [] {
    const char* value = std::getenv("CUSTOMLOSS_HUGE_PAGES");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  if (!wanted) return;
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace customloss::cpu
