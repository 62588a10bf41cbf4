/* What a BERT layer computes in bf16, for x86-64 with AVX-512 BF16 or AMX.

   Attention over short sequences, layer norms and embeddings take as long by torch's operators, each
   of which reads and writes everything, as all multiplications take. Here a head's attention stays
   in the cache from its scores to its context, and a row while it is normed. With AMX linear layers
   are here as well: oneDNN prepares each anew for every number of rows, which takes longer than to
   multiply, and has a GELU that takes half as long as that. Without AMX it multiplies as fast as the
   processor can. Nothing is kept but room that each thread has of its own: many call at once.

   bf16 is passed as uint16_t. Rows of hidden states lie one after the other. scripts/build_native.py
   compiles this; pipeline/models/native.py calls it, and checks each function before it is used. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VERSION 5
#define AVX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline))

/* What was written before is in memory: GCC's intrinsics do not say that tiles are read from there. */
#define SETTLED __asm__ volatile("" ::: "memory")

enum {
    ROWS = 16,      /* queries that are computed together: the rows of a tile */
    STEP = 32,      /* keys in one step of the second multiplication */
    LONGEST = 512,  /* positions of a sequence */
    DEEPEST = 1024, /* numbers of a hidden state */
    BLOCK = 32,     /* rows and columns that are multiplied together: two tiles each way */
    WIDEST_BLOCKS = 128, /* blocks side by side */
    DEEPEST_ROW = 4096,  /* numbers that go into a linear layer */
    SOON = 6,            /* words ahead whose embeddings are fetched */
    LINES = 3,           /* of the next block's rows that are fetched in a step of this one */
};

int version(void) { return VERSION; }

/* ------------------------------------------------------------------ numbers */

AVX INLINE __m512 floats(__m256i raw) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

AVX INLINE __m512 widened(const uint16_t *from) {
    return floats(_mm256_loadu_si256((const __m256i *)from));
}

/* Writes 16 numbers in bf16; returns what they were rounded to. */
AVX INLINE __m512 narrowed(uint16_t *to, __m512 x) {
    __m256i raw = (__m256i)_mm512_cvtneps_pbh(x);
    _mm256_storeu_si256((__m256i *)to, raw);
    return floats(raw);
}

/* 2 to t, to the last bits of a float; below -125, where results are no normal numbers and take a
   hundred times as long, it is 2 to -125. What is no number stays none. */
