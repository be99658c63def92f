#include "runtime/data/data_internal.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Where we are, for messages. */
struct place {
    const char *path;
    uint64_t line;         /* from 1 */
    uint64_t offset_bytes; /* of the line in the file */
};

static bool is_blank(const char *line, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

static shoal_status fail_syntax(const struct place *place, const json_error_t *error)
{
    char path[DATA_SHOWN_BYTES];
    char text[DATA_SHOWN_BYTES];
    uint64_t position = error->position > 0 ? (uint64_t)error->position : 0;

    /* jansson quotes the input, which may be anything. */
    fail(SHOAL_ERR_DATA, "%s:%" PRIu64 ": byte %" PRIu64 " of the file: bad JSON: %s",
         data_shown(place->path, path), place->line, place->offset_bytes + position,
         data_shown(error->text, text));
    return fail_hint(SHOAL_ERR_DATA, "every line must be one object such as {\"text\": \"...\"} "
                                     "in UTF-8; for plain text set data.format=text");
}

static shoal_status fail_no_text(const struct place *place, const json_t *object)
{
    char path[DATA_SHOWN_BYTES];
    char shown[DATA_SHOWN_BYTES];
    char keys[DATA_SHOWN_BYTES] = "";
    size_t n_used = 0;
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        int n = snprintf(keys + n_used, sizeof keys - n_used, "%s%s", n_used > 0 ? ", " : "", key);

        if (n < 0 || (size_t)n >= sizeof keys - n_used)
            break;
        n_used += (size_t)n;
    }
    fail(SHOAL_ERR_DATA, "%s:%" PRIu64 ": byte %" PRIu64 " of the file: no string \"text\"",
         data_shown(place->path, path), place->line, place->offset_bytes);
    if (n_used > 0)
        fail_why(SHOAL_ERR_DATA, "the object has: %s", data_shown(keys, shown));
    return fail_hint(SHOAL_ERR_DATA, "every line must be one object such as {\"text\": \"...\"}");
}

static shoal_status decode_line(const struct place *place, const char *line, size_t n_bytes,
                                struct data_stream *stream)
{
    /* Numbers beside the text are not ours to judge: as reals they cannot overflow at 64 bits. */
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL;
    json_error_t error;
    json_t *object = json_loadb(line, n_bytes, flags, &error);

    if (object == NULL)
        return fail_syntax(place, &error);

    shoal_status status = SHOAL_OK;
    const json_t *text = json_object_get(object, "text");
    if (!json_is_string(text)) {
        status = fail_no_text(place, object);
        goto done;
    }
    size_t n_text = json_string_length(text);
    if (n_text > 0) {
        unsigned char *content = data_stream_pack(stream, n_text);

        memcpy(content, json_string_value(text), n_text);
        status = data_stream_append(stream, content, n_text + 1);
    }
done:
    json_decref(object);
    return status;
}

shoal_status data_jsonl_decode(const char *path, const char *content, size_t n_bytes,
                               struct data_stream *stream)
{
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    struct place place = {.path = path};
    size_t begin = 0;

    if (n_bytes >= 3 && memcmp(content, byte_order_mark, 3) == 0)
        begin = 3;
    while (begin < n_bytes) {
        const char *line = content + begin;
        const char *newline = memchr(line, '\n', n_bytes - begin);
        size_t n_line = newline != NULL ? (size_t)(newline - line) : n_bytes - begin;

        place.line++;
        place.offset_bytes = begin;
        if (!is_blank(line, n_line))
            SHOAL_TRY(decode_line(&place, line, n_line, stream));
        begin += n_line + 1;
    }
    return SHOAL_OK;
}
