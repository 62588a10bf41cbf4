/* What a BERT layer computes in bf16, for x86-64 with AVX-512 BF16 or AMX.

   Attention over short sequences, layer norms and embeddings take as long by torch's operators, each
   of which reads and writes everything, as all multiplications take. Here a head's attention stays
   in the cache from its scores to its context, and a row while it is normed. With AMX linear layers
   are here as well: oneDNN prepares each anew for every number of rows, which takes longer than to
   multiply, and has a GELU that takes half as long as that. Without AMX it multiplies as fast as the
   processor can. And whole layers are here, a few sequences at a time: what passes between their parts
   stays in the second cache. Nothing is kept but room that each thread has of its own: many call at
   once. A stack of 256 KB is enough.

   bf16 is passed as uint16_t. scripts/build_native.py compiles this, pipeline/models/native.py calls
   it, and pipeline/models/proof.py looks at what it computes before it is used. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VERSION 6
#define AVX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline))

/* What was written before is in memory: GCC's intrinsics do not say that tiles are read from there. */
#define SETTLED __asm__ volatile("" ::: "memory")

enum {
    ROWS = 32,      /* queries that are computed together: the rows of two tiles */
    STEP = 32,      /* keys in one step of the second multiplication */
    LONGEST = 512,  /* positions of a sequence */
    DEEPEST = 1024, /* numbers of a hidden state */
    BLOCK = 32,     /* rows and columns that are multiplied together: two tiles each way */
    GROUP = 32,     /* numbers of a row that lie side by side at least: 64 bytes */
    LONGEST_ROW = 4096, /* numbers that go into a linear layer, or come out */
    MOST_ROWS = 512,    /* rows that are multiplied by a panel of weights before the next comes */
    SOON = 6,           /* words ahead whose embeddings are fetched */
};

/* Rows in bf16: number j of row i is at[i * row + j / GROUP * group + j % GROUP]. Where the numbers
   of a row lie side by side, `group` is GROUP; where those groups lie far apart and rows are 64
   bytes, a tile is a kilobyte in one piece, and a head's rows follow each other. */
typedef struct {
    uint16_t *at;
    long row, group;
} Rows;

INLINE Rows beyond(Rows rows, long i, long j) {
    rows.at += i * rows.row + j / GROUP * rows.group + j % GROUP;
    return rows;
}

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
   numbers of a head. Keys behind the last, up to `until`, are zero. */
