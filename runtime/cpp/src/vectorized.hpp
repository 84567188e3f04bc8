/// \file
/// Loops that the compiler turns into vector instructions, compiled for several instruction sets.
///
/// They are plain C++ of fixed lengths in functions that are always inlined. On x86-64 each is inlined twice and the
/// processor is asked at run time, for the baseline of that architecture is of 2003; wider registers than AVX2's gained
/// a quarter at most. Elsewhere, as on ARM, the baseline has what it takes.
#pragma once

#if defined(__GNUC__)
#define HOLOCRON_INLINE [[gnu::always_inline]] inline
#else
#define HOLOCRON_INLINE inline
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define HOLOCRON_AVX2 [[gnu::target("avx2")]]
#endif

namespace holocron::detail {

/// Whether functions that are marked with HOLOCRON_AVX2 run here.
[[nodiscard]] inline bool has_avx2() noexcept {
#if defined(HOLOCRON_AVX2)
    return __builtin_cpu_supports("avx2") != 0;
#else
    return false;
#endif
}

}  // namespace holocron::detail