AVX INLINE __m512 power(__m512 t) {
    t = _mm512_max_ps(_mm512_set1_ps(-125.0f), t);
    __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(t, n); /* -1/2 to 1/2 */
    __m512 p = _mm512_set1_ps(1.33336498402e-3f); /* 2^f, minimax */
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61793571338e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55033471236e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40226479062e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147203647e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* ------------------------------------------------------------------ operands of multiplications */

/* Keys as the second operand: 16 keys at a time, [16 pairs of numbers][16 keys][2] for each 32
   numbers of a head. Keys behind the last are zero. */
AVX INLINE void lay_out_keys(
    uint16_t *to, const uint16_t *from, long stride, int keys, int width
) {
    for (int first = 0; first < keys; first += 16)
        for (int part = 0; part < width; part += 32) {
            __m512i r[16], s[16];
            for (int i = 0; i < 16; i++)
                r[i] = first + i < keys
                    ? _mm512_loadu_si512(from + (first + i) * stride + part)
                    : _mm512_setzero_si512();
            for (int i = 0; i < 16; i += 2) { /* a transposition of 16 by 16 pairs */
                s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 16; i += 4) {
                r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
                r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
                r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
                r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
            }
            for (int i = 0; i < 4; i++) {
                s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
                s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
                s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
                s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
            }
            for (int i = 0; i < 8; i++) {
                r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
                r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
            }
            for (int i = 0; i < 16; i++, to += 32) _mm512_store_si512(to, r[i]);
        }
}

/* Values as the second operand: [pairs of keys][numbers][2]. Keys behind the last are zero. */
AVX INLINE void lay_out_values(
    uint16_t *to, const uint16_t *from, long stride, int keys, int width
) {
    int until = (keys + STEP - 1) / STEP * STEP;
    for (int key = 0; key < until; key += 2)
        for (int part = 0; part < width; part += 16, to += 32) {
            __m256i a = _mm256_setzero_si256(), b = a;
            if (key < keys) a = _mm256_loadu_si256((const __m256i *)(from + key * stride + part));
            if (key + 1 < keys)
                b = _mm256_loadu_si256((const __m256i *)(from + (key + 1) * stride + part));
            __m512i low = _mm512_cvtepu16_epi32(a), high = _mm512_cvtepu16_epi32(b);
            _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* ------------------------------------------------------------------ multiplications */

typedef struct {
    uint8_t palette, row;
    uint8_t reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Tiles;

/* All tiles become 16 rows of 64 bytes, and whoever used tiles before finds them shaped as they were
   then, for oneDNN believes so. */
AMX INLINE void begin_tiles(Tiles *before) {
    Tiles ours;
    memset(&ours, 0, sizeof ours);
    ours.palette = 1;
    for (int i = 0; i < 8; i++) {
        ours.bytes[i] = 64;
        ours.rows[i] = 16;
    }
    _tile_storeconfig(before);
    SETTLED;
    _tile_loadconfig(&ours);
}

AMX INLINE void end_tiles(const Tiles *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* Scores of 16 queries: (16, keys), `out` with LONGEST numbers a row. */
AVX INLINE void scores_by_dots(
    float *out, const uint16_t *queries, const uint16_t *keys, int count, int width
) {
    for (int first = 0; first < count; first += 16, keys += 16 * width)
        for (int row = 0; row < ROWS; row += 8) {
            __m512 sum[8];
            for (int i = 0; i < 8; i++) sum[i] = _mm512_setzero_ps();
            for (int pair = 0; pair < width / 2; pair++) {
                __m512bh key = (__m512bh)_mm512_load_si512(keys + 32 * pair);
                for (int i = 0; i < 8; i++) {
                    int32_t both;
                    memcpy(&both, queries + (row + i) * width + 2 * pair, 4);
                    sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(both), key);
                }
            }
            for (int i = 0; i < 8; i++) _mm512_store_ps(out + (row + i) * LONGEST + first, sum[i]);
        }
}

AMX INLINE void scores_by_tiles(
    float *out, const uint16_t *queries, const uint16_t *keys, int count, int width
) {
    for (int first = 0; first < count; first += 16, keys += 16 * width) {
        SETTLED;
        _tile_zero(0);
        for (int part = 0; part < width; part += 32) {
            _tile_loadd(4, queries + part, 2 * width);
            _tile_loadd(6, keys + 16 * part, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, out + first, 4 * LONGEST);
    }
}

/* Context of 16 queries: (16, width), of weights with LONGEST numbers a row. */
AVX INLINE void context_by_dots(
    float *out, const uint16_t *weights, const uint16_t *values, int keys, int width
) {
    for (int part = 0; part < width; part += 32)
        for (int row = 0; row < ROWS; row += 8) {
            __m512 sum[8][2];
            for (int i = 0; i < 8; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
            for (int pair = 0; pair < keys / 2; pair++) {
                const uint16_t *at = values + 2 * (pair * width + part);
                __m512bh a = (__m512bh)_mm512_load_si512(at);
                __m512bh b = (__m512bh)_mm512_load_si512(at + 32);
                for (int i = 0; i < 8; i++) {
                    int32_t both;
                    memcpy(&both, weights + (row + i) * LONGEST + 2 * pair, 4);
                    __m512bh weight = (__m512bh)_mm512_set1_epi32(both);
                    sum[i][0] = _mm512_dpbf16_ps(sum[i][0], weight, a);
                    sum[i][1] = _mm512_dpbf16_ps(sum[i][1], weight, b);
                }
            }
            for (int i = 0; i < 8; i++) {
                _mm512_store_ps(out + (row + i) * width + part, sum[i][0]);
                _mm512_store_ps(out + (row + i) * width + part + 16, sum[i][1]);
            }
        }
}

AMX INLINE void context_by_tiles(
    float *out, const uint16_t *weights, const uint16_t *values, int keys, int width
) {
    for (int part = 0; part < width; part += 32) {
        SETTLED;
        _tile_zero(0);
        _tile_zero(1);
        for (int key = 0; key < keys; key += STEP) {
            const uint16_t *at = values + key * width + 2 * part;
            _tile_loadd(4, weights + key, 2 * LONGEST);
            _tile_loadd(6, at, 4 * width);
            _tile_loadd(7, at + 32, 4 * width);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, out + part, 4 * width);
        _tile_stored(1, out + part + 16, 4 * width);
    }
}

/* ------------------------------------------------------------------ attention */

/* e to 16 scores less `most`, zero where they are not `kept`. */
AVX INLINE __m512 raised(const float *scores, float most, __mmask16 kept) {
    __m512 x = _mm512_sub_ps(_mm512_load_ps(scores), _mm512_set1_ps(most));
    return _mm512_maskz_mov_ps(kept, power(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f))));
}

/* The first of 16 numbers that are among `left`. */
INLINE __mmask16 among(int left) {
    return (__mmask16)(left < 16 ? (1u << left) - 1 : 0xffff);
}

AVX INLINE float largest(const float *scores, int count) {
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (int i = 0; i < count; i += 16)
        most = _mm512_mask_max_ps(most, among(count - i), most, _mm512_load_ps(scores + i));
    return _mm512_reduce_max_ps(most);
}

/* Weights of one query in bf16, until the end of a step; returns the sum of what they were rounded
   to, so that one that outweighs all others has the whole. */
AVX INLINE float weigh(uint16_t *weights, const float *scores, int keys, float most) {
    int until = (keys + STEP - 1) / STEP * STEP;
    __m512 sum = _mm512_setzero_ps();
    int i = 0;
    for (; i + 16 <= keys; i += 16) {
        __m512 e = raised(scores + i, most, 0xffff);
        sum = _mm512_add_ps(sum, narrowed(weights + i, e));
    }
    for (; i < until; i += 16) {
        __m512 e = raised(scores + i, most, i < keys ? among(keys - i) : 0);
        sum = _mm512_add_ps(sum, narrowed(weights + i, e));
    }
    return _mm512_reduce_add_ps(sum);
}

/* Weights of 16 queries, not yet divided by their sums, whose reciprocals are returned in `shares`.
   The largest score is looked for, and left out of all, only where sums leave the range of floats,
   or come near. Keys between the last one and the end of its step get no weight. */
AVX INLINE void softmax(uint16_t *weights, float *shares, const float *scores, int keys) {
    for (int row = 0; row < ROWS; row++, scores += LONGEST, weights += LONGEST) {
        float sum = weigh(weights, scores, keys, 0);
        if (!(sum > 1e-30f && sum < 1e30f))
            sum = weigh(weights, scores, keys, largest(scores, keys));
        shares[row] = 1.0f / sum;
    }
}

#define ATTEND(name, target, scores_of, context_of, width)                                         \
    target static void name(                                                                       \
        const uint16_t *from, const int32_t *lengths, uint16_t *to, long count, long positions,    \
        long heads                                                                                 \
    ) {                                                                                            \
        _Alignas(64) uint16_t keys[LONGEST * width], values[LONGEST * width];                      \
        _Alignas(64) uint16_t queries[ROWS * width], weights[ROWS * LONGEST];                      \
        _Alignas(64) float scores[ROWS * LONGEST], context[ROWS * width], shares[ROWS];            \
        long hidden = heads * width, stride = 3 * hidden;                                          \
        for (long each = 0; each < count; each++) {                                                \
            int length = lengths[each];                                                            \
            uint16_t *out = to + each * positions * hidden;                                        \
            memset(out + length * hidden, 0, 2 * (positions - length) * hidden);                   \
            for (long head = 0; head < heads; head++) {                                            \
                const uint16_t *at = from + each * positions * stride + head * width;              \
                lay_out_keys(keys, at + hidden, stride, length, width);                            \
                lay_out_values(values, at + 2 * hidden, stride, length, width);                    \
                for (int row = 0; row < length; row += ROWS) {                                     \
                    int rows = length - row < ROWS ? length - row : ROWS;                          \
                    for (int i = 0; i < rows; i++)                                                 \
                        memcpy(queries + i * width, at + (row + i) * stride, 2 * width);           \
                    memset(queries + rows * width, 0, 2 * (ROWS - rows) * width);                  \
                    scores_of(scores, queries, keys, length, width);                               \
                    softmax(weights, shares, scores, length);                                      \
                    context_of(context, weights, values, (length + STEP - 1) / STEP * STEP, width);\
                    for (int i = 0; i < rows; i++)                                                 \
                        for (int part = 0; part < width; part += 16) {                             \
                            __m512 x = _mm512_load_ps(context + i * width + part);                 \
                            x = _mm512_mul_ps(x, _mm512_set1_ps(shares[i]));                       \
                            narrowed(out + (row + i) * hidden + head * width + part, x);           \
                        }                                                                          \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

ATTEND(attend_32_by_dots, AVX, scores_by_dots, context_by_dots, 32)
ATTEND(attend_64_by_dots, AVX, scores_by_dots, context_by_dots, 64)
ATTEND(attend_32_by_tiles, AMX, scores_by_tiles, context_by_tiles, 32)
ATTEND(attend_64_by_tiles, AMX, scores_by_tiles, context_by_tiles, 64)

/* Ask Linux for the tiles, once in a process: 1 if they may be used. */
int may_use_tiles(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

/* Attention of padded sequences, softmax(query key') value for each head; queries scaled already.

   projected: (count, positions, 3, heads, width), query, key and value of each position
   lengths:   (count), 0 to positions: tokens of each sequence, which come first
   context:   (count, positions, heads, width); zero at padding
   Returns 0, or 1 if the shape is none that is computed here. */
AMX int attend(
    const uint16_t *projected, const int32_t *lengths, uint16_t *context, long count,
    long positions, long heads, long width, int tiles
) {
    if ((width != 32 && width != 64) || positions < 1 || positions > LONGEST) return 1;
    for (long each = 0; each < count; each++)
        if (lengths[each] < 0 || lengths[each] > positions) return 1;
    if (!tiles) {
        (width == 32 ? attend_32_by_dots : attend_64_by_dots)(
            projected, lengths, context, count, positions, heads
        );
        return 0;
    }
    Tiles before;
    begin_tiles(&before);
    (width == 32 ? attend_32_by_tiles : attend_64_by_tiles)(
        projected, lengths, context, count, positions, heads
    );
    end_tiles(&before);
    return 0;
}

/* ------------------------------------------------------------------ one query a sequence */

/* Averages of hidden states by `group` queries that lie one after the other. */
AVX INLINE void average_by(
    const float *queries, const float *hidden, int length, float *mean, long width, const int group
) {
    _Alignas(64) float weights[4][LONGEST];
    float shares[4];
    for (int at = 0; at < length; at++) {
        __m512 sum[4];
        for (int i = 0; i < group; i++) sum[i] = _mm512_setzero_ps();
        for (long part = 0; part < width; part += 16) {
            __m512 x = _mm512_loadu_ps(hidden + at * width + part);
            for (int i = 0; i < group; i++)
                sum[i] = _mm512_fmadd_ps(x, _mm512_loadu_ps(queries + i * width + part), sum[i]);
        }
        for (int i = 0; i < group; i++) weights[i][at] = _mm512_reduce_add_ps(sum[i]);
    }
    for (int i = 0; i < group; i++) {
        float most = largest(weights[i], length);
        __m512 sum = _mm512_setzero_ps();
        for (int at = 0; at < length; at += 16) {
            __m512 e = raised(weights[i] + at, most, among(length - at));
            sum = _mm512_add_ps(sum, e);
            _mm512_store_ps(weights[i] + at, e);
        }
        shares[i] = 1.0f / _mm512_reduce_add_ps(sum); /* weights times it may be no normal numbers */
    }
    for (long part = 0; part < width; part += 32) {
        __m512 sum[4][2];
        for (int i = 0; i < group; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
        for (int at = 0; at < length; at++) {
            __m512 a = _mm512_loadu_ps(hidden + at * width + part);
            __m512 b = _mm512_loadu_ps(hidden + at * width + part + 16);
            for (int i = 0; i < group; i++) {
                __m512 weight = _mm512_set1_ps(weights[i][at]);
                sum[i][0] = _mm512_fmadd_ps(weight, a, sum[i][0]);
                sum[i][1] = _mm512_fmadd_ps(weight, b, sum[i][1]);
            }
        }
        for (int i = 0; i < group; i++) {
            __m512 share = _mm512_set1_ps(shares[i]);
            _mm512_storeu_ps(mean + i * width + part, _mm512_mul_ps(share, sum[i][0]));
            _mm512_storeu_ps(mean + i * width + part + 16, _mm512_mul_ps(share, sum[i][1]));
        }
    }
}

/* Hidden states of padded sequences, averaged by softmax(query hidden') for each head, in floats.

   queries, mean: (count, heads, width); hidden: (count, positions, width)
   lengths:       (count), 1 to positions: tokens of each sequence, which come first
   Returns 0, or 1 if the shape is none that is computed here. */
AVX int average(
    const float *queries, const float *hidden, const int32_t *lengths, float *mean, long count,
    long positions, long heads, long width
) {
    if (positions > LONGEST || width < 32 || width % 32) return 1;
    for (long each = 0; each < count; each++)
        if (lengths[each] < 1 || lengths[each] > positions) return 1;
    for (long each = 0; each < count; each++, hidden += positions * width) {
        long head = 0;
        for (; head + 4 <= heads; head += 4, queries += 4 * width, mean += 4 * width)
            average_by(queries, hidden, lengths[each], mean, width, 4);
        for (; head < heads; head++, queries += width, mean += width)
            average_by(queries, hidden, lengths[each], mean, width, 1);
    }
    return 0;
}

/* ------------------------------------------------------------------ linear layers */

/* The exact GELU, x Phi(x), to 2e-5: Phi(x) = 1/2 + x P(x^2), P a minimax polynomial between -4.5
   and 4.5, beyond which Phi is 0 or 1 to 4e-8. */
AVX INLINE __m512 gelu(__m512 x) {
    static const float of[] = {
        6.741851e-4f, -2.135153e-3f, 3.3573252e-3f, -5.6399447e-3f, 1.097865e-2f, -1.8780136e-2f,
        2.841591e-2f, -4.0163174e-2f, 5.468834e-2f, -7.71907e-2f, 1.5690582e-1f,
    };
    const __m512 end = _mm512_set1_ps(4.5f);
    __m512 y = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-4.5f)), end);
    __m512 s = _mm512_fmsub_ps(
        _mm512_mul_ps(y, y), _mm512_set1_ps(2 / 20.25f), _mm512_set1_ps(1.0f)
    );
    __m512 p = _mm512_set1_ps(of[0]);
    for (int i = 1; i < 11; i++) p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(of[i]));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(y, p, _mm512_set1_ps(0.5f)));
}

/* A block whose sums are there: (BLOCK, BLOCK) floats, and where they belong. */
typedef struct {
    const float *sums;
    long row, column;
} Done;

/* What becomes of one row of a block's sums. */
AVX INLINE void finish(
    Done done, int row, const float *bias, uint16_t *out, long width, int with_gelu
) {
    const float *sums = done.sums + row * BLOCK;
    long at = (done.row + row) * width + done.column;
    __m512 a = _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(bias + done.column));
    __m512 b = _mm512_add_ps(_mm512_load_ps(sums + 16), _mm512_loadu_ps(bias + done.column + 16));
    if (with_gelu) {
        a = gelu(a);
        b = gelu(b);
    }
    _mm512_storeu_si512(out + at, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* Rows of `x`, of which there are BLOCK or more; `real` of each block's are wanted, all but where
   there were fewer. Blocks of 32 rows stay in the first cache while the weights pass by; long rows
   are cut into `part` numbers, whose sums wait in memory. Weights are read past the first cache,
   where they would push out the rows. While tiles multiply, the block before is finished, and the
   rows of the next are fetched. */
AMX INLINE void multiply_blocks(
    const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *out, long rows, int real,
    long depth, long width, long part, int with_gelu
) {
    _Alignas(64) static _Thread_local float sums[WIDEST_BLOCKS][BLOCK * BLOCK];
    Done before = {0, 0, 0};
    for (long row = 0; row < rows; row += BLOCK) {
        if (row > rows - BLOCK) row = rows - BLOCK; /* some are computed twice */
        const uint16_t *soon = x + (row + BLOCK) * depth;
        const uint16_t *end = x + (row + 2 * BLOCK <= rows ? row + 2 * BLOCK : rows) * depth;
        for (long start = 0; start < depth; start += part)
            for (long column = 0; column < width; column += BLOCK) {
                long block = column / BLOCK;
                float *here = sums[part < depth ? block : block % 2];
                const uint16_t *left = x + row * depth + start;
                const uint16_t *right = weights + column * depth + start * BLOCK;
                int finished = before.sums ? 0 : real;
                int each = (int)((BLOCK * 32 + part - 1) / part); /* rows in a step */
                SETTLED;
                if (start) {
                    _tile_loadd(0, here, 4 * BLOCK);
                    _tile_loadd(1, here + 16, 4 * BLOCK);
                    _tile_loadd(2, here + 16 * BLOCK, 4 * BLOCK);
                    _tile_loadd(3, here + 16 * BLOCK + 16, 4 * BLOCK);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (long at = 0; at < part; at += 32) {
                    _tile_loadd(4, left + at, 2 * depth);
                    _tile_stream_loadd(6, right + BLOCK * at, 64);
                    _tile_stream_loadd(7, right + BLOCK * at + 16 * 32, 64);
                    _tile_loadd(5, left + 16 * depth + at, 2 * depth);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                    for (int i = 0; i < LINES && soon < end; i++, soon += 32)
                        __builtin_prefetch(soon, 0, 2);
                    for (int i = 0; i < each && finished < real; i++, finished++)
                        finish(before, finished, bias, out, width, with_gelu);
                }
                for (; finished < real; finished++)
                    finish(before, finished, bias, out, width, with_gelu);
                before.sums = 0;
                _tile_stored(0, here, 4 * BLOCK);
                _tile_stored(1, here + 16, 4 * BLOCK);
                _tile_stored(2, here + 16 * BLOCK, 4 * BLOCK);
                _tile_stored(3, here + 16 * BLOCK + 16, 4 * BLOCK);
                if (start + part == depth) before = (Done){here, row, column};
            }
    }
    for (int row = 0; row < real; row++)
        finish(before, row, bias, out, width, with_gelu);
}

/* Weights (width, depth) as `multiply` wants them, of the same size. */
AVX int lay_out(const uint16_t *from, uint16_t *to, long depth, long width) {
    if (depth % 32 || width % BLOCK || (intptr_t)to % 64) return 1;
    for (long row = 0; row < width; row += BLOCK)
        for (long start = 0; start < depth; start += 32)
            for (long half = 0; half < BLOCK; half += 16, to += 16 * 32)
                lay_out_keys(to, from + (row + half) * depth + start, depth, 16, 32);
    return 0;
}

/* A linear layer by tiles: x weights' + bias, then GELU if asked for.

   x: (rows, depth); weights as laid out; bias: (width) floats; out: (rows, width)
   Returns 0, or 1 if the shape is none that is computed here. */
AMX int multiply(
    const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *out, long rows,
    long depth, long width, int with_gelu
) {
    _Alignas(64) static _Thread_local uint16_t few[BLOCK * DEEPEST_ROW];
    long part = depth <= 512 ? depth : depth % 512 == 0 ? 512 : 384;
    int real = rows < BLOCK ? (int)rows : BLOCK;
    if (rows < 1 || depth < 32 || depth % 32 || depth % part || depth > DEEPEST_ROW) return 1;
    if (width < BLOCK || width % BLOCK || width > WIDEST_BLOCKS * BLOCK) return 1;
    if (rows < BLOCK) {
        memcpy(few, x, 2 * rows * depth);
        memset(few + rows * depth, 0, 2 * (BLOCK - rows) * depth);
        x = few;
        rows = BLOCK;
    }
    Tiles before;
    begin_tiles(&before);
    if (with_gelu)
        multiply_blocks(x, weights, bias, out, rows, real, depth, width, part, 1);
    else
        multiply_blocks(x, weights, bias, out, rows, real, depth, width, part, 0);
    end_tiles(&before);
    return 0;
}

/* ------------------------------------------------------------------ rows */

/* Norm of a row of floats in `row`, which is overwritten; rounded and exact. */
AVX INLINE void normed(
    uint16_t *to, float *exact, float *row, const float *weight, const float *bias, long width,
    float epsilon
) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_load_ps(row + i));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
    for (long i = 0; i < width; i += 16) {
        __m512 x = _mm512_sub_ps(_mm512_load_ps(row + i), mean);
        squares = _mm512_fmadd_ps(x, x, squares);
        _mm512_store_ps(row + i, x);
    }
    float variance = _mm512_reduce_add_ps(squares) / (float)width;
    if (variance > 3.4e38f) variance = __builtin_nanf(""); /* as torch: never a plausible number */
    variance += epsilon;
    __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(variance)));
    for (long i = 0; i < width; i += 16) {
        __m512 x = _mm512_mul_ps(_mm512_load_ps(row + i), share);
        x = _mm512_fmadd_ps(x, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i));
        _mm512_storeu_ps(exact + i, x);
        narrowed(to + i, x);
    }
}

/* LayerNorm of sums of rows of `width` numbers, a multiple of 16; weight and bias in floats.

   from, other: (rows, width), in bf16 and in floats
   to, exact: the outcome in bf16 and in floats
   Returns 0, or 1 if the width is none that is computed here. */
AVX int norm(
    const uint16_t *from, const float *other, const float *weight, const float *bias, uint16_t *to,
    float *exact, long rows, long width, float epsilon
) {
    _Alignas(64) float row[DEEPEST];
    if (width < 16 || width > DEEPEST || width % 16) return 1;
    for (long n = 0; n < rows; n++, from += width, other += width, to += width, exact += width) {
        for (long i = 0; i < width; i += 16)
            _mm512_store_ps(row + i, _mm512_add_ps(widened(from + i), _mm512_loadu_ps(other + i)));
        normed(to, exact, row, weight, bias, width, epsilon);
    }
    return 0;
}

/* The sum of three embeddings, and its LayerNorm, in bf16 and in floats.

   ids, kinds: (count, positions), of words and of segments
   words, places, segments: tables of so many rows of `width` numbers
   Returns 0; 1 if the shape is none that is computed here; 2 if a table has no such row. */
AVX int embed(
    const int64_t *ids, const int64_t *kinds, const float *words, long word_rows,
    const float *places, long place_rows, const float *segments, long segment_rows,
    const float *weight, const float *bias, uint16_t *to, float *exact, long count,
    long positions, long width, float epsilon
) {
    _Alignas(64) float row[DEEPEST];
    if (width < 16 || width > DEEPEST || width % 16) return 1;
    if (positions > place_rows) return 2;
    for (long n = 0; n < count * positions; n++, to += width, exact += width) {
        if (ids[n] < 0 || ids[n] >= word_rows || kinds[n] < 0 || kinds[n] >= segment_rows) return 2;
        if (n + SOON < count * positions && ids[n + SOON] >= 0 && ids[n + SOON] < word_rows)
            for (long i = 0; i < width; i += 16)
                __builtin_prefetch(words + ids[n + SOON] * width + i);
        const float *word = words + ids[n] * width, *place = places + n % positions * width;
        const float *segment = segments + kinds[n] * width;
        for (long i = 0; i < width; i += 16) {
            __m512 sum = _mm512_add_ps(_mm512_loadu_ps(word + i), _mm512_loadu_ps(segment + i));
            _mm512_store_ps(row + i, _mm512_add_ps(sum, _mm512_loadu_ps(place + i)));
        }
        normed(to, exact, row, weight, bias, width, epsilon);
    }
    return 0;
}