AVX INLINE void lay_out_keys(uint16_t *to, Rows from, int keys, int until, int width) {
    for (int first = 0; first < until; first += 16)
        for (int part = 0; part < width; part += 32) {
            __m512i r[16], s[16];
            for (int i = 0; i < 16; i++)
                r[i] = first + i < keys
                    ? _mm512_loadu_si512(beyond(from, first + i, part).at)
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

/* Values as the second operand: [pairs of keys][numbers][2], of 32 numbers first those that `in_order`
   puts first. Keys behind the last are zero. */
AVX INLINE void lay_out_values(uint16_t *to, Rows from, int keys, int width) {
    int until = (keys + STEP - 1) / STEP * STEP;
    for (int key = 0; key < until; key += 2)
        for (int part = 0; part < width; part += 32, to += 64) {
            __m512i a = _mm512_setzero_si512(), b = a;
            if (key < keys) a = _mm512_loadu_si512(beyond(from, key, part).at);
            if (key + 1 < keys) b = _mm512_loadu_si512(beyond(from, key + 1, part).at);
            _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
            _mm512_store_si512(to + 32, _mm512_unpackhi_epi16(a, b));
        }
}

/* 32 numbers of a context in bf16, in the order of the value's: fours of them take turns. */
AVX INLINE __m512i in_order(__m512 first, __m512 second) {
    __m512i turns = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm512_permutexvar_epi64(turns, (__m512i)_mm512_cvtne2ps_pbh(second, first));
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

/* Scores of ROWS queries: (ROWS, keys), `out` with `apart` numbers a row. */
AVX INLINE void scores_by_dots(
    float *out, const uint16_t *queries, const uint16_t *keys, int count, int width, long apart
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
            for (int i = 0; i < 8; i++) _mm512_store_ps(out + (row + i) * apart + first, sum[i]);
        }
}

AMX INLINE void scores_by_tiles(
    float *out, const uint16_t *queries, const uint16_t *keys, int count, int width, long apart
) {
    for (int first = 0; first < count; first += 32, keys += 32 * width) {
        SETTLED;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int part = 0; part < width; part += 32) {
            _tile_loadd(4, queries + part, 2 * width);
            _tile_loadd(5, queries + 16 * width + part, 2 * width);
            _tile_loadd(6, keys + 16 * part, 64);
            _tile_loadd(7, keys + 16 * width + 16 * part, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out + first, 4 * apart);
        _tile_stored(1, out + first + 16, 4 * apart);
        _tile_stored(2, out + 16 * apart + first, 4 * apart);
        _tile_stored(3, out + 16 * apart + first + 16, 4 * apart);
    }
}

/* Context of ROWS queries: (ROWS, width), of weights with `apart` numbers a row. */
AVX INLINE void context_by_dots(
    float *out, const uint16_t *weights, const uint16_t *values, int keys, int width, long apart
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
                    memcpy(&both, weights + (row + i) * apart + 2 * pair, 4);
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
    float *out, const uint16_t *weights, const uint16_t *values, int keys, int width, long apart
) {
    for (int part = 0; part < width; part += 32) {
        SETTLED;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int key = 0; key < keys; key += STEP) {
            const uint16_t *at = values + key * width + 2 * part;
            _tile_loadd(4, weights + key, 2 * apart);
            _tile_loadd(5, weights + 16 * apart + key, 2 * apart);
            _tile_loadd(6, at, 4 * width);
            _tile_loadd(7, at + 32, 4 * width);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out + part, 4 * width);
        _tile_stored(1, out + part + 16, 4 * width);
        _tile_stored(2, out + 16 * width + part, 4 * width);
        _tile_stored(3, out + 16 * width + part + 16, 4 * width);
    }
}

/* ------------------------------------------------------------------ attention */

/* Which of 16 powers of 2 are more than nothing beside 1: below, a weight is zero, for a sum of a few
   such is beyond the last bit of a float, and products with them are no normal numbers. What is no
   number is among them, and stays none. */
AVX INLINE __mmask16 weighty(__m512 t) {
    return _mm512_cmp_ps_mask(t, _mm512_set1_ps(-100.0f), _CMP_NLT_UQ);
}

/* e to 16 scores less the largest, zero where they are not `kept`. */
AVX INLINE __m512 raised(const float *scores, float most, __mmask16 kept) {
    __m512 t = _mm512_sub_ps(_mm512_load_ps(scores), _mm512_set1_ps(most));
    t = _mm512_mul_ps(t, _mm512_set1_ps(1.44269504088896341f));
    return _mm512_maskz_mov_ps(kept & weighty(t), power(t));
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

/* e to 16 scores less `most`, good for bf16: to 1e-4 of it. Beyond 2 to 127 it is about that, which is
   what `softmax` looks for; what is no number stays none. Where `most` is the largest of them, those
   that weigh nothing are zero. */
AVX INLINE __m512 roughly_raised(const float *scores, float most, int is_largest) {
    const __m512 whole = _mm512_set1_ps(12582912.0f); /* 3 x 2^22: adding it leaves no fraction */
    __m512 t = _mm512_sub_ps(_mm512_load_ps(scores), _mm512_set1_ps(most));
    t = _mm512_mul_ps(t, _mm512_set1_ps(1.44269504088896341f));
    __mmask16 kept = is_largest ? weighty(t) : 0xffff;
    t = _mm512_max_ps(_mm512_set1_ps(-125.0f), _mm512_min_ps(_mm512_set1_ps(127.0f), t));
    __m512 n = _mm512_add_ps(t, whole);
    __m512 f = _mm512_sub_ps(t, _mm512_sub_ps(n, whole)); /* -1/2 to 1/2 */
    __m512 p = _mm512_set1_ps(5.517168985e-2f); /* 2^f, minimax */
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.426111740e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.932609868e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.999280705e-1f));
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
    return is_largest ? _mm512_maskz_mov_ps(kept, p) : p;
}

/* Weights of one query in bf16, until the end of a step; returns the sum of what they were rounded
   to, so that one that outweighs all others has the whole. */
