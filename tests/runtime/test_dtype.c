#include "runtime/base/dtype.h"

#include <criterion/criterion.h>
#include <math.h>

static float float_of(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

Test(dtype, sizes_and_names_match)
{
    cr_assert_eq(dtype_bytes(DTYPE_F32), sizeof(float));
    cr_assert_eq(dtype_bytes(DTYPE_BF16), sizeof(bf16_t));
    cr_assert_eq(dtype_bytes(DTYPE_I32), sizeof(int32_t));
    cr_assert_eq(dtype_bytes(DTYPE_I64), sizeof(int64_t));
    cr_assert_eq(dtype_bytes(DTYPE_U8), 1);
    cr_assert_str_eq(dtype_name(DTYPE_F32), "fp32");
    cr_assert_str_eq(dtype_name(DTYPE_BF16), "bf16");
}

Test(dtype, every_bf16_survives_the_way_through_fp32)
{
    for (uint32_t x = 0; x <= 0xffff; x++) {
        const bool nan = (x & 0x7fff) > 0x7f80;
        const uint32_t want = nan ? x | 0x40 : x; /* signalling NaNs become quiet */

        cr_assert_eq(bf16_from_f32(bf16_to_f32((bf16_t)x)), want, "%04x", (unsigned)x);
    }
}

/*
 * Between neighbours a < b of bf16: the midpoint goes to the even one, its fp32 neighbours to
 * the nearer one.  For the largest finite a, b is infinity and the rule is the same.
 */
Test(dtype, rounds_to_the_nearest_bf16_and_ties_to_even)
{
    for (uint32_t a = 0; a < 0x7f80; a++) {
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            const uint32_t low = a | sign;
            const uint32_t middle = low << 16 | 0x8000;
            const uint32_t even = low + (low & 1);

            cr_assert_eq(bf16_from_f32(float_of(middle - 1)), low);
            cr_assert_eq(bf16_from_f32(float_of(middle)), even);
            cr_assert_eq(bf16_from_f32(float_of(middle + 1)), low + 1);
        }
    }
}

Test(dtype, nan_stays_nan_whatever_its_payload)
{
    cr_assert(isnan(bf16_to_f32(bf16_from_f32(float_of(0x7f800001)))));
    cr_assert(isnan(bf16_to_f32(bf16_from_f32(float_of(0xffffffff)))));
    cr_assert_eq(bf16_from_f32(float_of(0x7fc00000)), 0x7fc0);
    cr_assert_eq(bf16_from_f32(INFINITY), 0x7f80);
    cr_assert_eq(bf16_from_f32(-INFINITY), 0xff80);
}
