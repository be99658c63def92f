#include "runtime/data/data_internal.h"

#include "runtime/base/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * From files to a stream.  All checks happen here, once: what was opened is read without errors.
 */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian");

/* Larger files are mapped, smaller ones are read into the packed memory. */
enum { MAP_ABOVE_BYTES = 1 << 20, PACK_ALIGN = 8 };

static size_t packed_bytes(uint64_t n_bytes)
{
    return (size_t)((n_bytes + PACK_ALIGN - 1) & ~(uint64_t)(PACK_ALIGN - 1));
}

static shoal_status fail_read(const struct data_source *source, int error)
{
    char shown[DATA_SHOWN_BYTES];
    bool is_io = error == EIO || error == ESTALE;

    return fail(is_io ? SHOAL_ERR_IO : SHOAL_ERR_NOINPUT, "%s: cannot read: %s",
                data_shown(source->path, shown), strerror(error));
}

static shoal_status fail_changed(const struct data_source *source)
{
    char shown[DATA_SHOWN_BYTES];

    fail(SHOAL_ERR_DATA, "%s: changed while it was opened, expected %" PRIu64 " bytes",
         data_shown(source->path, shown), source->n_bytes);
    return fail_hint(SHOAL_ERR_DATA, "write data under another name and rename it when it is "
                                     "complete; it must not change while training");
}

static shoal_status open_source(const struct data_source *source, int *fd_out)
{
    struct stat st;
    int fd = open(source->path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return fail_read(source, errno);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != source->n_bytes) {
        close(fd);
        return fail_changed(source);
    }
    *fd_out = fd;
    return SHOAL_OK;
}

static shoal_status read_fully(const struct data_source *source, int fd, unsigned char *out,
                               size_t n_bytes)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = pread(fd, out + done, n_bytes - done, (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_read(source, errno);
        if (n == 0)
            return fail_changed(source);
        done += (size_t)n;
    }
    return SHOAL_OK;
}

static shoal_status map_source(const struct data_source *source, struct data_mapping *mapping_out)
{
    char shown[DATA_SHOWN_BYTES];
    size_t n_bytes = (size_t)source->n_bytes;
    int fd;

    SHOAL_TRY(open_source(source, &fd));
    void *base = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    int error = errno;
    close(fd);
    if (base == MAP_FAILED) {
        fail(SHOAL_ERR_NOMEM, "%s: cannot map %zu bytes: %s", data_shown(source->path, shown),
             n_bytes, strerror(error));
        return fail_hint(SHOAL_ERR_NOMEM, "join the files with `shoal data prepare`, or raise "
                                          "vm.max_map_count");
    }
    *mapping_out = (struct data_mapping){.base = base, .n_bytes = n_bytes};
    return SHOAL_OK;
}

/* Map `source` for the life of the stream, or read it into the packed memory. */
static shoal_status load(struct data_stream *stream, const struct data_source *source,
                         const unsigned char **content_out)
{
    if (source->n_bytes <= MAP_ABOVE_BYTES) {
        unsigned char *place = data_stream_pack(stream, packed_bytes(source->n_bytes));
        int fd;

        SHOAL_TRY(open_source(source, &fd));
        shoal_status status = read_fully(source, fd, place, (size_t)source->n_bytes);
        close(fd);
        SHOAL_TRY(status);
        *content_out = place;
        return SHOAL_OK;
    }

    if (stream->n_mappings == stream->mappings_capacity) {
        size_t capacity = stream->mappings_capacity == 0 ? 16 : 2 * stream->mappings_capacity;
        struct data_mapping *mappings = realloc(stream->mappings, capacity * sizeof *mappings);

        if (mappings == NULL)
            return fail(SHOAL_ERR_NOMEM, "data: no memory for a list of %zu files", capacity);
        stream->mappings = mappings;
        stream->mappings_capacity = capacity;
    }
    struct data_mapping *mapping = &stream->mappings[stream->n_mappings];
    SHOAL_TRY(map_source(source, mapping));
    stream->n_mappings++;
    *content_out = mapping->base;
    return SHOAL_OK;
}