AVX INLINE float weigh(
    uint16_t *weights, const float *scores, int keys, float most, int is_largest
) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < keys; i += STEP) {
        __m512 a = roughly_raised(scores + i, most, is_largest);
        __m512 b = roughly_raised(scores + i + 16, most, is_largest);
        if (i + STEP > keys) {
            a = _mm512_maskz_mov_ps(among(keys - i), a);
            b = _mm512_maskz_mov_ps(i + 16 < keys ? among(keys - i - 16) : 0, b);
        }
        __m512bh both = _mm512_cvtne2ps_pbh(b, a);
        _mm512_store_si512(weights + i, (__m512i)both);
        sum = _mm512_dpbf16_ps(sum, both, ones);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Weights of some queries, not yet divided by their sums, whose reciprocals are returned in `shares`.
   The largest score is looked for, and left out of all, only where sums leave the range of floats,
   or come near. Keys between the last one and the end of its step get no weight. */
AVX INLINE void softmax(
    uint16_t *weights, float *shares, const float *scores, int rows, int keys, long apart
) {
    for (int row = 0; row < rows; row++, scores += apart, weights += apart) {
        float sum = weigh(weights, scores, keys, 0, 0);
        if (!(sum > 1e-30f && sum < 1e30f))
            sum = weigh(weights, scores, keys, largest(scores, keys), 1);
        shares[row] = 1.0f / sum;
    }
}

/* All heads of one sequence, whose first row is that of `projected` and `context`. */
#define ATTEND(name, target, scores_of, context_of, width)                                         \
    target static void name(Rows projected, Rows context, int length, long heads) {                \
        _Alignas(64) uint16_t keys[LONGEST * width], values[LONGEST * width];                      \
        _Alignas(64) uint16_t queries[ROWS * width], weights[ROWS * LONGEST];                      \
        _Alignas(64) float scores[ROWS * LONGEST], sums[ROWS * width], shares[ROWS];               \
        long apart = (length + STEP - 1) / STEP * STEP; /* rows side by side fill the cache evenly */ \
        for (long head = 0; head < heads; head++) {                                                \
            Rows key = beyond(projected, 0, (heads + head) * width);                               \
            Rows value = beyond(projected, 0, (2 * heads + head) * width);                         \
            lay_out_keys(keys, key, length, apart, width);                                         \
            lay_out_values(values, value, length, width);                                          \
            for (int row = 0; row < length; row += ROWS) {                                         \
                int rows = length - row < ROWS ? length - row : ROWS;                              \
                for (int i = 0; i < rows; i++)                                                     \
                    for (int part = 0; part < width; part += 32)                                   \
                        memcpy(                                                                    \
                            queries + i * width + part,                                            \
                            beyond(projected, row + i, head * width + part).at, 64                 \
                        );                                                                         \
                memset(queries + rows * width, 0, 2 * (ROWS - rows) * width);                      \
                memset(weights + rows * apart, 0, 2 * (ROWS - rows) * apart);                      \
                scores_of(scores, queries, keys, apart, width, apart);                             \
                softmax(weights, shares, scores, rows, length, apart);                             \
                context_of(sums, weights, values, apart, width, apart);                            \
                for (int i = 0; i < rows; i++)                                                     \
                    for (int part = 0; part < width; part += 32) {                                 \
                        const float *at = sums + i * width + part;                                 \
                        __m512 share = _mm512_set1_ps(shares[i]);                                  \
                        __m512 first = _mm512_mul_ps(_mm512_load_ps(at), share);                   \
                        __m512 second = _mm512_mul_ps(_mm512_load_ps(at + 16), share);             \
                        _mm512_storeu_si512(                                                       \
                            beyond(context, row + i, head * width + part).at,                      \
                            in_order(first, second)                                                \
                        );                                                                         \
                    }                                                                              \
            }                                                                                      \
        }                                                                                          \
    }

ATTEND(attend_32_by_dots, AVX, scores_by_dots, context_by_dots, 32)
ATTEND(attend_64_by_dots, AVX, scores_by_dots, context_by_dots, 64)
ATTEND(attend_32_by_tiles, AMX, scores_by_tiles, context_by_tiles, 32)
ATTEND(attend_64_by_tiles, AMX, scores_by_tiles, context_by_tiles, 64)

typedef void Attend(Rows, Rows, int, long);

static Attend *attends(long width, int tiles) {
    if (tiles) return width == 32 ? attend_32_by_tiles : attend_64_by_tiles;
    return width == 32 ? attend_32_by_dots : attend_64_by_dots;
}

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
    Tiles before;
    if (tiles) begin_tiles(&before);
    Attend *one = attends(width, tiles);
    long hidden = heads * width;
    for (long each = 0; each < count; each++) {
        uint16_t *to = context + each * positions * hidden;
        Rows from = {(uint16_t *)projected + each * positions * 3 * hidden, 3 * hidden, GROUP};
        one(from, (Rows){to, hidden, GROUP}, lengths[each], heads);
        memset(to + lengths[each] * hidden, 0, 2 * (positions - lengths[each]) * hidden);
    }
    if (tiles) end_tiles(&before);
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

/* x Phi(-x), as a parabola around each of 32 numbers from 0 to 4.92, to 1.7e-5. */
static const _Alignas(64) float tail[3][32] = {
    {
        -3.2936225e-07f, 1.0365539e-04f, 1.8420694e-03f, 8.9695426e-03f, 2.6172681e-02f, 5.7272431e-02f, 1.0361976e-01f, 1.6319856e-01f,
        2.3070207e-01f, 2.9853058e-01f, 3.5838306e-01f, 4.0296924e-01f, 4.2738470e-01f, 4.2984143e-01f, 4.1166297e-01f, 3.7665817e-01f,
        3.3012286e-01f, 2.7775845e-01f, 2.2475098e-01f, 1.7515844e-01f, 1.3164599e-01f, 9.5521785e-02f, 6.6976212e-02f, 4.5416452e-02f,
        2.9804822e-02f, 1.8941276e-02f, 1.1663218e-02f, 6.9618411e-03f, 4.0300800e-03f, 2.2633648e-03f, 1.2336649e-03f, 6.5279566e-04f,
    },
    {
        5.0000000e-01f, 4.9796674e-01f, 4.8389581e-01f, 4.4840300e-01f, 3.8676813e-01f, 2.9984030e-01f, 1.9367677e-01f, 7.8085504e-02f,
        -3.5500802e-02f, -1.3627021e-01f, -2.1588571e-01f, -2.6960236e-01f, -2.9652938e-01f, -2.9913640e-01f, -2.8225467e-01f, -2.5188142e-01f,
        -2.1406621e-01f, -1.7407085e-01f, -1.3588500e-01f, -1.0208265e-01f, -7.3940828e-02f, -5.1714286e-02f, -3.4966018e-02f, -2.2877729e-02f,
        -1.4496425e-02f, -8.9019444e-03f, -5.3007286e-03f, -3.0621646e-03f, -1.7169223e-03f, -9.3468477e-04f, -4.9421471e-04f, -2.5388045e-04f,
    },
    {
        -3.9852384e-01f, -3.8859022e-01f, -3.5989371e-01f, -3.1556714e-01f, -2.6026902e-01f, -1.9946326e-01f, -1.3862680e-01f, -8.2533449e-02f,
        -3.4733754e-02f, 2.7038604e-03f, 2.9185800e-02f, 4.5367844e-02f, 5.2792944e-02f, 5.3482931e-02f, 4.9563225e-02f, 4.2973969e-02f,
        3.5291020e-02f, 2.7653437e-02f, 2.0775830e-02f, 1.5015553e-02f, 1.0465100e-02f, 7.0460420e-03f, 4.5892969e-03f, 2.8947906e-03f,
        1.7698471e-03f, 1.0495654e-03f, 6.0407742e-04f, 3.3759649e-04f, 1.8327600e-04f, 9.6687327e-05f, 4.9581820e-05f, 2.4721772e-05f,
    },
};

/* The exact GELU, x Phi(x), to 2e-5: what is positive, less that tail on both sides. */
AVX INLINE __m512 gelu(__m512 x) {
    const __m512i nan_for_minus_infinity = _mm512_set1_epi32(0x30000); /* as torch has it */
    __m512 y = _mm512_min_ps(_mm512_set1_ps(4.99f), _mm512_abs_ps(x));
    /* Added to 3 x 2^22 it leaves no fraction, and the last bits say which parabola it is. */
    __m512i which = (__m512i)_mm512_fmadd_ps(y, _mm512_set1_ps(6.3f), _mm512_set1_ps(12582912.0f));
    __m512 a = _mm512_permutex2var_ps(_mm512_load_ps(tail[0]), which, _mm512_load_ps(tail[0] + 16));
    __m512 b = _mm512_permutex2var_ps(_mm512_load_ps(tail[1]), which, _mm512_load_ps(tail[1] + 16));
    __m512 c = _mm512_permutex2var_ps(_mm512_load_ps(tail[2]), which, _mm512_load_ps(tail[2] + 16));
    a = _mm512_fmadd_ps(_mm512_fmadd_ps(c, y, b), y, a);
    a = _mm512_sub_ps(_mm512_max_ps(x, _mm512_setzero_ps()), a);
    return _mm512_fixupimm_ps(a, x, nan_for_minus_infinity, 0);
}

/* Of rows so long, how much is multiplied at once: a panel of weights fits the first cache. */
INLINE long part_of(long depth) {
    return depth <= 512 ? depth : depth % 512 == 0 ? 512 : 384;
}

static int can_multiply(long depth, long width) {
    return depth >= 32 && depth % 32 == 0 && depth % part_of(depth) == 0 && depth <= LONGEST_ROW &&
        width >= BLOCK && width % BLOCK == 0 && width <= LONGEST_ROW;
}

/* A block whose sums are there: (BLOCK, BLOCK) floats, and where they belong. */
typedef struct {
    const float *sums, *bias;
    uint16_t *to;
    int rows; /* that are wanted */
} Done;

/* What becomes of one row of a block's sums. */
AVX INLINE void finish(Done done, int row, long apart, int with_gelu) {
    const float *sums = done.sums + row * BLOCK;
    __m512 a = _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(done.bias));
    __m512 b = _mm512_add_ps(_mm512_load_ps(sums + 16), _mm512_loadu_ps(done.bias + 16));
    if (with_gelu) {
        a = gelu(a);
        b = gelu(b);
    }
    _mm512_storeu_si512(done.to + row * apart, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* A linear layer: what `multiply` says, of `rows` from BLOCK to MOST_ROWS, of which the first `wanted`
   are written: those behind them are read, and may be anything. A panel of weights, for 32
   numbers that come out, stays in the first cache while all rows pass by, past that cache, which they
   would fill. Long rows are cut into `part` numbers, whose sums wait in memory. While tiles multiply,
   the block before is finished, and the weights that follow are fetched: at last those of `next`. */
AMX INLINE void multiply_rows(
    Rows x, const uint16_t *weights, const float *bias, Rows out, long rows, long wanted, long depth,
    long width, int with_gelu, const uint16_t *next
) {
    /* Sums of a block wait for the parts that follow; else two blocks take turns, to stay in the
       cache. */
    _Alignas(64) static _Thread_local float sums[MOST_ROWS / BLOCK][BLOCK * BLOCK];
    long part = part_of(depth);
    int each = (int)((BLOCK * 32 + part - 1) / part); /* rows that are finished in a step */
    int lines = (int)((BLOCK * 32 + rows - 1) / rows); /* that are fetched in one */
    Done before = {0, 0, 0, 0};
    for (long column = 0; column < width; column += BLOCK)
        for (long start = 0; start < depth; start += part) {
            const uint16_t *right = weights + column * depth + start * BLOCK;
            const uint16_t *soon = right + part * BLOCK, *end = soon + part * BLOCK;
            if (column + BLOCK == width && start + part == depth) {
                soon = next;
                end = next ? next + part * BLOCK : next;
            }
            for (long n = 0; n < rows; n += BLOCK) {
                long row = n < rows - BLOCK ? n : rows - BLOCK; /* some are computed twice */
                float *here = sums[part < depth ? n / BLOCK : n / BLOCK % 2];
                const uint16_t *left = beyond(x, row, start).at;
                int both = wanted > row + 16, finished = 0;
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
                for (long at = 0; at < part; at += 32, left += x.group) {
                    _tile_stream_loadd(4, left, 2 * x.row);
                    _tile_loadd(6, right + BLOCK * at, 64);
                    _tile_loadd(7, right + BLOCK * at + 16 * 32, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    if (both) {
                        _tile_stream_loadd(5, left + 16 * x.row, 2 * x.row);
                        _tile_dpbf16ps(2, 5, 6);
                        _tile_dpbf16ps(3, 5, 7);
                    }
                    for (int i = 0; i < lines && soon < end; i++, soon += 32)
                        __builtin_prefetch(soon);
                    for (int i = 0; i < each && finished < before.rows; i++, finished++)
                        finish(before, finished, out.row, with_gelu);
                }
                for (; finished < before.rows; finished++)
                    finish(before, finished, out.row, with_gelu);
                before.rows = 0;
                _tile_stored(0, here, 4 * BLOCK);
                _tile_stored(1, here + 16, 4 * BLOCK);
                _tile_stored(2, here + 16 * BLOCK, 4 * BLOCK);
                _tile_stored(3, here + 16 * BLOCK + 16, 4 * BLOCK);
                if (start + part == depth) {
                    int left_over = wanted - row < BLOCK ? (int)(wanted - row) : BLOCK;
                    before = (Done){here, bias + column, beyond(out, row, column).at, left_over};
                }
            }
        }
    for (int row = 0; row < before.rows; row++) finish(before, row, out.row, with_gelu);
}

AMX static void multiply_by(
    Rows x, const uint16_t *weights, const float *bias, Rows out, long rows, long wanted, long depth,
    long width, int with_gelu, const uint16_t *next
) {
    if (with_gelu)
        multiply_rows(x, weights, bias, out, rows, wanted, depth, width, 1, next);
    else
        multiply_rows(x, weights, bias, out, rows, wanted, depth, width, 0, next);
}

/* Weights (width, depth) as `multiply` wants them, of the same size. */
AVX int lay_out(const uint16_t *from, uint16_t *to, long depth, long width) {
    if (depth % 32 || width % BLOCK || (intptr_t)to % 64) return 1;
    Rows all = {(uint16_t *)from, depth, GROUP};
    for (long row = 0; row < width; row += BLOCK)
        for (long start = 0; start < depth; start += 32)
            for (long half = 0; half < BLOCK; half += 16, to += 16 * 32)
                lay_out_keys(to, beyond(all, row + half, start), 16, 16, 32);
    return 0;
}

/* A linear layer by tiles: x weights' + bias, then GELU if asked for.

   x: (rows, depth); weights as laid out; bias: (width) floats; out: (rows, width)
   Returns 0, or 1 if the shape is none that is computed here. */
AMX int multiply(
    const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *out, long rows,
    long depth, long width, int with_gelu
) {
    _Alignas(64) static _Thread_local uint16_t few[BLOCK * LONGEST_ROW];
    if (rows < 1 || !can_multiply(depth, width)) return 1;
    long wanted = rows;
    if (rows < BLOCK) {
        memcpy(few, x, 2 * rows * depth);
        memset(few + rows * depth, 0, 2 * (BLOCK - rows) * depth);
        x = few;
        rows = BLOCK;
    }
    Tiles before;
    begin_tiles(&before);
    for (long row = 0; row < rows; row += MOST_ROWS) {
        if (row > rows - BLOCK) row = rows - BLOCK; /* some are computed twice */
        long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        multiply_by(
            (Rows){(uint16_t *)x + row * depth, depth, GROUP}, weights, bias,
            (Rows){out + row * width, width, GROUP}, some, wanted - row, depth, width, with_gelu, 0
        );
    }
    end_tiles(&before);
    return 0;
}

/* ------------------------------------------------------------------ rows */

/* Norm of a row of floats in `row`, which is overwritten; `sum` is that of its even and odd sixteens:
   one alone would wait for itself. Rounded, groups of numbers `group` apart, and exact. */
AVX INLINE void normed(
    uint16_t *to, long group, float *exact, float *row, __m512 sum[2], const float *weight,
    const float *bias, long width, float epsilon
) {
    __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    float total = _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
    __m512 mean = _mm512_set1_ps(total / (float)width);
    for (long i = 0; i < width; i += 32)
        for (int k = 0; k < 2; k++) {
            __m512 x = _mm512_sub_ps(_mm512_load_ps(row + i + 16 * k), mean);
            squares[k] = _mm512_fmadd_ps(x, x, squares[k]);
            _mm512_store_ps(row + i + 16 * k, x);
        }
    float variance = _mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])) / (float)width;
    if (variance > 3.4e38f) variance = __builtin_nanf(""); /* never a plausible number */
    variance += epsilon;
    __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(variance)));
    for (long i = 0; i < width; i += 32, to += group) {
        __m512 x[2];
        for (int k = 0; k < 2; k++) {
            long at = i + 16 * k;
            x[k] = _mm512_mul_ps(_mm512_load_ps(row + at), share);
            x[k] = _mm512_fmadd_ps(x[k], _mm512_loadu_ps(weight + at), _mm512_loadu_ps(bias + at));
            _mm512_storeu_ps(exact + at, x[k]);
        }
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    }
}

