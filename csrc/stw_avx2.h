/* stw_avx2.h - what both AVX2 ways share: a square of 8 x 8 words, turned. */
#ifndef STW_AVX2_H
#define STW_AVX2_H

#include <immintrin.h>

#define AVX2 static inline __attribute__((target("avx2")))

/* Word j of row i becomes word i of row j. */
AVX2 void avx2_turn(__m256i a[8])
{
    __m256i b[8];

    for (int i = 0; i < 8; i += 2) {
        b[i]     = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i]     = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        b[j]     = _mm256_permute2x128_si256(a[j], a[j + 4], 0x20);
        b[j + 4] = _mm256_permute2x128_si256(a[j], a[j + 4], 0x31);
    }
    for (int j = 0; j < 8; j++) {
        a[j] = b[j];
    }
}

#endif /* STW_AVX2_H */
