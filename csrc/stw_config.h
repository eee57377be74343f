/* stw_config.h - every knob of the C library, its default and its meaning.
 * Define a knob on the compiler's command line (-DSTW_WITH_SOFTMAX=0) to change it. */
#ifndef STW_CONFIG_H
#define STW_CONFIG_H

/* Layer kinds that the build knows.  0 drops the code (and, for softmax, a table of 130 bytes);
 * a model that needs a kind left out is refused by stw_model_check with STW_E_LAYER. */
#ifndef STW_WITH_LSTM
#define STW_WITH_LSTM 1
#endif
#ifndef STW_WITH_GRU
#define STW_WITH_GRU 1
#endif
#ifndef STW_WITH_RNN
#define STW_WITH_RNN 1
#endif
#ifndef STW_WITH_DENSE
#define STW_WITH_DENSE 1
#endif
#ifndef STW_WITH_ACTIVATION
#define STW_WITH_ACTIVATION 1
#endif
#ifndef STW_WITH_SOFTMAX
#define STW_WITH_SOFTMAX 1
#endif
#ifndef STW_WITH_MIX /* add, mul, concat, slice, max pool, embedding, arg max */
#define STW_WITH_MIX 1
#endif
#ifndef STW_WITH_WINDOW
#define STW_WITH_WINDOW 1
#endif
#ifndef STW_WITH_NORM
#define STW_WITH_NORM 1
#endif
#ifndef STW_WITH_ATTENTION /* needs softmax's code, too */
#define STW_WITH_ATTENTION 1
#endif

/* What recurrent layers have beyond the plain cell: other activations, clip, peepholes, projection, initial states,
 * coupled gates, reading backwards. */
#ifndef STW_WITH_VARIANTS
#define STW_WITH_VARIANTS 1
#endif

/* Recurrent weights of 4 bits. */
#ifndef STW_WITH_W4
#define STW_WITH_W4 1
#endif

/* LSTM and GRU layers that are packed in pairs (stw_pairs.h). */
#ifndef STW_WITH_PAIRS
#ifdef __AVR__
#define STW_WITH_PAIRS 0
#else
#define STW_WITH_PAIRS 1
#endif
#endif

/* The sigmoid's table as long as its argument, so that nothing is compared with the table's end: 322 bytes of flash for
 * 8 instructions of each unit.  Needed by the code for cores with the DSP extension. */
#ifndef STW_LONG_TABLE
#if defined(__ARM_FEATURE_DSP) && STW_WITH_PAIRS
#define STW_LONG_TABLE 1
#else
#define STW_LONG_TABLE 0
#endif
#endif

/* Whether the core multiplies to 64 bits in an instruction or two. */
#ifndef STW_WIDE_MULTIPLY
#if defined(__ARM_ARCH_6M__) || defined(__AVR__) || (defined(__riscv) && !defined(__riscv_mul))
#define STW_WIDE_MULTIPLY 0
#else
#define STW_WIDE_MULTIPLY 1
#endif
#endif

/* Masks that the compiler takes as they are (stw_fix.h): for clang on cores without a conditional move. */
#ifndef STW_HIDE_MASKS
#if defined(__clang__) && (defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__) || defined(__riscv))
#define STW_HIDE_MASKS 1
#else
#define STW_HIDE_MASKS 0
#endif
#endif

/* Eight units of an LSTM, or many streams, at a time on x86-64 that has AVX2 or more, found out at run time.  For gcc
 * and clang; AVX-VNNI needs gcc 11 or clang 19. */
#ifndef STW_WITH_AVX2
#define STW_WITH_AVX2 0
#endif
#if defined(__clang__)
#define STW_HAS_AVX_VNNI (__clang_major__ >= 19)
#else
#define STW_HAS_AVX_VNNI (__GNUC__ >= 11)
#endif

/* Window modes other than carry: tumble, slide, stagger. */
#ifndef STW_WITH_MODES
#define STW_WITH_MODES 1
#endif

/* Names of status codes for stw_strerror; 0 saves about 300 bytes and returns "" instead. */
#ifndef STW_WITH_STRINGS
#define STW_WITH_STRINGS 1
#endif

/* Define STW_CHECKED to have every fixed-point operation assert its stated bounds (tests, fuzzing). */

#endif /* STW_CONFIG_H */