/* LayerNorm of the sum of a row in bf16 and one in floats. */
AVX INLINE void norm_row(
    const uint16_t *from, const float *other, long group, uint16_t *to, float *exact,
    const float *weight, const float *bias, long width, float epsilon
) {
    _Alignas(64) float row[DEEPEST];
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (long i = 0; i < width; i += 32, from += group)
        for (int k = 0; k < 2; k++) {
            __m512 x = widened(from + 16 * k);
            x = _mm512_add_ps(x, _mm512_loadu_ps(other + i + 16 * k));
            sum[k] = _mm512_add_ps(sum[k], x);
            _mm512_store_ps(row + i + 16 * k, x);
        }
    normed(to, group, exact, row, sum, weight, bias, width, epsilon);
}

/* LayerNorm of sums of rows of `width` numbers, a multiple of 32; weight and bias in floats.

   from, other: (rows, width), in bf16 and in floats
   to, exact: the outcome in bf16 and in floats
   Returns 0, or 1 if the width is none that is computed here. */
AVX int norm(
    const uint16_t *from, const float *other, const float *weight, const float *bias, uint16_t *to,
    float *exact, long rows, long width, float epsilon
) {
    if (width < 32 || width > DEEPEST || width % 32) return 1;
    for (long n = 0; n < rows; n++, from += width, other += width, to += width, exact += width)
        norm_row(from, other, GROUP, to, exact, weight, bias, width, epsilon);
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
    if (width < 32 || width > DEEPEST || width % 32) return 1;
    if (positions > place_rows) return 2;
    for (long n = 0; n < count * positions; n++, to += width, exact += width) {
        if (ids[n] < 0 || ids[n] >= word_rows || kinds[n] < 0 || kinds[n] >= segment_rows) return 2;
        if (n + SOON < count * positions && ids[n + SOON] >= 0 && ids[n + SOON] < word_rows)
            for (long i = 0; i < width; i += 16)
                __builtin_prefetch(words + ids[n + SOON] * width + i);
        const float *word = words + ids[n] * width, *place = places + n % positions * width;
        const float *segment = segments + kinds[n] * width;
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long i = 0; i < width; i += 16) {
            __m512 x = _mm512_add_ps(_mm512_loadu_ps(word + i), _mm512_loadu_ps(segment + i));
            x = _mm512_add_ps(x, _mm512_loadu_ps(place + i));
            sum[i / 16 % 2] = _mm512_add_ps(sum[i / 16 % 2], x);
            _mm512_store_ps(row + i, x);
        }
        normed(to, GROUP, exact, row, sum, weight, bias, width, epsilon);
    }
    return 0;
}

