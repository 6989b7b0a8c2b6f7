// Chooses among the instruction sets of isa_*.cpp, once, at the first call.
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "block.h"

namespace customloss::cpu {
namespace {

struct Candidate {
  InstructionSet set;
  bool available;
};

#if defined(__x86_64__) || defined(_M_X64)
// Conversions of float16, which not every compiler's __builtin_cpu_supports() knows.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// A set is available where the processor has all that target_*.h switches on for it: a virtual
// machine may hide any of them.
InstructionSet choose() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("popcnt") &&
                      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  const Candidate candidates[] = {
      {{"avx512", &kBlocksAvx512, {&kTilesF32Avx512, &kTilesF64Avx512}}, avx512},
      {{"avx2", &kBlocksAvx2, {&kTilesF32Avx2, &kTilesF64Avx2}}, avx2},
      {{"baseline", &kBlocksBaseline, {&kTilesF32Baseline, &kTilesF64Baseline}}, true}};
  const char* const expected = "baseline, avx2 or avx512";
#elif defined(__AARCH64EL__)
  const Candidate candidates[] = {
      {{"neon", &kBlocksNeon, {&kTilesF32Neon, &kTilesF64Baseline}}, true},
      {{"baseline", &kBlocksBaseline, {&kTilesF32Baseline, &kTilesF64Baseline}}, true}};
  const char* const expected = "baseline or neon";
#else
  const Candidate candidates[] = {
      {{"baseline", &kBlocksBaseline, {&kTilesF32Baseline, &kTilesF64Baseline}}, true}};
  const char* const expected = "baseline";
#endif
  const char* wanted = std::getenv("CUSTOMLOSS_CPU_ISA");
  for (const Candidate& candidate : candidates) {
    if (wanted == nullptr || *wanted == '\0') {
      if (candidate.available) return candidate.set;
    } else if (std::strcmp(wanted, candidate.set.name) == 0) {
      if (candidate.available) return candidate.set;
      throw std::runtime_error(std::string("CUSTOMLOSS_CPU_ISA=") + wanted +
                               ": this processor does not have it");
    }
  }
  throw std::runtime_error(std::string("CUSTOMLOSS_CPU_ISA=") + wanted + ": expected " + expected);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace customloss::cpu