/* With format auto every file is asked; one stream has one format. */
static shoal_status check_format(const struct data_stream *stream, const char *key,
                                 const struct data_params *params, const struct data_source *source,
                                 const unsigned char *content)
{
    char shown[DATA_SHOWN_BYTES];
    enum data_format format;

    if (params->format != DATA_AUTO)
        return SHOAL_OK;
    SHOAL_TRY(data_format_detect(source->path, content, (size_t)source->n_bytes, &format));
    if (format == stream->format)
        return SHOAL_OK;
    fail(SHOAL_ERR_DATA, "%s: %s is %s, the files before it are %s", key,
         data_shown(source->path, shown), data_format_name(format),
         data_format_name(stream->format));
    return fail_hint(SHOAL_ERR_DATA, "choose files of one format with a glob such as dir/*.txt, "
                                     "or set data.format");
}

static shoal_status add_jsonl(struct data_stream *stream, const char *key,
                              const struct data_params *params, const struct data_source *source)
{
    char shown[DATA_SHOWN_BYTES];
    size_t n_before = stream->n_segments;
    struct data_mapping mapping;
    shoal_status status;

    SHOAL_TRY(map_source(source, &mapping));
    SHOAL_TRY_GOTO(check_format(stream, key, params, source, mapping.base), unmap);
    SHOAL_TRY_GOTO(data_jsonl_decode(source->path, mapping.base, mapping.n_bytes, stream), unmap);
    if (stream->n_segments == n_before && source->is_named) {
        status = fail(SHOAL_ERR_DATA, "%s: holds no text in %zu bytes",
                      data_shown(source->path, shown), mapping.n_bytes);
        goto unmap;
    }
    stream->fingerprint =
        data_fingerprint(stream->fingerprint, source->path, mapping.base, mapping.n_bytes);
unmap:
    munmap(mapping.base, mapping.n_bytes);
    return status;
}

static shoal_status add_tokens(struct data_stream *stream, const struct data_params *params,
                               const struct data_source *source, const unsigned char *content)
{
    char shown[DATA_SHOWN_BYTES];
    struct data_token_file file;
    uint32_t max_token;

    SHOAL_TRY(data_token_file_parse(source->path, stream->format, content, (size_t)source->n_bytes,
                                    &file));
    if (stream->n_segments > 0 && file.token_bytes != stream->token_bytes) {
        fail(SHOAL_ERR_DATA, "%s: tokens of %zu bytes, the files before it have tokens of %zu",
             data_shown(source->path, shown), file.token_bytes, stream->token_bytes);
        return fail_hint(SHOAL_ERR_DATA, "they come from different tokenizers: train on one kind");
    }
    SHOAL_TRY(data_token_file_check(source->path, content, &file, params, &max_token));
    stream->token_bytes = file.token_bytes;
    if (max_token > stream->max_token)
        stream->max_token = max_token;
    return data_stream_append(stream, content + file.header_bytes, file.n_tokens);
}

static shoal_status add_file(struct data_stream *stream, const char *key,
                             const struct data_params *params, const struct data_source *source)
{
    char shown[DATA_SHOWN_BYTES];
    const unsigned char *content = NULL;
    bool is_text = stream->format == DATA_TEXT || stream->format == DATA_JSONL;

    /* An empty text in a directory is a document of no words; one that was named is a mistake. */
    if (source->n_bytes == 0 && is_text && !source->is_named)
        return SHOAL_OK;
    if (source->n_bytes == 0) {
        fail(SHOAL_ERR_DATA, "%s: the file is empty", data_shown(source->path, shown));
        return fail_hint(SHOAL_ERR_DATA, "name a file with text or tokens in data.train");
    }

    stream->n_files++;
    stream->n_bytes += source->n_bytes;
    if (stream->format == DATA_JSONL)
        return add_jsonl(stream, key, params, source);

    SHOAL_TRY(load(stream, source, &content));
    SHOAL_TRY(check_format(stream, key, params, source, content));
    stream->fingerprint =
        data_fingerprint(stream->fingerprint, source->path, content, (size_t)source->n_bytes);
    if (is_text)
        return data_stream_append(stream, content, source->n_bytes + 1);
    return add_tokens(stream, params, source, content);
}