/* ------------------------------------------------------------------ whole layers */

/* What a layer is made of: weights as laid out, the rest in floats. */
typedef struct {
    const uint16_t *projections, *mix, *widen, *narrow;
    const float *projections_bias, *mix_bias, *widen_bias, *narrow_bias;
    const float *mixed_weight, *mixed_bias, *output_weight, *output_bias;
    float mixed_epsilon, output_epsilon;
} Layer;

/* Sequences that go through all layers together, their rows one after the other. */
typedef struct {
    float *exact; /* of the first, the next one's `positions` rows behind it */
    const int32_t *lengths;
    long count, positions;
} Some;

/* LayerNorm of `made` and the hidden states, which it becomes, and `x`. */
AVX INLINE void norm_some(
    Some some, Rows made, Rows x, const float *weight, const float *bias, long hidden, float epsilon
) {
    for (long each = 0; each < some.count; each++) {
        float *exact = some.exact + each * some.positions * hidden;
        for (int n = 0; n < some.lengths[each]; n++, exact += hidden) {
            norm_row(made.at, exact, x.group, x.at, exact, weight, bias, hidden, epsilon);
            made = beyond(made, 1, 0);
            x = beyond(x, 1, 0);
        }
    }
}

/* One layer over some sequences; `next` are the weights that are needed after it. */
AMX static void layer_by_tiles(
    const Layer *layer, Some some, Rows x, Rows made, Rows wide, long wanted, long heads, long width,
    long between, const uint16_t *next
) {
    long hidden = heads * width, rows = (wanted + BLOCK - 1) / BLOCK * BLOCK;
    multiply_by(
        x, layer->projections, layer->projections_bias, wide, rows, wanted, hidden, 3 * hidden, 0,
        layer->mix
    );
    Rows from = wide, context = x;
    for (long each = 0; each < some.count; each++) {
        attends(width, 1)(from, context, some.lengths[each], heads);
        from = beyond(from, some.lengths[each], 0);
        context = beyond(context, some.lengths[each], 0);
    }
    multiply_by(
        x, layer->mix, layer->mix_bias, made, rows, wanted, hidden, hidden, 0, layer->widen
    );
    norm_some(
        some, made, x, layer->mixed_weight, layer->mixed_bias, hidden, layer->mixed_epsilon
    );
    multiply_by(
        x, layer->widen, layer->widen_bias, wide, rows, wanted, hidden, between, 1, layer->narrow
    );
    multiply_by(
        wide, layer->narrow, layer->narrow_bias, made, rows, wanted, between, hidden, 0, next
    );
    norm_some(
        some, made, x, layer->output_weight, layer->output_bias, hidden, layer->output_epsilon
    );
}

