#include "runtime/data/data_internal.h"

#include "runtime/base/pages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

unsigned char *data_stream_pack(struct data_stream *stream, size_t n_bytes)
{
    unsigned char *place = stream->packed + stream->packed_used;

    assert(n_bytes <= stream->packed_capacity - stream->packed_used);
    stream->packed_used += n_bytes;
    return place;
}

shoal_status data_stream_append(struct data_stream *stream, const unsigned char *content,
                                uint64_t n_tokens)
{
    if (stream->n_segments + 1 >= stream->segments_capacity) {
        size_t capacity = stream->segments_capacity == 0 ? 64 : 2 * stream->segments_capacity;
        struct data_segment *segments = realloc(stream->segments, capacity * sizeof *segments);

        if (segments == NULL)
            return fail(SHOAL_ERR_NOMEM, "data: no memory for an index of %zu documents", capacity);
        stream->segments = segments;
        stream->segments_capacity = capacity;
    }
    stream->segments[stream->n_segments++] = (struct data_segment){
        .first_token = stream->n_tokens,
        .content = content,
    };
    stream->n_tokens += n_tokens;
    stream->segments[stream->n_segments] = (struct data_segment){.first_token = stream->n_tokens};
    return SHOAL_OK;
}

void data_stream_close(struct data_stream *stream)
{
    for (size_t i = 0; i < stream->n_mappings; i++)
        munmap(stream->mappings[i].base, stream->mappings[i].n_bytes);
    free(stream->mappings);
    if (stream->packed != NULL)
        pages_free(stream->packed, stream->packed_capacity);
    free(stream->segments);
    *stream = (struct data_stream){0};
}

/* The last segment that begins at or before `token`. */
static size_t find_segment(const struct data_stream *stream, uint64_t token)
{
    size_t low = 0;
    size_t high = stream->n_segments;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (stream->segments[middle].first_token <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void widen(const unsigned char *content, size_t token_bytes, uint64_t begin, size_t n,
                  int32_t *tokens)
{
    switch (token_bytes) {
    case 1:
        for (size_t i = 0; i < n; i++)
            tokens[i] = content[begin + i];
        break;
    case 2:
        for (size_t i = 0; i < n; i++)
            tokens[i] = ((const uint16_t *)(const void *)content)[begin + i];
        break;
    default:
        memcpy(tokens, content + 4 * begin, 4 * n);
    }
}

void data_stream_read(const struct data_stream *stream, uint64_t begin, size_t n, int32_t *tokens)
{
    assert(begin <= stream->n_tokens && n <= stream->n_tokens - begin);

    for (size_t i = find_segment(stream, begin); n > 0; i++) {
        const struct data_segment *segment = &stream->segments[i];
        uint64_t n_left = segment[1].first_token - begin;
        size_t n_here = n < n_left ? n : (size_t)n_left;
        bool has_end = stream->token_bytes == 1 && n_here == n_left;

        widen(segment->content, stream->token_bytes, begin - segment->first_token, n_here - has_end,
              tokens);
        if (has_end)
            tokens[n_here - 1] = BYTE_TOKENIZER_END;
        tokens += n_here;
        begin += n_here;
        n -= n_here;
    }
}
