/* JSON from strangers: jansson behind limits.
 *
 * Values are jansson's json_t (object order is kept). Texts with duplicate keys, lone surrogates,
 * numbers outside double or int64 and nesting beyond max_depth are refused. */
#ifndef PHALANX_COMMON_JSON_H
#define PHALANX_COMMON_JSON_H

#include "common/err.h"

#include <jansson.h>
#include <stddef.h>

#define JSON_DEPTH_REQUEST 64 /* for HTTP bodies */
#define JSON_DEPTH_FILE 256   /* for model files */

/* Parses len bytes. On success *out is a new reference (json_decref it). ERR_INVALID with line and
 * column, or ERR_LIMIT for depth. Any JSON value may stand at the top. */
int json_parse(const char *text, size_t len, int max_depth, json_t **out, struct err *err);

/* Reads and parses a file of at most max_bytes. Errors carry the path. */
int json_load_path(const char *path, size_t max_bytes, json_t **out, struct err *err);

#endif