/* Room for `through`, in bytes: for so many rows at a time. */
long room(long rows, long hidden, long between) {
    return 2 * rows * (2 * hidden + (between > 3 * hidden ? between : 3 * hidden));
}

/* Layers of heads of 32 or 64 numbers, by tiles, a few sequences at a time: what passes between
   their parts then stays in the second cache, which would not hold that of a whole batch.

   exact:   (count, positions, heads x width), hidden states, which become those of the last layer;
            those of padding are left alone
   lengths: (count), 0 to positions: tokens of each sequence, which come first
   space:   as large as `room` says for `rows`, a multiple of BLOCK, at least `positions`
   Returns 0, or 1 if the shape is none that is computed here. */
AMX int through(
    float *exact, const int32_t *lengths, long count, long positions, const Layer *layers, long many,
    long heads, long width, long between, uint16_t *space, long rows
) {
    long hidden = heads * width;
    if ((width != 32 && width != 64) || positions < 1 || positions > LONGEST || hidden > DEEPEST)
        return 1;
    if (!can_multiply(hidden, 3 * hidden) || !can_multiply(between, hidden)) return 1;
    if (!can_multiply(hidden, between) || rows < positions || rows > MOST_ROWS || rows % BLOCK) return 1;
    for (long each = 0; each < count; each++)
        if (lengths[each] < 0 || lengths[each] > positions) return 1;
    Rows x = {space, GROUP, rows * GROUP}, made = {x.at + rows * hidden, GROUP, rows * GROUP};
    Rows wide = {made.at + rows * hidden, GROUP, rows * GROUP};
    Tiles before;
    begin_tiles(&before);
    for (long first = 0; first < count;) {
        Some some = {exact + first * positions * hidden, lengths + first, 0, positions};
        long wanted = 0;
        for (; first < count && wanted + lengths[first] <= rows; first++, some.count++) {
            const float *from = exact + first * positions * hidden;
            for (int n = 0; n < lengths[first]; n++, wanted++)
                for (long i = 0; i < hidden; i += 16, from += 16)
                    narrowed(beyond(x, wanted, i).at, _mm512_loadu_ps(from));
        }
        if (wanted)
            for (long n = 0; n < many; n++)
                layer_by_tiles(
                    layers + n, some, x, made, wide, wanted, heads, width, between,
                    layers[n + 1 < many ? n + 1 : 0].projections
                );
    }
    end_tiles(&before);
    return 0;
}
