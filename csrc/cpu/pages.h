// Huge pages for fresh gradients.  Fresh memory is the main cost of a backward pass on the CPU: the
// operating system zeroes and maps it page by page as it is first written.  With pages of 2 MiB
// instead of 4 KiB that happens 512 times less often.  CUSTOMLOSS_HUGE_PAGES=0 turns this off (1 is
// the default), for virtual machines whose host takes free huge pages back: there a first write may
// now and then wait until the host returns one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace customloss::cpu {

// Whether the environment lets us ask for them; it is read once, as the library is loaded.
inline bool huge_pages_wanted() {
  static const bool wanted = [] {
    const char* const value = std::getenv("CUSTOMLOSS_HUGE_PAGES");
    const std::string word = value == nullptr ? "" : value;
    if (word.empty() || word == "1") return true;
    if (word == "0") return false;
    throw std::runtime_error("CUSTOMLOSS_HUGE_PAGES: expected 0 or 1, got '" + word + "'");
  }();
  return wanted;
}

// Asks for huge pages for memory that is about to be written from end to end.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
  if (!huge_pages_wanted()) return;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace customloss::cpu
