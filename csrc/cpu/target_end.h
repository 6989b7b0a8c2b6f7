// Ends what target_avx2.h or target_avx512.h began, for clang; under GCC it holds to the end of the
// file.
#if defined(__clang__)
#pragma clang attribute pop
#endif
