/* Suggestions for misspelt words. */
#include "runtime/config/config_internal.h"

#include <limits.h>
#include <string.h>

enum { MAX_WORD = 64 };

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/*
 * Levenshtein's distance where a swap of neighbours counts once ("optimal string alignment");
 * INT_MAX for words that are too long to be a key.
 */
static int distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    int rows[3][MAX_WORD + 1]; /* the last three rows of the table */

    if (n_a > MAX_WORD || n_b > MAX_WORD)
        return INT_MAX;
    for (size_t j = 0; j <= n_b; j++)
        rows[0][j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        int *row = rows[i % 3];
        const int *above = rows[(i - 1) % 3];
        const int *above2 = rows[(i + 1) % 3];

        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            int change = above[j - 1] + (a[i - 1] != b[j - 1]);

            row[j] = min_int(change, min_int(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min_int(row[j], above2[j - 2] + 1);
        }
    }
    return rows[n_a % 3][n_b];
}

/* The distance when it is near, otherwise INT_MAX. */
static int near_distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    int d = distance(a, n_a, b, n_b);

    return d <= (int)(n_a > n_b ? n_a : n_b) / 3 ? d : INT_MAX;
}

/* The nearest word's distance; its start and length in *best_out and *n_best_out. */
static int nearest_in(const char *word, size_t n_word, const char *words, const char **best_out,
                      size_t *n_best_out)
{
    int best = INT_MAX;

    for (const char *w = words + strspn(words, " "); *w != '\0';) {
        size_t n = strcspn(w, " ");
        int d = near_distance(word, n_word, w, n);

        if (d < best) {
            best = d;
            *best_out = w;
            *n_best_out = n;
        }
        w += n;
        w += strspn(w, " ");
    }
    return best;
}

const char *nearest_word(const char *word, const char *words, char *out, size_t n_bytes)
{
    const char *best = NULL;
    size_t n_best = 0;

    if (nearest_in(word, strlen(word), words, &best, &n_best) == INT_MAX || n_best >= n_bytes)
        return NULL;
    memcpy(out, best, n_best);
    out[n_best] = '\0';
    return out;
}

/*
 * A key matches by its last part, under its own name or one that other trainers use; among equal
 * ones the section decides.  So `lr`, `train.lr`, `optimizer.learning_rate` and `optimizer.rl`
 * all lead to optimizer.lr.
 */
const char *config_nearest(const char *path)
{
    const char *dot = strrchr(path, '.');
    const char *leaf = dot != NULL ? dot + 1 : path;
    size_t n_section = dot != NULL ? (size_t)(dot - path) : 0;
    const char *best = NULL;
    int best_score = INT_MAX;
    size_t n_keys;
    const struct config_key *keys = config_keys(&n_keys);

    for (size_t i = 0; i < n_keys; i++) {
        const char *key_dot = strrchr(keys[i].path, '.');
        const char *key_leaf = key_dot != NULL ? key_dot + 1 : keys[i].path;
        size_t n_key_section = key_dot != NULL ? (size_t)(key_dot - keys[i].path) : 0;
        const char *unused;
        size_t n_unused;
        int d = near_distance(leaf, strlen(leaf), key_leaf, strlen(key_leaf));

        if (keys[i].also != NULL)
            d = min_int(d, nearest_in(leaf, strlen(leaf), keys[i].also, &unused, &n_unused));
        if (d == INT_MAX)
            continue;
        int section = distance(path, n_section, keys[i].path, n_key_section);
        int score = 4 * d + min_int(section, 3);
        if (score < best_score) {
            best_score = score;
            best = keys[i].path;
        }
    }
    return best;
}