/* The format of the first file that is not empty. */
static shoal_status first_format(const struct data_sources *sources, enum data_format *format_out)
{
    for (size_t i = 0; i < sources->n; i++) {
        const struct data_source *source = &sources->items[i];
        unsigned char head[DATA_HEAD_BYTES];
        size_t n_bytes = source->n_bytes < sizeof head ? (size_t)source->n_bytes : sizeof head;
        int fd;

        if (n_bytes == 0)
            continue;
        SHOAL_TRY(open_source(source, &fd));
        shoal_status status = read_fully(source, fd, head, n_bytes);
        close(fd);
        SHOAL_TRY(status);
        return data_format_detect(source->path, head, n_bytes, format_out);
    }
    *format_out = DATA_TEXT;
    return SHOAL_OK;
}

/* The tokenizer must fit the format, and the vocabulary the tokenizer. */
static shoal_status check_tokenizer(const struct data_stream *stream, const char *key,
                                    const struct data_params *params)
{
    if (stream->token_bytes != 1)
        return SHOAL_OK;
    if (!data_is_byte_tokenizer(params)) {
        fail(SHOAL_ERR_CONFIG, "data.tokenizer: none, but the files of %s are %s", key,
             data_format_name(stream->format));
        return fail_hint(SHOAL_ERR_CONFIG, "set data.tokenizer=bytes");
    }
    if (params->vocab < BYTE_TOKENIZER_VOCAB) {
        fail(SHOAL_ERR_CONFIG,
             "model.vocab: %" PRId64 ", but the byte tokenizer has %d ids (256 bytes and the end "
             "of a document)",
             params->vocab, BYTE_TOKENIZER_VOCAB);
        return fail_hint(SHOAL_ERR_CONFIG, "set model.vocab=%d or more", BYTE_TOKENIZER_VOCAB);
    }
    return SHOAL_OK;
}

/*
 * One allocation for everything that is not mapped.  Decoded JSONL is never longer than its source
 * (escapes only shrink), and pages that stay untouched cost nothing.
 */
static shoal_status reserve_packed(struct data_stream *stream, const struct data_sources *sources)
{
    uint64_t n_bytes = 0;
    void *base;

    for (size_t i = 0; i < sources->n; i++)
        if (stream->format == DATA_JSONL || sources->items[i].n_bytes <= MAP_ABOVE_BYTES)
            n_bytes += packed_bytes(sources->items[i].n_bytes);
    if (n_bytes == 0)
        return SHOAL_OK;
    SHOAL_TRY(pages_alloc("data", (size_t)n_bytes, &base));
    stream->packed = base;
    stream->packed_capacity = (size_t)n_bytes;
    return SHOAL_OK;
}

shoal_status data_stream_open(const struct data_sources *sources, const char *key,
                              const struct data_params *params, struct data_stream *stream_out)
{
    struct data_stream stream = {.format = params->format};
    shoal_status status;

    if (stream.format == DATA_AUTO)
        SHOAL_TRY(first_format(sources, &stream.format));
    if (stream.format == DATA_TEXT || stream.format == DATA_JSONL) {
        stream.token_bytes = 1;
        stream.max_token = BYTE_TOKENIZER_END;
    }
    SHOAL_TRY(check_tokenizer(&stream, key, params));
    SHOAL_TRY(reserve_packed(&stream, sources));

    for (size_t i = 0; i < sources->n; i++)
        SHOAL_TRY_GOTO(add_file(&stream, key, params, &sources->items[i]), err_close);
    if (stream.n_segments == 0) {
        status = fail(SHOAL_ERR_DATA, "%s: no text in %zu file(s)", key, sources->n);
        goto err_close;
    }
    /* Windows are read in random order: reading ahead would read what is not used. */
    for (size_t i = 0; i < stream.n_mappings; i++)
        madvise(stream.mappings[i].base, stream.mappings[i].n_bytes, MADV_RANDOM);

    *stream_out = stream;
    return SHOAL_OK;

err_close:
    data_stream_close(&stream);
    return status;
}
