#pragma once

#include "optim/codec.h"

/*
 * Codecs of other libraries whose codes are the numbers of values in a sorted table, a "map".
 *
 * Their encoders are searches of the map.  Here a table that is indexed by the upper bits of the
 * scaled value gives the same codes: each of its cells is narrow enough to hold at most one step
 * from a code to the next, whose exact place stands in the cell.
 */

enum map_kind { MAP_BNB8, MAP_AO8, MAP_AO4, MAP_LPMM4, N_MAP_KINDS };

enum { MAP_MAX_CODES = 256, MAP_MAX_CELLS = 2 * (24 * 128 + 1) };

/*
 * The steps of a map.  Magnitudes are cut to [least, 1]; their bits from `shift` up count the cells
 * of a sign from `least` on, those below zero follow those above.  A cell holds in its upper byte
 * the code at its beginning, and below the lower bits from which on the code is one further from
 * zero.
 */
struct map_steps {
    int shift;
    uint32_t least; /* bits */
    uint32_t cells; /* of a sign */
    uint32_t cell[MAP_MAX_CELLS];
};

struct codec_map {
    float values[MAP_MAX_CODES];
    struct map_steps steps;
};

/* Filled by codec_maps_prepare, which codec_find calls once. */
extern struct codec_map codec_maps[N_MAP_KINDS][2];

void codec_maps_prepare(void);

/* The code of x = value / scale by the search that the library does; the specification. */
int codec_map_search(enum map_kind kind, enum codec_sign sign, float x);
